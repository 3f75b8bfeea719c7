"""PRISM as an augmentation, and as a plain module for anyone's own training loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from recplug.plugins.contract import Augmentation, Modality, Panel, Role
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import Noise
from recplug.plugins.prism.fusion import Content, EqualMlp, Experts, Gate
from recplug.plugins.prism.losses import interaction_losses, stand_ins, valid_first
from recplug.plugins.prism.prediction import prediction_losses
from recplug.plugins.prism.settings import PrismSettings
from recplug.plugins.step import Step

PerItem = Callable[[Tensor], tuple[Tensor, ...]]


class Prism(Augmentation):
    r"""Experts for unique, redundant and synergistic content, weighed per user (PRISM, arXiv 2601.10944).

    .. math::
        e^j &= E_j(p_1, ..., p_M) && \text{(1)} \\
        w &= W(e^1, ..., e^J, c) && \text{(10)} \\
        \tilde e &= e^{id} + s \textstyle\sum_j w^j e^j && \text{(11)}

    c is the mean of the rows of the user's history (``fusion="user"``) or the item's own row (``"item"``). The paper
    does not say how :math:`e^{id}` and :math:`e^m` are combined; we add, with a trained scalar s that begins small.

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
        edges: ``[2, n]`` (user, item) training interactions, for :meth:`diagnostics`.

    Shapes:
        ``forward(rows [B, L, d], ids [B, L])`` to ``[B, L, d]``; ``rows [n, d], ids [n]`` to ``[n, d]``.
    """

    edges: Tensor

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
        edges: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not modalities:
            raise RecplugError("PRISM needs at least one modality; give it a feature table")
        self.settings = settings = settings or PrismSettings()
        self.names = tuple(m.name for m in modalities)
        self.width = width
        self.padding_id = padding_id
        self.mask_id = mask_id
        self.roles = frozenset({"input", "candidate"} if settings.candidates == "fused" else {"input"})
        by_item = settings.fusion == "item" or settings.block != "experts"
        self.by_item = frozenset({"input", "candidate"} if by_item else {"candidate"})
        self.noise = Noise(seed)
        self.choice = Noise(seed + 1)
        self.content = Content(
            modalities=modalities,
            width=width,
            n_rows=n_rows or len(modalities[0].values),
            tune=settings.tune_features,
        )
        self.experts = Experts(
            modalities=len(modalities),
            width=width,
            hidden=settings.hidden,
            dropout=settings.dropout,
            noise=self.noise,
        )
        self.gate = Gate(
            experts=len(modalities) + 2,
            width=width,
            temperature=settings.temperature,
            dropout=settings.gate_dropout,
            noise=self.noise,
        )
        self.control: EqualMlp | None = None
        if settings.block != "experts":
            parameters = sum(p.numel() for part in (self.experts, self.gate) for p in part.parameters())
            if settings.block == "mlp":
                self.control = EqualMlp(modalities=len(modalities), width=width, parameters=parameters)
            del self.experts, self.gate
        self.scale = nn.Parameter(torch.tensor(float(settings.scale)), requires_grad=settings.learn_scale)
        edges = torch.empty(2, 0, dtype=torch.long) if edges is None else edges
        self.register_buffer("edges", edges, persistent=False)

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
        if role not in self.by_item and sequence is not None:
            return (
                self._fuse_pooled(rows, ids)
                if self.settings.fusion == "sequence_pooled"
                else self._fuse_by_user(rows, ids)
            )
        return rows + self._fused_items(ids, rows)

    def real(self, ids: Tensor) -> Tensor:
        """``[*ids.shape]`` bool: neither padding nor mask."""
        real = ids != self.padding_id
        return real if self.mask_id is None else real & (ids != self.mask_id)

    def projections(self, ids: Tensor) -> Tensor:
        """``[*ids.shape, M, d]``: projected content, each item once a step."""
        return self._per_item("prism.projections", ids, lambda r: (self.content(r),))[0]

    def _per_item(self, key: str, ids: Tensor, compute: PerItem) -> tuple[Tensor, ...]:
        """``compute(ids [r])`` for each item once a step; for every id where no adapter is at work."""
        if self.step is not None:
            return self.step.lookup(key, ids, compute)
        return tuple(values.unflatten(0, ids.shape) for values in compute(ids.reshape(-1)))

    def _fused_items(self, ids: Tensor, rows: Tensor) -> Tensor:
        """``s e^m`` with the item's own row as the gate's context: ``[..., d]`` to ``[..., d]``."""
        if self.settings.block != "experts":
            p = self.projections(ids)  # [..., M, d]
            mixed = self.control(p) if self.control is not None else p.sum(dim=-2)
            return self._weighted(mixed, p)
        e, first, *plain = self._per_item("prism.experts", ids, self._expert_items)  # [..., J, d], [..., 2d]
        w = self.gate(first + self.gate.contexts(rows))  # [..., J]
        mixed = torch.einsum("...j,...jd->...d", w, e)
        return self._weighted(mixed, plain[0].unsqueeze(-2) if plain else None)

    def _expert_items(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Experts, their part of the gate, and the plain sum: ``[r, J, d]``, ``[r, 2d]``, ``[r, d]``."""
        p = self.projections(ids)  # [r, M, d]
        e = self.experts(p)
        parts = (e, self.gate.items(e))
        return (*parts, p.sum(dim=1)) if self.settings.residual else parts

    def _fuse_by_user(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Weights from the item's experts and the mean row of the history: ``[B, L, d]`` to ``[B, L, d]``."""
        real = self.real(ids)  # [B, L]
        counts = ids.device.type == "cpu" and not torch.compiler.is_compiling()  # nor can a program that is traced
        fuse = self._fuse_real_positions if counts else self._fuse_every_position
        return fuse(rows, ids, real)

    def _fuse_every_position(self, rows: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        """With padding, in shapes that are known beforehand: nothing stops an accelerator."""
        context = self.gate.contexts(masked_mean(rows, real))  # [B, 2d]
        e, first, *plain = self._per_item("prism.experts", ids, self._expert_items)
        if self.settings.granularity == "sequence":
            first = masked_mean(first, real).unsqueeze(1)  # [B, 1, 2d]
        w = self.gate(first + context.unsqueeze(1))  # [B, L | 1, J]
        mixed = torch.einsum("blj,bljd->bld", w.expand(*ids.shape, -1), e)
        return rows + self._weighted(mixed, plain[0].unsqueeze(-2) if plain else None) * real.unsqueeze(-1)

    def _fuse_real_positions(self, rows: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        """The same without padding, which is most of what there is; counting it would stop an accelerator."""
        place = real.flatten().nonzero().squeeze(-1)  # [n]
        user = place // ids.shape[1]
        flat = rows.flatten(0, 1)  # [B*L, d]
        count = real.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]

        def mean_by_user(values: Tensor) -> Tensor:
            return values.new_zeros(len(ids), values.shape[-1]).index_add(0, user, values) / count

        # index_select throughout: its backward adds rows up much faster than that of indexing with a tensor.
        items = ids.flatten().index_select(0, place)
        e, first, *plain = self._per_item("prism.experts", items, self._expert_items)  # [n, J, d], [n, 2d]
        if self.settings.granularity == "sequence":
            first = mean_by_user(first).index_select(0, user)
        context = self.gate.contexts(mean_by_user(flat.index_select(0, place)))  # [B, 2d]
        w = self.gate(first + context.index_select(0, user))  # [n, J]
        mixed = torch.einsum("nj,njd->nd", w, e)
        content = self._weighted(mixed, plain[0].unsqueeze(-2) if plain else None)
        return flat.index_add(0, place, content.to(flat.dtype)).view(rows.shape)

    def _fuse_pooled(self, rows: Tensor, ids: Tensor) -> Tensor:
        """The authors' code: one vector a sequence, added at every position: ``[B, L, d]`` to ``[B, L, d]``."""
        real = self.real(ids)
        p = self.projections(ids)  # [B, L, M, d]
        e = self.experts(masked_mean(p, real))  # [B, J, d]
        w = self.gate(self.gate.items(e) + self.gate.contexts(masked_mean(rows, real)))  # [B, J]
        mixed = torch.einsum("bj,bjd->bd", w, e).unsqueeze(1)  # [B, 1, d]
        return rows + self._weighted(mixed, p)

    def _weighted(self, mixed: Tensor, p: Tensor | None) -> Tensor:
        """``s e^m``, and the sum of ``p [..., M, d]`` beside it where the residual is on."""
        content = self.scale * mixed
        return content + p.sum(dim=-2) if self.settings.residual and p is not None else content

    # -- losses

    @property
    def interacts(self) -> bool:
        """Whether there are interaction losses: they are on, and there are modalities between which to interact."""
        return self.settings.interaction and len(self.names) > 1

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Weighted uniqueness losses (one a modality), synergy and redundancy (eq. 9)."""
        if not self.interacts:
            return {}
        level: dict[str, Callable[[Step], dict[str, Tensor]]] = {
            "item": self._loss_on_items,
            "prediction": partial(prediction_losses, self),
            "sequence_pooled": self._loss_on_pools,
        }
        return self._weigh(level[self.settings.loss_level](step))

    def interaction_losses(self, ids: Tensor) -> dict[str, Tensor]:
        """The weighted losses on items ``ids [n]``, for a training loop without an adapter."""
        if not self.interacts:
            return {}
        return self._weigh(self._terms(self.projections(ids), self.content.complete(ids) & self.real(ids)))

    def _terms(self, p: Tensor, valid: Tensor) -> dict[str, Tensor]:
        z = stand_ins(p, self.settings.mask, self.noise, valid)
        full, masked = self.experts.masked(p, z)
        return interaction_losses(full, masked, valid=valid, triplet=self.settings.triplet, margin=self.settings.margin)

    def _loss_on_items(self, step: Step) -> dict[str, Tensor]:
        ids = step.asked()
        valid = self.content.complete(ids) & self.real(ids) & step.first_asked()
        if ids.numel() > self.settings.loss_items:
            kept = valid_first(valid, self.noise)[: self.settings.loss_items]
            ids, valid = ids[kept], valid[kept]
        return self._terms(self.projections(ids), valid)

    def _loss_on_pools(self, step: Step) -> dict[str, Tensor]:
        sequence = step.batch.sequence
        if sequence is None:
            raise RecplugError("PRISM's loss_level 'sequence_pooled' needs histories; use 'item' on this backbone")
        real = self.real(sequence)
        p = masked_mean(self.projections(sequence), real)  # [B, M, d]
        return self._terms(p, real.any(dim=1))

    def _weigh(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = self.settings.lambda_unique
        parts = {}
        for index, name in enumerate(self.names):
            weight = weights.get(name, 0.0) if isinstance(weights, dict) else weights
            if weight > 0:
                parts[f"unique_{name}"] = weight * terms["unique"][index]
        if self.settings.lambda_synergy > 0:
            parts["synergy"] = self.settings.lambda_synergy * terms["synergy"]
        if self.settings.lambda_redundancy > 0:
            parts["redundancy"] = self.settings.lambda_redundancy * terms["redundancy"]
        return parts

    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """Response matrix, expert similarity, gate weights by user, and the size of the fused content."""
        from recplug.plugins.prism.diagnostics import diagnose

        return diagnose(self)

    def extra_repr(self) -> str:
        """The choices that differ from the defaults."""
        changed = self.settings.model_dump(exclude_defaults=True)
        return ", ".join([f"modalities={list(self.names)}", *(f"{k}={v!r}" for k, v in changed.items())])


def masked_mean(values: Tensor, real: Tensor) -> Tensor:
    """The mean of ``values [B, L, ...]`` over the real positions ``[B, L]``; zero where there is none."""
    weight = real.to(values.dtype).reshape(*real.shape, *(1 for _ in values.shape[2:]))
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
