"""Measures of what labels say of vectors, and the control: the same labels dealt out to other items."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.factors import FactorProfiles
from recplug.plugins.nn import Noise

FEWEST = 20  # held-out items without which an accuracy says nothing
TRAIN = 0.75  # share of the items that a probe is fitted on
RIDGE = 1.0  # added to the squares of standardised features


def shuffled(profiles: FactorProfiles) -> FactorProfiles:
    """The same profiles, dealt out anew among the items that have one: how factors hang together stays."""
    device = profiles.items.device
    holders, place = torch.unique(profiles.items, return_inverse=True)
    moved = holders[Noise(1).permutation(len(holders), torch.device("cpu")).to(device)][place]
    order = torch.argsort(moved * profiles.n_values + profiles.values)
    return replace(profiles, items=moved[order], values=profiles.values[order])


def multi_hot(profiles: FactorProfiles, rows: Tensor) -> Tensor:
    """``[n, V]`` bool: the values of the items at ``rows [n]``."""
    slot = torch.full((profiles.n_items,), len(rows), device=rows.device)
    slot[rows] = torch.arange(len(rows), device=rows.device)
    hot = torch.zeros(len(rows) + 1, profiles.n_values, dtype=torch.bool, device=rows.device)
    hot[slot[profiles.items], profiles.values] = True  # what was not asked for goes to the last row
    return hot[:-1]


def popularity_groups(counts: Tensor) -> dict[str, Tensor]:
    """Masks ``[n]`` of items by their training ``counts [n]``: cold without any; the others by thirds of them all."""
    order = counts.argsort(descending=True, stable=True)
    before = torch.zeros_like(counts, dtype=torch.float64)
    before[order] = (counts[order].cumsum(dim=0) - counts[order]).double() / counts.sum().clamp(min=1)
    warm = counts > 0
    return {
        "cold": ~warm,
        "tail": warm & (before >= 2 / 3),
        "mid": warm & (before >= 1 / 3) & (before < 2 / 3),
        "head": warm & (before < 1 / 3),
    }


def between(vectors: Tensor, truth: Tensor) -> float:
    """The share of variance between groups; an item with several values counts in equal parts.

    Args:
        vectors: ``[n, d]``.
        truth: ``[n, V_k]`` bool; items without a value are left out.
    """
    known = truth.any(dim=1)
    x, part = vectors[known].double(), truth[known].double()
    part = part / part.sum(dim=1, keepdim=True)
    x = x - x.mean(dim=0)
    size = part.sum(dim=0)  # [V_k]
    sums = part.T @ x  # [V_k, d]
    tiny = torch.finfo(x.dtype).tiny
    return float((sums.square().sum(dim=1) / size.clamp(min=tiny)).sum() / x.square().sum().clamp(min=tiny))


def held_out(vectors: Tensor, truth: Tensor) -> tuple[float, float]:
    """Accuracy on held-out items of a ridge classifier of one factor, and of the largest class.

    An answer is right that is among the item's values. Items are in random order; the last quarter of those that
    know the factor is held out.

    Args:
        vectors: ``[n, d]``.
        truth: ``[n, V_k]`` bool.

    Returns:
        NaN where too few items are known.
    """
    known = truth.any(dim=1)
    x, y = vectors[known].double(), truth[known].double()
    cut = int(TRAIN * len(x))
    if len(x) - cut < FEWEST:
        return float("nan"), float("nan")
    mean, scale = x[:cut].mean(dim=0), x[:cut].std(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    x = F.pad((x - mean) / scale, (0, 1), value=1.0)  # [n, d + 1]
    square = x[:cut].T @ x[:cut] + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    answer = (x[cut:] @ torch.linalg.solve(square, x[:cut].T @ y[:cut])).argmax(dim=1)  # [n - cut]
    right = y[cut:].gather(1, answer.unsqueeze(1)).mean()
    return float(right), float(y[cut:, y[:cut].sum(dim=0).argmax()].mean())
