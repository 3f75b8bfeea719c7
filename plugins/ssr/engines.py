"""Two ways to apply the bands of a graph: by eigenvectors and by polynomials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr import edges as band_edges
from recplug.plugins.ssr import polynomial
from recplug.plugins.ssr.spectrum import Spectrum, isolated, solve

PROBES = 32
"""Random columns from which the polynomial engine counts eigenvalues."""

MOMENT_ORDER = 16
"""At least so many products go into an estimate of the energy's density, however low the bank's order."""


class Engine(nn.Module):
    """What :class:`~recplug.plugins.ssr.decomposition.Decomposition` asks of an engine; M >= 2 bands.

    Edges ``[M-1]`` are the decomposition's, and are handed in. ``fixed`` edges belong to the engine and never move.
    """

    fixed: Tensor | None = None

    def forward(self, x: Tensor, rows: Tensor | None, edges: Tensor) -> Tensor:
        """``x [N, F]``, float32 or float64, to ``[r, M, F]``."""
        raise NotImplementedError

    def responses(self, eigenvalues: Tensor, edges: Tensor) -> Tensor:
        """``[M, n]``: what becomes of a mode with ``eigenvalues [n]``."""
        raise NotImplementedError

    def estimate(self, signals: Sequence[Tensor], bands: int) -> Tensor:
        """``[M-1]``: edges of equal energy, each of ``signals [N, F_p]`` scaled to unit energy, then pooled."""
        raise NotImplementedError

    def count(self, bands: int) -> Tensor:
        """``[M-1]``: edges of equal numbers of eigenvalues."""
        raise NotImplementedError

    def snap(self, edges: Tensor, *, explicit: bool) -> Tensor:
        """``[M-1]``: the nearest edges that mean something here; float64 on the CPU."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line for the summary."""
        raise NotImplementedError


