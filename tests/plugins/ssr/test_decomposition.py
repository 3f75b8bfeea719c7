"""Bands of one graph: closed forms, the promises every engine makes, edges over epochs, copies and odd graphs."""

import copy
import io
import logging
import math
import pickle
from itertools import pairwise
from typing import get_args

import pytest
import torch

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr import decomposition
from recplug.plugins.ssr.decomposition import Decomposition, Engine
from recplug.plugins.ssr.edges import of_spectrum
from recplug.plugins.ssr.polynomial import transition_width

ENGINES = [name for name in get_args(Engine) if name != "auto"]
NAMES = [
    "ring", "path", "complete", "complete_bipartite", "star", "hypercube", "disjoint", "sbm", "bipartite", "more_items",
    "isolated",
]  # fmt: skip


def make(graph, split=None, bands=3, engine="spectral", **kwargs):
    return Decomposition(graph=graph, split=split, bands=bands, engine=engine, order=kwargs.pop("order", 8), **kwargs)


def projected(graph, laplacian, edges, x):
    """``[N, M, F]``: bands by a dense eigendecomposition."""
    values, vectors = torch.linalg.eigh(laplacian(graph))
    bounds = [-1.0, *edges.double().tolist(), 3.0]
    masks = [(values >= low) & (values < high) for low, high in pairwise(bounds)]
    return torch.stack([vectors[:, mask] @ (vectors[:, mask].T @ x) for mask in masks], dim=1)


def shares(bands, x):
    """``[M]``: each band's part of the bands' energy."""
    energy = bands(x).square().sum(dim=(0, 2))
    return energy / energy.sum()


# -- known signals


@pytest.mark.parametrize("engine", ["spectral", "polynomial", "legacy_cheb"])
def test_a_wave_on_a_ring_comes_back_times_its_response(graphs, engine):
    n = 24
    bands = make(graphs.ring(n), engine=engine, bands=4)
    time = torch.arange(n, dtype=torch.float64)
    for k in (0, 1, 3, 5, 8, 12):
        wave = torch.cos(2 * math.pi * k * time / n).unsqueeze(1)
        eigenvalue = torch.tensor([1 - math.cos(2 * math.pi * k / n)], dtype=torch.float64)
        expected = bands.responses(eigenvalue).squeeze(1)  # [M]
        torch.testing.assert_close(bands(wave), wave.unsqueeze(1) * expected[:, None], rtol=0, atol=1e-9)
        assert expected.sum() == pytest.approx(1)
        if engine == "spectral":
            assert sorted(expected.tolist()) == [0, 0, 0, 1]
            assert expected.argmax() == (bands.edges <= eigenvalue).sum()


def test_constants_of_components_are_the_lowest_band(graphs):
    graph = graphs.disjoint(graphs.complete(4), graphs.ring(6), graphs.path(3))
    degrees = torch.tensor([3.0] * 4 + [2.0] * 6 + [1.0, 2.0, 1.0], dtype=torch.float64)
    part = torch.tensor([0] * 4 + [1] * 6 + [2] * 3)
    x = torch.nn.functional.one_hot(part).double() * degrees.sqrt().unsqueeze(1)
    torch.testing.assert_close(make(graph)(x)[:, 0], x)


@pytest.mark.parametrize("split", [None, 1])
def test_a_star_has_three_levels(graphs, split):
    graph = graphs.complete_bipartite(1, 12)
    low = torch.cat([torch.tensor([12.0]).sqrt(), torch.ones(12)]).double()
    middle = torch.zeros(13, dtype=torch.float64)
    middle[1], middle[2] = 1.0, -1.0
    high = low.clone()
    high[0] *= -1
    x = torch.stack([low, middle, high], dim=1)
    bands = make(graph, split)
    torch.testing.assert_close(bands(x), torch.diag_embed(x))
    assert bands.edges[0] < 0.96
    assert bands.edges[1] > 1.04


