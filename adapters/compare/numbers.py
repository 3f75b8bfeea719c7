"""The numbers of a comparison, from the folder of its cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from recplug.adapters.compare.by_group import Group, groups_of
from recplug.adapters.compare.cells.plan import Cell, Variant, rows, smaller_is_better, validation
from recplug.adapters.compare.cells.status import CELLS, Outcome, ranks
from recplug.adapters.compare.cells.workers import collect
from recplug.adapters.compare.groups import Counts, counts
from recplug.adapters.compare.spec import Asked
from recplug.adapters.compare.statistics import Array, Paired, holm, measure, over_seeds, paired
from recplug.plugins.errors import RecplugError

BARE = "bare"


@dataclass(frozen=True)
class Test:
    """Plugins against the bare backbone or a control of theirs, on the test set.

    Attributes:
        variant: the plugins.
        other: what they are compared with.
        against: its name.
        seeds: that both have.
        won: in how many of them the plugins have the higher mean.
        pairs: over users; None where users cannot be paired.
        problem: why they cannot.
        holm: p after Holm's correction over all tests of the comparison.
    """

    variant: Variant
    other: Variant
    against: str
    seeds: int
    won: int
    pairs: Paired | None
    problem: str = ""
    holm: float | None = None


@dataclass
class Numbers:
    """A grid's results, as far as there are any.

    Attributes:
        output: its folder.
        asked: the grid.
        metric: on which plugins are tested, in lower case, such as ``"ndcg@10"``.
        outcomes: of the cells that ended, by key.
        activity_cuts: training interactions at which a group of users begins; thirds where none are given.
        by_group: whether groups are told.
    """

    output: Path
    asked: Asked
    metric: str
    outcomes: Mapping[str, Outcome] = field(repr=False)
    activity_cuts: Sequence[int] = ()
    by_group: bool = True

    @classmethod
    def of(
        cls,
        output: Path,
        asked: Asked,
        *,
        metric: str | None = None,
        activity_cuts: Sequence[int] = (),
        by_group: bool = True,
    ) -> Self:
        """Read a folder.

        Args:
            output: the folder of the comparison.
            asked: the grid.
            metric: on which to test; by default what the runs were validated by.
            activity_cuts, by_group: see the attributes.

        Raises:
            RecplugError: for a metric that is not known user by user.
        """
        outcomes = collect(output, asked)
        validated = [each.result["valid_metric"] for each in outcomes.values() if each.result is not None]
        name = (metric or (validated[0] if validated else "ndcg@10")).lower()
        if metric:
            measure(name)
        return cls(output, asked, name, outcomes, tuple(activity_cuts), by_group)

    # -- what there is

    @cached_property
    def blocks(self) -> list[tuple[list[Variant], Variant | None, list[Variant]]]:
        """For each data set, model and set of plugins: the candidates, the chosen one, and its controls."""
        return list(rows(self.asked, self.outcomes))

    def candidates(self) -> list[tuple[list[Variant], Variant | None]]:
        """For each data set, model and set of plugins: what validation chose from, and what it chose."""
        return [(variants, best) for variants, best, _ in self.blocks]

    def variants(self) -> Iterator[Variant]:
        """The rows of the table: chosen settings, each followed by its controls."""
        for variants, best, controls in self.blocks:
            if best is not None:
                yield best
            else:
                first = variants[0]
                waits = "validation still chooses" if len(variants) > 1 else ""
                yield Variant(first.dataset, first.model, first.plugins, "", (), () if waits else first.cells, waits)
            yield from controls

    def results(self, variant: Variant) -> dict[int, dict[str, Any]]:
        """``result.json`` of the finished seeds, by seed."""
        found = {cell.seed: self.outcomes[cell.key].result for cell in variant.cells if cell.key in self.outcomes}
        return {seed: result for seed, result in found.items() if result is not None}

    def bare(self, variant: Variant) -> Variant | None:
        """The chosen bare backbone of the same data set and model."""
        same = (variant.dataset, variant.model, ())
        found = (best for _, best, _ in self.blocks if best and (best.dataset, best.model, best.plugins) == same)
        return next(found, None)

    def values(self, variant: Variant, name: str) -> list[float]:
        """A test metric, a seed each."""
        return [float(r["test_result"][name]) for r in self.results(variant).values() if name in r["test_result"]]

    # -- tests

    @cached_property
    def tests(self) -> list[Test]:
        """Every set of plugins against the bare backbone and against its controls, with Holm's correction."""
        found: list[Test] = []
        for _, best, controls in self.blocks:
            if best is None or not best.plugins:
                continue
            bare = self.bare(best)
            for other, name in ([(bare, BARE)] if bare else []) + [(each, each.control) for each in controls]:
                if self.results(best) and self.results(other):
                    found.append(self._test(best, other, name))
        tested = [i for i, test in enumerate(found) if test.pairs is not None and test.pairs.p is not None]
        corrected = holm([found[i].pairs.p for i in tested])  # type: ignore[union-attr, misc]
        for i, p in zip(tested, corrected, strict=True):
            found[i] = Test(**{**vars(found[i]), "holm": p})
        return found

    def _test(self, ours: Variant, theirs: Variant, name: str) -> Test:
        one, other = self.results(ours), self.results(theirs)
        seeds = sorted(one.keys() & other.keys())
        if not seeds:
            return Test(ours, theirs, name, 0, 0, None, "no seed in common")
        scores = [(one[s]["test_result"].get(self.metric), other[s]["test_result"].get(self.metric)) for s in seeds]
        won = sum(a > b for a, b in scores if a is not None and b is not None)
        try:
            pairs = self._pairs(ours, theirs, seeds)
        except RecplugError as error:
            return Test(ours, theirs, name, len(seeds), won, None, str(error))
        return Test(ours, theirs, name, len(seeds), won, paired(*over_seeds(pairs)[1:]))

    def _pairs(self, ours: Variant, theirs: Variant, seeds: Sequence[int]) -> list[tuple[NDArray[Any], Array, Array]]:
        """Users and both sides' metric, of each seed."""
        compute, k = measure(self.metric)
        found = []
        for seed in seeds:
            (user, _, rank), (user2, _, rank2) = self.targets(ours, seed), self.targets(theirs, seed)
            (users, a), (users2, b) = compute(user, rank, k), compute(user2, rank2, k)
            self._check_same(ours, theirs, seed, np.array_equal(users, users2))
            found.append((users, a, b))
        return found

    def _check_same(self, ours: Variant, theirs: Variant, seed: int, same_users: bool) -> None:
        prints = [self.results(side)[seed].get("data_fingerprint") for side in (ours, theirs)]
        if prints[0] != prints[1] or not same_users:
            raise RecplugError("the two saw other data; run the comparison anew, with another --output")

    def targets(self, variant: Variant, seed: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Users, items and ranks of a finished seed's test targets, ``[n]`` each.

        Raises:
            RecplugError: where the run has left none, or they were damaged.
        """
        found = ranks(self.output, _cell(variant, seed).key)
        if found is None:
            raise RecplugError("a run left no ranks.parquet, as models do that cannot score all items at once")
        return found

    # -- groups

    @cached_property
    def groups(self) -> list[Group]:
        """Plugins against the bare backbone, by the activity of users, and for cold and warm targets."""
        found: list[Group] = []
        for test in self.tests if self.by_group else ():
            if test.against == BARE and test.pairs is not None:
                found += groups_of(self, test)
        return found

    def counts(self, variant: Variant, seed: int) -> Counts | None:
        """Training interactions in the data of a finished seed; None where its run cannot be loaded."""
        fingerprint = self.results(variant)[seed].get("data_fingerprint", "")
        if fingerprint not in self._known:
            run = self.output / CELLS / _cell(variant, seed).key
            self._known[fingerprint] = counts(self.output, fingerprint, run)
        return self._known[fingerprint]

    @cached_property
    def _known(self) -> dict[str, Counts | None]:
        return {}

    def best(self) -> list[dict[str, Any]]:
        """For each data set and model, the plugins and settings that validation prefers, and their test result."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        sign = -1 if smaller_is_better(self.outcomes) else 1
        for _, best, _ in self.blocks:
            scores = validation(best, self.outcomes) if best is not None else []
            if best is None or not scores:
                continue
            place, mean = (best.dataset, best.model), float(np.mean(scores))
            if place in found and sign * mean <= sign * found[place]["valid"]:
                continue
            names = sorted({name for result in self.results(best).values() for name in result["test_result"]})
            found[place] = {
                "dataset": best.dataset,
                "model": best.model,
                "plugins": "+".join(best.plugins) or "none",
                "settings": dict(best.choice),
                "seeds": len(scores),
                "valid": mean,
                "test": {name: float(np.mean(self.values(best, name))) for name in names},
                "runs": [str(self.output / CELLS / cell.key) for cell in best.cells if cell.seed in self.results(best)],
            }
        return list(found.values())


def _cell(variant: Variant, seed: int) -> Cell:
    return next(cell for cell in variant.cells if cell.seed == seed)
