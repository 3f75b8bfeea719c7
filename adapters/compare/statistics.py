"""Statistics of a comparison: each user's metric, differences paired over users, many comparisons at once.

Users and seeds are not independent of each other: a user's metric with one seed says much about the same user's with
another. So a user's metric is averaged over seeds first, and a user is then one observation, however many seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recplug.plugins.errors import RecplugError, did_you_mean

Array = NDArray[np.float64]
Measure = Callable[[NDArray[Any], NDArray[Any], int], tuple[NDArray[Any], Array]]

# -- measures of targets; a target's rank counts its user's other targets too, as full ranking does


def recall_by_user(user: NDArray[Any], rank: NDArray[Any], k: int) -> tuple[NDArray[Any], Array]:
    """Users ``[u]``, sorted, and the share of their targets among the best ``k``; a row a target, ``[n]`` each."""
    users, place = np.unique(user, return_inverse=True)
    return users, np.bincount(place, weights=rank <= k) / np.bincount(place)


def precision_by_user(user: NDArray[Any], rank: NDArray[Any], k: int) -> tuple[NDArray[Any], Array]:
    """Users, sorted, and the share of the best ``k`` that are their targets."""
    users, place = np.unique(user, return_inverse=True)
    return users, np.bincount(place, weights=rank <= k) / k


def hit_by_user(user: NDArray[Any], rank: NDArray[Any], k: int) -> tuple[NDArray[Any], Array]:
    """Users, sorted, and 1 where any of their targets is among the best ``k``, else 0."""
    users, place = np.unique(user, return_inverse=True)
    return users, (np.bincount(place, weights=rank <= k) > 0).astype(np.float64)


def mrr_by_user(user: NDArray[Any], rank: NDArray[Any], k: int) -> tuple[NDArray[Any], Array]:
    """Users, sorted, and 1 / rank of their first target, 0 where it is not among the best ``k``."""
    users, place = np.unique(user, return_inverse=True)
    best = np.full(len(users), np.inf)
    np.minimum.at(best, place, rank.astype(np.float64))
    return users, np.where(best <= k, 1 / best, 0.0)


def ndcg_by_user(user: NDArray[Any], rank: NDArray[Any], k: int) -> tuple[NDArray[Any], Array]:
    """Users, sorted, and their NDCG at ``k``."""
    users, place = np.unique(user, return_inverse=True)
    gains = np.bincount(place, weights=np.where(rank <= k, 1 / np.log2(rank + 1.0), 0.0))
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    return users, gains / ideal[np.minimum(np.bincount(place), k) - 1]


MEASURES: Mapping[str, Measure] = {
    "ndcg": ndcg_by_user,
    "recall": recall_by_user,
    "hit": hit_by_user,
    "mrr": mrr_by_user,
    "precision": precision_by_user,
}


def measure(metric: str) -> tuple[Measure, int]:
    """``"NDCG@10"`` to what computes it user by user, and its cutoff.

    Raises:
        RecplugError: for another metric.
    """
    name, _, k = metric.partition("@")
    if name.lower() not in MEASURES or not k.isdecimal() or int(k) < 1:
        hint = did_you_mean(name, MEASURES) or f"; write one of {', '.join(MEASURES)}, and a cutoff: ndcg@10"
        raise RecplugError(f"'{metric}' is no metric that is known user by user{hint}")
    return MEASURES[name.lower()], int(k)


# -- pairs


@dataclass(frozen=True)
class Paired:
    """Ours against theirs, paired over users.

    Attributes:
        users: how many.
        ours, theirs: means over them.
        gain: (ours - theirs) / theirs; None where theirs is 0.
        low, high: the gain's interval; None where theirs cannot be told from 0, and where no user differs.
        p: of no difference, two-sided; None for a single user.
    """

    users: int
    ours: float
    theirs: float
    gain: float | None
    low: float | None
    high: float | None
    p: float | None


def over_seeds(pairs: Sequence[tuple[NDArray[Any], Array, Array]]) -> tuple[NDArray[Any], Array, Array]:
    """Average each user's two values over the seeds in which the user is tested.

    Args:
        pairs: for each seed, users ``[n]`` and both sides' values ``[n]``; random splits test other users each time.

    Returns:
        Users ``[u]``, sorted, and both sides' means ``[u]``.
    """
    users, place = np.unique(np.concatenate([user for user, _, _ in pairs]), return_inverse=True)
    count = np.bincount(place)
    sides = (np.concatenate([pair[side] for pair in pairs]) for side in (1, 2))
    ours, theirs = (np.bincount(place, weights=values) / count for values in sides)
    return users, ours, theirs


def paired(ours: Array, theirs: Array, *, level: float = 0.95) -> Paired:
    """Student's t test of a mean difference, and the interval of the relative gain that belongs to it.

    The interval is Fieller's: all gains g for which "ours is (1 + g) times theirs" is not refused by the same test. So
    it leaves 0 out exactly where p is below ``1 - level``, and what theirs varies is counted too.

    Args:
        ours, theirs: ``[n]``, a value a user, in the same order.
        level: of the interval.

    Raises:
        RecplugError: for sides of different lengths, or none at all.
    """
    n = len(ours)
    if n == 0 or len(theirs) != n:
        raise RecplugError(f"{n} users cannot be paired with {len(theirs)}; compare runs on the same test users")
    difference = ours - theirs
    mean, base = float(difference.mean()), float(theirs.mean())
    gain = mean / base if base else None
    about = (n, float(ours.mean()), base, gain)
    if n == 1:
        return Paired(*about, None, None, None)
    from scipy.stats import t as student

    squares = np.cov(np.stack([difference, theirs])) / n  # [2, 2], of the two means
    if not difference.any():
        return Paired(*about, None, None, 1.0)
    error = math.sqrt(squares[0, 0])
    p = float(2 * student.sf(abs(mean) / error, n - 1)) if error else 0.0
    t2 = float(student.ppf((1 + level) / 2, n - 1)) ** 2
    # (mean - g base)^2 <= t2 var(difference - g theirs), a parabola in g.
    a = base**2 - t2 * squares[1, 1]
    b = mean * base - t2 * squares[0, 1]
    c = mean**2 - t2 * squares[0, 0]
    if a <= 0:
        return Paired(*about, None, None, p)
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Paired(*about, float((b - root) / a), float((b + root) / a), p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: of ``m`` tests, the chance that any of those called different is not, stays below the level.

    Needs no independence. The smallest p is multiplied by m, the next by m - 1, and so on; none falls below a smaller
    one's.
    """
    found, highest = [0.0] * len(p), 0.0
    for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - step) * p[index]))
        found[index] = highest
    return found
