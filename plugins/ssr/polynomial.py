r"""Polynomials of the graph: bands as differences of Chebyshev low-passes, at a fixed number of sparse products.

Everything is written in the eigenvalue :math:`\mu = 1 - \lambda` of :math:`\hat A = I - L`, whose Chebyshev polynomials
obey :math:`T_{k+1}(\hat A) = 2 \hat A\, T_k(\hat A) - T_{k-1}(\hat A)`. A *bank* is M - 1 low-passes, a matrix
``[M-1, K+1]`` of coefficients; the bands are the first low-pass, the differences of neighbours, and what the last one
leaves. They add up to the signal whatever the coefficients are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from recplug.plugins.nn.propagation import Adjacency

BLOCK = 4
"""So many polynomials wait before they are mixed into low-passes: fewer passes over the bands for some memory."""


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


def diffusion_low_passes(bands: int) -> Tensor:
    r"""Powers :math:`S^p` of the lazy walk :math:`S = I - L/2`, with p halving from band to band.

    :math:`S^p` is :math:`\cos^{2p}(\varphi/2)`, a Chebyshev series with binomial coefficients. Four products up to four
    bands, eight at five.

    Returns:
        ``[M-1, K+1]``, K the highest power.
    """
    powers = diffusion_powers(bands)
    low = torch.zeros(len(powers), powers[0] + 1, dtype=torch.float64, device="cpu")
    for row, p in enumerate(powers):
        series = [2 * math.comb(2 * p, p - k) / 4**p for k in range(p + 1)]
        low[row, : p + 1] = torch.tensor([series[0] / 2, *series[1:]], dtype=torch.float64, device="cpu")
    return low


def diffusion_powers(bands: int) -> list[int]:
    """The M - 1 powers, descending."""
    top = max(4, 2 ** (bands - 2))
    return [top // 2**j for j in range(bands - 1)]


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
    block = asked.new_empty(min(BLOCK, terms), *asked.shape)
    passed = asked.new_zeros(edges, asked.numel())  # [M-1, r*F]
    before, now = x, x
    for k in range(terms):
        if k == 1:
            now = graph.times(x)
        elif k > 1:
            before, now = now, graph.times(now).mul_(2).sub_(before)
        slot = k % BLOCK
        if rows is None:
            block[slot].copy_(now)
        else:
            torch.index_select(now, 0, rows, out=block[slot])
        if slot == BLOCK - 1 or k == terms - 1:
            passed.addmm_(low[:, k - slot : k + 1], block[: slot + 1].flatten(1))
    passed = passed.view(edges, *asked.shape)
    bands = asked.new_empty(edges + 1, *asked.shape)
    bands[0] = passed[0]
    torch.sub(passed[1:], passed[:-1], out=bands[1:-1])
    torch.sub(asked, passed[-1], out=bands[-1])
    return bands


def _synthesise(graph: Adjacency, bands: Tensor, low: Tensor, rows: Tensor | None) -> Tensor:
    """Clenshaw's recursion: b_k = g_k + 2 A b_{k+1} - b_{k+2}, where g_k is what the bands give to T_k."""
    terms, shape = low.shape[1], bands.shape[1:]
    steps = (bands[:-1] - bands[1:]).flatten(1)  # [M-1, r*F]: what each low-pass receives
    block, begin = steps, terms

    def add(total: Tensor, k: int) -> Tensor:
        nonlocal block, begin
        if k < begin:
            begin = max(k - BLOCK + 1, 0)
            block = (low[:, begin : k + 1].T @ steps).view(-1, *shape)  # [<=BLOCK, r, F]
        part = block[k - begin]
        return total.add_(part) if rows is None else total.index_add_(0, rows, part)

    size = (graph.shape[0], shape[1])
    before, now = bands.new_zeros(size), add(bands.new_zeros(size), terms - 1)
    for k in range(terms - 2, 0, -1):
        before, now = now, add(graph.times(now).mul_(2).sub_(before), k)
    total = add(graph.times(now).sub_(before), 0)
    return total.add_(bands[-1]) if rows is None else total.index_add_(0, rows, bands[-1])


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
