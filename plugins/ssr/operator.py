"""SSR's cross-band operator: bands and modalities exchange signals, are gated, and summed."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Fusion = Literal["cp", "colsoftmax", "sum"]
SMALLEST = 1e-24  # a squared length below it is not worth restoring


class LowRankCoupling(nn.Module):
    r"""A residual operator of CP form over bands, blocks and channels, the identity at the start.

    .. math::
        y_{m,p} = s_{m,p} + \sum_{r \le R} a_{mr} c_{pr}\, v_r \odot \sum_{n,q} b_{nr} e_{qr}\, s_{n,q}

    that is :math:`T_{mp,nq} = \sum_r a_{mr} c_{pr} b_{nr} e_{qr} v_r` beside the identity. The paper speaks of a
    low-rank CP decomposition; the operator of the authors' code (:class:`ColumnSoftmax`) is none. At the start a = 0,
    c = 1, and the random b, e (variance 1/(M P)) and v (mean 1, deviation 0.1) keep the ranks apart.

    Args:
        bands: M.
        blocks: P.
        width: d.
        rank: R.

    Shapes:
        ``[r, M, P, d]`` to the same; the context is not used.
    """

    def __init__(self, *, bands: int, blocks: int, width: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(bands, rank))
        self.c = nn.Parameter(torch.empty(blocks, rank))
        self.b = nn.Parameter(torch.empty(bands, rank))
        self.e = nn.Parameter(torch.empty(blocks, rank))
        self.v = nn.Parameter(torch.empty(rank, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the identity, with fresh b, e and v."""
        deviation = 1 / math.sqrt(len(self.a) * len(self.c))
        nn.init.zeros_(self.a)
        nn.init.ones_(self.c)
        nn.init.normal_(self.b, std=deviation)
        nn.init.normal_(self.e, std=deviation)
        nn.init.normal_(self.v, mean=1.0, std=0.1)

    def forward(self, s: Tensor, context: Tensor) -> Tensor:
        """``s [r, M, P, d]`` to ``[r, M, P, d]``; through R vectors a row, never through T."""
        into, out = self._sides()  # [M*P, R]
        mixed = torch.einsum("nxd,xk->nkd", s.flatten(1, 2), into) * self.v  # [r, R, d]
        return s + torch.einsum("nkd,xk->nxd", mixed, out).view(s.shape)

    def penalty(self) -> Tensor:
        """Mean square of T's entries, plus that of v - 1: what the authors' code has in its kernel and filters."""
        return self.squares().mean() + (self.v - 1.0).square().mean()

    def squares(self) -> Tensor:
        """``[M*P, M*P]``: mean square over the channels of T, outputs in rows; from R x R products."""
        into, out = self._sides()
        outs, ins = (x.unsqueeze(2) * x.unsqueeze(1) for x in (out, into))  # [M*P, R, R]
        channels = self.v @ self.v.T / self.v.shape[1]  # [R, R]
        return torch.einsum("xrk,yrk,rk->xy", outs, ins, channels)

    def _sides(self) -> tuple[Tensor, Tensor]:
        """What reads and what writes, ``[M*P, R]`` each."""
        into = self.b.unsqueeze(1) * self.e  # [M, P, R]
        out = self.a.unsqueeze(1) * self.c  # [M, P, R]
        return into.flatten(0, 1), out.flatten(0, 1)

    def extra_repr(self) -> str:
        """Rank."""
        return f"rank={self.a.shape[1]}"


