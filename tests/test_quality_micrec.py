"""How the MICRec benchmark thins out and shuffles the links, and whom it calls a new user."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recplug.adapters.data import bundled, check

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality_micrec

    return quality_micrec


@pytest.fixture
def pair(quality, tmp_path):
    return quality.Pair("food-small", "kitchen-small", None, tmp_path)


def test_renamed_links_leave_every_interaction_in_place(quality, pair):
    own = quality.rows_of(bundled()["kitchen-small"].directory / "kitchen-small.inter")
    linked, before = set(pair.linked), set()
    assert len(linked) == 595
    for ratio in (0.0, 0.1, 0.25, 0.5):
        place = quality.relinked(pair, ratio)
        rows = quality.rows_of(place / "kitchen-small" / "kitchen-small.inter")
        assert [row[1:] for row in rows] == [row[1:] for row in own]
        names = dict(zip((row[0] for row in own), (row[0] for row in rows), strict=True))
        assert len(set(names.values())) == len(names)
        still = {user for user in linked if names[user] == user}
        assert len(still) == round(ratio * 595)
        assert before <= still
        assert all(names[user] == user for user in names.keys() - linked)
        assert not {name for name in names.values() if name not in still} & linked
        before = still
    assert check(place / "kitchen-small")[0] == check("kitchen-small")[0]
    assert quality.relinked(pair, 0.5) == place


def test_shuffled_links_give_nobody_the_own_name(quality, pair):
    place = quality.relinked(pair, "shuffled")
    own, rows = (
        [row[0] for row in quality.rows_of(folder / "kitchen-small.inter")]
        for folder in (bundled()["kitchen-small"].directory, place / "kitchen-small")
    )
    names = dict(zip(own, rows, strict=True))
    assert len(set(names.values())) == len(names) == len(set(own))
    assert set(names.values()) == set(own)
    assert {old for old, new in names.items() if old != new} == set(pair.linked)


def test_new_users_are_asked_for_what_the_model_knows(quality):
    folder = bundled()["food-small"].directory
    known = {row[1] for row in quality.rows_of(folder / "food-small.inter")}
    had, asked = quality.histories(folder, "food-small")
    assert had.keys() == asked.keys()
    assert set(asked.values()) | {item for items in had.values() for item in items} <= known
    queries = Counter(row[-1] for row in quality.rows_of(folder / "food-small.query.inter"))
    assert 800 < len(asked) <= queries["new_user"]
    order = {tuple(row[:2]): float(row[2]) for row in quality.rows_of(folder / "food-small.support.inter")}
    assert all(np.all(np.diff([order[user, item] for item in items]) > 0) for user, items in had.items())


def test_users_with_and_without_the_source_are_all_users(quality):
    cell = {"user": np.array(["c", "a", "b"]), "rank": np.array([1, 3, 30])}
    everyone = quality.seen(cell)
    np.testing.assert_allclose(everyone, [0.5, 0.0, 1.0])  # in the order of tokens
    np.testing.assert_allclose(quality.seen(cell, ["a", "x"]), everyone[:1])
    np.testing.assert_allclose(quality.seen(cell, ["a", "x"], without=True), everyone[1:])
    assert quality.new(cell).size == 0


def test_every_variant_is_filled_once_a_seed(quality, pair):
    assert set(quality.FIRST + quality.CONTROLS + quality.CURVE) == set(pair.variants())
    assert len(set(quality.cells(2))) == len(quality.cells(2)) == 2 * len(pair.variants())