def test_walsh_functions_of_a_hypercube(graphs):
    graph = graphs.hypercube(5)
    node = torch.arange(32)
    walsh = torch.stack([(-1.0) ** sum((node & mask) >> b & 1 for b in range(5)) for mask in range(32)], dim=1).double()
    eigenvalues = torch.tensor([2 * mask.bit_count() / 5 for mask in range(32)], dtype=torch.float64)
    bands = make(graph, bands=4, edges=(0.6, 1.0, 1.4))
    torch.testing.assert_close(bands(walsh), walsh.unsqueeze(1) * bands.responses(eigenvalues), rtol=0, atol=1e-9)


def test_block_membership_is_low(graphs):
    bands = make(graphs.sbm(4, 50, 0.5, 0.05), edges=(0.5, 1.0))
    member = torch.zeros(200, 1, dtype=torch.float64)
    member[:50] = 1.0
    noise = torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert shares(bands, member)[0] > 0.95
    assert shares(bands, noise)[0] < 0.1


# -- promises of every engine


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_bands_add_up_and_zero_rows_stay_zero(zoo, graphs, engine, name):
    graph, split = zoo[name]
    bands = make(graph, split, engine=engine)
    x = graphs.signal(graph)
    x[bands.isolated] = 0.0
    found = bands(x)
    assert found.shape == (graph.shape[0], 3, 3)
    torch.testing.assert_close(found.sum(dim=1), x, rtol=0, atol=1e-12)
    assert not found[bands.isolated].any()
    single = make(graphs.single(graph), split, engine=engine)
    error = (single(x.float()).sum(dim=1) - x.float()).abs().max()
    assert error <= 1e-6 * x.abs().max()
    assert not single(x.float())[bands.isolated].any()
    curves = bands.responses(torch.linspace(0, 2, 7, dtype=torch.float64))
    torch.testing.assert_close(curves.sum(dim=0), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["sbm", "complete_bipartite", "bipartite", "more_items", "isolated"])
