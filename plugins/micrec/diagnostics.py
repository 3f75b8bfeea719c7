"""What MICRec did, as pictures: how nodes come by their vectors, hubs, lengths, and whether people find themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recplug.plugins.contract import Panel, Side
from recplug.plugins.micrec.transfer import agreement, linear_cka
from recplug.plugins.nn import Noise

if TYPE_CHECKING:
    from recplug.plugins.micrec.module import Micrec

PEOPLE = 2_000  # linked users that are compared at most
SIDES: tuple[Side, Side] = ("users", "items")
DEGREES = ((0, 0), (1, 2), (3, 5), (6, 10), (11, None))
DEGREE_NAMES = ("0", "1-2", "3-5", "6-10", "> 10")
ROUTES = ("warm", "content", "global")


@torch.no_grad()
def diagnose(micrec: Micrec) -> dict[str, Panel | Tensor]:
    """All panels and arrays; what needs the backbone's vectors only within a step."""
    found: dict[str, Panel | Tensor] = {"routes": _routes(micrec)}
    if micrec.templates is not None:
        found["exponent"] = micrec.templates.exponent()
    for side, neighbours in micrec.neighbours.items():
        times = torch.bincount(neighbours.index[neighbours.valid], minlength=len(neighbours.index))
        found[f"hubs_{side}"] = _hubs(side, times[neighbours.valid.any(dim=1)])
    if micrec.step is None:
        return found
    lengths = _lengths(micrec)
    if lengths is not None:
        found["lengths"] = lengths
    if micrec.source is not None:
        found |= _people(micrec)
    return found


def skewness(values: Tensor) -> float:
    """The third standardised moment of ``values [n]``; 0 where all are equal."""
    apart = values.double() - values.double().mean()
    spread = apart.square().mean()
    return float(apart.pow(3).mean() / spread.pow(1.5)) if bool(spread > 0) else 0.0


def routes(micrec: Micrec, side: Side) -> Tensor:
    """``[n]``: places in :data:`ROUTES` of a side's rows; the padding row and others that are no nodes say nothing.

    A node with training interactions is warm; one without, that borrows its vector, has it from content; the rest
    have what every such node has.
    """
    route = torch.where(micrec.known[side], 0, 2)
    if side == "items" and micrec.cold is not None:
        route = route.index_fill(0, micrec.cold.to(route.device), 1)
    return route


def _routes(micrec: Micrec) -> Panel:
    shares = [torch.bincount(routes(micrec, side)[1:], minlength=len(ROUTES)).double() for side in SIDES]
    return Panel(
        torch.stack([count / count.sum().clamp(min=1.0) for count in shares]).float(),
        "heatmap",
        "where vectors come from",
        "Share of users and of items whose vector comes from their own interactions (warm), from content neighbours, "
        "or from the global row alone, which all of these share: they are ranked alike.",
        rows=SIDES,
        columns=ROUTES,
        limits=(0.0, 1.0),
    )


def _hubs(side: Side, times: Tensor) -> Panel:
    return Panel(
        times.float().unsqueeze(0),
        "histogram",
        f"how often {side} are neighbours",
        f"Times that each of the {side} is among another's content neighbours; skewness {skewness(times):.1f}, most "
        f"{int(times.max()) if len(times) else 0}. A long tail means hubs, which are everybody's neighbours and say "
        "nothing.",
        rows=(side,),
        xlabel="others that it is a neighbour of",
        ylabel=side,
    )


def _lengths(micrec: Micrec) -> Panel | None:
    """``[sides, degrees]``: median lengths of final vectors by number of interactions."""
    vectors = micrec.final_vectors()
    if vectors is None:
        return None
    rows = []
    for side, values in vectors.items():
        degree = micrec.degrees[side][1 : len(values)]
        length = torch.linalg.vector_norm(values[1:].float(), dim=1)
        rows.append([_median(length[_within(degree, *bounds)]) for bounds in DEGREES])
    return Panel(
        torch.tensor(rows, device="cpu"),
        "heatmap",
        "length of vectors by number of interactions",
        "Median length of final vectors; not a number where there is no such node. Where scores are dot products, rare "
        "items that are much shorter than others are never ranked high.",
        rows=tuple(vectors),
        columns=tuple(
            "> 10" if last is None else f"{first}-{last}" if last > first else "0" for first, last in DEGREES
        ),
        xlabel="training interactions",
    )


def _within(degree: Tensor, first: int, last: int | None) -> Tensor:
    return (degree >= first) & (degree <= (torch.iinfo(degree.dtype).max if last is None else last))


def _median(values: Tensor) -> float:
    return float(values.median()) if len(values) else float("nan")


def _people(micrec: Micrec) -> dict[str, Panel | Tensor]:
    """How well linked users find themselves in the other domain: those used in the loss, and those held out."""
    assert micrec.source is not None
    assert micrec.step is not None
    names, rows, cka, chance = [], [], [], []
    for name, links in (("used", micrec.source.links), ("held out", micrec.source.held_out)):
        if len(links) < 2:
            continue
        some = Noise(0).permutation(len(links), torch.device("cpu"))[:PEOPLE].to(links.device)
        source = micrec.source.encode_users(links[some, 0]).float()
        target = micrec.step.vectors_of(links[some, 1]).float()
        cka.append(linear_cka(source, target))
        chance.append(f"{name} 1 of {len(some)}")
        names.append(name)
        row = agreement(*(micrec.transfer.project(source, target) if micrec.transfer else (source, target)))
        nearer = (row["rank"] - 1) / (len(some) - 1)
        spread = row["uniformity_source"], row["uniformity_target"]
        rows.append([row["alignment"], row["match"], nearer, *spread])
    if not names:
        return {}
    return {
        "people": Panel(
            torch.tensor(rows, device="cpu"),
            "heatmap",
            "do linked users find themselves in the other domain?",
            "Of projected vectors. alignment: squared distance of a person's two vectors, lower is nearer; match: "
            f"share whose nearest in the other domain is themselves (by chance {', '.join(chance)}); place: the median "
            "share of others that are nearer (by chance 0.5); spread: uniformity, lower is more spread. Only "
            "links that were held out show transfer: the others may be learned by heart.",
            rows=tuple(names),
            columns=("alignment", "match", "place", "spread, source", "spread, target"),
        ),
        # The projections may do all the aligning and leave the vectors that are ranked by as they were.
        "cka": torch.tensor(cka, device="cpu"),
    }
