"""Edges: in gaps, off the atom, at equal energy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recplug.plugins.ssr import edges as band_edges

unit = st.floats(0, 2, allow_nan=False)
spectra = st.lists(st.sampled_from([i / 20 for i in range(41)]), min_size=2, max_size=30)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def split_of(edges, values):
    """Which eigenvalues lie below each edge, as a set of distinct ones; also checks that no edge touches one."""
    assert (edges.unsqueeze(1) - values).abs().min() > band_edges.MULTIPLICITY / 8
    return [(values < edge).sum().item() for edge in edges]


def test_equal_width():
    assert band_edges.equal_width(1).tolist() == []
    assert band_edges.equal_width(4).tolist() == [0.5, 1.0, 1.5]


@given(spectra, st.integers(2, 6), st.booleans(), st.integers(0, 99))
def test_no_edge_splits_an_eigenvalue(values, bands, atom, seed):
    values = tensor(*values)
    energy = torch.rand(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    jitter = 1e-9 * torch.randn(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    edges = band_edges.of_spectrum(values + jitter, energy, bands, atom=atom)
    assert len(edges) == bands - 1
    assert (edges.diff() >= 0).all()
    if len(values.unique()) > 1 and not (atom and len(values[(values - 1).abs() > 0.06]) == 0):
        split_of(edges, values)
        if atom:
            assert (edges - 1).abs().min() > band_edges.ATOM_REACH - 1e-9


@given(spectra, st.lists(unit, min_size=1, max_size=5), st.booleans())
def test_edges_move_only_where_they_must(values, edges, atom):
    values, edges = tensor(*values), tensor(*sorted(edges))
    moved = band_edges.into_gaps(edges, values, atom=atom)
    assert (moved.diff() >= 0).all()
    split_of(moved, values)
    if atom:
        assert (moved - 1).abs().min() > band_edges.ATOM_REACH - 1e-9
    free = (edges.unsqueeze(1) - values).abs().amin(dim=1) > 1e-5
    if atom:
        free &= (edges - 1).abs() > band_edges.ATOM_REACH + 1e-5
    if free.all():
        assert torch.equal(moved, edges)


def test_the_gap_nearest_in_energy_is_taken():
    values = tensor(0.0, 0.3, 0.3, 0.8, 1.2, 1.9)
    energy = tensor(2.0, 1.0, 1.5, 0.5, 3.0, 2.0)  # shares below the gaps: 0.2, 0.45, 0.5, 0.8
    edges = band_edges.of_spectrum(values, energy, 3, atom=False)
    torch.testing.assert_close(edges, tensor(0.55, 1.55))  # 1/3 is nearer to 0.45, 2/3 to 0.8
    torch.testing.assert_close(band_edges.of_spectrum(values, energy, 2, atom=False), tensor(1.0))
    torch.testing.assert_close(band_edges.of_spectrum(values, energy, 5, atom=False), tensor(0.15, 0.55, 1.0, 1.55))


def test_every_edge_has_a_gap_of_its_own_while_there_are_enough():
    values, energy = tensor(0.0, 0.5, 1.0, 1.5), tensor(97.0, 1.0, 1.0, 1.0)
    assert band_edges.of_spectrum(values, energy, 4, atom=False).tolist() == [0.25, 0.75, 1.25]
    assert band_edges.of_spectrum(tensor(0.0, 1.2), tensor(1.0, 1.0), 3, atom=False).tolist() == [0.6, 0.6]
    assert band_edges.of_spectrum(tensor(1.0, 1.0), tensor(1.0, 1.0), 2, atom=False).tolist() == [1.0]


def test_the_atom_is_left_whole():
    values = tensor(0.0, 0.9, 1.0, 1.0, 1.0, 1.1, 2.0)
    edges = band_edges.of_spectrum(values, tensor(1.0, 1.0, 9.0, 9.0, 9.0, 1.0, 1.0), 3, atom=True)
    torch.testing.assert_close(edges, tensor(0.925, 1.075))
    torch.testing.assert_close(band_edges.into_gaps(tensor(1.0), values, atom=True), tensor(0.925))
    torch.testing.assert_close(band_edges.into_gaps(tensor(1.01), values, atom=True), tensor(1.075))


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ((0.3, 1.6), (0.3, 1.6)),
        ((0.95,), (0.8,)),
        ((1.0,), (0.8,)),
        ((1.05,), (1.2,)),
        ((0.97, 0.99), (0.8, 1.2)),
        ((0.9, 0.95, 0.96), (0.79, 0.8, 1.2)),
        ((0.1, 0.1), (0.1, 0.11)),
        ((1.999, 2.0), (1.98, 1.99)),
    ],
)
def test_soft_edges_keep_off_the_atom(edges, expected):
    found = band_edges.off_atom(tensor(*edges), 0.2)
    torch.testing.assert_close(found, tensor(*expected))


@given(st.lists(unit, min_size=1, max_size=6), st.floats(0.05, 0.66))
def test_soft_edges_stay_apart(edges, reach):
    found = band_edges.off_atom(tensor(*sorted(edges)), reach)
    assert len(found) == len(edges)
    assert (found - 1).abs().min() >= reach - 1e-12
    assert found.min() > 0
    assert found.max() < 2
    assert (found.diff() >= band_edges.SEPARATION - 1e-12).all()


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_exact_edges_are_as_equal_as_the_spectrum_allows(graphs, bands):
    graph = graphs.sbm(3, 30, 0.4, 0.05)
    x = graphs.signal(graph, 5)
    values, vectors = torch.linalg.eigh(graphs.laplacian(graph))
    energy = (vectors.T @ x).square().sum(dim=1)
    edges = band_edges.of_spectrum(values, energy, bands, atom=False)
    share = torch.stack([energy[values < edge].sum() for edge in edges]) / energy.sum()
    largest = energy.max() / energy.sum()
    assert (share - torch.arange(1, bands).double() / bands).abs().max() <= largest / 2 + 1e-12
