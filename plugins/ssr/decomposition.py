"""One graph's bands, shared by all modalities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.distributed import mean_over_ranks
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr import edges as band_edges
from recplug.plugins.ssr.control import RandomEngine
from recplug.plugins.ssr.engines import Engine, FixedEngine, PolynomialEngine, SpectralEngine
from recplug.plugins.ssr.spectrum import isolated

logger = logging.getLogger("recplug")

EngineName = Literal["auto", "spectral", "polynomial", "lowrank", "diffusion", "legacy_cheb", "random"]
EdgeRule = Literal["equal_energy", "equal_width", "equal_count"]

EXACT_SIDE = {"cuda": 8192}
"""Up to this size of the eigenproblem ``auto`` solves it exactly, by kind of device."""

EXACT_SIDE_ELSEWHERE = 1024

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
        engine: ``spectral`` (all eigenvectors), ``lowrank`` (the ``rank`` leading ones, the rest as one eigenvalue),
            ``polynomial`` (K sparse products), ``diffusion`` (powers of I - L/2), ``legacy_cheb``, ``random`` (a
            control without a graph), or ``auto``: exact where the eigenproblem is small, else polynomial.
        order: K of the polynomial engine.
        rank: of ``lowrank``.
        edges: the rule for band edges, or the M - 1 edges themselves; ``diffusion``, ``legacy_cheb`` and ``random``
            have none to choose.
        cache: a folder for eigenvectors.
        seed: of probes and of the control.

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
        engine: EngineName,
        order: int = 16,
        rank: int = 64,
        edges: EdgeRule | tuple[float, ...] = "equal_energy",
        cache: Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(graph, split)
        for name, value in (("bands", bands), ("order", order), ("rank", rank)):
            if value < 1:
                raise RecplugError(f"{name} is {value}; it must be at least 1")
        if engine not in get_args(EngineName):
            raise RecplugError(f"there is no engine '{engine}'; use one of {', '.join(get_args(EngineName))}")
        if isinstance(edges, str) and edges not in get_args(EdgeRule):
            raise RecplugError(
                f"there is no edge rule '{edges}'; use one of {', '.join(get_args(EdgeRule))}, or numbers"
            )
        self.n_nodes, self.n_bands, self.split, self.rule = graph.shape[0], bands, split, edges
        self.register_buffer("isolated", isolated(graph), persistent=False)
        self.choice, self.why = _choose(graph, split, engine)
        self.engine = self._build(graph, order, rank, cache, seed) if bands > 1 else None
        raw = self._initial(edges)
        for name, tensor in (
            ("edges", self._snap(raw)),
            ("_estimated", raw),
            ("_observed", torch.zeros((), dtype=torch.long, device="cpu")),
            ("_frozen", torch.zeros((), dtype=torch.bool, device="cpu")),
        ):
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            self.register_buffer(name, tensor.to(graph.device, dtype))

    def _build(self, graph: Adjacency, order: int, rank: int, cache: Path | None, seed: int) -> Engine:
        if graph.nnz == 0:
            logger.warning("SSR's graph has no edges: every signal has eigenvalue 1 and lies in one band")
            return SpectralEngine.empty(graph, split=self.split)
        if self.choice == "spectral":
            return SpectralEngine.of(graph, split=self.split, rank=None, cache=cache)
        if self.choice == "lowrank":
            return SpectralEngine.of(graph, split=self.split, rank=rank, cache=cache)
        if self.choice == "diffusion":
            return FixedEngine.diffusion(graph, self.n_bands)
        if self.choice == "legacy_cheb":
            return FixedEngine.legacy(graph, self.n_bands, order)
        if self.choice == "random":
            return RandomEngine(graph=graph, bands=self.n_bands, seed=seed)
        return PolynomialEngine(graph=graph, order=order, bipartite=self.split is not None, seed=seed)

    def _initial(self, rule: EdgeRule | tuple[float, ...]) -> Tensor:
        """``[M-1]``, before snapping."""
        fixed = None if self.engine is None else self.engine.fixed
        if not isinstance(rule, str):
            if fixed is not None:
                raise RecplugError(f"engine '{self.choice}' has no edges to choose; give a rule, or another engine")
            return band_edges.explicit(rule, self.n_bands)
        if fixed is not None or self.engine is None:
            return band_edges.equal_width(self.n_bands) if fixed is None else fixed
        return self.engine.count(self.n_bands) if rule == "equal_count" else band_edges.equal_width(self.n_bands)

    def _snap(self, raw: Tensor) -> Tensor:
        if self.engine is None or self.engine.fixed is not None:
            return raw
        return self.engine.snap(raw, explicit=not isinstance(self.rule, str))

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
            return self.engine(x, rows, self.edges)

    def _fit(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[0] != self.n_nodes:
            raise RecplugError(
                f"a graph of {self.n_nodes} nodes and a signal {list(x.shape)}; give [{self.n_nodes}, F]"
            )
        return x if x.dtype == torch.float64 else x.float()

    @torch.no_grad()
    def observe(self, signals: Sequence[Tensor]) -> None:
        """Move the edges towards equal energy: half way from the second time on. Waits for the device; not for a step.

        Nothing happens once frozen, with another edge rule, with an engine that has no edges, or without energy.

        Args:
            signals: one ``[N, F_p]`` a modality; each counts as much as any other.

        Raises:
            RecplugError: a signal has the wrong shape, or is not finite.
        """
        if self.engine is None or self.engine.fixed is not None or self.rule != "equal_energy" or self.frozen:
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
            found = mean_over_ranks(self.engine.estimate(seen, self.n_bands))
        if int(self._observed):
            found = (found + self._estimated.double().cpu()) / 2
        self._observed += 1
        self._estimated.copy_(found)
        self.edges.copy_(self._snap(found))

    def freeze(self) -> None:
        """Keep the edges as they are from now on."""
        self._frozen.fill_(True)

    @property
    def frozen(self) -> bool:
        """Whether the edges stay; waits for the device."""
        return bool(self._frozen)

    # -- what it does

    def responses(self, eigenvalues: Tensor) -> Tensor:
        """``[M, n]``: the share of a mode with ``eigenvalues [n]`` that goes into each band; columns sum to 1."""
        if self.engine is None:
            return torch.ones_like(eigenvalues).unsqueeze(0)
        return self.engine.responses(eigenvalues, self.edges)

    @torch.no_grad()
    def energies(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """``[M]``: each band's share of the bands' energy, at ``rows`` or everywhere; zero without energy."""
        energy = self(x, rows).square().sum(dim=(0, 2))
        return energy / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)

    @torch.no_grad()
    def overlap(self, x: Tensor) -> Tensor:
        r""":math:`1 - \sum_m \lVert B_m \rVert^2 / \lVert x \rVert^2`: zero for sharp bands, more for softer ones."""
        x = self._fit(x)
        total = x.square().sum()
        return 1 - self(x).square().sum() / total.clamp(min=torch.finfo(total.dtype).tiny)

    def summary(self) -> str:
        """Engine, why it was chosen, how sharp it is, where the edges stand and from where they were moved."""
        lines = [f"{self.n_bands} bands, engine {self.choice} ({self.why})"]
        if self.engine is None:
            return f"{lines[0]}: the signal itself"
        lines.append(self.engine.describe())
        if self.engine.fixed is not None:
            return "\n".join([*lines, "edges are not chosen"])
        state = "frozen" if self.frozen else f"estimated {int(self._observed)} times"
        lines.append(f"edges {', '.join(f'{e:.4f}' for e in self.edges.tolist())} ({self.rule}, {state})")
        for raw, edge in zip(self._estimated.tolist(), self.edges.tolist(), strict=True):
            if abs(raw - edge) > 1e-6:
                lines.append(f"edge {raw:.4f} was moved to {edge:.4f}")
        return "\n".join(lines)

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return f"nodes={self.n_nodes}, bands={self.n_bands}, engine='{self.choice}', edges={self.rule!r}"


def _choose(graph: Adjacency, split: int | None, engine: EngineName) -> tuple[EngineName, str]:
    """The engine and the reason."""
    if engine != "auto":
        return engine, "asked for"
    n = graph.shape[0]
    side = n if split is None else min(split, n - split)
    limit = EXACT_SIDE.get(graph.device.type, EXACT_SIDE_ELSEWHERE)
    if side > limit:
        return "polynomial", f"an eigenproblem of {side} is larger than {limit}"
    if n * side * graph.dtype.itemsize > EXACT_BYTES:
        return "polynomial", f"eigenvectors of {n} x {side} are larger than {EXACT_BYTES >> 30} GiB"
    return "spectral", f"an eigenproblem of {side} is at most {limit}"


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