class SpectralEngine(Engine):
    r"""Bands are projectors, applied through eigenvectors; modes that are not known count as one eigenvalue.

    .. math:: B_m = h_m(\lambda_*)\, x + V \big[h_m(\lambda) - h_m(\lambda_*)\big] V^T x

    On a bipartite graph, with :math:`\alpha = P^T x_U, \beta = Q^T x_I`, the same from two thin matrices:
    :math:`B_{m,U} = h_m(1) x_U + P [a \alpha + b \beta]`, :math:`B_{m,I} = h_m(1) x_I + Q [b \alpha + a \beta]` with
    :math:`a = (h_m(1-\sigma) + h_m(1+\sigma))/2 - h_m(1)` and :math:`b = (h_m(1-\sigma) - h_m(1+\sigma))/2`.

    Args:
        graph: A_hat.
        spectrum: as :func:`~recplug.plugins.ssr.spectrum.solve` found it.
        split: number of users where the graph is bipartite, else None.
    """

    basis: Tensor
    values: Tensor
    isolated: Tensor

    def __init__(self, *, graph: Adjacency, spectrum: Spectrum, split: int | None) -> None:
        super().__init__()
        self.split = split
        self.rest = spectrum.rest
        self.register_buffer("basis", spectrum.basis, persistent=False)
        self.register_buffer("values", spectrum.values, persistent=False)
        self.register_buffer("isolated", isolated(graph), persistent=False)
        self.alone = int(self.isolated.sum())
        self.beyond = graph.shape[0] - self.alone - len(self._modes())

    @classmethod
    def of(cls, graph: Adjacency, *, split: int | None, rank: int | None, cache: Path | None) -> SpectralEngine:
        """Solve and build; ``rank`` None: all modes."""
        return cls(graph=graph, spectrum=solve(graph, split=split, rank=rank, cache=cache), split=split)

    @classmethod
    def empty(cls, graph: Adjacency, *, split: int | None) -> SpectralEngine:
        """For a graph without edges: every mode has eigenvalue 1."""
        basis = torch.zeros(graph.shape[0], 0, device=graph.device, dtype=graph.dtype)
        return cls(graph=graph, spectrum=Spectrum(basis, basis.new_zeros(0), 1.0), split=split)

    def forward(self, x: Tensor, rows: Tensor | None, edges: Tensor) -> Tensor:
        """``x [N, F]`` to ``[r, M, F]``."""
        if rows is not None and self.split is not None and 2 * len(rows) >= len(x):
            return self.forward(x, None, edges)[rows]  # which side a row is on is not known, so each costs twice
        basis, values = self.basis.to(x.dtype), self.values.to(x.dtype)
        alone = self.isolated if rows is None else self.isolated[rows]  # [r]
        asked = x if rows is None else x[rows]  # [r, F]
        default = inside(values.new_full((1,), self.rest), edges)[:-1]  # [M-1, 1]
        at_one = inside(values.new_full((1,), 1.0), edges)[:-1]
        kept = torch.where(alone, at_one, default).T.unsqueeze(-1) * asked.unsqueeze(1)  # [r, M-1, F]
        if self.split is None:
            gain = inside(values, edges)[:-1] - default  # [M-1, k]
            mixed = gain.unsqueeze(-1) * constant_product(basis.T, x)  # [M-1, k, F]
            moved = constant_product(basis if rows is None else basis[rows], _columns(mixed))  # [r, (M-1)*F]
        else:
            moved = self._both_sides(basis, values, x, rows, edges, default, self.split)
        bands = kept + moved.view_as(kept)
        return torch.cat([bands, asked.unsqueeze(1) - bands.sum(dim=1, keepdim=True)], dim=1)

    def _both_sides(
        self, basis: Tensor, values: Tensor, x: Tensor, rows: Tensor | None, edges: Tensor, default: Tensor, split: int
    ) -> Tensor:
        """``[r, (M-1)*F]``: what P and Q add."""
        p, q = basis[:split], basis[split:]
        alpha, beta = constant_product(p.T, x[:split]), constant_product(q.T, x[split:])  # [k, F]
        low, high = inside(1 - values, edges)[:-1], inside(1 + values, edges)[:-1]  # [M-1, k]
        a, b = ((low + high) / 2 - default).unsqueeze(-1), ((low - high) / 2).unsqueeze(-1)
        of_users, of_items = _columns(a * alpha + b * beta), _columns(b * alpha + a * beta)  # [k, (M-1)*F]
        if rows is None:
            return torch.cat([constant_product(p, of_users), constant_product(q, of_items)])
        as_users, as_items = constant_product(basis[rows], torch.cat([of_users, of_items], dim=1)).chunk(2, dim=1)
        return torch.where((rows < split).unsqueeze(-1), as_users, as_items)

    def responses(self, eigenvalues: Tensor, edges: Tensor) -> Tensor:
        """0 or 1. Where only leading modes are known, everything beyond them answers as one eigenvalue."""
        known = self._modes()
        if not len(known):
            effective = torch.full_like(eigenvalues, self.rest)
        elif self.split is not None:
            unknown = (eigenvalues - 1).abs() < self.values.min() - band_edges.MULTIPLICITY
            effective = eigenvalues.masked_fill(unknown, 1.0)
        elif self.rest != 1.0:
            effective = eigenvalues.masked_fill(eigenvalues > known.max() + band_edges.MULTIPLICITY, self.rest)
        else:
            effective = eigenvalues
        return inside(effective, edges)

    @torch.no_grad()
    def estimate(self, signals: Sequence[Tensor], bands: int) -> Tensor:
        """From the energy of every mode."""
        atoms = self._atoms()
        pooled = torch.zeros(len(atoms), dtype=torch.float64, device=self.basis.device)
        for x in signals:
            basis = self.basis.to(x.dtype)
            energy = x.square().sum(dim=1, dtype=torch.float64)  # [N]
            if self.split is None:
                found = (basis.T @ x).square().sum(dim=1, dtype=torch.float64)  # [k]
            else:
                alpha = basis[: self.split].T @ x[: self.split]
                beta = basis[self.split :].T @ x[self.split :]
                halves = torch.cat([alpha + beta, alpha - beta])  # [2k, F]
                found = halves.square().sum(dim=1, dtype=torch.float64) / 2
            alone, total = (energy * self.isolated).sum(), energy.sum()
            beyond = (total - alone - found.sum()).clamp(min=0)
            pooled += self._with_rest(found, beyond, alone) / total
        return band_edges.of_spectrum(atoms, pooled, bands, atom=self.split is not None)

    def count(self, bands: int) -> Tensor:
        """From the multiplicities."""
        ones = torch.ones_like(self._modes(), dtype=torch.float64)
        count = self._with_rest(ones, ones.new_tensor(self.beyond), ones.new_tensor(self.alone))
        return band_edges.of_spectrum(self._atoms(), count, bands, atom=self.split is not None)

    def snap(self, edges: Tensor, *, explicit: bool) -> Tensor:
        """Into gaps of the spectrum; off 1 on bipartite graphs."""
        return band_edges.into_gaps(edges, self._atoms(), atom=self.split is not None)

    def _modes(self) -> Tensor:
        """Eigenvalues of L that are known: ``[k]``, or ``[2k]`` on a bipartite graph."""
        return self.values if self.split is None else torch.cat([1 - self.values, 1 + self.values])

    def _atoms(self) -> Tensor:
        """Every eigenvalue that there is: the known modes', the rest's, the isolated nodes'."""
        return self._with_rest(self._modes(), self.values.new_tensor(self.rest), self.values.new_tensor(1.0))

    def _with_rest(self, modes: Tensor, beyond: Tensor, alone: Tensor) -> Tensor:
        """Something of every mode, followed by that of the rest and of the isolated nodes, where there are any."""
        parts = [(beyond, self.beyond), (alone, self.alone)]
        return torch.cat([modes, *(part.view(1) for part, count in parts if count)])

    def describe(self) -> str:
        """How many modes, and how far they reach."""
        text = f"{len(self._modes())} modes in {str(self.basis.dtype).removeprefix('torch.')}, sharp bands"
        if self.split is not None and len(self.values):
            return f"{text}; everything nearer to 1 than {float(self.values.min()):.3g} counts as 1"
        return f"{text}; everything else counts as {self.rest:.3g}"


