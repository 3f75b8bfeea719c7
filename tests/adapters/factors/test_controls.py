from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.adapters.factors import random_groups, shuffled
from recplug.plugins.factors import Factor, FactorProfiles


def profiles_of(rows, sizes):
    """From each item's set of values: a row for the padding is put in front."""
    pairs = sorted((item, value) for item, values in enumerate(rows, 1) for value in values)
    factors = tuple(Factor(f"f{k}", tuple(f"v{v}" for v in range(size))) for k, size in enumerate(sizes))
    items, values = (
        torch.tensor(side, dtype=torch.int64) for side in (zip(*pairs, strict=True) if pairs else ((), ()))
    )
    return FactorProfiles(factors, items, values, len(rows) + 1)


def rows_of(profiles):
    rows = [frozenset() for _ in range(profiles.n_items)]
    for item, value in zip(profiles.items.tolist(), profiles.values.tolist(), strict=True):
        rows[item] |= {value}
    return rows


@st.composite
def several(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    value = st.integers(0, sum(sizes) - 1)
    return profiles_of(draw(st.lists(st.sets(value, max_size=4), min_size=1, max_size=30)), sizes)


def big(seed=0, n=300):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(5, (n,), generator=generator).tolist()
    # The second factor follows from the first one; every seventh item is unknown under it, every ninth under both.
    rows = [{a, 5 + a} if i % 7 else {a} for i, a in enumerate(first)]
    return profiles_of([set() if i % 9 == 0 else row for i, row in enumerate(rows)], [5, 5])


@settings(deadline=None)
@given(several(), st.integers(0, 5))
def test_shuffling_deals_the_same_profiles_to_the_same_items(profiles, seed):
    control = shuffled(profiles, seed)
    assert control.factors == profiles.factors
    before, after = rows_of(profiles), rows_of(control)
    assert Counter(before) == Counter(after)
    assert [bool(row) for row in before] == [bool(row) for row in after]


@settings(deadline=None)
@given(several(), st.integers(0, 5))
def test_random_groups_deal_each_factors_labels_among_the_items_it_is_known_for(profiles, seed):
    control = random_groups(profiles, seed)
    assert control.factors == profiles.factors
    assert torch.equal(control.known, profiles.known)
    assert torch.equal(control.values.bincount(minlength=9), profiles.values.bincount(minlength=9))
    for k in range(len(profiles.factors)):
        own = frozenset(range(profiles.offsets[k], profiles.offsets[k + 1]))
        assert Counter(row & own for row in rows_of(control)) == Counter(row & own for row in rows_of(profiles))


def together(profiles):
    """The share of items with both values whose second follows from the first."""
    both = [sorted(row) for row in rows_of(profiles) if len(row) == 2]
    return sum(b - 5 == a for a, b in both) / len(both)


def test_shuffling_keeps_which_values_occur_together_and_random_groups_do_not():
    profiles = big()
    assert together(profiles) == together(shuffled(profiles, 0)) == 1.0
    assert together(random_groups(profiles, 0)) < 0.35


@pytest.mark.parametrize("control", [shuffled, random_groups])
def test_a_control_moves_most_items_and_follows_its_seed_alone(control):
    profiles = big()
    state = torch.get_rng_state()
    first, again, other = (control(profiles, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.items, again.items)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    moved = [a != b for a, b in zip(rows_of(profiles), rows_of(first), strict=True) if a]
    assert sum(moved) > 0.6 * len(moved)


@pytest.mark.parametrize("control", [shuffled, random_groups])
def test_a_control_of_nothing_is_nothing(control):
    empty = profiles_of([set(), set()], [2])
    assert not len(control(empty, 0).items)
