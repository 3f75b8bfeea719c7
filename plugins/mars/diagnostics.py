"""What MARS did, as pictures: whom the gate hears, how long the branches are, and what labels can be read off where.

Every picture of how well labels separate stands beside its control, the same with the profiles dealt out to other
items: H is made of its labels, so that part of what is seen is the graph reading itself.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Panel
from recplug.plugins.mars.fusion import Pooled, total
from recplug.plugins.mars.groups import Groups
from recplug.plugins.mars.probes import FEWEST, between, held_out, multi_hot, popularity_groups, shuffled
from recplug.plugins.mars.views import views
from recplug.plugins.nn import Noise

if TYPE_CHECKING:
    from recplug.plugins.mars.module import Mars

ITEMS = 5_000  # on which vectors are compared
SHOWN = 300  # in a t-SNE, which takes about a second for them
COLOURED = 7  # values in a t-SNE


class Vectors(NamedTuple):
    """Items' vectors under some profiles, ``[n, d]`` each: before MARS, H, and as they are scored."""

    base: Tensor
    h: Tensor
    output: Tensor


@torch.no_grad()
def diagnose(mars: Mars) -> dict[str, Panel | Tensor]:
    """All panels and arrays; what needs the backbone's vectors only where an evaluation has seen them."""
    found: dict[str, Panel | Tensor] = {}
    fusion, step = mars.fusion, mars.step
    if fusion.scale is not None:
        found["scale"] = fusion.rate * fusion.scale
    if step is None or ("propagated" in mars.seams() and "mars.base" not in step.memory):
        return found
    pooled = mars.pooled(step)
    items = torch.arange(1, mars.profiles.n_items, device=pooled.ids.device)
    order = Noise(0).permutation(len(items), torch.device("cpu"))[:ITEMS].to(items.device)
    base, added, weights = mars.at(step, items)
    rows = items[order]
    real = Vectors(base[order].float(), mars.plain(step, rows, weights[order]), mars.join(base, added)[order].float())
    dealt = shuffled(mars.profiles)
    other = real
    if not fusion.empty:
        found["gate"] = _gate(mars, weights)
        found["branches"] = _branches(mars, pooled, rows, weights[order], real)
        if fusion.groups is not None:
            groups = mars.groups_of(dealt, fusion.groups.n_rows)
            other = under(mars, groups, pooled, rows, real.base)
    if mars.views != "off":
        found["views"] = _views(mars, pooled, rows, weights[order], real.base)
    real, other = (Vectors(*(x.cpu() for x in vectors)) for vectors in (real, other))
    rows = rows.cpu()
    truths = [multi_hot(profiles.to("cpu"), rows) for profiles in (mars.profiles, dealt)]
    found["variance"] = _variance(mars, real, truths[0])
    found |= _leak(mars, real, other, truths)
    return found | _map(mars, real, other, truths)


def under(mars: Mars, groups: Groups, pooled: Pooled, rows: Tensor, base: Tensor) -> Vectors:
    """What the items at ``rows [n]`` would be if the trained module met these ``groups`` in the place of its own."""
    fusion = mars.fusion
    blocks = fusion.blocks(pooled, rows)
    own, near = torch.stack([block.own for block in blocks]), total(blocks).neighbours
    have = fusion.available.index_select(0, rows)  # [n, K + 1]
    have[:, 1:] = groups.available.index_select(0, rows)
    weights = fusion.gate(own[1 if fusion.by_content else 0 :].sum(dim=0), have)
    x = own.sum(dim=0)  # [n, d]

    def mean(scale: Tensor | None) -> Tensor:
        by_factor = None if scale is None else scale[1:]
        if fusion.free is not None:
            h = groups.mix_pooled(fusion.free, weights[:, 1:], rows, by_factor)
        else:
            means = groups.means(torch.stack([pooled.ids, *fusion.content.blocks("rows")]).sum(dim=0))  # [V, d]
            h = groups.mix(means, weights[:, 1:], rows, x, by_factor)
        if near is not None:
            h = h + weights[:, :1] * (near if scale is None else near * scale[0])
        return h

    h = mean(None)
    added = h if fusion.scale is None else mean(fusion.rate * fusion.scale)
    return Vectors(base, h, mars.join(base, added).float())


# -- branches


