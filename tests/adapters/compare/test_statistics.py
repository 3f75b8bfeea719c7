"""Statistics against scipy, slow loops and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.adapters.compare.statistics import MEASURES, holm, measure, over_seeds, paired
from recplug.plugins.errors import RecplugError

# -- measures


def slowly(name, ranks, k):
    """One user's metric, by its definition."""
    hits = [rank for rank in ranks if rank <= k]
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(ranks), k) + 1))
    return {
        "recall": len(hits) / len(ranks),
        "precision": len(hits) / k,
        "hit": float(bool(hits)),
        "mrr": 1 / min(hits) if hits else 0.0,
        "ndcg": sum(1 / math.log2(rank + 1) for rank in hits) / ideal,
    }[name]


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=6), st.integers(1, 30))
def test_measures_by_user(name, targets, k):
    rows = [(f"u{user}", rank) for user, ranks in enumerate(targets) for rank in ranks]
    np.random.default_rng(len(rows)).shuffle(rows)
    compute, cutoff = measure(f"{name.upper()}@{k}")
    users, values = compute(np.array([row[0] for row in rows]), np.array([int(row[1]) for row in rows]), cutoff)
    assert users.tolist() == [f"u{user}" for user in range(len(targets))]
    assert values == pytest.approx([slowly(name, sorted(ranks), k) for ranks in targets])


@pytest.mark.parametrize("word", ["ndcg", "ndcg@0", "ndgc@10", "gauc", "recall@ten"])
def test_other_metrics_are_refused(word):
    with pytest.raises(RecplugError, match="no metric"):
        measure(word)


# -- pairs


def two(seed, n=60, gain=0.1):
    rng = np.random.default_rng(seed)
    theirs = rng.uniform(0.2, 1.0, n)
    return theirs * (1 + gain) + rng.normal(scale=0.2, size=n), theirs


@pytest.mark.parametrize("seed", range(5))
def test_p_is_the_paired_t_test(seed):
    ours, theirs = two(seed)
    found = paired(ours, theirs)
    assert found.p == pytest.approx(scipy.stats.ttest_rel(ours, theirs).pvalue, rel=1e-9)
    assert (found.users, found.ours, found.theirs) == (60, pytest.approx(ours.mean()), pytest.approx(theirs.mean()))
    assert found.gain == pytest.approx(ours.mean() / theirs.mean() - 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_ends_of_the_interval_are_the_gains_that_the_test_just_refuses(seed):
    ours, theirs = two(seed)
    found = paired(ours, theirs)
    for gain in (found.low, found.high):
        assert scipy.stats.ttest_rel(ours, (1 + gain) * theirs).pvalue == pytest.approx(0.05, rel=1e-6)
    assert found.low < found.gain < found.high


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 80), st.floats(-0.3, 0.3))
def test_the_interval_leaves_zero_out_exactly_where_p_is_small(seed, n, gain):
    found = paired(*two(seed, n, gain))
    if found.low is not None and abs(found.p - 0.05) > 1e-6:
        assert (found.low <= 0 <= found.high) == (found.p > 0.05)


def test_p_agrees_with_all_sign_flips():
    """A second test of the same question, without any distribution: every pattern of signs of twelve users."""
    ours, theirs = two(3, n=12, gain=0.15)
    difference = ours - theirs
    signs = np.array(list(itertools.product((-1, 1), repeat=12)))
    exact = np.mean(np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12)
    assert paired(ours, theirs).p == pytest.approx(exact, abs=0.03)


def test_corners():
    same = np.array([0.1, 0.5, 0.0])
    assert (paired(same, same).gain, paired(same, same).p) == (0.0, 1.0)
    nothing = paired(np.array([0.1, 0.2, 0.0]), np.zeros(3))
    assert (nothing.gain, nothing.low, nothing.high) == (None, None, None)
    assert 0 < nothing.p < 1
    single = paired(np.array([0.5]), np.array([0.4]))
    assert (single.users, single.p, single.low) == (1, None, None)
    assert paired(same + 0.1, same).p == pytest.approx(0.0, abs=1e-12)
    rare = np.zeros(50)
    rare[0] = 1.0  # theirs cannot be told from 0: no gain is refused
    assert paired(np.roll(rare, 1), rare).low is None
    for ours, theirs in ((np.zeros(0), np.zeros(0)), (np.zeros(2), np.zeros(3))):
        with pytest.raises(RecplugError, match="cannot be paired"):
            paired(ours, theirs)


def test_seeds_are_averaged_before_users_are_paired():
    first = (np.array(["a", "b"]), np.array([1.0, 0.0]), np.array([0.0, 0.0]))
    second = (np.array(["b", "c"]), np.array([0.5, 0.2]), np.array([0.25, 0.4]))
    users, ours, theirs = over_seeds([first, second])
    assert users.tolist() == ["a", "b", "c"]
    assert ours.tolist() == [1.0, 0.25, 0.2]
    assert theirs.tolist() == [0.0, 0.125, 0.4]
    # The same trainings counted twice say no more than once.
    one = (np.arange(60), *two(0))
    assert paired(*over_seeds([one] * 5)[1:]).p == pytest.approx(paired(*over_seeds([one])[1:]).p)


# -- many comparisons


def test_holm_by_hand():
    # 0.01 x 4; 0.02 x 3; 0.03 x 2 is as large; 0.04 may not be less.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_refuses_what_the_step_down_procedure_refuses(p):
    level, order = 0.05, sorted(range(len(p)), key=lambda place: p[place])
    refused = set()
    for step, place in enumerate(order):
        if (len(p) - step) * p[place] > level:
            break
        refused.add(place)
    assert {place for place, value in enumerate(holm(p)) if value <= level} == refused


@pytest.mark.slow
def test_false_alarms_under_the_null_stay_at_the_level():
    """As in a table: sparse metrics, users alike over seeds, 12 comparisons with one base; 2,000 such tables."""
    rng = np.random.default_rng(0)
    alone = together = covered = 0
    for _ in range(2000):
        user = rng.beta(0.3, 2.0, size=400)  # how easy a user is, for everyone
        cells = rng.random((13, 5, 400)) < user  # 13 variants, 5 seeds
        means = cells.mean(axis=1)  # [13, 400]
        tests = [paired(means[variant], means[0]) for variant in range(1, 13)]
        alone += sum(test.p < 0.05 for test in tests)
        together += any(p < 0.05 for p in holm([test.p for test in tests]))
        covered += sum(test.low <= 0 <= test.high for test in tests)
    assert 0.04 < alone / 24_000 < 0.06
    assert 0.94 < covered / 24_000 < 0.96
    assert together / 2000 < 0.06  # Holm's promise is at most 0.05; a standard error is 0.005
