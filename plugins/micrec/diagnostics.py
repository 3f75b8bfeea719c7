"""What MICRec did, as pictures: how nodes come by their vectors, hubs, lengths, and whether people find themselves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recplug.plugins.contract import Panel, Side
from recplug.plugins.micrec.transfer import agreement, linear_cka

PEOPLE = 2_000  # linked users that are compared at most
SIDES: tuple[Side, Side] = ("users", "items")
DEGREES = ((0, 0), (1, 2), (3, 5), (6, 10), (11, None))
ROUTES = ("warm", "content", "global")


def skewness(values: Tensor) -> float:
    """The third standardised moment of ``values [n]``; 0 where all are equal."""
    apart = values.double() - values.double().mean()
    spread = apart.square().mean()
    return float(apart.pow(3).mean() / spread.pow(1.5)) if bool(spread > 0) else 0.0


def routes(by_side: Mapping[Side, Tensor]) -> Panel:
    """How nodes came by their vectors: places in :data:`ROUTES`, ``[n]`` by side, the padding row first."""
    shares = [torch.bincount(by_side[side][1:], minlength=len(ROUTES)).double() for side in by_side]
    return Panel(
        torch.stack([count / count.sum().clamp(min=1.0) for count in shares]).float(),
        "heatmap",
        "where vectors come from",
        "Share of users and of items whose vector, in the latest evaluation, comes from their own interactions (warm), "
        "without any from content neighbours, or from the global row alone, which all of these share.",
        rows=tuple(by_side),
        columns=ROUTES,
        limits=(0.0, 1.0),
    )


def hubs(side: Side, times: Tensor) -> Panel:
    """How often each node is another's neighbour, ``times [n]``."""
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


def lengths(vectors: Mapping[Side, Tensor], degrees: Mapping[Side, Tensor]) -> Panel:
    """``[sides, degrees]``: median lengths of final vectors ``[n, w]`` by number of interactions ``[n]``."""
    rows = []
    for side, values in vectors.items():
        degree = degrees[side][1 : len(values)]
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


def people(
    vectors: Mapping[str, tuple[Tensor, Tensor]], projected: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Panel | Tensor]:
    """How well linked users find themselves in the other domain.

    Args:
        vectors: by kind of link (``used``, ``held out``), those of the source and of the target, ``[m, w]`` each.
        projected: the same after the projections.
    """
    rows, chance = [], []
    for name, pair in projected.items():
        found, m = agreement(*pair), len(pair[0])
        chance.append(f"{name} 1 of {m}")
        spread = found["uniformity_source"], found["uniformity_target"]
        rows.append([found["alignment"], found["match"], (found["rank"] - 1) / (m - 1), *spread])
    return {
        "people": Panel(
            torch.tensor(rows, device="cpu"),
            "heatmap",
            "do linked users find themselves in the other domain?",
            "Of projected vectors. alignment: squared distance of a person's two vectors, lower is nearer; match: "
            f"share whose nearest in the other domain is themselves (by chance {', '.join(chance)}); place: the median "
            "share of others that are nearer (by chance 0.5); spread: uniformity, lower is more spread. Only "
            "links that were held out show transfer: the others may be learned by heart.",
            rows=tuple(projected),
            columns=("alignment", "match", "place", "spread, source", "spread, target"),
        ),
        # The projections may do all the aligning and leave the vectors that are ranked by as they were.
        "cka": torch.tensor([linear_cka(*pair) for pair in vectors.values()], device="cpu"),
    }
