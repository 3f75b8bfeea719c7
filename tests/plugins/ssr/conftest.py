"""Graphs whose spectra are known."""

from types import SimpleNamespace

import pytest
import torch

from recplug.plugins.nn.propagation import Adjacency


def normalised(weights):
    """A_hat of dense symmetric ``weights``, in float64; isolated nodes have empty rows."""
    weights = weights.double()
    scale = weights.sum(dim=1)
    scale = torch.where(scale > 0, scale.clamp(min=1e-30).rsqrt(), 0.0)
    indices = weights.nonzero().T
    row, col = indices
    return Adjacency.of(indices, weights[row, col] * scale[row] * scale[col], tuple(weights.shape), symmetric=True)


def symmetric(pairs, n):
    weights = torch.zeros(n, n)
    for a, b in pairs:
        weights[a, b] = weights[b, a] = 1.0
    return weights


def random_signs(shape, p, seed):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < p).float()


def ring(n):
    return normalised(symmetric([(i, (i + 1) % n) for i in range(n)], n))


def path(n):
    return normalised(symmetric([(i, i + 1) for i in range(n - 1)], n))


def complete(n):
    return normalised(1 - torch.eye(n))


def complete_bipartite(a, b):
    return normalised(symmetric([(i, a + j) for i in range(a) for j in range(b)], a + b))


def hypercube(d):
    return normalised(symmetric([(i, i ^ (1 << bit)) for i in range(2**d) for bit in range(d)], 2**d))


def disjoint(*parts):
    return normalised(torch.block_diag(*[(part.dense() > 0).double() for part in parts]))


def sbm(blocks, size, p, q, seed=0):
    """Blocks of equal size; p within, q between."""
    block = torch.arange(blocks).repeat_interleave(size)
    same = block[:, None] == block[None]
    n = blocks * size
    upper = torch.triu(torch.where(same, random_signs((n, n), p, seed), random_signs((n, n), q, seed + 1)), diagonal=1)
    return normalised(upper + upper.T)


def bipartite(users, items, p=0.1, seed=0):
    """Random; user 0 and item 0 are padding, without edges."""
    edges = random_signs((users, items), p, seed)
    edges[0] = edges[:, 0] = 0.0
    return Adjacency.bipartite(edges.nonzero().T, n_users=users, n_items=items, dtype=torch.float64)


def laplacian(graph):
    return torch.eye(graph.shape[0], dtype=torch.float64) - graph.dense().double()


def single(graph):
    """The same graph in float32."""
    return Adjacency.of(graph.indices(), graph.values().float(), graph.shape, symmetric=True)


def signal(graph, width=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(graph.shape[0], width, generator=generator, dtype=dtype)


@pytest.fixture(scope="session")
def graphs():
    makers = (ring, path, complete, complete_bipartite, hypercube, disjoint, sbm, bipartite, normalised)
    helpers = (laplacian, single, signal)
    return SimpleNamespace(**{maker.__name__: maker for maker in (*makers, *helpers)})


@pytest.fixture(scope="session")
def zoo(graphs):
    """Name to graph and split."""
    return {
        "ring": (ring(24), None),
        "path": (path(17), None),
        "complete": (complete(9), None),
        "complete_bipartite": (complete_bipartite(4, 9), 4),
        "star": (complete_bipartite(1, 12), 1),
        "hypercube": (hypercube(5), None),
        "disjoint": (disjoint(complete(4), ring(7), path(3)), None),
        "sbm": (sbm(3, 20, 0.5, 0.05), None),
        "bipartite": (bipartite(30, 18, 0.2), 30),
        "more_items": (bipartite(12, 31, 0.2), 12),
        "isolated": (normalised(torch.block_diag(torch.zeros(2, 2), 1 - torch.eye(5), torch.zeros(1, 1))), None),
    }
