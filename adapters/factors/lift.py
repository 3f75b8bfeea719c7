"""Whether a factor says what people buy together: equal values of co-purchased items against chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles

PAIRS, PERMUTATIONS, MATCHES = 20_000, 99, 5
_BITS = 62


@dataclass(frozen=True)
class Lift:
    """P(equal value | bought by one user) / P(equal value | random pair of equally popular items).

    Attributes:
        value: the ratio; 1 means that the factor has nothing to do with what is bought together, and NaN that there
            are no two items to compare.
        low, high: where 95 % of the ratios lie when the same profiles belong to random items.
        p: the share of such ratios that reach ``value``, never below 1 / (permutations + 1).
        pairs: co-purchased pairs in which both items have a value.
    """

    value: float
    low: float
    high: float
    p: float
    pairs: int


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sampled pairs of different items: ``bought [2, s]`` by one user, ``chance [2, t]`` matched in popularity."""

    bought: np.ndarray
    chance: np.ndarray


def sample_pairs(edges: Tensor, *, pairs: int = PAIRS, seed: int = 0) -> Pairs:
    """Draw pairs from training interactions; nothing of size items x items is built.

    A bought pair is a random interaction and another item of the same user, so that a user counts as often as they
    bought. A chance pair is the first item of one bought pair with the second item of another: both sides keep
    exactly the popularity that they have among the bought pairs.

    Args:
        edges: ``[2, n]`` user and item ids; repeats count once.
        pairs: how many bought pairs to draw; five times as many chance pairs.
        seed: of the draw.

    Raises:
        RecplugError: where no user has two items.
    """
    users, items = torch.unique(edges.cpu(), dim=1).numpy()  # [e], by user, then item
    start = np.searchsorted(users, users)  # [e], where the user's items begin
    many = np.searchsorted(users, users, side="right") - start
    usable = np.flatnonzero(many > 1)
    if not len(usable):
        raise RecplugError("no user has two items, so nothing is bought together; give training interactions")
    draw = np.random.default_rng(seed)
    one = draw.choice(usable, pairs)
    step = draw.integers(1, many[one])  # never back to the same item
    two = start[one] + (one - start[one] + step) % many[one]
    bought = np.stack([items[one], items[two]])
    shuffled = np.concatenate([draw.permutation(pairs) for _ in range(MATCHES)])
    chance = np.stack([np.tile(bought[0], MATCHES), bought[1][shuffled]])
    return Pairs(bought, chance[:, chance[0] != chance[1]])


def lifts(profiles: FactorProfiles, pairs: Pairs, *, permutations: int = PERMUTATIONS, seed: int = 0) -> list[Lift]:
    """The lift of every factor, with its null: the profiles of all known items given to each other at random.

    Two items are equal where they share a value other than ``other``; pairs with an unknown item do not count.
    """
    draw = np.random.default_rng(seed)
    found = []
    for factor in range(len(profiles.factors)):
        values = _values(profiles, factor)
        known = values[:, 0].nonzero()[0]
        value = _ratio(values, pairs)
        null = []
        for _ in range(permutations if np.isfinite(value) else 0):
            values[known] = values[draw.permutation(known)]
            null.append(_ratio(values, pairs))
        low, high = np.nanquantile(null, (0.025, 0.975)).tolist() if null else (np.nan, np.nan)
        p = (1 + sum(other >= value for other in null)) / (1 + len(null)) if null else np.nan
        compared = int((values[:, 0] != 0)[pairs.bought].all(axis=0).sum())
        found.append(Lift(value, low, high, p, compared))
    return found


def _values(profiles: FactorProfiles, factor: int) -> np.ndarray:
    """``[n_items, 1 + words]`` int64, the first 0 where unknown.

    Where every item has one value at most, there are no further words and the first is a number for it. Items with
    ``other`` get one each of their own. Else the further words have a bit a value, without ``other``.
    """
    begin, end = profiles.offsets[factor : factor + 2]
    inside = ((profiles.values >= begin) & (profiles.values < end)).cpu().numpy()
    items, values = profiles.items.cpu().numpy()[inside], profiles.values.cpu().numpy()[inside] - begin
    other = profiles.factors[factor].other
    named = values != (-1 if other is None else other)
    if len(np.unique(items)) == len(items):
        found = np.zeros((profiles.n_items, 1), dtype=np.int64)
        found[items, 0] = np.where(named, values + 1, -items)
        return found
    found = np.zeros((profiles.n_items, 1 + -(-(end - begin) // _BITS)), dtype=np.int64)
    found[items, 0] = 1
    items, values = items[named], values[named]
    np.bitwise_or.at(found, (items, 1 + values // _BITS), np.int64(1) << (values % _BITS))
    return found


def _ratio(values: np.ndarray, pairs: Pairs) -> float:
    bought, chance = _equal(values, pairs.bought), _equal(values, pairs.chance)
    return bought / chance if chance > 0 else float("nan")


def _equal(values: np.ndarray, pairs: np.ndarray) -> float:
    """The share of pairs with a value in common, among those in which both items have one."""
    one, two = values[pairs[0]], values[pairs[1]]  # [s, 1 + words]
    both = (one[:, 0] != 0) & (two[:, 0] != 0)
    same = (one[:, 1:] & two[:, 1:]).any(axis=1) if values.shape[1] > 1 else both & (one[:, 0] == two[:, 0])
    known = np.count_nonzero(both)
    return np.count_nonzero(same) / known if known else float("nan")
