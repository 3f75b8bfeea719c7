"""Eigenvectors against closed forms and dense solutions, and their files."""

import logging
import math

import pytest
import torch

from recplug.plugins.errors import RecplugError
from recplug.plugins.ssr import spectrum
from recplug.plugins.ssr.spectrum import NEGLIGIBLE, isolated, solve


def eigenvalues(graph, split=None):
    """All N eigenvalues that the solution stands for."""
    found = solve(graph, split=split, rank=None)
    known = found.values if split is None else torch.cat([1 - found.values, 1 + found.values])
    assert found.rest == 1.0
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


@pytest.mark.parametrize("rank", [None, 3])
def test_bases_are_orthonormal_eigenvectors(zoo, graphs, rank):
    for name, (graph, split) in zoo.items():
        found = solve(graph, split=split, rank=rank)
        basis, matrix = found.basis, graph.dense()
        one = torch.eye(len(found.values), dtype=torch.float64)
        tolerance = {"rtol": 0, "atol": 1e-9, "msg": lambda text, name=name: f"{name}: {text}"}
        assert not basis[isolated(graph)].any()
        if split is None:
            torch.testing.assert_close(basis.T @ basis, one, **tolerance)
            torch.testing.assert_close(matrix @ basis, basis * (1 - found.values), **tolerance)
        else:
            p, q = basis[:split], basis[split:]
            torch.testing.assert_close(p.T @ p, one, **tolerance)
            torch.testing.assert_close(q.T @ q, one, **tolerance)
            torch.testing.assert_close(matrix[:split, split:] @ q, p * found.values, **tolerance)
            assert found.values.min() > NEGLIGIBLE


def test_the_leading_modes_are_those_of_the_whole(graphs):
    graph = graphs.bipartite(60, 35, 0.2)
    whole, leading = (solve(graph, split=60, rank=rank) for rank in (None, 8))
    torch.testing.assert_close(leading.values, whole.values[:8], rtol=0, atol=1e-10)
    projectors = [s.basis[:, :8] @ s.basis[:, :8].T for s in (whole, leading)]
    torch.testing.assert_close(*projectors, rtol=0, atol=1e-8)

    weights = (graphs.sbm(3, 20, 0.5, 0.05).dense() > 0).double()
    graph = graphs.normalised(weights + torch.eye(60))  # a node may be its own neighbour
    values, vectors = torch.linalg.eigh(graphs.laplacian(graph))
    leading = solve(graph, split=None, rank=6)
    torch.testing.assert_close(leading.values, values[:6], rtol=0, atol=1e-10)
    torch.testing.assert_close(leading.basis @ leading.basis.T, vectors[:, :6] @ vectors[:, :6].T, rtol=0, atol=1e-8)
    assert leading.rest == pytest.approx(values[6:].mean().item())


def test_leading_modes_of_several_components_are_all_found(graphs):
    graph = graphs.disjoint(*[graphs.complete(6)] * 4, graphs.ring(9))
    assert solve(graph, split=None, rank=5).values.abs().max() < 1e-9


def test_single_precision_is_solved_in_double(graphs):
    graph = graphs.bipartite(40, 25, 0.25)
    exact, single = solve(graph, split=40, rank=None), solve(graphs.single(graph), split=40, rank=None)
    assert single.basis.dtype is single.values.dtype is torch.float32
    torch.testing.assert_close(single.values.double(), exact.values, rtol=0, atol=1e-6)
    error = single.basis.T @ single.basis - 2 * torch.eye(len(single.values))
    assert error.abs().max() < 2e-6


def test_a_solver_that_fails_says_what_to_do(graphs, monkeypatch):
    from scipy.sparse import linalg

    def fail(*args, **kwargs):
        raise linalg.ArpackNoConvergence("no convergence", [], [])

    monkeypatch.setattr(linalg, "svds", fail)
    monkeypatch.setattr(linalg, "eigsh", fail)
    for split in (20, None):
        with pytest.raises(RecplugError, match="3 leading modes did not converge; use engine 'polynomial'"):
            solve(graphs.bipartite(20, 15, 0.3), split=split, rank=3)


# -- files


@pytest.fixture
def stored(graphs, tmp_path):
    """A graph, its solution and the file that holds it."""
    graph = graphs.single(graphs.bipartite(20, 15, 0.3))
    folder = tmp_path / "spectra"
    found = solve(graph, split=20, rank=None, cache=folder)
    (file,) = folder.iterdir()
    return graph, found, file


def same(a, b):
    return torch.equal(a.basis, b.basis) and torch.equal(a.values, b.values) and a.rest == b.rest


def test_a_stored_spectrum_is_not_solved_again(stored, monkeypatch):
    graph, found, file = stored
    monkeypatch.setattr(spectrum, "_bipartite", None)
    assert same(solve(graph, split=20, rank=None, cache=file.parent), found)


def test_every_choice_has_its_own_file(stored, graphs):
    graph, _, file = stored
    others = [
        (graph, 20, 3),
        (graph, None, None),
        (graphs.bipartite(20, 15, 0.3), 20, None),
        (graphs.single(graphs.bipartite(20, 15, 0.3, seed=1)), 20, None),
    ]
    for index, (other, split, rank) in enumerate(others):
        solve(other, split=split, rank=rank, cache=file.parent)
        assert len(list(file.parent.iterdir())) == index + 2


def flip_a_bit(data):
    middle = len(data) * 3 // 4
    return data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-100], lambda data: b"\0" * len(data), flip_a_bit],
    ids=["empty", "truncated", "zeros", "one bit"],
)  # fmt: skip
def test_a_damaged_file_is_replaced(stored, damage, caplog):
    graph, found, file = stored
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, logger="recplug"):
        assert same(solve(graph, split=20, rank=None, cache=file.parent), found)
    assert "damaged" in caplog.text
    assert file.read_bytes() == whole
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_another_programs_file_is_replaced(stored, caplog):
    from safetensors.torch import save_file

    graph, found, file = stored
    save_file({"basis": found.basis, "values": found.values}, file)
    with caplog.at_level(logging.WARNING, logger="recplug"):
        assert same(solve(graph, split=20, rank=None, cache=file.parent), found)
    assert "damaged" in caplog.text


def test_a_folder_that_cannot_be_written_to_costs_the_cache_only(graphs, tmp_path, caplog):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    graph = graphs.single(graphs.bipartite(20, 15, 0.3))
    with caplog.at_level(logging.WARNING, logger="recplug"):
        found = solve(graph, split=20, rank=None, cache=occupied)
    assert "could not be stored" in caplog.text
    assert same(found, solve(graph, split=20, rank=None))
