"""MAGNET's pictures: which experts work, when the second stage began, what counts, and for whom.

Functions of what was recorded; nothing here runs the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recplug.plugins.contract import Panel
from recplug.plugins.magnet.experts import KINDS, Templates

ACTIVITY = {"1-5": 5, "6-10": 10, "11-20": 20, ">20": None}  # training interactions of a user, up to
TAIL, HEAD = 0.80, 0.95  # shares of items, by popularity, below the middle and below the head
POPULARITY = ("tail", "middle", "head")


def entropy(curve: Tensor, state: Mapping[str, int], *, trigger: str, threshold: float) -> Panel:
    """Of a trigger's means by epoch, ``curve [epochs, 5]``, and its state: ``[5, epochs]``."""
    switched = "The second stage has not begun."
    marks: tuple[tuple[float, str], ...] = ()
    if state["stage"] > 1:
        switched = (
            f"The second stage began at step {state['switch_step']}, in epoch {state['switch_epoch']} "
            f"(trigger {trigger})."
        )
        marks = ((float(state["switch_epoch"]), f"second stage, trigger {trigger}"),)
    lines = [curve[:, 0], curve[:, 1], torch.full_like(curve[:, 0], threshold)]
    return Panel(
        torch.stack([*lines, curve[:, 2], curve[:, 3]]),
        "curves",
        "How evenly experts are used, and how decided the routing is",
        f"Entropy over that of an even routing. {switched} Of the mean routing: near 1, all experts work. Of single "
        "routings: near 1, the router does not tell pairs apart; the gap between the two is what it has learned.",
        rows=("of the mean routing", "of single routings", "threshold", "weight of coverage", "weight of confidence"),
        columns=tuple(str(epoch) for epoch in range(len(curve))),
        xlabel="epoch",
        ylabel="normalised entropy",
        limits=(-0.05, 1.05),
        marks=marks,
    )


def utilisation(pool: Templates, sources: tuple[str, ...], mean: Tensor, top_k: int) -> Panel:
    """Of the mean dense routing ``mean [E]``: ``[M, 3]`` anchors by kinds, or ``[E]`` where experts have no anchor."""
    m = len(sources)
    dead = [name for name, share in zip(pool.names, mean.tolist(), strict=True) if share < 0.2 / len(mean)]
    note = f" Dead: {', '.join(dead)}." if dead else ""
    caption = f"Mean weight of each expert, before the best {top_k} are kept; even is {1 / len(mean):.2f}.{note}"
    title = "Which experts are used"
    if not pool.kinds:
        return Panel(mean, "bars", title, caption, rows=pool.names, ylabel="share")
    grid = mean.new_zeros(m, len(KINDS))
    for expert, (anchor, kind) in enumerate(zip(pool.anchors.tolist(), pool.kinds, strict=True)):
        shared = m == 2 and kind == 1  # one balanced expert for both anchors
        grid[slice(None) if shared else anchor, kind] = mean[expert] / (m if shared else 1)
    return Panel(grid, "heatmap", title, caption, rows=sources, columns=KINDS, limits=(0.0, float(grid.max())))


def shares(sources: tuple[str, ...], kept: Tensor, mixes: Tensor) -> Panel:
    """Of the mean kept routing ``kept [E]`` and the experts' ``mixes [E, M]``: ``[M]``."""
    return Panel(
        kept @ mixes,
        "bars",
        "What the experts' inputs are made of",
        "The sources' shares in the mixes, weighed by how much each expert is kept. Shares by anchor mislead: most of "
        "a complementary expert is not its anchor.",
        rows=sources,
        ylabel="share",
    )


def by_group(dense: Tensor, names: Sequence[str], groups: tuple[Sequence[str], Tensor]) -> Panel:
    """Of the dense routing ``[n, E]`` of pairs and their :func:`groups_of`: its means, ``[groups, E]``."""
    rows, cells = groups
    n = torch.zeros(len(rows), device=dense.device).index_add(0, cells, torch.ones_like(dense[:, 0]))
    total = torch.zeros(len(rows), dense.shape[1], device=dense.device).index_add(0, cells, dense)
    means = (total / n.clamp(min=1).unsqueeze(1))[n > 0]
    return Panel(
        means,
        "heatmap",
        "Who is routed where",
        "Mean weight of each expert by the user's number of training interactions and the item's popularity (tail: the "
        "least popular 80 %; head: the most popular 5 %). Rows alike: the router does not tell these groups apart.",
        rows=tuple(f"{name} ({count:.0f})" for name, count in zip(rows, n.tolist(), strict=True) if count),
        columns=tuple(names),
        limits=(0.0, float(means.max())),
    )


def groups_of(
    edges: Tensor, n_users: int, n_items: int, users: Tensor, items: Tensor
) -> tuple[tuple[str, ...], Tensor]:
    """Names of the groups, and the group ``[n]`` of every pair of ``users [n]`` and ``items [n]``."""
    degree = torch.bincount(edges[0], minlength=n_users)
    popularity = torch.bincount(edges[1], minlength=n_items)
    order = popularity[1:].argsort(stable=True)  # padding left out
    share = torch.zeros(n_items, device=edges.device)
    share[order + 1] = torch.arange(1, n_items, device=edges.device) / max(n_items - 1, 1)
    limits = torch.tensor([limit for limit in ACTIVITY.values() if limit is not None], device=edges.device)
    activity = torch.searchsorted(limits, degree[users])  # 5 is still in the first group
    rank = share[items]
    popular = (rank > TAIL).long() + (rank > HEAD).long()
    names = tuple(f"user {a}, {p}" for a in ACTIVITY for p in POPULARITY)
    return names, activity * len(POPULARITY) + popular