@pytest.mark.parametrize("times", [1, 12])
def test_rows_are_rows_of_everything(zoo, graphs, engine, name, times):
    graph, split = zoo[name]
    bands = make(graph, split, engine=engine)
    rows = torch.tensor([graph.shape[0] - 1, 0, 4, 4, 2] * times)  # few or more than there are nodes
    weight = torch.randn(5 * times, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for part in (lambda x: bands(x, rows), lambda x: bands(x)[rows]):
        x = graphs.signal(graph).requires_grad_()
        found = part(x)
        gradients += [found.detach(), torch.autograd.grad((found * weight).sum(), x)[0]]
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["spectral", "polynomial"])
@pytest.mark.parametrize("name", ["bipartite", "isolated"])
def test_an_isolated_node_has_eigenvalue_one(zoo, graphs, engine, name):
    graph, split = zoo[name]
    bands = make(graph, split, engine=engine, edges=(0.5, 1.1))
    x = graphs.signal(graph)
    expected = [0.0, 1.0, 0.0]
    if engine == "polynomial":
        expected = bands.responses(torch.ones(1, dtype=torch.float64)).squeeze(1).tolist()
    alone = bands.isolated.nonzero().squeeze(-1)
    assert len(alone)
    wanted = x[alone].unsqueeze(1) * torch.tensor(expected, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(bands(x)[alone], wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(bands(x, alone), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients(graphs, engine):
    graph = graphs.bipartite(6, 5, 0.6)
    bands = make(graph, 6, engine=engine, order=3)
    for rows in (None, torch.tensor([7, 1, 7])):
        assert torch.autograd.gradcheck(lambda x, rows=rows: bands(x, rows), graphs.signal(graph, 2).requires_grad_())


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "random"])
@pytest.mark.parametrize("name", ["path", "sbm", "hypercube", "bipartite"])
def test_the_order_of_nodes_does_not_matter(zoo, graphs, engine, name):
    graph, split = zoo[name]
    n, generator = graph.shape[0], torch.Generator().manual_seed(2)
    sides = (0, n) if split is None else (0, split, n)
    order = torch.cat([a + torch.randperm(b - a, generator=generator) for a, b in pairwise(sides)])
    dense = graph.dense()[order][:, order]
    moved = Adjacency.of(dense.nonzero().T, dense[dense != 0], graph.shape, symmetric=True)
    x = graphs.signal(graph)
    one, two = (make(g, split, engine=engine) for g in (graph, moved))
    one.observe([x])
    two.observe([x[order]])
    torch.testing.assert_close(two.edges, one.edges, rtol=0, atol=1e-6)
    torch.testing.assert_close(two(x[order]), one(x)[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_and_half_precision_compute_in_single(graphs, engine):
    graph = graphs.single(graphs.bipartite(30, 20, 0.2))
    bands, x = make(graph, 30, engine=engine), graphs.signal(graph, dtype=torch.float32).requires_grad_()
    expected = bands(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bands(x)
        (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    exact = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(bands(exact).square().sum(), exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-5)
    assert bands(x.detach().half()).dtype is torch.float32
    other = make(graph, 30, engine=engine)
    bands.observe([x])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other.observe([x])
    assert torch.equal(other._estimated, bands._estimated)


# -- sharp bands


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_exact_bands_are_orthogonal_projections(zoo, graphs, name, observed):
    graph, split = zoo[name]
    x = graphs.signal(graph)
    bands = make(graph, split, bands=4)
    bands.observe([x] * observed)
    found = bands(x)
    torch.testing.assert_close(found, projected(graph, graphs.laplacian, bands.edges, x), rtol=0, atol=1e-9)
    inner = torch.einsum("nmf,nkf->mk", found, found)
    assert (inner - inner.diag().diag()).abs().max() < 1e-9
    assert inner.trace() == pytest.approx(x.square().sum().item())
    for m in range(4):
        again = bands(found[:, m])
        torch.testing.assert_close(again[:, m], found[:, m], rtol=0, atol=1e-9)
        assert again[:, [k for k in range(4) if k != m]].abs().max() < 1e-9


@pytest.mark.parametrize("name", ["bipartite", "more_items", "complete_bipartite", "star"])
def test_the_bipartite_route_is_the_dense_route(zoo, graphs, name):
    graph, split = zoo[name]
    x = graphs.signal(graph)
    for edges in ((0.3, 0.8, 1.3), (0.2, 1.1, 1.4)):
        two, one = (make(graph, s, bands=4, edges=edges) for s in (split, None))
        torch.testing.assert_close(two(x), one(x), rtol=0, atol=1e-10)


def test_polynomials_approach_projectors_away_from_edges(graphs):
    graph = graphs.disjoint(graphs.complete(5), graphs.complete(7), graphs.complete_bipartite(6, 6))
    x = graphs.signal(graph)  # eigenvalues 0, 1, 7/6, 5/4, 2
    exact, width = make(graph, edges=(0.5, 1.6)), transition_width(64)
    assert width < 0.2
    soft = make(graph, engine="polynomial", order=64, edges=(0.5, 1.6))
    bound = 2e-3 * x.norm()  # no eigenvalue nearer than two widths to an edge
    assert (soft(x) - exact(x)).norm(dim=(0, 2)).max() < bound * math.sqrt(2)


def test_the_control_is_made_of_projectors_without_a_graph(graphs):
    graph = graphs.bipartite(40, 25, 0.2)
    n = 65
    bands = make(graph, 40, engine="random", bands=3, seed=5)
    everything = bands(torch.eye(n, dtype=torch.float64))  # [N, M, N]
    active = (~bands.isolated).sum().item()
    assert 0 < active < n
    for m in range(3):
        projector = everything[:, m]
        torch.testing.assert_close(projector, projector.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-12)
        others = everything[:, (m + 1) % 3]
        assert (projector @ others).abs().max() < 1e-12
        rank = projector.trace() - (n - active if m == 1 else 0)
        assert abs(rank - active / 3) < 1
        kept = everything[~bands.isolated][:, m]
        assert kept.square().sum(dim=1).max() < 0.9  # no node lies in one band
        assert (kept.abs() > 1e-6).float().mean() > 0.7
    assert not torch.allclose(
        make(graph, 40, engine="random", seed=6)(graphs.signal(graph)), bands(graphs.signal(graph))
    )
    smooth = graph.dense().sum(dim=1, keepdim=True)
    assert shares(bands, smooth).max() < 0.6


# -- one band


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_one_band_is_the_signal(graphs, engine):
    graph = graphs.single(graphs.bipartite(10, 8, 0.4))
    bands = make(graph, 10, bands=1, engine=engine)
    x, rows = graphs.signal(graph, dtype=torch.float32), torch.tensor([3, 3, 0])
    assert torch.equal(bands(x), x.unsqueeze(1))
    assert torch.equal(bands(x, rows), x[rows].unsqueeze(1))
    bands.observe([x])
    assert bands.edges.shape == (0,)
    assert bands.responses(torch.rand(4)).tolist() == [[1.0] * 4]
    assert "the signal itself" in bands.summary()


# -- edges over epochs


def soft(graphs, **kwargs):
    return make(graphs.path(200), engine="polynomial", order=16, **kwargs)


def test_unobserved_edges_are_of_equal_width(graphs):
    torch.testing.assert_close(soft(graphs).edges, torch.tensor([2 / 3, 4 / 3]))


@pytest.mark.parametrize("engine", ["spectral", "polynomial"])
def test_bands_of_equal_energy(graphs, engine):
    graph = graphs.path(200)
    x = graph.matmul(graphs.signal(graph, 16))
    bands = make(graph, engine=engine, order=32)
    bands.observe([x])
    share = projected(graph, graphs.laplacian, bands.edges, x).square().sum(dim=(0, 2)) / x.square().sum()
    torch.testing.assert_close(share, torch.full_like(share, 1 / 3), rtol=0, atol=0.03)
    assert not torch.allclose(bands.edges, torch.tensor([2 / 3, 4 / 3]), atol=0.05)


@pytest.mark.parametrize("name", ["bipartite", "more_items", "complete_bipartite"])
def test_the_bipartite_route_finds_the_same_energies(zoo, graphs, name):
    graph, split = zoo[name]
    values, vectors = torch.linalg.eigh(graphs.laplacian(graph))
    x = graphs.signal(graph)
    bands = make(graph, split, bands=4)
    bands.observe([x])
    expected = of_spectrum(values, (vectors.T @ x).square().sum(dim=1), 4, atom=True)
    torch.testing.assert_close(bands.edges.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ["spectral", "polynomial"])
def test_modalities_count_equally_and_scale_does_not(graphs, engine):
    graph = graphs.single(graphs.path(200))
    x = graphs.signal(graph, 2, dtype=torch.float32)
    smooth = graph.matmul(graph.matmul(x + graph.matmul(x)))
    edges = []
    wide = [x, torch.cat([smooth] * 5, dim=1)]
    for signals in ([x, smooth], [1e12 * x, 1e-30 * smooth], [x, torch.zeros_like(x), smooth], [x], [smooth], wide):
        bands = make(graph, engine=engine)
        bands.observe(signals)
        edges.append(bands.edges)
    torch.testing.assert_close(edges[1], edges[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(edges[2], edges[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(edges[5], edges[0], rtol=0, atol=1e-5)
    assert (edges[4] < edges[0]).all()
    assert (edges[0] < edges[3]).all()


def test_estimates_are_averaged_until_frozen(graphs):
    graph = graphs.path(200)
    x = graphs.signal(graph, 4)
    smooth = graph.matmul(graph.matmul(x + graph.matmul(x)))
    first, second, both = soft(graphs), soft(graphs), soft(graphs)
    first.observe([x])
    second.observe([smooth])
    both.observe([x])
    both.observe([smooth])
    torch.testing.assert_close(both.edges, (first.edges + second.edges) / 2)
    assert not both.frozen
    both.freeze()
    before = both.edges.clone()
    both.observe([x])
    assert both.frozen
    assert torch.equal(both.edges, before)


def test_nothing_is_learned_from_silence_and_garbage_is_refused(graphs):
    bands, x = soft(graphs), graphs.signal(graphs.path(200))
    before = bands.edges.clone()
    bands.observe([])
    bands.observe([torch.zeros_like(x)])
    bands.observe([x[:, :0]])
    assert torch.equal(bands.edges, before)
    assert int(bands._observed) == 0
    for garbage in (torch.nan, torch.inf):
        with pytest.raises(RecplugError, match="NaN or infinity"):
            bands.observe([torch.full_like(x, garbage)])


@pytest.mark.parametrize(("order", "reach"), [(5, 0.54), (16, 0.215), (64, 0.062), (150, 0.05)])
def test_soft_edges_keep_half_a_transition_from_the_atom(graphs, order, reach):
    graph = graphs.bipartite(90, 30, 0.1)
    bands = make(graph, 90, engine="polynomial", order=order)
    bands.observe([graphs.signal(graph, 8)])  # white: more than a third of the energy at 1
    assert (bands.edges - 1).abs().min() >= reach - 0.006
    assert bands.edges[0] < 1 < bands.edges[1]
    assert f"was moved to {bands.edges[0]:.4f}" in bands.summary()
    given = make(graph, 90, engine="polynomial", order=order, edges=(0.9, 1.02))
    given.observe([graphs.signal(graph, 8)])
    torch.testing.assert_close(given.edges, torch.tensor([0.9, 1.02]))  # whoever gives edges keeps them


def test_an_observation_leaves_no_graph_and_no_draw(graphs):
    bands, x = soft(graphs), graphs.signal(graphs.path(200)).requires_grad_()
    state = torch.get_rng_state()
    bands.observe([x])
    make(graphs.path(9), engine="random")
    assert torch.equal(torch.get_rng_state(), state)
    assert not bands.edges.requires_grad


# -- copies and devices


@pytest.mark.parametrize("engine", ENGINES)
def test_copies_checkpoints_and_pickles(graphs, engine):
    graph = graphs.bipartite(30, 20, 0.2)
    x = graphs.signal(graph)
    bands = make(graph, 30, engine=engine)
    bands.observe([x])
    bands.freeze()
    fresh = make(graph, 30, engine=engine)
    file = io.BytesIO()
    torch.save(bands.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert sum(t.numel() for t in bands.state_dict().values()) == 6  # edges and their estimate; no eigenvectors
    for other in (fresh, copy.deepcopy(bands), pickle.loads(pickle.dumps(bands))):
        assert torch.equal(other(x), bands(x))
        assert torch.equal(other.edges, bands.edges)
        assert other.frozen
        assert other.summary() == bands.summary()


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_follows_the_default_device(graphs, engine):
    graph = graphs.bipartite(30, 20, 0.2)
    x = graphs.signal(graph).requires_grad_()
    expected = make(graph, 30, engine=engine)
    expected.observe([x])
    with torch.device("meta"):
        bands = make(graph, 30, engine=engine)
        bands.observe([x])
        bands(x, bands.isolated.nonzero().squeeze(-1)).sum().backward()
        found, _ = bands(x), bands.summary()
    assert torch.equal(found, expected(x))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_module_moves_with_its_graph(graphs, engine):
    bands = make(graphs.bipartite(30, 20, 0.2), 30, engine=engine).to("meta")
    assert all(buffer.device.type == "meta" for buffer in bands.buffers())
    assert bands.engine is not None
    assert getattr(bands.engine, "graph", bands.edges).device.type == "meta"


# -- odd graphs and wrong input


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.parametrize("shape", [(1, 1), (4, 3)])
def test_without_edges_everything_is_one_band(graphs, engine, shape, caplog):
    graph = Adjacency.bipartite(torch.empty(2, 0, dtype=torch.long), n_users=shape[0], n_items=shape[1])
    with caplog.at_level(logging.WARNING, logger="recplug"):
        bands = make(graph, shape[0], engine=engine)
        x = graphs.signal(graph, dtype=torch.float32)
        bands.observe([x])
        found = bands(x)
    assert [record.message.startswith("SSR's graph has no edges") for record in caplog.records] == [True]
    assert sorted(shares(bands, x).tolist()) == [0.0, 0.0, 1.0]
    assert torch.equal(found.sum(dim=1), x)
    assert bands.summary()


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_one_user_and_one_item(graphs, engine):
    graph = Adjacency.bipartite(torch.tensor([[0, 0], [0, 0]]), n_users=1, n_items=1)  # the edge comes twice
    for order in (1, 8):
        bands = make(graph, 1, engine=engine, order=order)
        x = torch.tensor([[3.0], [1.0]])
        bands.observe([x])
        torch.testing.assert_close(bands(x).sum(dim=1), x)
        if engine in ("auto", "spectral"):
            torch.testing.assert_close(bands(x)[:, 0], torch.full((2, 1), 2.0))
            torch.testing.assert_close(bands(x)[:, 2], torch.tensor([[1.0], [-1.0]]))


def test_auto_is_exact_where_the_eigenproblem_is_small(graphs, monkeypatch):
    graph = graphs.bipartite(30, 20, 0.2)
    assert make(graph, 30, engine="auto").choice == "spectral"
    monkeypatch.setattr(decomposition, "EXACT_SIDE", 20)
    assert make(graph, 30, engine="auto").choice == "spectral"
    assert make(graph, engine="auto").choice == "polynomial"  # 50 nodes, not known to be bipartite
    monkeypatch.setattr(decomposition, "EXACT_BYTES", 50 * 40 * 8 - 1)
    assert "larger than 0 GiB" in make(graph, 30, engine="auto").summary()
    monkeypatch.setattr(decomposition, "EXACT_SIDE", 19)
    assert "an eigenproblem of 20 is larger than 19" in make(graph, 30, engine="auto").summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": 0}, "bands is 0"),
        ({"order": 0}, "order is 0"),
        ({"engine": "exact"}, "no engine 'exact'"),
        ({"edges": (0.5,)}, "3 bands have 2 edges"),
        ({"edges": (0.5, 2.5)}, "3 bands have 2 edges"),
        ({"edges": (1.5, 0.5)}, "3 bands have 2 edges"),
        ({"edges": (0.5, 1.5), "engine": "legacy_cheb"}, "'legacy_cheb' has no edges to choose"),
        ({"split": 29}, "not bipartite with 29 users first"),
        ({"split": 51}, "not bipartite with 51 users first"),
    ],
)
def test_wrong_settings_say_so(graphs, change, message):
    with pytest.raises(RecplugError, match=message):
        make(graphs.bipartite(30, 20, 0.2), **{"split": 30, **change})


def test_wrong_graphs_and_signals_say_so(graphs):
    graph = graphs.path(9)
    ones = Adjacency.of(graph.indices(), torch.ones(graph.nnz), graph.shape)
    with pytest.raises(RecplugError, match="not normalised"):
        make(ones)
    lopsided = Adjacency.of(torch.tensor([[0], [1]]), torch.ones(1), (2, 2))
    with pytest.raises(RecplugError, match="symmetric"):
        make(lopsided)
    bands = make(graph)
    for wrong in (torch.ones(8, 2), torch.ones(9)):
        with pytest.raises(RecplugError, match="graph of 9 nodes"):
            bands(wrong)
        with pytest.raises(RecplugError, match="graph of 9 nodes"):
            bands.observe([wrong])