def _branch_names(mars: Mars) -> tuple[str, ...]:
    return ("structure", *(factor.name for factor in mars.profiles.factors))


def _gate(mars: Mars, weights: Tensor) -> Panel:
    """``[<= 5, K + 1]``: mean weights over items, and by popularity."""
    every = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
    members = {"all items": every}
    if mars.popularity is not None:
        members |= popularity_groups(mars.popularity[1 : 1 + len(weights)].to(weights.device))
    members = {name: chosen for name, chosen in members.items() if bool(chosen.any())}
    beside = mars.fusion.gate.first > 0
    return Panel(
        torch.stack([weights[chosen].mean(dim=0) for chosen in members.values()]),
        "heatmap",
        "What the gate listens to",
        "Mean weight of the structural graph and of each factor. What an item does not know has weight 0, so that a "
        "factor known for few items has a small mean. Head, mid and tail have a third of the training interactions "
        "each, cold items none."
        + (" Structure, where there is any, has weight 1 beside the factors." if beside else ""),
        rows=tuple(f"{name} ({int(chosen.sum()):,})" for name, chosen in members.items()),
        columns=_branch_names(mars),
    )


def _branches(mars: Mars, pooled: Pooled, rows: Tensor, weights: Tensor, vectors: Vectors) -> Panel:
    """``[1 or 3, K + 2]``: mean lengths over the backbone's, before and after each branch's scale."""
    fusion = mars.fusion
    block = total(fusion.blocks(pooled, rows))
    length = vectors.base.norm(dim=1).mean().clamp(min=torch.finfo(torch.float32).tiny)
    one = torch.eye(weights.shape[1], device=weights.device)
    parts = [fusion.mean(block, weights * chosen, rows) for chosen in one]  # K + 1 of [n, d]
    sizes = torch.stack([part.norm(dim=1).mean() for part in [*parts, vectors.h]]) / length
    found, names = [sizes], ["branch"]
    caption = "Mean length of each weighted branch, over the mean length of the backbone's item."
    if fusion.scale is not None:
        scale = fusion.rate * fusion.scale  # [K + 1, d]
        added = [part * by for part, by in zip(parts, scale, strict=True)]
        together = torch.stack(added).sum(dim=0)
        found.append(torch.cat([scale.square().mean(dim=1), scale.square().mean().reshape(1)]).sqrt())
        found.append(torch.stack([part.norm(dim=1).mean() for part in [*added, together]]) / length)
        names += ["its scale |g|", "as it is added"]
        caption += (
            " Scales (root mean square) start at 0. Their size proves nothing: they grow as much with profiles that "
            "were dealt out at random (in a planted experiment)."
        )
    return Panel(
        torch.stack(found),
        "heatmap",
        "How loud each branch is",
        caption,
        rows=tuple(names),
        columns=(*_branch_names(mars), "together"),
    )


def _views(mars: Mars, pooled: Pooled, rows: Tensor, weights: Tensor, base: Tensor) -> Panel:
    """``[pairs, n]``: distances of two views, over the length of the backbone's item; NaN where one is missing."""
    seen, valid = views(mars.views, mars.fusion, mars.sources, pooled, rows, weights)
    names = ("structure", "text", "images") if mars.views == "by_source" else ("ids", *mars.fusion.content.names)
    length = base.norm(dim=1).clamp(min=torch.finfo(base.dtype).tiny)
    pairs, distances = [], []
    for one in range(len(seen)):
        for other in range(one + 1, len(seen)):
            apart = (seen[one] - seen[other]).norm(dim=1) / length  # [n]
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


# -- what labels can be read off


def _variance(mars: Mars, vectors: Vectors, truth: Tensor) -> Panel:
    """``[3, K]``: shares of variance between the groups of a factor."""
    columns = []
    for low, high in itertools.pairwise(mars.profiles.offsets):
        labels = truth[:, low:high]
        known, values = int(labels.any(dim=1).sum()), int(labels.any(dim=0).sum())
        chance = max(values - 1, 0) / max(known - 1, 1)
        columns.append([between(vectors.base, labels), between(vectors.output, labels), chance])
    return Panel(
        torch.tensor(columns).T,
        "heatmap",
        "How much of the vectors' variance each factor explains",
        "Share of variance between a factor's groups (eta squared), for the backbone's rows and for those that are "
        "scored. Random groups of as many values would have the last row. A share far above it in the backbone says "
        "that users choose by this factor, unless a loss on labels put it there; in the scored rows, the module's own "
        "group means add to it.",
        rows=("backbone", "scored", "by chance"),
        columns=_branch_names(mars)[1:],
        limits=(0.0, 1.0),
    )


