"""Means over a frozen graph's neighbours, added to vectors: what item graphs and user graphs do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recplug.plugins.nn.propagation import Adjacency

# What a model takes once: ``Requirements.brings``.
ITEM_GRAPH = "a content graph over items"
CONTENT_FILTER = "the content filter of the interaction signal"


class Smoothing(nn.Module):
    r"""What a frozen graph makes of its nodes' vectors, :math:`w\, S^n x`.

    Args:
        graph: S, ``[N, N]``; a plain attribute, neither saved nor broadcast.
        weight: w.
        layers: n >= 1.

    Shapes:
        ``x [N, d]`` to ``[N, d]``, of ``x``'s type.
    """

    def __init__(self, graph: Adjacency, *, weight: float = 1.0, layers: int = 1) -> None:
        super().__init__()
        self.graph = graph
        self.weight = weight
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Products in float32 or wider, whatever autocast says."""
        self.graph = graph = self.graph.to(x.device)
        smooth = x
        for _ in range(self.layers):
            smooth = graph.matmul(smooth)
        return (smooth if self.weight == 1.0 else self.weight * smooth).to(x.dtype)

    def extra_repr(self) -> str:
        """The graph and how it is used."""
        return f"{self.graph}, weight={self.weight}, layers={self.layers}"


def row_means(graph: Adjacency) -> Adjacency:
    """The graph with every row scaled to a sum of 1; rows that are empty, or add up to 0, become zeros."""
    rows, values = graph.indices()[0], graph.values()
    sums = torch.zeros(graph.shape[0], dtype=values.dtype, device=values.device).index_add(0, rows, values)
    return graph.with_values(values / torch.where(sums == 0, 1.0, sums)[rows])
