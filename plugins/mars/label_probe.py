"""Measures of what labels say of vectors, and the control: the same labels dealt out to other items."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Panel
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.nn import Noise

FEWEST = 20  # held-out items without which an accuracy says nothing
TRAIN = 0.75  # share of the items that a probe is fitted on
RIDGE = 1.0  # added to the squares of standardised features


class Vectors(NamedTuple):
    """Items' vectors under some profiles, ``[n, d]`` each: before MARS, H, and as they are scored."""

    base: Tensor
    h: Tensor
    output: Tensor


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


def label_probe(
    profiles: FactorProfiles, real: Vectors, other: Vectors, truths: list[Tensor], *, trained_on_labels: bool
) -> dict[str, Panel | Tensor]:
    """The probe: of each vector, with real labels, with shuffled ones, and without looking.

    Args:
        profiles: whose labels.
        real, other: vectors under the profiles, and under the shuffled ones.
        truths: ``[n, V]`` bool of either.
        trained_on_labels: whether a loss has shown the backbone's rows their labels.
    """
    kinds = {"backbone": 0, "H": 1, "scored": 2}
    offsets = profiles.offsets
    table = torch.full((len(kinds), 3, len(offsets) - 1), torch.nan)
    for row, place in enumerate(kinds.values()):
        for k, (low, high) in enumerate(itertools.pairwise(offsets)):
            right, majority = held_out(real[place], truths[0][:, low:high])
            control, _ = held_out(other[place], truths[1][:, low:high])
            table[row, :, k] = torch.tensor([right, control, majority])
    measured = ~table.isnan().any(dim=1).any(dim=0)  # [K]
    if not bool(measured.any()):
        return {}
    caption = (
        "Share of held-out items whose value is found, in the mean over factors. Shuffled: the profiles are dealt out "
        "to other items at random and H is made from them. What exceeds the largest class there, the graph tells about "
        "itself; only real labels above shuffled ones say something about items."
    )
    if trained_on_labels:
        caption += (
            " With mars.semantic_on base, training showed the backbone's rows their labels, those of held-out items "
            "too: compare with a run at mars.lambda_semantic 0."
        )
    panel = Panel(
        table[:, :, measured].mean(dim=2),
        "heatmap",
        "What a linear probe reads off the vectors",
        caption,
        rows=tuple(kinds),
        columns=("real labels", "shuffled labels", "largest class"),
        limits=(0.0, 1.0),
    )
    return {"probe": panel, "probe_by_factor": table}
