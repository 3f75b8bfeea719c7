"""PRISM's interaction losses where the paper puts them: on recommendation outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.prism.losses import interaction_losses, stand_ins
from recplug.plugins.step import Step

if TYPE_CHECKING:
    from recplug.plugins.prism.module import Prism


def prediction_losses(prism: Prism, step: Step) -> dict[str, Tensor]:
    """Unweighted losses on score vectors ``y = E h`` (eqs. 2-8), through the Gram matrix of E.

    The backbone is shared between experts, which the paper leaves open. Each (expert, condition) pair costs one pass of
    the encoder: 12 with two modalities, or 3 when one expert is drawn a step.

    Args:
        prism: the module.
        step: a training step whose host can re-run its encoder and scores by dot product.

    Returns:
        As ``interaction_losses``.

    Raises:
        RecplugError: where the host does not score by dot product.
    """
    if not step.score_is_dot:
        raise RecplugError("PRISM's loss_level 'prediction' needs dot-product scores; use 'item' on this backbone")
    n_experts, modalities = prism.experts.n_experts, len(prism.names)
    chosen = range(n_experts)
    if prism.settings.prediction_experts == "one":
        drawn = int(prism.choice.permutation(n_experts, torch.device("cpu"))[0])
        chosen = range(drawn, drawn + 1)

    def variants(ids: Tensor) -> Tensor:
        p = prism.projections(ids)
        valid = prism.content.complete(ids) & prism.real(ids)
        full, masked = prism.experts.masked(p, stand_ins(p, prism.settings.mask, prism.noise, valid))
        # An item that lacks a modality says nothing of interactions: no mask touches it.
        masked = torch.where(valid[:, None, None, None], masked, full.unsqueeze(2))
        return torch.cat([full.unsqueeze(2), masked], dim=2)  # [r, J, 1+M, d]

    encoded: dict[tuple[int, int], Tensor] = {}
    for expert in chosen:
        for condition in range(1 + modalities):

            def rows_of(
                rows: Tensor, ids: Tensor, _: Tensor | None, at: tuple[int, int] = (expert, condition)
            ) -> Tensor:
                return rows + prism.scale * step.lookup("prism.variants", ids, variants)[0][..., at[0], at[1], :]

            encoded[expert, condition] = step.reencode(rows_of)  # [B, d]
    nothing = torch.zeros_like(next(iter(encoded.values())))
    outputs = torch.stack(
        [torch.stack([encoded.get((j, c), nothing) for c in range(1 + modalities)], dim=1) for j in range(n_experts)],
        dim=1,
    )  # [B, J, 1+M, d]
    real_rows = prism.real(step.all_ids()).unsqueeze(-1)
    table = step.candidates().detach().float() * real_rows  # [n_rows, d]
    with torch.autocast(outputs.device.type, enabled=False):  # products of the Gram matrix in float32
        terms = interaction_losses(
            outputs[:, :, 0],
            outputs[:, :, 1:],
            valid=torch.ones(len(outputs), dtype=torch.bool, device=outputs.device),
            triplet=prism.settings.triplet,
            margin=prism.settings.margin,
            gram=table.T @ table,
        )
    weight = outputs.new_zeros(n_experts).float()
    weight[chosen.start : chosen.stop] = n_experts / len(chosen)
    return {
        "unique": terms["unique"] * weight[:modalities],
        "synergy": terms["synergy"] * weight[modalities],
        "redundancy": terms["redundancy"] * weight[modalities + 1],
    }
