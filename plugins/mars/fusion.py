"""From item rows to H: what X is made of, and how factors and structure are weighed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from recplug.plugins.contract import Modality
from recplug.plugins.mars.groups import Groups
from recplug.plugins.mars.settings import MarsSettings
from recplug.plugins.nn.content import directions, principal
from recplug.plugins.nn.frozen import Frozen
from recplug.plugins.nn.propagation import Adjacency


class Content(Frozen):
    r"""The content part of X (eq. 5), frozen vectors under trained projections.

    .. math:: X = z^{id} + \textstyle\sum_m z^m W^m, \qquad P_k z^m W^m = (P_k z^m) W^m

    Averages commute with the projection, so that what is averaged over groups and neighbours is computed once
    (``pooled``, ``smooth``) and a step projects the rows it needs.

    Args:
        modalities: M >= 0 content sources.
        groups: whose means are taken, or None.
        structure: the structural graph ``[n_rows, n_rows]``, or None.
        n_rows: rows of the item table.
        width: d.
        keep: principal components kept of wider vectors.
        scale: length of a projected unit vector at the start.
    """

    present: Tensor

    def __init__(
        self,
        *,
        modalities: Sequence[Modality],
        groups: Groups | None,
        structure: Adjacency | None,
        n_rows: int,
        width: int,
        keep: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.names = tuple(m.name for m in modalities)
        self.width = width
        self.scale = scale
        self.along = [directions(m, keep) for m in modalities]
        present = torch.zeros(n_rows, len(modalities), dtype=torch.bool)
        for index, modality in enumerate(modalities):
            rows = principal(modality, n_rows, keep, self.along[index])  # [n_rows, c_m]
            present[: len(modality.present), index] = modality.present
            self.freeze(f"rows_{index}", rows)
            if groups is not None:
                self.freeze(f"pooled_{index}", groups.means(rows))  # [V, c_m]
            if structure is not None:
                self.freeze(f"smooth_{index}", structure.matmul(rows))  # [n_rows, c_m]
        self.freeze("present", present)
        self.project = nn.ModuleList(
            nn.Linear(getattr(self, f"rows_{i}").shape[1], width, bias=False) for i in range(len(modalities))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections anew; the content stays."""
        for linear in self.project:
            nn.init.normal_(linear.weight, std=self.scale * self.width**-0.5)  # type: ignore[arg-type]

    def blocks(self, kind: Literal["rows", "pooled", "smooth"], rows: Tensor | None = None) -> list[Tensor]:
        """``[r, d]`` for each modality: projected content of items, of their neighbours' mean, or of values."""
        found = []
        for index, linear in enumerate(self.project):
            frozen: Tensor = getattr(self, f"{kind}_{index}")
            found.append(linear(frozen if rows is None else frozen.index_select(0, rows)))
        return found

    def extra_repr(self) -> str:
        """Choices."""
        return f"modalities={list(self.names)}, width={self.width}, scale={self.scale}"


class Gate(nn.Module):
    r"""Weights of structure and factors, :math:`a_i = \mathrm{softmax}(W_g X_i)` (eq. 8), uniform at the start.

    What an item lacks has weight 0, and the others' weights add up to 1; where it lacks everything, all are 0. The
    softmax of the paper runs over all K + 1 branches, so that structure has a tenth of the whole beside nine factors;
    with ``over="factors"`` it runs over the K factors, which weigh ``share`` together, and structure weighs 1.

    Args:
        width: d.
        branches: K + 1, structure first.
        learned: whether W_g is trained.
        over: which branches share the weight.
        share: the sum of the factors' weights beside structure.

    Shapes:
        ``x [r, d]``, ``available [r, K + 1]`` bool to ``[r, K + 1]`` float32.
    """

    def __init__(
        self,
        *,
        width: int,
        branches: int,
        learned: bool,
        over: Literal["factors", "all"] = "all",
        share: float = 1.0,
    ) -> None:
        super().__init__()
        self.branches = branches
        self.share = share if over == "factors" else 1.0
        self.first = 1 if over == "factors" else 0  # of the branches that share
        self.weight = nn.Parameter(torch.empty(branches - self.first, width)) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the uniform gate."""
        if self.weight is not None:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, available: Tensor) -> Tensor:
        """Weigh."""
        sharing = available[:, self.first :]
        return torch.cat([available[:, : self.first].float(), self.share * self._shares(x, sharing)], dim=1)

    def _shares(self, x: Tensor, available: Tensor) -> Tensor:
        if self.weight is None:
            share = available.float()
            return share / share.sum(dim=1, keepdim=True).clamp(min=1.0)
        with torch.autocast(x.device.type, enabled=False):
            logits = x.float() @ self.weight.float().T  # [r, branches that share]
            # Not -inf: a row without any branch would be NaN.
            logits = logits.masked_fill(~available, torch.finfo(logits.dtype).min)
            return logits.softmax(dim=1) * available

    def extra_repr(self) -> str:
        """Choices."""
        over = "factors" if self.first else "all"
        return f"branches={self.branches}, learned={self.weight is not None}, over={over}, share={self.share}"


class Pooled(NamedTuple):
    """What a step averages once.

    Attributes:
        ids: ``[n_rows, d]``: z^id.
        values: ``[V, d]``: their mean over the items of each value, or the values' free vectors, or None.
        neighbours: ``[n_rows, d]``: their structural means, or None.
    """

    ids: Tensor
    values: Tensor | None
    neighbours: Tensor | None


class Block(NamedTuple):
    """One part of X: its ``own`` rows ``[r, d]``, its means by value ``[V, d]``, its ``neighbours``' ``[r, d]``."""

    own: Tensor
    values: Tensor | None
    neighbours: Tensor | None