class PolynomialEngine(Engine):
    """Bands are differences of damped Chebyshev low-passes (:mod:`~recplug.plugins.ssr.polynomial`): soft, at any size.

    Args:
        graph: A_hat.
        order: K >= 1.
        bipartite: keep edges off 1, by half a transition width.
        seed: of the probes that count eigenvalues.
    """

    def __init__(self, *, graph: Adjacency, order: int, bipartite: bool, seed: int = 0) -> None:
        super().__init__()
        self.graph = graph
        self.order = order
        self.bipartite = bipartite
        self.seed = seed
        self.width = polynomial.transition_width(order)

    def bank(self, edges: Tensor) -> Tensor:
        """``[M-1, K+1]``: the low-passes at ``edges``."""
        return polynomial.low_passes(edges, self.order)

    def forward(self, x: Tensor, rows: Tensor | None, edges: Tensor) -> Tensor:
        """``x [N, F]`` to ``[r, M, F]``."""
        return polynomial.analyse(self.graph, x, self.bank(edges.to(x.dtype)), rows)

    def responses(self, eigenvalues: Tensor, edges: Tensor) -> Tensor:
        """Soft curves between 0 and 1 (outside in the legacy bank) that sum to 1."""
        return polynomial.response(self.bank(edges.to(eigenvalues.dtype)), eigenvalues)

    def estimate(self, signals: Sequence[Tensor], bands: int) -> Tensor:
        """From exact moments of the energy's density; near 1 it is smeared by the damping."""
        found = [polynomial.moments(self.graph, x, max(self.order, MOMENT_ORDER)) for x in signals]
        return band_edges.of_moments(sum((m / m[0] for m in found), torch.zeros_like(found[0])), bands)

    def count(self, bands: int) -> Tensor:
        """From moments of random signs: every mode has the same expected energy in them."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        signs = torch.randint(0, 2, (self.graph.shape[0], PROBES), generator=generator, device="cpu")
        return self.estimate([(2.0 * signs - 1).to(self.graph.device)], bands)

    def snap(self, edges: Tensor, *, explicit: bool) -> Tensor:
        """Off 1 on bipartite graphs: by 0.05, and where the edges are not the user's by half a transition width."""
        reach = band_edges.ATOM_REACH if explicit else max(band_edges.ATOM_REACH, self.width / 2)
        return band_edges.off_atom(edges, min(reach, 2 / 3)) if self.bipartite else band_edges.apart(edges, 0.0, 2.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PolynomialEngine:
        super()._apply(fn, recurse)
        self.graph = self.graph.to(fn(torch.empty(0, device=self.graph.device)).device)
        return self

    def describe(self) -> str:
        """Order and width."""
        return f"{self.order} sparse products each way, soft bands, transition width {self.width:.2f} around 1"


class FixedEngine(PolynomialEngine):
    """A bank that has no edges: diffusion's powers, or the public code's polynomials.

    Args:
        graph: A_hat.
        low: ``[M-1, K+1]``.
        edges: ``[M-1]``, to report; where the bank has any.
    """

    low: Tensor

    def __init__(self, *, graph: Adjacency, low: Tensor, edges: Tensor) -> None:
        super().__init__(graph=graph, order=low.shape[1] - 1, bipartite=False)
        self.register_buffer("low", low.to(graph.device, torch.float32), persistent=False)
        self.fixed = edges

    @classmethod
    def diffusion(cls, graph: Adjacency, bands: int) -> FixedEngine:
        """Differences of powers of I - L/2; the edges are where a power has fallen to one half."""
        half = [2 * (1 - 0.5 ** (1 / p)) for p in polynomial.diffusion_powers(bands)]
        edges = torch.tensor(half, dtype=torch.float64, device="cpu")
        return cls(graph=graph, low=polynomial.diffusion_low_passes(bands), edges=edges)

    @classmethod
    def legacy(cls, graph: Adjacency, bands: int, order: int) -> FixedEngine:
        """The public code's polynomials; they are no band filters, so equal widths stand for their edges."""
        low = polynomial.legacy_low_passes(bands, order)
        return cls(graph=graph, low=low, edges=band_edges.equal_width(bands))

    def bank(self, edges: Tensor) -> Tensor:
        """``[M-1, K+1]``, whatever the edges."""
        return self.low.to(edges.dtype)

    def describe(self) -> str:
        """Order."""
        return f"{self.order} sparse products each way, a fixed bank"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        with torch.autocast(x.device.type, enabled=False):
            return matrix @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, constant_product(ctx.matrix.T, grads[0])


def constant_product(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x`` for a constant matrix, in full precision under autocast, backward too."""
    product: Tensor = _Product.apply(matrix, x)
    return product


def inside(eigenvalues: Tensor, edges: Tensor) -> Tensor:
    """``[M, n]``: 1 where an eigenvalue lies in [tau_m, tau_m+1), else 0."""
    band = torch.bucketize(eigenvalues, edges.to(eigenvalues.dtype), right=True)  # [n]
    return (band == torch.arange(len(edges) + 1, device=edges.device).unsqueeze(1)).to(eigenvalues.dtype)


def _columns(mixed: Tensor) -> Tensor:
    """``[m, k, F]`` to ``[k, m*F]``."""
    return mixed.transpose(0, 1).flatten(1)
