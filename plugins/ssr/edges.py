"""Where one band ends and the next begins: edges of equal energy, kept where they mean something.

A band is an interval of eigenvalues. An edge inside a multiplicity would cut an eigenspace in a way that depends on the
solver, so edges stand in gaps; and a bipartite graph has so many eigenvalues at 1 that its edges keep off that point.
Edges change once an epoch at most, so everything here is float64 on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLICITY = 2e-6
"""Eigenvalues nearer than this to the next one are one eigenvalue."""

ATOM_REACH = 0.05
"""How near an edge may come to 1 on a bipartite graph, at least."""

SEPARATION = 0.01
"""How near two edges of soft bands may come to each other."""


def equal_width(bands: int) -> Tensor:
    """``[M-1]``: 2j/M, where bands begin before any signal was seen."""
    return 2 * torch.arange(1, bands, dtype=torch.float64, device="cpu") / bands


def of_spectrum(values: Tensor, energy: Tensor, bands: int, *, atom: bool) -> Tensor:
    """``[M-1]``: of the gaps between eigenvalues, those at which the share of energy is nearest to j/M.

    Every edge has a gap of its own while there are enough; with fewer gaps, edges coincide and bands stay empty.

    Args:
        values: ``[n]`` eigenvalues in any order.
        energy: ``[n]``, not negative.
        bands: M.
        atom: the graph is bipartite; keep off 1.
    """
    order = values.to("cpu", torch.float64).argsort()
    shares = energy.to("cpu", torch.float64)[order].cumsum(dim=0)
    gaps, below = _gaps(values.to("cpu", torch.float64)[order], atom)
    if len(gaps) == 0:
        return equal_width(bands)
    shares = shares[below] / shares[-1]  # [gaps]
    chosen: list[int] = []
    first = 0
    apart = len(gaps) >= bands - 1
    for j in range(1, bands):
        last = len(gaps) - (bands - 1 - j) if apart else len(gaps)
        first += int((shares[first:last] - j / bands).abs().argmin())
        chosen.append(first)
        first += apart
    return gaps[chosen].mean(dim=1)


def into_gaps(edges: Tensor, values: Tensor, *, atom: bool) -> Tensor:
    """``[M-1]``: those on an eigenvalue, or too near 1 on a bipartite graph, moved to the middle of the nearest gap."""
    outside = torch.tensor([-1.0, 3.0], dtype=torch.float64, device="cpu")  # where an edge does no harm either
    gaps, _ = _gaps(torch.cat([values.to("cpu", torch.float64), outside]).sort().values, atom)
    within = gaps.clamp(0, 2)
    wide = within[:, 1] - within[:, 0] > MULTIPLICITY
    gaps, middle = gaps[wide], within[wide].mean(dim=1)
    margin = MULTIPLICITY / 4
    inside = (edges.unsqueeze(1) >= gaps[:, 0] + margin) & (edges.unsqueeze(1) <= gaps[:, 1] - margin)  # [M-1, gaps]
    nearest = middle[(edges.unsqueeze(1) - middle).abs().argmin(dim=1)]
    return torch.where(inside.any(dim=1), edges, nearest).sort().values


def off_atom(edges: Tensor, reach: float) -> Tensor:
    """``[M-1]``: edges nearer than ``reach`` to 1 moved out; of several, the lower half goes down, the rest up."""
    inside = ((edges - 1).abs() < reach).nonzero().squeeze(-1).tolist()
    moved = edges.clone()
    for place, index in enumerate(inside):
        opposite = len(inside) - 1 - place
        down = edges[index] <= 1 if place == opposite else place < opposite
        moved[index] = 1 - reach if down else 1 + reach
    low = moved < 1
    return torch.cat([apart(moved[low], 0.0, 1 - reach), apart(moved[~low], 1 + reach, 2.0)])


def apart(edges: Tensor, low: float, high: float) -> Tensor:
    """Ascending edges pushed at least ``SEPARATION`` away from each other and from 0 and 2, inside [low, high]."""
    count = len(edges)
    low, high = (max(low, SEPARATION), min(high, 2 - SEPARATION))
    space = min(SEPARATION, (high - low) / max(count - 1, 1)) * torch.arange(count, dtype=edges.dtype, device="cpu")
    spread = (edges - space).clamp(low, high - float(space[-1]) if count else high)
    return spread.cummax(dim=0).values + space if count else edges


def _gaps(values: Tensor, atom: bool) -> tuple[Tensor, Tensor]:
    """Intervals ``[gaps, 2]`` between ascending ``values [n]`` where an edge may stand, and the index below each."""
    below = (values.diff() > MULTIPLICITY).nonzero().squeeze(-1)
    gaps = torch.stack([values[below], values[below + 1]], dim=1)
    if atom:
        left, right = gaps.clone(), gaps.clone()
        left[:, 1].clamp_(max=1 - ATOM_REACH)
        right[:, 0].clamp_(min=1 + ATOM_REACH)
        gaps, below = torch.cat([left, right]), torch.cat([below, below])
        wide = gaps[:, 1] - gaps[:, 0] > MULTIPLICITY
        gaps, below = gaps[wide], below[wide]
    return gaps, below
