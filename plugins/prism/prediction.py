"""PRISM's interaction losses where the paper puts them: on recommendation outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.prism.losses import interaction_losses
from recplug.plugins.step import Step


def prediction_losses(
    step: Step,
    added: Callable[[Tensor], Tensor],
    *,
    experts: Sequence[str],
    chosen: Sequence[int],
    modalities: Sequence[str],
    real: Tensor,
    triplet: str,
    margin: float,
) -> dict[str, Tensor]:
    """Unweighted losses on score vectors ``y = E h`` (eqs. 2-8), through the Gram matrix of E.

    The backbone is shared between experts, which the paper leaves open. Each (expert, condition) pair costs one pass of
    the encoder: 12 with two modalities, or 3 when one expert is drawn a step.

    Args:
        step: a training step whose host can re-run its encoder and scores by dot product.
        added: item ids ``[*]`` to what is added to their rows ``[*, J, 1 + M, d]``: by expert, on everything and with
            one modality after the other masked.
        experts: J names.
        chosen: which of them, in ascending order; the losses of fewer count for all.
        modalities: M names.
        real: ``[n_rows]`` bool: rows that are items.
        triplet, margin: see :func:`~recplug.plugins.prism.losses.interaction_losses`.

    Returns:
        ``[]`` by chosen expert.

    Raises:
        RecplugError: where the host does not score by dot product.
    """
    if not step.score_is_dot:
        raise RecplugError("PRISM's loss_level 'prediction' needs dot-product scores; use 'item' on this backbone")

    def encoded(expert: int, condition: int) -> Tensor:
        """``[B, d]``: eqs. (2)-(4)."""
        return step.reencode(lambda rows, ids, _: rows + added(ids)[..., expert, condition, :])

    outputs = torch.stack(
        [torch.stack([encoded(j, c) for c in range(1 + len(modalities))], dim=1) for j in chosen], dim=1
    )  # [B, chosen, 1+M, d]
    table = step.candidates().detach().float() * real.unsqueeze(-1)  # [n_rows, d]
    with torch.autocast(outputs.device.type, enabled=False):  # products of the Gram matrix in float32
        terms = interaction_losses(
            outputs[:, :, 0],
            outputs[:, :, 1:],
            experts=[experts[j] for j in chosen],
            modalities=modalities,
            valid=torch.ones(len(outputs), dtype=torch.bool, device=outputs.device),
            triplet=triplet,
            margin=margin,
            gram=table.T @ table,
        )
    return {name: term * (len(experts) / len(chosen)) for name, term in terms.items()}
