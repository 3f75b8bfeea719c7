"""The Chebyshev bank against its own formulas in another variable, dense matrices and finite differences."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recplug.plugins.ssr.polynomial import (
    analyse,
    energy_below,
    jackson,
    legacy_low_passes,
    low_passes,
    moments,
    response,
    transition_width,
)

GRID = torch.linspace(0, 2, 801, dtype=torch.float64)


def edges(*values):
    return torch.tensor(values, dtype=torch.float64)


def step_in_y(tau, order, eigenvalues):
    """The damped step, term by term in y = lambda - 1, where T_k(cos t) = cos(k t)."""
    theta, total = math.acos(tau - 1), []
    for value in eigenvalues.tolist():
        angle = math.acos(min(1.0, max(-1.0, value - 1)))
        one = (math.pi - theta) / math.pi
        for k in range(1, order + 1):
            alpha = math.pi / (order + 2)
            damping = (1 - k / (order + 2)) * math.sin(alpha) * math.cos(k * alpha)
            damping = (damping + math.cos(alpha) * math.sin(k * alpha) / (order + 2)) / math.sin(alpha)
            one -= damping * 2 * math.sin(k * theta) / (math.pi * k) * math.cos(k * angle)
        total.append(one)
    return torch.tensor(total, dtype=torch.float64)


def dense_bands(graph, laplacian, low, x):
    """``[N, M, F]`` through eigenvectors."""
    values, vectors = torch.linalg.eigh(laplacian(graph))
    return torch.einsum("nk,mk,kf->nmf", vectors, response(low, values), vectors.T @ x)


@pytest.mark.parametrize("order", [1, 2, 5, 16, 33])
def test_low_passes_are_the_damped_series_of_a_step(order):
    taus = (0.05, 0.4, 1.0, 1.7)
    bands = response(low_passes(edges(*taus), order), GRID)
    steps = [step_in_y(tau, order, GRID) for tau in taus]
    torch.testing.assert_close(bands[0], steps[0])
    for m in range(1, len(taus)):
        torch.testing.assert_close(bands[m], steps[m] - steps[m - 1])
    torch.testing.assert_close(bands[-1], 1 - steps[-1])
    torch.testing.assert_close(bands.sum(dim=0), torch.ones_like(GRID), rtol=0, atol=1e-14)
    assert bands.min() > -1e-12
    assert bands.max() < 1 + 1e-12


@pytest.mark.parametrize("order", [1, 4, 20])
def test_jacksons_kernel_is_positive(order):
    angle = torch.linspace(0, math.pi, 500, dtype=torch.float64).unsqueeze(1)
    k = torch.arange(order + 1)
    weight = jackson(order) * torch.where(k == 0, 1.0, 2.0)
    assert (torch.cos(k * angle) @ weight).min() > -1e-12
    assert jackson(order)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("edge", "widths"),
    [(0.3, {5: 0.77, 8: 0.55, 16: 0.31, 32: 0.16, 64: 0.08}), (1.0, {5: 1.08, 8: 0.77, 16: 0.43, 32: 0.23, 64: 0.12})],
)
def test_transition_widths(edge, widths):
    for order, width in widths.items():
        assert transition_width(order, edge) == pytest.approx(width, abs=0.011)
    assert transition_width(1) == 2


@pytest.mark.parametrize("order", [8, 16, 32, 64])
@pytest.mark.parametrize("edge", [0.5, 1.0, 1.4])
def test_responses_are_sharp_away_from_the_edge(order, edge):
    width = transition_width(order, edge)
    error = (response(low_passes(edges(edge), order), GRID)[0] - (edge > GRID).double()).abs()
    distance = (GRID - edge).abs()
    assert error[distance < width / 4].max() > 0.1
    if (distance > width).any():
        assert error[distance > width].max() < 1.2e-2
    if (distance > 2 * width).any():
        assert error[distance > 2 * width].max() < 2e-3


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("name", ["path", "sbm", "bipartite", "isolated"])
def test_analysis_is_the_polynomial_of_the_matrix(zoo, graphs, name, order):
    graph, _ = zoo[name]
    x, low = graphs.signal(graph), low_passes(edges(0.4, 0.9, 1.5), order)
    expected = dense_bands(graph, graphs.laplacian, low, x)
    torch.testing.assert_close(analyse(graph, x, low, None), expected, rtol=1e-11, atol=1e-12)
    rows = torch.tensor([3, 0, 3, 6])
    torch.testing.assert_close(analyse(graph, x, low, rows), expected[rows], rtol=1e-11, atol=1e-12)
    assert analyse(graph, x, low, rows[:0]).shape == (0, 4, 3)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("rows", [None, [4, 0, 4]])
def test_gradients(graphs, order, rows):
    graph = graphs.bipartite(6, 4, 0.5)
    low = low_passes(edges(0.5, 1.5), order)
    rows = None if rows is None else torch.tensor(rows)
    x = graphs.signal(graph, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: analyse(graph, x, low, rows), x)
    assert torch.autograd.gradgradcheck(lambda x: analyse(graph, x, low, rows).square(), x)


class Watch(TorchDispatchMode):
    """Counts sparse products and the largest dense tensor."""

    def __init__(self):
        super().__init__()
        self.products = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += "embedding_bag" in func.name()  # what a sparse product is on the CPU
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.layout == torch.strided:
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("order", [1, 2, 6, 16])
def test_a_step_costs_the_order_in_products_and_no_band_of_all_nodes(graphs, order):
    graph, rows = graphs.ring(200), torch.tensor([1, 7, 7])
    x = graphs.signal(graph, 4).requires_grad_()
    with Watch() as forward:
        bands = analyse(graph, x, low_passes(edges(0.5, 1.0, 1.5), order), rows)
    with Watch() as backward:
        bands.square().sum().backward()
    assert (forward.products, backward.products) == (order, order)
    assert forward.largest <= x.numel()
    assert backward.largest <= x.numel()


def test_nothing_is_written_to_the_signal(graphs):
    graph = graphs.ring(12)
    x = graphs.signal(graph)
    before, rows = x.clone(), torch.tensor([0, 5])
    for chosen in (None, rows):
        analyse(graph, x, low_passes(edges(0.7), 7), chosen)
        moments(graph, x, 7)
    assert torch.equal(x, before)


def test_single_precision_reconstructs(graphs):
    graph = graphs.single(graphs.bipartite(300, 120, 0.05))
    x = graphs.signal(graph, 8, dtype=torch.float32)
    error = (analyse(graph, x, low_passes(edges(0.3, 0.7, 1.4), 32), None).sum(dim=1) - x).abs().max()
    assert error <= 1e-6 * x.abs().max()


def test_the_legacy_bank_is_no_filter_bank():
    points = torch.tensor([0, 0.5, 1, 1.5, 2], dtype=torch.float64)
    expected = torch.tensor(
        [[1.50, 1.25, 1.00, 0.75, 0.50], [0.50, -0.10, -0.80, -0.70, 1.10], [-1.00, -0.15, 0.80, 0.95, -0.60]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(response(legacy_low_passes(3, 16), points), expected)
    torch.testing.assert_close(response(legacy_low_passes(2, 16), points), torch.stack([expected[0], 1 - expected[0]]))
    y = GRID - 1
    five = response(legacy_low_passes(4, 5), GRID)  # orders 2, 3 and 4, 5
    chebyshev = [torch.cos(k * torch.arccos(y)) for k in range(6)]
    torch.testing.assert_close(five[1], 0.8 * chebyshev[2] + 0.3 * chebyshev[3])
    torch.testing.assert_close(five[2], 0.8 * chebyshev[4] + 0.3 * chebyshev[5])
    torch.testing.assert_close(five[0], 1 - y / 2)


@pytest.mark.parametrize("name", ["path", "sbm", "bipartite", "isolated"])
@pytest.mark.parametrize("order", [1, 2, 7])
def test_doubled_moments_are_traces(zoo, graphs, name, order):
    graph, _ = zoo[name]
    x, matrix = graphs.signal(graph), graph.dense()
    direct, before, now = [], x, matrix @ x
    for _ in range(2 * order + 1):
        direct.append((x * before).sum())
        before, now = now, 2 * matrix @ now - before
    torch.testing.assert_close(moments(graph, x, order), torch.stack(direct))


@pytest.mark.parametrize("order", [2, 8, 16])
def test_the_damped_density_is_the_spectrum_seen_through_low_passes(zoo, graphs, order):
    graph, _ = zoo["sbm"]
    x = graphs.signal(graph)
    values, vectors = torch.linalg.eigh(graphs.laplacian(graph))
    energy = (vectors.T @ x).square().sum(dim=1)
    tau = torch.linspace(0, 2, 41, dtype=torch.float64)
    found = energy_below(moments(graph, x, order), tau)
    expected = torch.stack([(step_in_y(t, 2 * order, values) * energy).sum() for t in tau.tolist()]) / energy.sum()
    torch.testing.assert_close(found, expected)
    assert found.diff().min() > -1e-12
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert found[-1] == pytest.approx(1)
