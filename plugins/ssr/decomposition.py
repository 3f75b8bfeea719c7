"""One graph's bands, shared by all modalities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.distributed import mean_over_ranks
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr import edges as band_edges
from recplug.plugins.ssr.polynomial import PolynomialEngine, legacy_low_passes
from recplug.plugins.ssr.spectral import RandomEngine, SpectralEngine, isolated

logger = logging.getLogger("recplug")

Engine = Literal["auto", "spectral", "polynomial", "legacy_cheb", "random"]

EXACT_SIDE = 1024
"""Up to this size of the eigenproblem ``auto`` solves it exactly, on every device."""

EXACT_BYTES = 4 * 2**30
"""``auto`` keeps eigenvectors up to this size."""


class Decomposition(nn.Module):
    r"""Bands :math:`B_m = h_m(L)\,x` of node signals, :math:`L = I - \hat A`, that always add up to the signal.

    The paper names bands of about equal energy over the user-item graph, by eigenvectors on small graphs and Chebyshev
    filters on large ones. Ours: bands are intervals of eigenvalues with edges in gaps and off the atom at 1; the
    Chebyshev bank is a telescope of damped low-passes, as the public code's fixed polynomials are no band filters (kept
    as ``legacy_cheb``); edges are estimated a few times, then frozen; an isolated node has eigenvalue 1.

    Args:
        graph: A_hat, symmetric and normalised, ``[N, N]``.
        split: number of user nodes where the graph is bipartite, users first; else None.
        bands: M; one band is the signal itself and costs nothing.
        engine: ``spectral`` (all eigenvectors), ``polynomial`` (K sparse products), ``legacy_cheb``, ``random`` (a
            control without a graph), or ``auto``: exact where the eigenproblem is small, else polynomial.
        order: K of the polynomial engine.
        edges: the M - 1 edges, ascending in (0, 2); None: of equal energy, by :meth:`observe`. ``legacy_cheb`` and
            ``random`` have none to choose.
        seed: of the control.

    Shapes:
        ``x [N, F]`` to ``[r, M, F]``.

    Raises:
        RecplugError: a graph that is not symmetric, normalised or bipartite as claimed, or a setting out of range.
    """

    edges: Tensor
    isolated: Tensor
    _estimated: Tensor
    _observed: Tensor
    _frozen: Tensor

    def __init__(
        self,
        *,
        graph: Adjacency,
        split: int | None,
        bands: int,
        engine: Engine,
        order: int = 16,
        edges: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(graph, split)
        for name, value in (("bands", bands), ("order", order)):
            if value < 1:
                raise RecplugError(f"{name} is {value}; it must be at least 1")
        if engine not in get_args(Engine):
            raise RecplugError(f"there is no engine '{engine}'; use one of {', '.join(get_args(Engine))}")
        self.n_nodes, self.n_bands, self.split = graph.shape[0], bands, split
        self.register_buffer("isolated", isolated(graph), persistent=False)
        self.choice, self.why = _choose(graph, split, engine)
        self.engine = self._build(graph, order, seed) if bands > 1 else None
        start = self._start(edges)
        for name, tensor in (
            ("edges", start),
            ("_estimated", start.clone()),
            ("_observed", torch.zeros((), dtype=torch.long, device="cpu")),
            ("_frozen", torch.tensor(edges is not None, device="cpu")),
        ):
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            self.register_buffer(name, tensor.to(graph.device, dtype))

    def _build(self, graph: Adjacency, order: int, seed: int) -> SpectralEngine | PolynomialEngine | RandomEngine:
        if graph.nnz == 0:
            logger.warning("SSR's graph has no edges: every signal has eigenvalue 1 and lies in one band")
            return SpectralEngine(graph=graph, split=self.split)
        if self.choice == "spectral":
            return SpectralEngine(graph=graph, split=self.split)
        if self.choice == "random":
            return RandomEngine(graph=graph, bands=self.n_bands, seed=seed)
        low = legacy_low_passes(self.n_bands, order) if self.choice == "legacy_cheb" else None
        return PolynomialEngine(graph=graph, order=order, bipartite=self.split is not None, low=low)

    def _start(self, given: Sequence[float] | None) -> Tensor:
        """``[M-1]``: the edges that were given, or equal widths until signals are seen."""
        if given is None:
            start = band_edges.equal_width(self.n_bands)
            movable = isinstance(self.engine, SpectralEngine | PolynomialEngine) and self.engine.fixed is None
            return self.engine.snap(start) if movable else start  # type: ignore[union-attr,operator]
        if self.engine is not None and self.engine.fixed is not None:
            raise RecplugError(f"engine '{self.choice}' has no edges to choose; give none, or another engine")
        if len(given) != self.n_bands - 1 or any(not a < b for a, b in pairwise([0.0, *given, 2.0])):
            raise RecplugError(
                f"{self.n_bands} bands have {self.n_bands - 1} edges, ascending and strictly between 0 and 2, "
                f"not {tuple(given)}"
            )
        return torch.tensor(given, dtype=torch.float64, device="cpu")

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """All bands at the nodes that are asked for, differentiable in ``x``; under autocast in float32 too.

        Args:
            x: ``[N, F]``.
            rows: ``[r]`` node numbers, or None for all.

        Returns:
            ``[r, M, F]``, float32, or float64 where ``x`` is.

        Raises:
            RecplugError: ``x`` has not one row a node.
        """
        x = self._fit(x)
        if self.engine is None:
            return (x if rows is None else x[rows]).unsqueeze(1)
        with torch.autocast(x.device.type, enabled=False):
            bands: Tensor = self.engine(x, rows, self.edges)
        return bands

    def _fit(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[0] != self.n_nodes:
            raise RecplugError(
                f"a graph of {self.n_nodes} nodes and a signal {list(x.shape)}; give [{self.n_nodes}, F]"
            )
        return x if x.dtype == torch.float64 else x.float()

    @torch.no_grad()
    def observe(self, signals: Sequence[Tensor]) -> None:
        """Move the edges towards equal energy: half way from the second time on. Waits for the device; not for a step.

        Nothing happens once frozen, with an engine that has no edges, or without energy.

        Args:
            signals: one ``[N, F_p]`` a modality; each counts as much as any other.

        Raises:
            RecplugError: a signal has the wrong shape, or is not finite.
        """
        engine = self.engine
        if not isinstance(engine, SpectralEngine | PolynomialEngine) or engine.fixed is not None or self.frozen:
            return
        seen = []
        for signal in signals:
            x = self._fit(signal)
            size = float(x.abs().max()) if x.numel() else 0.0
            if not size < float("inf"):
                raise RecplugError("a signal holds NaN or infinity; check the features and the learning rate")
            if size > 0:
                seen.append(x / size)  # squares neither overflow nor vanish
        if not seen:
            return
        with torch.autocast(seen[0].device.type, enabled=False):
            # The backbone's dropout differs between processes, and their bands must not.
            found = mean_over_ranks(engine.estimate(seen, self.n_bands))
        if int(self._observed):
            found = (found + self._estimated.double().cpu()) / 2
        self._observed += 1
        self._estimated.copy_(found)
        self.edges.copy_(engine.snap(found))

    def freeze(self) -> None:
        """Keep the edges as they are from now on."""
        self._frozen.fill_(True)

    @property
    def frozen(self) -> bool:
        """Whether the edges stay; waits for the device."""
        return bool(self._frozen)

    def responses(self, eigenvalues: Tensor) -> Tensor:
        """``[M, n]``: the share of a mode with ``eigenvalues [n]`` that goes into each band; columns sum to 1."""
        if self.engine is None:
            return torch.ones_like(eigenvalues).unsqueeze(0)
        return self.engine.responses(eigenvalues, self.edges)

    def summary(self) -> str:
        """Engine, why it was chosen, how sharp it is, where the edges stand and from where they were moved."""
        lines = [f"{self.n_bands} bands, engine {self.choice} ({self.why})"]
        if self.engine is None:
            return f"{lines[0]}: the signal itself"
        lines.append(self.engine.describe())
        if self.engine.fixed is not None:
            return "\n".join([*lines, "edges are not chosen"])
        state = f"estimated {int(self._observed)} times"
        lines.append(f"edges {', '.join(f'{e:.4f}' for e in self.edges.tolist())} ({state})")
        for raw, edge in zip(self._estimated.tolist(), self.edges.tolist(), strict=True):
            if abs(raw - edge) > 1e-6:
                lines.append(f"edge {raw:.4f} was moved to {edge:.4f}")
        return "\n".join(lines)

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return f"nodes={self.n_nodes}, bands={self.n_bands}, engine='{self.choice}'"


def _choose(graph: Adjacency, split: int | None, engine: Engine) -> tuple[Engine, str]:
    """The engine and the reason."""
    if engine != "auto":
        return engine, "asked for"
    n = graph.shape[0]
    side = n if split is None else min(split, n - split)
    modes = n if split is None else 2 * side
    if side > EXACT_SIDE:
        return "polynomial", f"an eigenproblem of {side} is larger than {EXACT_SIDE}"
    if n * modes * graph.dtype.itemsize > EXACT_BYTES:
        return "polynomial", f"eigenvectors of {n} x {modes} are larger than {EXACT_BYTES >> 30} GiB"
    return "spectral", f"an eigenproblem of {side} is at most {EXACT_SIDE}"


def _check(graph: Adjacency, split: int | None) -> None:
    """Refuse what is no normalised adjacency."""
    n = graph.shape[0]
    if graph.shape[1] != n or not graph.symmetric:
        raise RecplugError(f"bands need a symmetric graph, not {graph}; symmetrise it first")
    row, col = graph.indices()
    if split is not None and not (0 <= split <= n and bool(((row < split) != (col < split)).all())):
        raise RecplugError(f"the graph is not bipartite with {split} users first; give split=None, or the right number")
    x = torch.ones(n, 1, dtype=graph.dtype, device=graph.device)
    growth = 0.0
    for _ in range(10):  # a power iteration; normalised graphs never stretch anything
        y = graph.matmul(x)
        norm = y.norm()
        growth = max(growth, float(norm / x.norm()))
        x = y / norm.clamp(min=1e-30)
    if not growth <= 1 + 1e-3:
        raise RecplugError("the graph's values are not normalised; give D^-1/2 A D^-1/2")
