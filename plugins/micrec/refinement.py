"""Nodes with their content neighbours: weights, means and the matrices that they are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from recplug.plugins.nn.knn import Neighbours
from recplug.plugins.nn.propagation import Adjacency

Refinement = Literal["similarity", "mean", "residual"]


def shares(neighbours: Neighbours, kind: Refinement = "similarity") -> tuple[Tensor, Tensor]:
    """Weights of a node itself ``[n, 1]`` and of its neighbours ``[n, k]`` in what it is refined to.

    ``similarity``: 1 and the likeness a, none below 0, over 1 plus their sum. ``mean``: equal parts. ``residual``: 1,
    and the softmax of the likenesses. A node without neighbours is itself.
    """
    if kind == "residual":
        likeness = neighbours.weight.masked_fill(~neighbours.valid, -torch.inf)
        others = torch.where(neighbours.valid, likeness.softmax(dim=1), 0.0)
        return torch.ones_like(others[:, :1]), others
    others = neighbours.weight.clamp(min=0.0) if kind == "similarity" else torch.ones_like(neighbours.weight)
    others = others * neighbours.valid
    total = 1.0 + others.sum(dim=1, keepdim=True)
    return 1.0 / total, others / total


def refine(own: Tensor, pool: Tensor, neighbours: Neighbours, kind: Refinement = "similarity") -> Tensor:
    r"""Nodes with their content neighbours, :math:`(h_x + \sum_y a_{xy} h_y) / (1 + \sum_y a_{xy})` by default.

    Args:
        own: ``[n, d]``.
        pool: ``[p, d]``, what the neighbours' rows name.
        neighbours: ``[n, k]``.
        kind: see :func:`shares`.
    """
    mine, others = shares(neighbours, kind)
    return mine * own + torch.einsum("nk,nkd->nd", others, pool[neighbours.index])


def refining(neighbours: Neighbours, kind: Refinement = "similarity") -> Adjacency:
    """:func:`refine` of a whole table as a constant matrix, ``[n, n]``."""
    mine, others = shares(neighbours, kind)
    rows = torch.arange(len(mine), device=mine.device).unsqueeze(1)
    places = torch.stack([rows.expand_as(others)[others > 0], neighbours.index[others > 0]])
    itself = rows.squeeze(1).repeat(2, 1)
    values = torch.cat([mine.squeeze(1), others[others > 0]])
    return Adjacency.of(torch.cat([itself, places], dim=1), values, (len(mine), len(mine)), symmetric=False)


def borrowing(neighbours: Neighbours, isolated: Tensor) -> tuple[Tensor, Adjacency]:
    r"""Isolated nodes with neighbours, ``[q]``, and :math:`\sum_y a_{xy} r_y / \sum_y a_{xy}` for them, ``[q, n]``.

    Args:
        neighbours: ``[n, k]``, all of them nodes with interactions.
        isolated: ``[n]`` bool.
    """
    likeness = neighbours.weight.clamp(min=0.0) * neighbours.valid  # [n, k]
    rows = (isolated & (likeness.sum(dim=1) > 0)).nonzero().squeeze(1)  # [q]
    mine = likeness[rows] / likeness[rows].sum(dim=1, keepdim=True)
    at = torch.arange(len(rows), device=rows.device).unsqueeze(1).expand_as(mine)
    places = torch.stack([at[mine > 0], neighbours.index[rows][mine > 0]])
    return rows, Adjacency.of(places, mine[mine > 0], (len(rows), len(isolated)), symmetric=False)
