"""From item rows to H and to the item that is scored: how factors and structure are weighed (eqs. 6 to 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.mars.content import Content
from recplug.plugins.mars.groups import Groups
from recplug.plugins.mars.settings import MarsSettings
from recplug.plugins.nn.frozen import Frozen
from recplug.plugins.nn.propagation import Adjacency


class Gate(nn.Module):
    r"""Weights of structure and factors, :math:`a_i = \mathrm{softmax}(W_g X_i)` (eq. 8), uniform at the start.

    What an item lacks has weight 0, and the others' weights add up to 1; where it lacks everything, all are 0. The
    softmax of the paper runs over all K + 1 branches, so that structure has a tenth of the whole beside nine factors;
    with a ``share`` it runs over the K factors, which weigh ``share`` together, and structure weighs 1.

    Args:
        width: d.
        branches: K + 1, structure first.
        learned: whether W_g is trained.
        share: the sum of the factors' weights beside structure; None: they share 1 with it.

    Shapes:
        ``x [r, d]``, ``available [r, K + 1]`` bool to ``[r, K + 1]`` float32.
    """

    def __init__(self, *, width: int, branches: int, learned: bool, share: float | None = None) -> None:
        super().__init__()
        self.branches = branches
        self.share = share
        self.first = 0 if share is None else 1  # of the branches that share
        self.weight = nn.Parameter(torch.empty(branches - self.first, width)) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the uniform gate."""
        if self.weight is not None:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, available: Tensor) -> Tensor:
        """Weigh."""
        shares = self._shares(x, available[:, self.first :])
        return shares if self.share is None else torch.cat([available[:, :1].float(), self.share * shares], dim=1)

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
        return f"branches={self.branches}, learned={self.weight is not None}, share={self.share}"


class Pooled(NamedTuple):
    """What a step averages once.

    Attributes:
        ids: ``[n_rows, d]``: z^id.
        values: ``[V, d]``: what each value says: the mean of its items' rows (times the root of their number, with
            strength ``"root"``), or its free vector; or None.
        neighbours: ``[n_rows, d]``: structural means of z^id, or None.
    """

    ids: Tensor
    values: Tensor | None
    neighbours: Tensor | None


