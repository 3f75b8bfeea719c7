"""What MARS did, as pictures: whom the gate hears, how long the branches are, and what labels can be read off where.

Every picture of how well labels separate stands beside its control, the same with the profiles dealt out to other
items: H is made of its labels, so that part of what is seen is the graph reading itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from recplug.plugins.contract import Panel
from recplug.plugins.mars.fusion import FactorFusion, Pooled, total
from recplug.plugins.mars.groups import Groups
from recplug.plugins.mars.label_probe import Vectors, label_probe, multi_hot, shuffled
from recplug.plugins.mars.views import Kind, views
from recplug.plugins.nn import Noise

ITEMS = 5_000  # on which vectors are compared


@dataclass(frozen=True)
class Seen:
    """What a forward pass used, recorded by it, of all n items.

    Attributes:
        fusion: the module.
        pooled: what was averaged.
        items: ``[n]`` rows.
        base: ``[n, d]``, before MARS.
        h: ``[n, d]``.
        weights: ``[n, K + 1]``, the gate's.
        views, sources: see :mod:`recplug.plugins.mars.views`.
        popularity: ``[n_rows]`` training interactions, or None.
        trained_on_labels: whether a loss has shown the backbone's rows their labels.
    """

    fusion: FactorFusion
    pooled: Pooled
    items: Tensor
    base: Tensor
    h: Tensor
    weights: Tensor
    views: Kind
    sources: Tensor
    popularity: Tensor | None
    trained_on_labels: bool

    def at(self, places: Tensor) -> Seen:
        """The same of the items at ``places [m]``."""
        some = {name: getattr(self, name)[places] for name in ("items", "base", "h", "weights")}
        return Seen(**{**self.__dict__, **some})

    @property
    def names(self) -> tuple[str, ...]:
        """The branches, structure first."""
        return ("structure", *(factor.name for factor in self.fusion.profiles.factors))


@torch.no_grad()
def diagnose(seen: Seen) -> dict[str, Panel | Tensor]:
    """All panels and arrays."""
    found: dict[str, Panel | Tensor] = {}
    fusion, profiles = seen.fusion, seen.fusion.profiles
    order = Noise(0).permutation(len(seen.items), torch.device("cpu"))[:ITEMS].to(seen.items.device)
    some = seen.at(order)
    base, h = some.base.float(), some.h.float()
    real = other = Vectors(base, h, fusion.join(some.base, some.h).float())
    dealt = shuffled(profiles)
    if fusion.groups is not None or fusion.structure is not None:
        found["gate"] = _gate(seen)
        found["branches"] = _branches(some)
        if fusion.groups is not None:
            other = under(fusion, fusion.grouped(dealt, fusion.groups.n_rows), seen.pooled, some.items, base)
    if seen.views != "off":
        found["views"] = _views(some)
    real, other = (Vectors(*(x.cpu() for x in vectors)) for vectors in (real, other))
    truths = [multi_hot(each.to("cpu"), some.items.cpu()) for each in (profiles, dealt)]
    return found | label_probe(profiles, real, other, truths, trained_on_labels=seen.trained_on_labels)


def under(fusion: FactorFusion, groups: Groups, pooled: Pooled, rows: Tensor, base: Tensor) -> Vectors:
    """What the items at ``rows [n]`` would be if the trained module met these ``groups`` in the place of its own."""
    x = total(fusion.blocks(pooled, rows))
    have = fusion.available.index_select(0, rows)  # [n, K + 1]
    have[:, 1:] = groups.available.index_select(0, rows)
    weights = fusion.gate(x.own, have)
    if fusion.free is not None:
        values: Tensor = fusion.free
    else:
        content = fusion.content
        values = groups.heard(torch.stack([content.ids(pooled.ids), *content.blocks("rows")]).sum(dim=0))  # [V, d]
    h = groups.mix(values, weights[:, 1:], rows)
    if x.neighbours is not None:
        h = h + weights[:, :1] * x.neighbours
    return Vectors(base, h, fusion.join(base, h).float())


# -- branches


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


def _gate(seen: Seen) -> Panel:
    """``[<= 5, K + 1]``: mean weights over items, and by popularity."""
    weights = seen.weights
    members = {"all items": torch.ones(len(weights), dtype=torch.bool, device=weights.device)}
    if seen.popularity is not None:
        members |= popularity_groups(seen.popularity[seen.items.to(seen.popularity.device)].to(weights.device))
    members = {name: chosen for name, chosen in members.items() if bool(chosen.any())}
    beside = seen.fusion.settings.factor_weight is not None
    return Panel(
        torch.stack([weights[chosen].mean(dim=0) for chosen in members.values()]),
        "heatmap",
        "What the gate listens to",
        "Mean weight of the structural graph and of each factor. What an item does not know has weight 0, so that a "
        "factor known for few items has a small mean. Head, mid and tail have a third of the training interactions "
        "each, cold items none."
        + (" Structure, where there is any, has weight 1 beside the factors." if beside else ""),
        rows=tuple(f"{name} ({int(chosen.sum()):,})" for name, chosen in members.items()),
        columns=seen.names,
    )


def _branches(seen: Seen) -> Panel:
    """``[1, K + 2]``: mean lengths of each branch and of H, over the backbone's."""
    fusion, weights = seen.fusion, seen.weights
    block = total(fusion.blocks(seen.pooled, seen.items))
    one = torch.eye(weights.shape[1], device=weights.device)
    parts = [*(fusion.mean(block, weights * chosen, seen.items) for chosen in one), seen.h]  # K + 2 of [n, d]
    length = seen.base.float().norm(dim=1).mean().clamp(min=torch.finfo(torch.float32).tiny)
    return Panel(
        torch.stack([part.norm(dim=1).mean() for part in parts]).unsqueeze(0) / length,
        "heatmap",
        "How loud each branch is",
        "Mean length of each weighted branch, and of H, over the mean length of the backbone's item.",
        rows=("branch",),
        columns=(*seen.names, "H"),
    )


def _views(seen: Seen) -> Panel:
    """``[pairs, n]``: distances of two views, over the length of the backbone's item; NaN where one is missing."""
    fusion = seen.fusion
    found, valid = views(seen.views, fusion, seen.sources, seen.pooled, seen.items, seen.weights)
    names = ("structure", "text", "images") if seen.views == "by_source" else ("ids", *fusion.content.names)
    length = seen.base.float().norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    pairs, distances = [], []
    for one, other in itertools.combinations(range(len(found)), 2):
        apart = (found[one] - found[other]).norm(dim=1) / length  # [n]
        distances.append(apart.masked_fill(~(valid[one] & valid[other]), torch.nan))
        pairs.append(f"{names[one]} and {names[other]}")
    values = torch.stack(distances)
    most = values[values.isfinite()].quantile(0.99) if bool(values.isfinite().any()) else torch.tensor(1.0)
    return Panel(
        values,
        "histogram",
        "How far apart the views of an item are",
        "Distance between two views of one item, over the length of its row. The view loss pulls them to 0; compare "
        "with a run at mars.lambda_view 0, as shorter vectors lie closer too.",
        rows=tuple(pairs),
        xlabel="distance / length of the item's row",
        ylabel="items",
        limits=(0.0, float(most)),
    )
