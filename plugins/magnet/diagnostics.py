"""What MAGNET did, as pictures: which experts work, when the second stage began, what counts, and for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recplug.plugins.contract import Panel
from recplug.plugins.magnet.templates import KINDS
from recplug.plugins.nn import Noise

if TYPE_CHECKING:
    from recplug.plugins.magnet.module import Magnet

PAIRS = 20_000  # training pairs that are looked at
ACTIVITY = {"1-5": 5, "6-10": 10, "11-20": 20, ">20": None}  # training interactions of a user, up to
TAIL, HEAD = 0.80, 0.95  # shares of items, by popularity, below the middle and below the head
POPULARITY = ("tail", "middle", "head")


@torch.no_grad()
def diagnose(magnet: Magnet) -> dict[str, Panel | Tensor]:
    """All panels and arrays; routing only where an evaluation has seen the backbone's vectors."""
    found: dict[str, Panel | Tensor] = {"templates": magnet.mixes().detach().clone()}
    if magnet.gamma is not None:
        found["gamma"] = magnet.gamma.detach().clone()
    curve = magnet.trigger.means()
    if len(curve):
        found["entropy"] = _entropy(magnet, curve)
    users, items = _sample(magnet)
    routing = magnet.sampled_routing(users, items) if len(users) and not magnet.settings.inert else None
    if routing is None:
        return found
    dense, kept = routing  # [n, E]
    found["utilisation"] = _utilisation(magnet, dense.mean(dim=0))
    found["slots"] = (kept > 0).float().mean(dim=0) / magnet.top_k
    found["sources"] = _sources(magnet, kept.mean(dim=0))
    found["routing"] = _by_group(magnet, dense, users, items)
    return found


def _sample(magnet: Magnet) -> tuple[Tensor, Tensor]:
    edges = magnet.edges
    if edges.shape[1] > PAIRS:
        edges = edges[:, Noise(magnet.noise.seed).permutation(edges.shape[1], edges.device)[:PAIRS]]
    return edges[0], edges[1]


def _entropy(magnet: Magnet, curve: Tensor) -> Panel:
    """``[5, epochs]``."""
    state = magnet.trigger.state()
    switched = "The second stage has not begun."
    marks: tuple[tuple[float, str], ...] = ()
    if state["stage"] > 1:
        why = "forced by t_max" if state["forced"] else f"trigger {magnet.settings.trigger}"
        switched = f"The second stage began at step {state['switch_step']}, in epoch {state['switch_epoch']} ({why})."
        marks = ((float(state["switch_epoch"]), f"second stage, {why}"),)
    lines = [curve[:, 0], curve[:, 1], torch.full_like(curve[:, 0], magnet.settings.threshold)]
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


def _utilisation(magnet: Magnet, mean: Tensor) -> Panel:
    """``[M, 3]`` anchors by kinds, or ``[E]`` where experts have no anchor."""
    pool, m = magnet.pool, len(magnet.sources)
    dead = [name for name, share in zip(pool.names, mean.tolist(), strict=True) if share < 0.2 / len(mean)]
    note = f" Dead: {', '.join(dead)}." if dead else ""
    caption = f"Mean weight of each expert, before the best {magnet.top_k} are kept; even is {1 / len(mean):.2f}.{note}"
    title = "Which experts are used"
    if not pool.kinds:
        return Panel(mean, "bars", title, caption, rows=pool.names, ylabel="share")
    grid = mean.new_zeros(m, len(KINDS))
    for expert, (anchor, kind) in enumerate(zip(pool.anchors.tolist(), pool.kinds, strict=True)):
        shared = m == 2 and kind == 1  # one balanced expert for both anchors
        grid[slice(None) if shared else anchor, kind] = mean[expert] / (m if shared else 1)
    return Panel(grid, "heatmap", title, caption, rows=magnet.sources, columns=KINDS, limits=(0.0, float(grid.max())))


def _sources(magnet: Magnet, kept: Tensor) -> Panel:
    return Panel(
        kept @ magnet.mixes(),
        "bars",
        "What the experts' inputs are made of",
        "The sources' shares in the mixes, weighed by how much each expert is kept. Shares by anchor mislead: most of "
        "a complementary expert is not its anchor.",
        rows=magnet.sources,
        ylabel="share",
    )


def _by_group(magnet: Magnet, dense: Tensor, users: Tensor, items: Tensor) -> Panel:
    """``[groups, E]``: mean routing by the user's activity and the item's popularity."""
    rows, cells = groups(magnet.edges, magnet.n_users, magnet.n_rows, users, items)
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
        columns=magnet.pool.names,
        limits=(0.0, float(means.max())),
    )


def groups(edges: Tensor, n_users: int, n_items: int, users: Tensor, items: Tensor) -> tuple[tuple[str, ...], Tensor]:
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
