r"""Polynomials of the graph: bands as differences of Chebyshev low-passes, at a fixed number of sparse products.

Everything is written in the eigenvalue :math:`\mu = 1 - \lambda` of :math:`\hat A = I - L`, whose Chebyshev polynomials
obey :math:`T_{k+1}(\hat A) = 2 \hat A\, T_k(\hat A) - T_{k-1}(\hat A)`. A *bank* is M - 1 low-passes, a matrix
``[M-1, K+1]`` of coefficients; the bands are the first low-pass, the differences of neighbours, and what the last one
leaves. They add up to the signal whatever the coefficients are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr import edges as band_edges

MOMENT_ORDER = 16
"""At least so many products go into an estimate of the energy's density, however low the bank's order."""


class PolynomialEngine(nn.Module):
    """Soft bands at any size: differences of damped Chebyshev low-passes, or a fixed bank.

    Args:
        graph: A_hat, symmetric and normalised, ``[N, N]``.
        order: K >= 1.
        bipartite: keep edges off 1, by half a transition width.
        low: a bank ``[M-1, K+1]`` that has no edges to choose, such as :func:`legacy_low_passes`; None: low-passes at
            the edges that are handed in.
    """

    low: Tensor | None

    def __init__(self, *, graph: Adjacency, order: int, bipartite: bool, low: Tensor | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.order = order if low is None else low.shape[1] - 1
        self.bipartite = bipartite
        self.width = transition_width(self.order)
        self.fixed = None if low is None else band_edges.equal_width(len(low) + 1)
        self.register_buffer("low", None if low is None else low.to(graph.device, torch.float32), persistent=False)

    def bank(self, edges: Tensor) -> Tensor:
        """``[M-1, K+1]``: the low-passes at ``edges [M-1]``."""
        return low_passes(edges, self.order) if self.low is None else self.low.to(edges.dtype)

    def forward(self, x: Tensor, rows: Tensor | None, edges: Tensor) -> Tensor:
        """``x [N, F]``, float32 or float64, to ``[r, M, F]`` at ``rows [r]`` or everywhere."""
        return analyse(self.graph, x, self.bank(edges.to(x.dtype)), rows)

    def responses(self, eigenvalues: Tensor, edges: Tensor) -> Tensor:
        """``[M, n]``: soft curves between 0 and 1 (outside in the legacy bank) that sum to 1."""
        return response(self.bank(edges.to(eigenvalues.dtype)), eigenvalues)

    def estimate(self, signals: Sequence[Tensor], bands: int) -> Tensor:
        """``[M-1]``: edges of equal energy, from exact moments of its density; near 1 it is smeared by the damping."""
        found = [moments(self.graph, x, max(self.order, MOMENT_ORDER)) for x in signals]
        pooled = sum((m / m[0] for m in found), torch.zeros_like(found[0])).to("cpu")
        target = torch.arange(1, bands, dtype=torch.float64, device="cpu") / bands
        low, high = torch.zeros_like(target), torch.full_like(target, 2.0)
        for _ in range(50):
            middle = (low + high) / 2
            short = energy_below(pooled, middle) < target
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return (low + high) / 2

    def snap(self, edges: Tensor) -> Tensor:
        """``[M-1]``: off 1 on bipartite graphs, by 0.05 and by half a transition width."""
        if not self.bipartite:
            return band_edges.apart(edges, 0.0, 2.0)
        return band_edges.off_atom(edges, min(max(band_edges.ATOM_REACH, self.width / 2), 2 / 3))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PolynomialEngine:
        super()._apply(fn, recurse)
        self.graph = self.graph.to(fn(torch.empty(0, device=self.graph.device)).device)
        return self

    def describe(self) -> str:
        """Order and width."""
        kind = f"soft bands, transition width {self.width:.2f} around 1" if self.fixed is None else "a fixed bank"
        return f"{self.order} sparse products each way, {kind}"


# -- banks


def jackson(order: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """``[K+1]``: Jackson's damping, which keeps a truncated step between 0 and 1 and monotone."""
    k = torch.arange(order + 1, device=device, dtype=dtype)
    step = math.pi / (order + 2)
    return ((order + 2 - k) * torch.cos(k * step) + torch.sin(k * step) / math.tan(step)) / (order + 2)


