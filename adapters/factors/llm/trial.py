"""How an induced vocabulary did on products that it was not made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from recplug.adapters.factors.schema import FactorSpec

OTHER = "other"


@dataclass(frozen=True)
class Limits:
    """What a vocabulary must keep to in the trial.

    Attributes:
        unclear: the largest share of products that are unknown or other.
        largest: the largest share of one value, among products with a value.
        effective: the least effective number of values, exp(entropy).
        rounds: how often a vocabulary that does not is made anew.
    """

    unclear: float = 0.2
    largest: float = 0.6
    effective: float = 3.0
    rounds: int = 3


@dataclass(frozen=True)
class Trial:
    """A factor, its words, and how its vocabulary did on products that it was not made from.

    Attributes:
        spec: the factor.
        words: what was read for it, with counts.
        counts: products by value.
        unknown: products without a value.
    """

    spec: FactorSpec
    words: Mapping[str, int]
    counts: Mapping[str, int]
    unknown: int

    @property
    def n(self) -> int:
        """Products."""
        return self.unknown + sum(self.counts.values())

    @property
    def other(self) -> int:
        """Products whose value is none of the vocabulary's."""
        return self.counts.get(OTHER, 0)

    @property
    def unclear(self) -> float:
        """Share of unknown and other."""
        return (self.unknown + self.other) / max(1, self.n)

    @property
    def largest(self) -> float:
        """Share of the most frequent value among products that have one."""
        return max(self.counts.values(), default=0) / max(1, sum(self.counts.values()))

    @property
    def effective(self) -> float:
        """exp(entropy) of the values."""
        total = sum(self.counts.values())
        return math.exp(-sum(c / total * math.log(c / total) for c in self.counts.values() if c))

    def faults(self, limits: Limits) -> list[str]:
        """What it does not keep to, in words."""
        found = []
        if self.unclear > limits.unclear:
            found.append(f"{self.unknown} of {self.n} products got no value and {self.other} got {OTHER!r}: too many")
        if self.largest > limits.largest:
            found.append(f"{self.largest:.0%} of the products fall under one value: it is too wide")
        if self.effective < limits.effective:
            found.append(f"the products spread over {self.effective:.1f} values in effect: too few")
        return found

    def excess(self, limits: Limits) -> float:
        """How far it is off, 0 where it keeps to everything."""
        parts = self.unclear - limits.unclear, self.largest - limits.largest, 1 - self.effective / limits.effective
        return sum(max(0.0, part) for part in parts)


def trial_line(trial: Trial, limits: Limits) -> str:
    """One line for a person."""
    n = max(1, trial.n)
    line = (
        f"{trial.spec.name}: {len(trial.spec.values)} values, {trial.unknown / n:.0%} unknown, {trial.other / n:.0%}"
        f" other, largest {trial.largest:.0%}, {trial.effective:.1f} effective"
    )
    return line + (" (below what was asked for)" if trial.faults(limits) else "")
