"""Eigenvectors against closed forms and dense solutions."""

import math

import pytest
import torch

from recplug.plugins.ssr.spectral import NEGLIGIBLE, eigenvectors, isolated


def eigenvalues(graph, split=None):
    """All N eigenvalues that the solution stands for."""
    _, known = eigenvectors(graph, split)
    return torch.cat([known, torch.ones(graph.shape[0] - len(known), dtype=known.dtype)]).sort().values


def check(found, expected):
    torch.testing.assert_close(found, torch.tensor(sorted(expected), dtype=torch.float64), rtol=0, atol=1e-9)


def test_closed_forms(graphs):
    check(eigenvalues(graphs.ring(11)), [1 - math.cos(2 * math.pi * k / 11) for k in range(11)])
    check(eigenvalues(graphs.path(9)), [1 - math.cos(math.pi * k / 8) for k in range(9)])
    check(eigenvalues(graphs.complete(7)), [0] + [7 / 6] * 6)
    check(eigenvalues(graphs.hypercube(5)), [2 * k / 5 for k in range(6) for _ in range(math.comb(5, k))])
    check(eigenvalues(graphs.disjoint(*[graphs.complete(4)] * 3)), [0] * 3 + [4 / 3] * 9)
    for a, b in ((1, 8), (5, 3), (4, 4)):
        for split in (None, a):
            check(eigenvalues(graphs.complete_bipartite(a, b), split), [0] + [1] * (a + b - 2) + [2])


def test_a_stochastic_block_model_has_its_gap(graphs):
    values = eigenvalues(graphs.sbm(4, 250, 0.10, 0.01))
    assert values[0] == pytest.approx(0, abs=1e-9)
    expected = 1 - (0.10 - 0.01) / (0.10 + 3 * 0.01)
    torch.testing.assert_close(values[1:4], torch.full((3,), expected, dtype=torch.float64), rtol=0, atol=0.04)
    assert values[4] == pytest.approx(1 - 2 / math.sqrt(999 * (0.10 + 3 * 0.01) / 4), abs=0.05)


@pytest.mark.parametrize(("users", "items"), [(40, 25), (15, 33)])
def test_the_bipartite_route_is_the_dense_one(graphs, users, items):
    graph = graphs.bipartite(users, items, 0.25)
    found = eigenvalues(graph, users)
    torch.testing.assert_close(found, torch.linalg.eigvalsh(graphs.laplacian(graph)), rtol=0, atol=1e-10)
    torch.testing.assert_close(found, eigenvalues(graph), rtol=0, atol=1e-10)
    torch.testing.assert_close(found + found.flip(0), torch.full_like(found, 2.0))
    assert ((found - 1).abs() < 1e-9).sum() >= abs(users - items)


def test_bases_are_orthonormal_eigenvectors(zoo):
    for name, (graph, split) in zoo.items():
        basis, values = eigenvectors(graph, split)
        tolerance = {"rtol": 0, "atol": 1e-9, "msg": lambda text, name=name: f"{name}: {text}"}
        assert not basis[isolated(graph)].any()
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(values), dtype=torch.float64), **tolerance)
        torch.testing.assert_close(graph.dense() @ basis, basis * (1 - values), **tolerance)
        if split is not None:
            assert (values - 1).abs().min() > NEGLIGIBLE / 2


def test_single_precision_is_solved_in_double(graphs):
    graph = graphs.bipartite(40, 25, 0.25)
    (_, exact), (basis, values) = eigenvectors(graph, 40), eigenvectors(graphs.single(graph), 40)
    assert basis.dtype is values.dtype is torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=0, atol=1e-6)
    assert (basis.T @ basis - torch.eye(len(values))).abs().max() < 2e-6
