"""Degree-sensitive dropout of user-item edges (FREEDOM, arXiv 2211.06924, sec. 3.2)."""

from __future__ import annotations

import torch

from recplug.plugins.nn.noise import Noise
from recplug.plugins.nn.propagation import Adjacency


@torch.no_grad()
def drop_edges(graph: Adjacency, *, n_users: int, rate: float, noise: Noise) -> Adjacency:
    r"""Keep a share of the edges, rather those between nodes of few edges, and normalise what is left anew.

    Edges are drawn without replacement, each time with probability

    .. math:: p_{ui} \propto 1 / \sqrt{d_u d_i}

    among those left. These are the graph's own values, and adding Gumbel noise to their logarithms and taking the
    largest is such a draw.

    Args:
        graph: :math:`D^{-1/2} A D^{-1/2}`, ``[n_users + n_items, n_users + n_items]``, users first.
        n_users: user nodes.
        rate: the share of edges that is dropped, in [0, 1); one edge is always kept.
        noise: where the draw comes from.

    Returns:
        Of the same shape, type and device, symmetric, of the degrees among the edges kept; ``graph`` itself where
        nothing is dropped.
    """
    row, col = graph.indices()
    half = row < n_users  # each edge once
    edges, weight = torch.stack([row[half], col[half] - n_users]), graph.values()[half]  # [2, E], [E]
    kept = max(int(len(weight) * (1 - rate)), 1)
    if kept >= len(weight):
        return graph
    gumbel = -(-noise.uniform(weight.shape, graph.device).log()).log()  # [E]
    chosen = (weight.float().log() + gumbel).topk(kept, sorted=False).indices
    n_items = graph.shape[0] - n_users
    return Adjacency.bipartite(edges[:, chosen], n_users=n_users, n_items=n_items, dtype=graph.dtype)