def low_passes(edges: Tensor, order: int) -> Tensor:
    r"""The damped Chebyshev series of :math:`1[\lambda < \tau]` at every edge.

    With :math:`\varphi = \arccos(1 - \tau)`: :math:`c_0 = \varphi / \pi`, :math:`c_k = 2 g_k \sin(k \varphi)/(\pi k)`.

    Args:
        edges: ``[M-1]``, ascending in [0, 2].
        order: K >= 1.

    Returns:
        ``[M-1, K+1]``.
    """
    angle = torch.arccos((1 - edges).clamp(-1, 1)).unsqueeze(-1)  # [M-1, 1]
    k = torch.arange(1, order + 1, device=edges.device, dtype=edges.dtype)  # [K]
    damping = jackson(order, device=edges.device, dtype=edges.dtype)[1:]
    return torch.cat([angle, 2 * damping * torch.sin(k * angle) / k], dim=-1) / math.pi


def legacy_low_passes(bands: int, order: int) -> Tensor:
    r"""The fixed polynomials of the public code's large-graph branch, summed up band after band. For comparison only.

    In :math:`y = \lambda - 1`: low is :math:`T_0 - T_1/2`, the middle :math:`0.8\,T_2 + 0.3\,T_3`, high the rest. These
    are not band filters: at :math:`\lambda = 0` low is 1.5 and high -1. For M > 3 the code spreads orders 2 to K over
    the middles with weights :math:`0.8 \cdot 0.375^j`; how it deals them out is our reading: consecutive orders, j
    counted anew in each band.

    Returns:
        ``[M-1, K+1]``, with K = 3 for three bands and 1 for two.
    """
    middles = bands - 2
    order = {0: 1, 1: 3}.get(middles, max(order, middles + 1))
    band = torch.zeros(bands - 1, order + 1, dtype=torch.float64, device="cpu")
    band[0, 0], band[0, 1] = 1.0, 0.5
    for index in range(middles):
        begin, end = (2 + (order - 1) * i // middles for i in (index, index + 1))
        for j, k in enumerate(range(begin, end)):
            band[1 + index, k] = 0.8 * 0.375**j * (-1) ** k  # T_k(y) = (-1)^k T_k(mu)
    return band.cumsum(dim=0)


def response(low: Tensor, eigenvalues: Tensor) -> Tensor:
    """``[M, n]``: the bands of a bank ``low [M-1, K+1]`` at ``eigenvalues [n]`` of L."""
    angle = torch.arccos((1 - eigenvalues.to(low)).clamp(-1, 1))  # [n]
    k = torch.arange(low.shape[1], device=low.device, dtype=low.dtype)  # [K+1]
    passed = low @ torch.cos(k.unsqueeze(-1) * angle)  # [M-1, n]
    nothing, everything = torch.zeros_like(passed[:1]), torch.ones_like(passed[:1])
    return torch.cat([nothing, passed, everything]).diff(dim=0)


def transition_width(order: int, edge: float = 1.0) -> float:
    """The distance in lambda over which a damped low-pass falls from 90 % to 10 %; 2 where it never does."""
    grid = 1 - torch.cos(torch.linspace(0, math.pi, 20001, dtype=torch.float64, device="cpu"))
    low = low_passes(torch.tensor([edge], dtype=torch.float64, device="cpu"), order)
    falling = response(low, grid)[0]
    if falling[0] < 0.9 or falling[-1] > 0.1:
        return 2.0
    return float(grid[falling < 0.1][0] - grid[falling > 0.9][-1])


# -- analysis


def analyse(graph: Adjacency, x: Tensor, low: Tensor, rows: Tensor | None) -> Tensor:
    """All bands of a signal, by K sparse products forward and K backward; nothing is kept for backward.

    Args:
        graph: A_hat, symmetric, ``[N, N]``.
        x: ``[N, F]``, float32 or float64.
        low: ``[M-1, K+1]``, a bank with M >= 2; no gradient reaches it.
        rows: ``[r]``, the nodes that are asked for, or None for all.

    Returns:
        ``[r, M, F]``, a view of ``[M, r, F]``.
    """
    bands: Tensor = _Analysis.apply(graph, x, low.to(x), rows)
    return bands.transpose(0, 1)


class _Analysis(torch.autograd.Function):
    """``x [N, F]`` to ``[M, r, F]``. The adjoint is :class:`_Synthesis`."""

    @staticmethod
    def forward(ctx: Any, graph: Adjacency, x: Tensor, low: Tensor, rows: Tensor | None) -> Tensor:
        ctx.graph, ctx.low, ctx.rows = graph, low, rows
        with torch.autocast(x.device.type, enabled=False):
            return _analyse(graph, x.contiguous(), low, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        return None, _Synthesis.apply(ctx.graph, grads[0], ctx.low, ctx.rows), None, None


class _Synthesis(torch.autograd.Function):
    """``[M, r, F]`` to ``[N, F]``: every band filtered once more, rows put back in their places, all added."""

    @staticmethod
    def forward(ctx: Any, graph: Adjacency, bands: Tensor, low: Tensor, rows: Tensor | None) -> Tensor:
        ctx.graph, ctx.low, ctx.rows = graph, low, rows
        with torch.autocast(bands.device.type, enabled=False):
            return _synthesise(graph, bands, low, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        return None, _Analysis.apply(ctx.graph, grads[0], ctx.low, ctx.rows), None, None


def _analyse(graph: Adjacency, x: Tensor, low: Tensor, rows: Tensor | None) -> Tensor:
    edges, terms = low.shape
    asked = x if rows is None else x[rows]  # [r, F]
    passed = asked.new_zeros(edges, *asked.shape)  # [M-1, r, F]
    before, now = x, x
    for k in range(terms):
        if k == 1:
            now = graph.times(x)
        elif k > 1:
            before, now = now, graph.times(now).mul_(2).sub_(before)
        passed.addcmul_(low[:, k, None, None], now if rows is None else now.index_select(0, rows))
    return torch.cat([passed[:1], passed[1:] - passed[:-1], (asked - passed[-1]).unsqueeze(0)])


def _synthesise(graph: Adjacency, bands: Tensor, low: Tensor, rows: Tensor | None) -> Tensor:
    """Clenshaw's recursion: b_k = g_k + 2 A b_{k+1} - b_{k+2}, where g_k is what the bands give to T_k."""
    steps = bands[:-1] - bands[1:]  # [M-1, r, F]: what each low-pass receives

    def add(total: Tensor, part: Tensor) -> Tensor:
        return total.add_(part) if rows is None else total.index_add_(0, rows, part)

    def given(k: int) -> Tensor:
        return torch.tensordot(low[:, k], steps, dims=1)  # [r, F]

    size = (graph.shape[0], bands.shape[2])
    before, now = bands.new_zeros(size), add(bands.new_zeros(size), given(low.shape[1] - 1))
    for k in range(low.shape[1] - 2, 0, -1):
        before, now = now, add(graph.times(now).mul_(2).sub_(before), given(k))
    return add(graph.times(now).sub_(before), given(0) + bands[-1])


# -- spectral density


@torch.no_grad()
def moments(graph: Adjacency, x: Tensor, order: int) -> Tensor:
    r""":math:`\langle x, T_k(\hat A)\, x \rangle` for k = 0 ... 2K, exact, from K sparse products.

    :math:`m_{2k} = 2 \lVert T_k x \rVert^2 - m_0` and :math:`m_{2k+1} = 2 \langle T_{k+1} x, T_k x \rangle - m_1`.

    Returns:
        ``[2K+1]``, float64, summed over the columns of ``x [N, F]``.
    """
    before, now = x, graph.times(x)
    first, second = _inner(x, x), _inner(now, x)
    found = [first, second, 2 * _inner(now, now) - first]
    for _ in range(1, order):
        before, now = now, graph.times(now).mul_(2).sub_(before)
        found += [2 * _inner(now, before) - second, 2 * _inner(now, now) - first]
    return torch.stack(found)


def energy_below(moments: Tensor, tau: Tensor) -> Tensor:
    r"""The damped share of energy at :math:`\lambda \le \tau`, monotone in tau.

    Args:
        moments: ``[n+1]``, of :func:`moments`.
        tau: ``[m]`` in [0, 2].

    Returns:
        ``[m]`` in [0, 1].
    """
    order = len(moments) - 1
    angle = torch.arccos((1 - tau).clamp(-1, 1)).unsqueeze(-1)  # [m, 1]
    k = torch.arange(1, order + 1, device=moments.device, dtype=moments.dtype)
    weight = jackson(order, device=moments.device)[1:] * moments[1:] / moments[0]
    return (angle.squeeze(-1) + 2 * (torch.sin(k * angle) / k) @ weight) / math.pi


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64)