class ColumnSoftmax(nn.Module):
    r"""The operator of the authors' code, for comparison.

    .. math::
        s''_m = z \odot \bar v \odot \sum_n \Pi_{mn} s_n, \quad
        \Pi_{mn} = \mathrm{softmax}_m\Big(\tfrac{1}{\sqrt R} \sum_r q_{mr} k_{nr}\Big), \quad
        \bar v = \sum_r \mathrm{softmax}(\alpha)_r\, e^{0.1 \tanh g_r}, \quad
        z = \sigma(W_2\, \mathrm{relu}(W_1 x))

    The columns of Pi sum to one, and z and v are the same in every band: the sum over bands does not depend on Pi. It
    can act only through the gate. The start of q and k, N(0, 1) as that of g, and layers without bias are ours. It is
    not the identity at the start: z begins near 1/2.

    Args:
        bands: M.
        blocks: P.
        width: d.
        rank: R.

    Shapes:
        ``s [r, M, P, d]``, ``context [r, P*d]`` to ``[r, M, P, d]``.
    """

    def __init__(self, *, bands: int, blocks: int, width: int, rank: int) -> None:
        super().__init__()
        channels = blocks * width
        self.blocks = blocks
        self.q = nn.Parameter(torch.empty(bands, rank))
        self.k = nn.Parameter(torch.empty(bands, rank))
        self.g = nn.Parameter(torch.empty(rank, channels))
        self.alpha = nn.Parameter(torch.empty(rank))
        self.w1 = nn.Linear(channels, max(channels // 4, 1), bias=False)
        self.w2 = nn.Linear(max(channels // 4, 1), channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw everything anew."""
        for tensor in (self.q, self.k, self.g):
            nn.init.normal_(tensor)
        nn.init.zeros_(self.alpha)
        self.w1.reset_parameters()
        self.w2.reset_parameters()

    def forward(self, s: Tensor, context: Tensor) -> Tensor:
        """``s [r, M, P, d]`` to ``[r, M, P, d]``."""
        scale = self.w2(self.w1(context).relu()).to(s.dtype).sigmoid() * self.filter()  # [r, P*d]
        mixed = torch.einsum("nxpd,mx->nmpd", s, self.columns())
        return mixed * scale.unflatten(1, (self.blocks, -1)).unsqueeze(1)

    def kernel(self) -> Tensor:
        """kappa ``[M, M]``."""
        return self.q @ self.k.T / math.sqrt(self.q.shape[1])

    def columns(self) -> Tensor:
        """Pi ``[M, M]``: outputs in rows, inputs in columns."""
        return self.kernel().softmax(dim=0)

    def filter(self) -> Tensor:
        """The mean of the rank filters, ``[P*d]``."""
        return self.alpha.softmax(dim=0) @ (0.1 * self.g.tanh()).exp()

    def penalty(self) -> Tensor:
        """Mean square of kappa, plus that of g."""
        return self.kernel().square().mean() + self.g.square().mean()

    def squares(self) -> Tensor:
        """``[M*P, M*P]``: mean square over the channels of what differs from the identity, z left aside."""
        pi, v = self.columns(), self.filter().view(self.blocks, -1)  # [M, M], [P, d]
        same_band = torch.eye(len(pi), dtype=pi.dtype, device=pi.device).unsqueeze(-1)  # [M, M, 1]
        square = pi.square().unsqueeze(-1) * v.square().mean(1)  # [M, M, P]
        change = square + same_band * (1.0 - 2.0 * pi.unsqueeze(-1) * v.mean(1))  # [M, M, P]
        return change.diag_embed().transpose(1, 2).flatten(2).flatten(0, 1)  # [M, P, M*P] to [M*P, M*P]

    def extra_repr(self) -> str:
        """Rank."""
        return f"rank={self.q.shape[1]}"


class BandGate(nn.Module):
    r"""How much of each band a node takes.

    .. math:: w = 1 + \beta \tanh(W_4\, \mathrm{relu}(W_3 [x; \mathrm{mean}_m s_m])) \in \mathbb R^M

    :class:`CrossBand` then gives the weighted bands' sum the length it had before, with one factor a node. The
    last layer is zero at the start: w = 1. A bottleneck of a quarter of the context's width, and layers without bias,
    are ours.

    Args:
        bands: M.
        channels: P*d.

    Shapes:
        ``s [r, M, P, d]``, ``context [r, P*d]`` to weights ``[r, M]``.
    """

    def __init__(self, *, bands: int, channels: int) -> None:
        super().__init__()
        self.w3 = nn.Linear(2 * channels, max(channels // 4, 1), bias=False)
        self.w4 = nn.Linear(max(channels // 4, 1), bands, bias=False)
        self.beta = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Open every band fully; beta is 0.1."""
        self.w3.reset_parameters()
        nn.init.zeros_(self.w4.weight)
        nn.init.constant_(self.beta, 0.1)

    def forward(self, s: Tensor, context: Tensor) -> Tensor:
        """w, ``[r, M]``, in the type of ``s``."""
        seen = torch.cat([context, s.mean(dim=1).flatten(1)], dim=1)  # [r, 2*P*d]
        return 1.0 + self.beta * self.w4(self.w3(seen).relu()).to(s.dtype).tanh()


class CrossBand(nn.Module):
    r"""The graph hyperspectral operator: mix bands and blocks, gate the bands, restore the length, sum.

    With ``cp`` it is the plain sum of the bands at the start, bit by bit. There are no biases where signals pass: a
    row of zeros stays one. ``cp`` gives a node's vector, all blocks together, the length that the bands' plain sum has;
    the authors' code restores the length after mixing, which only undoes what the gate did: then a low-rank mixing
    lengthens vectors without bound, and a ranking loss overfits in a few epochs.

    Args:
        bands: M.
        blocks: P, the host's signal and the modalities.
        width: d.
        rank: R of the operator.
        fusion: ``"cp"`` (:class:`LowRankCoupling`, ours), ``"colsoftmax"`` (:class:`ColumnSoftmax`, the authors'
            code), or ``"sum"``, a control without parameters and without gate.
        gate: whether nodes weigh their bands (:class:`BandGate`).

    Shapes:
        ``s [r, M, P, d]``, ``context [r, P*d]`` to ``[r, P, d]``.
    """

    _nothing: Tensor

    def __init__(
        self, *, bands: int, blocks: int, width: int, rank: int = 4, fusion: Fusion = "cp", gate: bool = True
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.sizes = (bands, blocks, width)
        self.mix: LowRankCoupling | ColumnSoftmax | None = None
        if fusion != "sum":
            kind = LowRankCoupling if fusion == "cp" else ColumnSoftmax
            self.mix = kind(bands=bands, blocks=blocks, width=width, rank=rank)
        self.gate = BandGate(bands=bands, channels=blocks * width) if gate and fusion != "sum" else None
        self.register_buffer("_nothing", torch.zeros(()), persistent=False)

    def reset_parameters(self) -> None:
        """Back to the start."""
        for part in (self.mix, self.gate):
            if part is not None:
                part.reset_parameters()

    def forward(self, s: Tensor, context: Tensor) -> Tensor:
        """The bands' sum: ``s [r, M, P, d]``, ``context [r, P*d]`` to ``[r, P, d]``."""
        if self.mix is None:
            return s.sum(dim=1)
        mixed = self.mix(s, context)
        total = mixed.sum(dim=1)  # [r, P, d]
        wanted = s.sum(dim=1) if self.fusion == "cp" else total
        if self.gate is not None:
            total = (mixed * self.gate(mixed, context)[:, :, None, None]).sum(dim=1)
        elif self.fusion != "cp":
            return total
        factor = _length_ratio(wanted.flatten(1), total.flatten(1)).to(total.dtype)  # [r, 1]
        return total * factor.unsqueeze(1)

    def penalty(self) -> Tensor:
        """The operator's regulariser (L_hs), a scalar; 0 for ``sum``. Squares of small numbers: never in half."""
        with torch.autocast(self._nothing.device.type, enabled=False):
            return self._nothing if self.mix is None else self.mix.penalty()

    @torch.no_grad()
    def coupling(self) -> tuple[Tensor, Tensor]:
        """How far the operator is from the identity, gate and context left aside.

        Returns:
            ``[M*P, M*P]``, entry (m P + p, n P + q) the root mean square over the channels of what band n of block q
            adds to band m of block p; and the Frobenius norm of the whole, relative to the identity's: 0 is an inert
            operator.
        """
        cells = self.sizes[0] * self.sizes[1]
        if self.mix is None:
            return self._nothing.new_zeros(cells, cells), self._nothing
        with torch.autocast(self._nothing.device.type, enabled=False):
            entries = self.mix.squares().clamp(min=0.0)
        return entries.sqrt(), (entries.sum() / cells).sqrt()

    def extra_repr(self) -> str:
        """Choices."""
        bands, blocks, width = self.sizes
        return f"bands={bands}, blocks={blocks}, width={width}, fusion={self.fusion!r}, gate={self.gate is not None}"


def _length_ratio(wanted: Tensor, found: Tensor) -> Tensor:
    """``[r, D]`` twice to ``[r, 1]``: |wanted| / |found|; 1 where nothing is found; no gradient where a length is 0."""
    dtype = torch.promote_types(wanted.dtype, torch.float32)
    squares = [x.to(dtype).square().sum(dim=1, keepdim=True) for x in (wanted, found)]  # [r, 1] each
    none_wanted, none_found = (square <= SMALLEST for square in squares)
    numerator, denominator = (square.masked_fill(square <= SMALLEST, 1.0).sqrt() for square in squares)
    return (numerator / denominator).masked_fill(none_wanted, 0.0).masked_fill(none_found, 1.0)
