"""PRISM as an augmentation, and as a plain module for anyone's own training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.contract import Augmentation, Modality, Panel, Role
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import Noise
from recplug.plugins.nn.recorder import Recorder
from recplug.plugins.prism import diagnostics
from recplug.plugins.prism.fusion import Content, Experts, Gate
from recplug.plugins.prism.losses import interaction_losses, stand_ins, valid_first
from recplug.plugins.prism.prediction import prediction_losses
from recplug.plugins.prism.settings import PrismSettings
from recplug.plugins.step import Step


class Prism(Augmentation):
    r"""Experts for unique, redundant and synergistic content, weighed by a gate (PRISM, arXiv 2601.10944).

    .. math::
        e^j &= E_j(p_1, ..., p_M) && \text{(1)} \\
        w &= W(e^1, ..., e^J, c) && \text{(10)} \\
        \tilde e &= e^{id} + s \textstyle\sum_j w^j e^j && \text{(11)}

    c is the mean of the rows of the user's history (``fusion="user"``) or the item's own row (``"item"``, and always
    for candidates and on graph backbones). The paper does not say how :math:`e^{id}` and :math:`e^m` are combined; we
    add, with a trained scalar s.

    Where we deviate: content vectors are frozen and normalised; means over a history leave padding out; what replaces
    a masked modality has the signal's own scale; an item without a vector gets a learned default and no interaction
    loss; by default the losses act on items, at most ``loss_items`` a step, drawn from those that the step fuses (the
    batch's, or all of them under a full softmax with fused candidates), where the paper re-runs the recommender 12
    times (``loss_level="prediction"``) and the authors' code works on one pooled vector a sequence
    (``"sequence_pooled"``).

    Args:
        modalities: M >= 1 content sources, aligned with the host's item rows. With M = 1 the interaction losses are
            undefined and off.
        width: d, the host's item width.
        settings: every choice.
        n_rows: rows of the host's item table; default: those of the first modality.
        seed: of the plugin's own noise.
        padding_id, mask_id: rows that carry no item.

    Shapes:
        ``forward(rows [B, L, d], ids [B, L])`` to ``[B, L, d]``; ``rows [n, d], ids [n]`` to ``[n, d]``.
    """

    def __init__(
        self,
        *,
        modalities: list[Modality],
        width: int,
        settings: PrismSettings | None = None,
        n_rows: int | None = None,
        seed: int = 0,
        padding_id: int = 0,
        mask_id: int | None = None,
    ) -> None:
        super().__init__()
        if not modalities:
            raise RecplugError("PRISM needs at least one modality; give it a feature table")
        self.settings = settings = settings or PrismSettings()
        self.names = tuple(m.name for m in modalities)
        self.expert_names = settings.chosen(self.names)
        self.padding_id = padding_id
        self.mask_id = mask_id
        self.roles = frozenset({"input", "candidate"} if settings.candidates == "fused" else {"input"})
        by_user = settings.fusion == "user" and settings.gate and self.expert_names
        history = by_user or settings.fusion == "sequence_pooled"
        self.by_item = frozenset({"candidate"} if history else {"input", "candidate"})
        self.noise = Noise(seed)
        self.choice = Noise(seed + 1)
        self.recorder = Recorder()
        self.content = Content(
            modalities=modalities, width=width, n_rows=n_rows or len(modalities[0].values), tune=settings.tune_features
        )
        n = len(self.expert_names)
        self.experts: Experts | None = None
        self.gate: Gate | None = None
        if n:
            self.experts = Experts(experts=n, modalities=len(modalities), width=width, hidden=settings.hidden)
        if n and settings.gate:
            self.gate = Gate(
                experts=n,
                width=width,
                temperature=settings.temperature,
                dropout=settings.gate_dropout,
                noise=self.noise,
            )
        self.scale = nn.Parameter(torch.tensor(float(settings.scale)), requires_grad=settings.learn_scale)

    def reset_parameters(self) -> None:
        """Draw every layer anew."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        with torch.no_grad():
            self.scale.fill_(self.settings.scale)

    # -- fusion

    def forward(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Fuse content into ``rows``; ids of two dimensions are histories."""
        return self.items(rows, ids, role="input", sequence=ids if ids.dim() == 2 else None)

    def items(self, rows: Tensor, ids: Tensor, *, role: Role, sequence: Tensor | None) -> Tensor:
        """The item seam: ``rows [*ids.shape, d]`` to the same shape."""
        if role not in self.roles:
            return rows
        by_history = role not in self.by_item and sequence is not None
        pooled = by_history and self.settings.fusion == "sequence_pooled"
        content = self._pooled(rows, ids) if pooled else self._weighed(rows, ids, by_history=by_history)
        return rows + self.scale * content * self.real(ids).unsqueeze(-1)

    def real(self, ids: Tensor) -> Tensor:
        """``[*ids.shape]`` bool: neither padding nor mask."""
        real = ids != self.padding_id
        return real if self.mask_id is None else real & (ids != self.mask_id)

    def projections(self, ids: Tensor) -> Tensor:
        """``[*ids.shape, M, d]``: projected content, each item once a step."""
        if self.step is not None:
            return self.step.lookup("prism.projections", ids, self.content)[0]
        return self.content(ids.reshape(-1)).unflatten(0, ids.shape)

    def _once(
        self, key: str, ids: Tensor, compute: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """``compute(ids [r])`` for each item once a step, and where each id's row is; else one row for every id."""
        if self.step is not None:
            return self.step.rows_of(key, ids, compute)
        return compute(ids.reshape(-1)), torch.arange(ids.numel(), device=ids.device).view(ids.shape)

    def _of_items(self, ids: Tensor) -> tuple[Tensor, ...]:
        """What the fusion needs of items ``[r]``: experts ``[r, J, d]``, their part of the gate ``[r, 2d]``, the plain
        sum ``[r, d]``; those of them that there are."""
        p = self.projections(ids)  # [r, M, d]
        found = []
        if self.experts is not None:
            e = self.experts(p)
            found = [e] if self.gate is None else [e, self.gate.items(e)]
        return (*found, p.sum(dim=1)) if self.settings.residual else tuple(found)

    def _weighed(self, rows: Tensor, ids: Tensor, *, by_history: bool) -> Tensor:
        """Eqs. (10) and (11) for each id, in the light of its own row or of the history: ``[*ids.shape, d]``."""
        values, where = self._once("prism.items", ids, self._of_items)
        plain = F.embedding(where, values[-1]) if self.settings.residual else None
        if self.experts is None:
            assert plain is not None
            return plain
        e = values[0]  # [r, J, d]
        w = e.new_full((*ids.shape, e.shape[1]), 1.0 / e.shape[1])
        if self.gate is not None:
            first = F.embedding(where, values[1])  # [..., 2d]
            real = self.real(ids)
            if by_history and self.settings.granularity == "sequence":
                first = masked_mean(first, real).unsqueeze(1)  # [B, 1, 2d]
            context = masked_mean(rows, real).unsqueeze(1) if by_history else rows  # [B, 1, d] | [..., d]
            w = self.gate(first + self.gate.contexts(context)).expand_as(w)  # [..., J]
            self._record(w, ids, by_history=by_history)
        # Read where they are: a copy of all experts for every position would be J times the history.
        place = where.unsqueeze(-1) * e.shape[1] + torch.arange(e.shape[1], device=ids.device)  # [..., J]
        mixed = F.embedding_bag(
            place.flatten(0, -2),
            e.flatten(0, 1),
            per_sample_weights=w.to(e.dtype).reshape(-1, e.shape[1]),
            mode="sum",
        ).view(*ids.shape, -1)
        return mixed if plain is None else mixed + plain

    def _pooled(self, rows: Tensor, ids: Tensor) -> Tensor:
        """The authors' code: one vector a history, for every position: ``[B, L, d]`` to ``[B, 1 | L, d]``."""
        real = self.real(ids)
        p = self.projections(ids)  # [B, L, M, d]
        found = p.sum(dim=-2) if self.settings.residual else p.new_zeros(())
        if self.experts is None:
            return found
        e = self.experts(masked_mean(p, real))  # [B, J, d]
        w = e.new_full(e.shape[:2], 1.0 / e.shape[1])
        if self.gate is not None:
            w = self.gate(self.gate.items(e) + self.gate.contexts(masked_mean(rows, real)))  # [B, J]
            self._record(w.unsqueeze(1).expand(*ids.shape, -1), ids, by_history=True)
        return found + torch.einsum("bj,bjd->bd", w, e).unsqueeze(1)

    def _record(self, w: Tensor, ids: Tensor, *, by_history: bool) -> None:
        """Keep what an evaluation weighs by: ``w [*ids.shape, J]``, of histories the mean over their positions."""
        if by_history:
            real = self.real(ids)
            self.recorder.sample(self.step, "gate_histories", masked_mean(w, real)[real.any(dim=1)])
        else:
            self.recorder.rows(self.step, "gate_items", ids.reshape(-1), w.flatten(0, -2), self.content.n_rows)

    # -- losses

    @property
    def interacts(self) -> bool:
        """Whether there are interaction losses: they are on, and there are modalities between which to interact."""
        return self.settings.interaction and len(self.names) > 1

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Weighted uniqueness losses (one a modality), synergy and redundancy (eq. 9)."""
        if not self.interacts:
            return {}
        level = {"item": self._on_items, "prediction": self._on_outputs, "sequence_pooled": self._on_pools}
        return self._weigh(level[self.settings.loss_level](step))

    def interaction_losses(self, ids: Tensor) -> dict[str, Tensor]:
        """The weighted losses on items ``ids [n]``, for a training loop without an adapter."""
        if not self.interacts:
            return {}
        return self._weigh(self._terms(self.projections(ids), self.content.complete(ids) & self.real(ids)))

    def _masked(self, p: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Experts on ``p [n, M, d]``, and with one modality after the other masked: ``[n, J, d]``, ``[n, J, M, d]``."""
        assert self.experts is not None
        return self.experts.masked(p, stand_ins(p, self.settings.mask, self.noise, valid))

    def _terms(self, p: Tensor, valid: Tensor) -> dict[str, Tensor]:
        return interaction_losses(
            *self._masked(p, valid),
            experts=self.expert_names,
            modalities=self.names,
            valid=valid,
            triplet=self.settings.triplet,
            margin=self.settings.margin,
        )

    def _on_items(self, step: Step) -> dict[str, Tensor]:
        ids = step.asked()
        valid = self.content.complete(ids) & self.real(ids) & step.first_asked()
        if ids.numel() > self.settings.loss_items:
            kept = valid_first(valid, self.noise)[: self.settings.loss_items]
            ids, valid = ids[kept], valid[kept]
        return self._terms(self.projections(ids), valid)

    def _on_outputs(self, step: Step) -> dict[str, Tensor]:
        n = len(self.expert_names)
        one = self.settings.prediction_experts == "one"

        def variants(ids: Tensor) -> Tensor:
            p = self.projections(ids)
            valid = self.content.complete(ids) & self.real(ids)
            full, masked = self._masked(p, valid)
            # An item that lacks a modality says nothing of interactions: no mask touches it.
            masked = torch.where(valid[:, None, None, None], masked, full.unsqueeze(2))
            return torch.cat([full.unsqueeze(2), masked], dim=2)  # [r, J, 1+M, d]

        return prediction_losses(
            step,
            lambda ids: self.scale * step.lookup("prism.variants", ids, variants)[0],
            experts=self.expert_names,
            chosen=[int(self.choice.permutation(n, torch.device("cpu"))[0])] if one else range(n),
            modalities=self.names,
            real=self.real(step.all_ids()),
            triplet=self.settings.triplet,
            margin=self.settings.margin,
        )

    def _on_pools(self, step: Step) -> dict[str, Tensor]:
        sequence = step.batch.sequence
        if sequence is None:
            raise RecplugError("PRISM's loss_level 'sequence_pooled' needs histories; use 'item' on this backbone")
        real = self.real(sequence)
        p = masked_mean(self.projections(sequence), real)  # [B, M, d]
        return self._terms(p, real.any(dim=1))

    def _weigh(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = self.settings.lambda_unique
        by_loss = {"synergy": self.settings.lambda_synergy, "redundancy": self.settings.lambda_redundancy}
        for name in self.names:
            by_loss[f"unique_{name}"] = weights.get(name, 0.0) if isinstance(weights, dict) else weights
        return {name: by_loss[name] * term for name, term in terms.items() if by_loss[name] > 0}

    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """How experts respond, how alike they are, and what the latest evaluation weighed them by."""
        found: dict[str, Panel | Tensor] = {"scale": self.scale.detach()}
        ids = self.content.present.any(dim=-1).nonzero().squeeze(-1)
        if self.experts is None or not len(ids):
            return found
        if len(ids) > diagnostics.ITEMS:
            ids = ids[Noise(self.noise.seed).permutation(len(ids), ids.device)[: diagnostics.ITEMS]]
        (e, *_), where = self._once("prism.items", ids, self._of_items)
        e = e[where]  # [n, J, d], as the evaluation has them
        experts = tuple(name.replace("_", " ") for name in self.expert_names)
        if len(self.names) > 1:
            mask = "matched" if self.settings.mask == "shuffle" else "shuffle"
            z = stand_ins(p := self.projections(ids), mask, Noise(self.noise.seed), valid := self.content.complete(ids))
            matrix = diagnostics.response_matrix(self.experts, p, z, valid)
            found["responses"] = diagnostics.responses(matrix, experts, self.names, mask)
        found["experts"] = diagnostics.similarity(e, experts)
        found["spread"] = diagnostics.spread(e, experts)
        recorded = dict(self.recorder.found)
        if self.step is not None:
            if self.gate is not None and "candidate" in self.roles and "gate_items" not in recorded:
                self.step.candidates()  # no evaluation has asked for them
                recorded = {**self.recorder.found, **recorded}
            found["size"] = diagnostics.size(e, self.step.table("items")[ids], self.scale, recorded, experts)
        found |= diagnostics.gate(recorded, experts)
        return found

    def extra_repr(self) -> str:
        """The choices that differ from the defaults."""
        changed = self.settings.model_dump(exclude_defaults=True)
        return ", ".join([f"modalities={list(self.names)}", *(f"{k}={v!r}" for k, v in changed.items())])


def masked_mean(values: Tensor, real: Tensor) -> Tensor:
    """The mean of ``values [B, L, ...]`` over the real positions ``[B, L]``; zero where there is none."""
    weight = real.to(values.dtype).reshape(*real.shape, *(1 for _ in values.shape[2:]))
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
