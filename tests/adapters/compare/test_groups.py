"""Groups against slow loops."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recplug.adapters.compare.groups import FOLDER, Counts, activity, activity_names, cold, cuts_of


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80))
def test_every_user_is_in_one_group_and_none_is_empty(numbers):
    numbers = np.array(numbers)
    cuts = cuts_of(numbers)
    names = activity_names(cuts)
    known = Counts({f"u{place}": int(number) for place, number in enumerate(numbers)}, {})
    groups = activity(np.array([f"u{place}" for place in range(len(numbers))]), known, cuts)
    assert set(groups.tolist()) == set(range(len(names)))
    for number, group in zip(numbers, groups, strict=True):
        assert group == sum(number >= cut for cut in cuts)


def test_thirds_are_as_near_as_ties_allow():
    assert cuts_of(np.arange(300)) == (100, 200)
    # A few with 2, most with 3 or 4: the first cut is not at 3, which would leave a handful below.
    assert cuts_of(np.repeat([2, 3, 4, 5, 9], [5, 40, 30, 15, 10])) == (4, 5)
    assert cuts_of(np.repeat([7], 10)) == ()
    assert activity_names((4, 5, 9)) == ["under 4", "4", "5 to 8", "9 and more"]
    assert activity_names(()) == ["all"]


def test_who_is_not_known_has_had_nothing():
    known = Counts({"a": 3}, {"x": 1, "y": 0})
    assert activity(np.array(["a", "stranger"]), known, (1,)).tolist() == [1, 0]
    assert cold(np.array(["x", "y", "new"]), known).tolist() == [False, True, True]


@pytest.fixture
def counted(standin, tmp_path):
    """A comparison whose counts are there already: users' number modulo 12, items below 10 never trained."""
    output = tmp_path / "out"
    standin.compare(output, controls="none", groups=False)  # begins the folder
    (output / FOLDER).mkdir()
    users = {user: int(user[1:]) % 12 for user in standin.users}
    items = {f"i{item}": 0 if item < 10 else 5 for item in range(30)}
    rows = [("user", *each) for each in users.items()] + [("item", *each) for each in items.items()]
    table = pa.table(dict(zip(("side", "token", "interactions"), zip(*rows, strict=True), strict=True)))
    pq.write_table(table, output / FOLDER / f"{standin.fingerprint[:16]}.parquet")
    return standin.compare(output, controls="none", groups=True, activity=(4, 8)), users


def ndcg(ranks):
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0)


def test_metrics_by_group(counted, standin):
    found, users = counted
    numbers = np.array([users[user] for user in standin.users])
    item = np.arange(len(numbers)) % 30
    wanted = {
        "under 4": numbers < 4,
        "4 to 7": (numbers >= 4) & (numbers < 8),
        "8 and more": numbers >= 8,
        "cold": item < 10,
        "warm": item >= 10,
    }
    assert {group.name for group in found.groups} == wanted.keys()
    for group in found.groups:
        own = wanted[group.name]
        ours, theirs = (
            np.mean([ndcg(standin.ranks(kind, s))[own].mean() for s in (1, 2)]) for kind in ("prism", "bare")
        )
        assert (group.pairs.users, group.targets) == (own.sum(), 2 * own.sum())
        assert (group.pairs.ours, group.pairs.theirs) == (pytest.approx(ours), pytest.approx(theirs))
    assert "| prism | 4 to 7 interactions | 40 | 80 |" in found.to_markdown()


@pytest.mark.slow
def test_without_a_run_that_loads_there_are_no_groups_and_a_line(standin, tmp_path, caplog):
    found = standin.compare(tmp_path / "out", controls="none", seeds=1, groups=True)
    assert found.groups == []
    assert found.tests[0].pairs is not None
    assert any("no user groups" in record.getMessage() for record in caplog.records)
