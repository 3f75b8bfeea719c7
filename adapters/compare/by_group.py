"""A comparison within groups of users, and of targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recplug.adapters.compare.cells.plan import Variant
from recplug.adapters.compare.groups import activity, activity_names, cold, cuts_of
from recplug.adapters.compare.statistics import Array, Paired, measure, over_seeds, paired

if TYPE_CHECKING:
    from recplug.adapters.compare.numbers import Numbers, Test


@dataclass(frozen=True)
class Group:
    """Plugins against the bare backbone within a group of users or targets.

    Attributes:
        variant: the plugins.
        kind: ``"activity"`` (of users) or ``"target"``.
        name: of the group.
        targets: how many, over all seeds.
        pairs: over users who have such targets.
    """

    variant: Variant
    kind: str
    name: str
    targets: int
    pairs: Paired


def groups_of(comparison: Numbers, test: Test) -> Iterator[Group]:
    """A test's users by activity, and its targets by whether training has seen the item; nothing without counts."""
    compute, k = measure(comparison.metric)
    seeds = sorted(comparison.results(test.variant).keys() & comparison.results(test.other).keys())
    known = {seed: comparison.counts(test.other, seed) for seed in seeds}
    counted = [(seed, each) for seed, each in known.items() if each is not None]
    if len(counted) < len(seeds):
        return
    cuts = tuple(comparison.activity_cuts)
    if not cuts:
        users = np.unique(comparison.targets(test.other, seeds[0])[0])
        cuts = cuts_of(np.array([counted[0][1].users.get(user, 0) for user in users.tolist()]))
    parts: dict[tuple[str, int], list[tuple[NDArray[Any], Array, Array]]] = {}
    targets: dict[tuple[str, int], int] = {}
    for seed, each in counted:
        sides = [comparison.targets(variant, seed) for variant in (test.variant, test.other)]
        labels = {
            "activity": [activity(user, each, cuts) for user, _, _ in sides],
            "target": [cold(item, each).astype(int) for _, item, _ in sides],
        }
        for kind, both in labels.items():
            for label in np.unique(both[0]).tolist():
                (users, ours), (_, theirs) = (
                    compute(user[own == label], rank[own == label], k)
                    for (user, _, rank), own in zip(sides, both, strict=True)
                )
                parts.setdefault((kind, label), []).append((users, ours, theirs))
                targets[kind, label] = targets.get((kind, label), 0) + int((both[0] == label).sum())
    names = {"activity": activity_names(cuts), "target": ["warm", "cold"]}
    for kind, label in sorted(parts):
        if kind == "activity" or ("target", 1) in parts:  # where every target is warm, there is nothing to tell
            pairs = paired(*over_seeds(parts[kind, label])[1:])
            yield Group(test.variant, kind, names[kind][label], targets[kind, label], pairs)