def total(blocks: Sequence[Block]) -> Block:
    """X as a whole: every mean is linear."""

    def add(parts: Sequence[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.stack(present).sum(dim=0) if present else None

    _, values, neighbours = zip(*blocks, strict=True)
    return Block(torch.stack([block.own for block in blocks]).sum(dim=0), add(values), add(neighbours))


class FactorFusion(Frozen):
    r"""H of items (eqs. 5 to 8) from the backbone's item rows, or what of it is added to them.

    .. math:: H_i = a_i^0\,(S X)_i + \textstyle\sum_k a_i^k\,(P_k X)_i

    With ``pool="free"`` a trained vector for each value takes the place of its group's mean. With
    ``join="residual"`` every branch has a trained scale, a vector that starts at zero, so that the item that is scored
    begins as the backbone's:

    .. math:: R_i = g^0 \odot a_i^0\,(S X)_i + \textstyle\sum_k g^k \odot a_i^k\,(P_k X)_i

    Args:
        settings: every choice.
        groups: the factors' groups over the rows of the item table, or None (``pool="none"``).
        n_values: V.
        structure: S, ``[n_rows, n_rows]``, or None.
        modalities: content sources that enter X.
        n_rows: rows of the item table.
        n_factors: K.
        width: d.
    """

    available: Tensor

    def __init__(
        self,
        *,
        settings: MarsSettings,
        groups: Groups | None,
        n_values: int,
        structure: Adjacency | None,
        modalities: Sequence[Modality],
        n_rows: int,
        n_factors: int,
        width: int,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.structure = structure
        self.by_content = settings.gate_input == "content"
        self.content = Content(
            modalities=modalities,
            groups=groups if settings.pool == "group" else None,
            structure=structure,
            n_rows=n_rows,
            width=width,
            keep=settings.content_width,
            scale=settings.content_scale,
        )
        self.gate = Gate(
            width=width,
            branches=n_factors + 1,
            learned=settings.gate == "learned",
            over=settings.gate_over,
            share=settings.factor_weight,
        )
        self.free = nn.Parameter(torch.empty(n_values, width)) if settings.pool == "free" else None
        self.rate = settings.residual_rate
        self.scale = nn.Parameter(torch.empty(n_factors + 1, width)) if settings.join == "residual" else None
        device = self.content.present.device
        available = torch.zeros(n_rows, n_factors + 1, dtype=torch.bool, device=device)
        if structure is not None:
            available[structure.indices()[0].to(device), 0] = True
        if groups is not None:
            available[:, 1:] = groups.available.to(device)
        self.freeze("available", available)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start."""
        self.content.reset_parameters()
        self.gate.reset_parameters()
        if self.free is not None:
            nn.init.xavier_normal_(self.free)
        if self.scale is not None:
            nn.init.zeros_(self.scale)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to average: H is zero everywhere."""
        return self.groups is None and self.structure is None

    def pool(self, ids: Tensor) -> Pooled:
        """What a step averages once, of all id rows ``[n_rows, d]``."""
        values: Tensor | None = self.free
        neighbours: Tensor | None = None
        if self.groups is not None:
            self.groups = self.groups.to(ids.device)
            if values is None:
                values = self.groups.means(ids)  # [V, d]
        if self.structure is not None:
            self.structure = self.structure.to(ids.device)
            neighbours = self.structure.matmul(ids)  # [n_rows, d]
        return Pooled(ids, values, neighbours)

    def forward(self, pooled: Pooled, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the items at ``rows [r]``, ``[r, d]`` (R, or H where branches have no scale), and its gate.

        The gate's weights are ``[r, K + 1]``, structure first.
        """
        blocks = self.blocks(pooled, rows)
        own = [block.own for block in blocks]
        x = torch.stack(own[1:] if self.by_content else own).sum(dim=0)  # [r, d]
        weights = self.gate(x, self.available.index_select(0, rows))
        scale = None if self.scale is None else self.rate * self.scale
        return self.mean(total(blocks), weights, rows, scale), weights

    def blocks(self, pooled: Pooled, rows: Tensor) -> list[Block]:
        """X in parts, the ids first, then each modality."""
        ids = Block(
            pooled.ids.index_select(0, rows),
            pooled.values,
            None if pooled.neighbours is None else pooled.neighbours.index_select(0, rows),
        )
        n = len(self.content.names)
        none: list[Tensor | None] = [None] * n
        grouped = self.groups is not None and self.free is None
        values = self.content.blocks("pooled") if grouped else none
        neighbours = self.content.blocks("smooth", rows) if self.structure is not None else none
        return [ids, *map(Block, self.content.blocks("rows", rows), values, neighbours)]

    def mean(self, block: Block, weights: Tensor, rows: Tensor, scale: Tensor | None = None) -> Tensor:
        """``[r, d]``: a block's means under ``weights [r, K + 1]``; H without a ``scale [K + 1, d]`` of branches."""
        h = torch.zeros_like(block.own, dtype=torch.promote_types(block.own.dtype, torch.float32))
        if block.neighbours is not None:
            near = weights[:, :1] * block.neighbours
            h = h + (near if scale is None else near * scale[0])
        if block.values is None or self.groups is None:
            return h
        weights, scale = weights[:, 1:], None if scale is None else scale[1:]
        if self.free is not None:
            return h + self.groups.mix_pooled(block.values, weights, rows, scale)
        return h + self.groups.mix(block.values, weights, rows, block.own, scale)