class Block(NamedTuple):
    """One part of X: its ``own`` rows ``[r, d]``, by value ``[V, d]``, its ``neighbours``' ``[r, d]``."""

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
    r"""H of items (eqs. 5 to 8) from the backbone's item rows, and the item that is scored.

    .. math:: H_i = a_i^0\,(S X)_i + \textstyle\sum_k a_i^k\,(P_k X)_i

    With ``pool="free"`` a trained vector for each value takes the place of its group's mean; with ``h="x"``, H is X
    itself and there is neither a graph nor a gate.

    Args:
        settings: every choice; ``strength`` is ``"mean"`` or ``"root"``.
        profiles: the K factors, under ``pool="cluster"`` those made of clusters.
        structure: S, ``[n_rows, n_rows]``, or None.
        modalities: content sources that enter X.
        n_rows: rows of the item table.
        width: d.

    Raises:
        RecplugError: nothing would stand in the item's place.
    """

    available: Tensor

    def __init__(
        self,
        *,
        settings: MarsSettings,
        profiles: FactorProfiles,
        structure: Adjacency | None,
        modalities: Sequence[Modality],
        n_rows: int,
        width: int,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.profiles = profiles
        self.width = width
        self.is_x = settings.h == "x"
        self.structure = None if self.is_x else structure
        self.groups: Groups | None = None
        if not self.is_x and settings.pool != "none":
            self.groups = self.grouped(profiles, n_rows)
        if self.empty and settings.join == "replace":
            raise RecplugError("mars.join replace leaves items without a vector here; give it a pool or a structure")
        free = self.groups is not None and settings.pool == "free"
        self.content = Content(
            modalities=modalities,
            groups=None if free else self.groups,
            structure=self.structure,
            n_rows=n_rows,
            width=width,
            project_ids=settings.x == "ids_content",
            keep=settings.content_width,
            scale=settings.content_scale,
        )
        n_factors = len(profiles.factors)
        self.gate = Gate(
            width=width,
            branches=n_factors + 1,
            learned=settings.gate == "learned" and self.groups is not None,
            share=settings.factor_weight,
        )
        self.free = nn.Parameter(torch.empty(profiles.n_values, width)) if free else None
        device = self.content.present.device
        available = torch.zeros(n_rows, n_factors + 1, dtype=torch.bool, device=device)
        if self.structure is not None:
            available[self.structure.indices()[0].to(device), 0] = True
        if self.groups is not None:
            available[:, 1:] = self.groups.available.to(device)
        self.freeze("available", available)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start."""
        self.content.reset_parameters()
        self.gate.reset_parameters()
        if self.free is not None:
            nn.init.xavier_normal_(self.free)

    def grouped(self, profiles: FactorProfiles, n_rows: int) -> Groups:
        """Who shares a value in these profiles, by the module's settings."""
        loud = self.settings.strength == "root"
        return Groups(profiles, n_rows=n_rows, other=self.settings.other, strength="root" if loud else "mean")

    @property
    def empty(self) -> bool:
        """Whether there is nothing to average: H is zero everywhere."""
        return not self.is_x and self.groups is None and self.structure is None

    def join(self, rows: Tensor, h: Tensor) -> Tensor:
        """The item that is scored, from the backbone's ``rows [r, d]`` and H, ``h [r, d]``."""
        return h.to(rows.dtype) if self.settings.join == "replace" else rows + h.to(rows.dtype)

    def pool(self, ids: Tensor) -> Pooled:
        """What a step averages once, of all id rows ``[n_rows, d]``."""
        values: Tensor | None = self.free
        neighbours: Tensor | None = None
        if self.groups is not None and values is None:
            values = self.groups.heard(ids)  # [V, d]
        if self.structure is not None:
            self.structure = self.structure.to(ids.device)
            neighbours = self.structure.matmul(ids)  # [n_rows, d]
        return Pooled(ids, values, neighbours)

    def forward(self, pooled: Pooled, rows: Tensor) -> tuple[Tensor, Tensor]:
        """H of the items at ``rows [r]``, ``[r, d]``, and its gate ``[r, K + 1]``, structure first."""
        x = total(self.blocks(pooled, rows))
        available = self.available.index_select(0, rows)
        weights = available.float() if self.is_x else self.gate(x.own, available)
        return self.mean(x, weights, rows), weights

    def blocks(self, pooled: Pooled, rows: Tensor) -> list[Block]:
        """X in parts, the ids first, then each modality."""
        own, content, near = pooled.ids.index_select(0, rows), self.content, pooled.neighbours
        averaged = self.groups is not None and self.free is None
        ids = Block(
            content.ids(own),
            content.ids(pooled.values) if averaged and pooled.values is not None else pooled.values,
            None if near is None else content.ids(near.index_select(0, rows)),
        )
        none: list[Tensor | None] = [None] * len(content.names)
        values = content.blocks("pooled") if averaged else none
        neighbours = content.blocks("smooth", rows) if self.structure is not None else none
        return [ids, *map(Block, content.blocks("rows", rows), values, neighbours)]

    def mean(self, block: Block, weights: Tensor, rows: Tensor) -> Tensor:
        """``[r, d]``: a block's means under ``weights [r, K + 1]``; with ``h="x"`` the block's own rows."""
        wide = torch.promote_types(block.own.dtype, torch.float32)
        if self.is_x:
            return block.own.to(wide)
        h = torch.zeros_like(block.own, dtype=wide)
        if block.neighbours is not None:
            h = h + weights[:, :1] * block.neighbours
        if block.values is None or self.groups is None:
            return h
        return h + self.groups.mix(block.values, weights[:, 1:], rows)