def _leak(mars: Mars, real: Vectors, other: Vectors, truths: list[Tensor]) -> dict[str, Panel | Tensor]:
    """The probe: of each vector, with real labels, with shuffled ones, and without looking."""
    kinds = {"backbone": 0} if mars.fusion.empty else {"backbone": 0, "H": 1, "scored": 2}
    offsets = mars.profiles.offsets
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
    if mars.head is not None and mars.settings.semantic_on != "fused":
        caption += (
            f" With mars.semantic_on {mars.settings.semantic_on}, training showed the backbone's rows their labels, "
            "those of held-out items too: compare with a run at mars.lambda_semantic 0."
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


# -- a map


def _map(mars: Mars, real: Vectors, other: Vectors, truths: list[Tensor]) -> dict[str, Panel]:
    """t-SNE of backbone and scored rows, by the values of the factor that separates scored rows best."""
    from sklearn.manifold import TSNE

    best, score = None, -2.0
    for k in range(len(mars.profiles.factors)):
        rows, labels = _coloured(mars, k, truths[0], truths[0])
        if len(rows) >= FEWEST and (found := _silhouette(real.output, rows, labels)) > score:
            best, score = k, found
    if best is None:
        return {}
    factor = mars.profiles.factors[best]
    pictures = {"backbone": (real.base, truths[0])}
    if not mars.fusion.empty:
        pictures |= {"scored": (real.output, truths[0]), "scored, shuffled": (other.output, truths[1])}
    chosen = [_coloured(mars, best, truth, truths[0]) for _, truth in pictures.values()]
    n = min(len(rows) for rows, _ in chosen)
    points, titles = [], []
    for (name, (vectors, _)), (rows, labels) in zip(pictures.items(), chosen, strict=True):
        tsne = TSNE(init="pca", random_state=0, perplexity=min(30.0, (n - 1) / 3))
        places = torch.from_numpy(tsne.fit_transform(F.normalize(vectors[rows[:n]], dim=1).numpy()))  # [n, 2]
        points.append(torch.cat([places, labels[:n].unsqueeze(1).to(places.dtype)], dim=1))
        titles.append(f"{name} ({_silhouette(vectors, rows[:n], labels[:n]):.2f})")
    panel = Panel(
        torch.stack(points),
        "scatter",
        f"Items by {factor.name}",
        f"A t-SNE of {n} items with one of the most frequent values; in brackets the silhouette of the vectors "
        "themselves (cosine; 1 apart, 0 mixed). Of all factors this one separates the scored rows best. Compare with "
        "the last picture, where profiles were dealt out at random: what is apart there too is made by the graph.",
        rows=tuple(factor.values[value] for value in _largest(mars, best, truths[0])),
        columns=tuple(titles),
    )
    return {"map": panel}


def _largest(mars: Mars, k: int, truth: Tensor) -> list[int]:
    """The most frequent values of factor k, without 'other', as places in it."""
    low, high = mars.profiles.offsets[k : k + 2]
    counts = truth[:, low:high].sum(dim=0)
    outside = mars.profiles.factors[k].other
    if outside is not None:
        counts[outside] = 0
    order = counts.argsort(descending=True, stable=True)[:COLOURED]
    return order[counts[order] > 1].tolist()


def _coloured(mars: Mars, k: int, truth: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Items with exactly one value of factor k, one of the largest ``of`` these labels, and which; 0 if all agree."""
    low, high = mars.profiles.offsets[k : k + 2]
    among = truth[:, low:high][:, _largest(mars, k, of)]  # [n, <= COLOURED]
    alone = truth[:, low:high].sum(dim=1) == 1
    rows = (alone & among.any(dim=1)).nonzero().squeeze(1)[:SHOWN]
    labels = among[rows].nonzero()[:, 1]
    return (rows, labels) if len(labels.unique()) > 1 else (rows[:0], labels[:0])


def _silhouette(vectors: Tensor, rows: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(F.normalize(vectors[rows], dim=1).numpy(), labels.numpy(), metric="cosine"))
