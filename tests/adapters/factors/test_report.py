"""The report against closed forms, slow loops and planted profiles."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, normalized_mutual_info_score

from recplug.adapters.factors import FactorSchema, FactorSpec, FactorTable, Value
from recplug.adapters.factors.lift import Pairs, lifts, sample_pairs
from recplug.adapters.factors.report import agreement, overlap, report
from recplug.adapters.panels import draw
from recplug.plugins.errors import RecplugError


def table(columns, *, status=None, other=None, vocabulary=()):
    """A table of items ``i1``, ``i2``, ... from columns of value tuples by factor."""
    n = len(next(iter(columns.values())))
    specs = []
    for name, column in columns.items():
        values = tuple(
            Value(name=name) for name in sorted({name for names in column for name in names}.union(vocabulary))
        )
        multi = any(len(names) > 1 for names in column)
        specs.append(FactorSpec(name=name, multi=multi, other=other, values=values))
    tokens = tuple(f"i{number}" for number in range(1, n + 1))
    return FactorTable(
        FactorSchema(factors=tuple(specs)), tokens, {k: tuple(v) for k, v in columns.items()}, status or ("ok",) * n
    )


def one(words):
    return [(word,) if word else () for word in words]


def tokens(n):
    return ["[PAD]", *(f"i{number}" for number in range(1, n + 1))]


def test_shares_entropy_and_sizes_of_a_factor_counted_by_hand():
    words = ["a"] * 8 + ["b"] * 4 + ["c"] * 2 + ["rest"] + [""] * 3
    made = table({"f": one(words)}, status=("ok",) * 16 + ("failed", "refused"), other="rest", vocabulary=["never"])
    # i17 and i18 were given up, i16 is unknown, and two items are not in the table
    found = report(made, tokens(20)).factors[0]
    assert (found.coverage, found.missing, found.failed, found.other) == (15 / 20, 2 / 20, 2 / 20, 1 / 20)
    assert found.unknown == pytest.approx(1 / 20)
    assert found.coverage + found.unknown + found.failed + found.missing == pytest.approx(1)
    shares = [8 / 15, 4 / 15, 2 / 15, 1 / 15]
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert found.effective == pytest.approx(math.prod(p**-p for p in shares))
    assert found.sizes == {"a": 8, "b": 4, "c": 2, "never": 0, "rest": 1}
    assert found.largest == ("a", 8 / 15)
    assert found.singletons == 1
    assert found.histogram == (1, 1, 2, 1, 0, 0, 0, 0, 0)  # 0, 1, 2-4, 5-9, ...
    assert sum(found.histogram) == len(found.sizes)
    assert found.small == 2  # b and c roll up to other
    assert found.lift is None
    assert found.agreement is None


def test_equal_groups_are_worth_their_number():
    found = report(table({"f": one("abcd" * 10)}), tokens(40)).factors[0]
    assert found.effective == pytest.approx(4)
    assert found.remarks == []


def test_remarks_name_what_stands_out():
    found = report(table({"huge": one("a" * 90 + "b" * 10)}), tokens(100))
    assert any("'a' holds 90% of its items" in line for line in found.lines())
    assert any("worth 1.4 equal values" in line for line in found.lines())
    same = table({"one": one("abcd" * 10), "two": one("wxyz" * 10)})
    assert any("one and two say the same (NMI 1.00)" in line for line in report(same, tokens(40)).lines())


def test_overlap_is_scikit_learns_where_items_have_one_value():
    draw = np.random.default_rng(0)
    a = draw.integers(0, 5, 300)
    b = np.where(draw.random(300) < 0.5, a, draw.integers(0, 7, 300))
    known = draw.random(300) < 0.7
    words = [f"v{x}" if here else "" for x, here in zip(b, known, strict=True)]
    profiles = table({"a": one([f"v{x}" for x in a]), "b": one(words)}).align(tokens(300), min_group=0)
    expected = normalized_mutual_info_score(a[known], b[known])
    assert overlap(profiles) == pytest.approx(np.array([[1, expected], [expected, 1]]))


def test_overlap_spreads_an_item_over_its_values():
    columns = {"a": [("x", "y"), ("x",), ("y",), ("y", "z")], "b": one("ppqq")}
    joint = np.zeros((3, 2))
    for values, (other,) in zip(columns["a"], columns["b"], strict=True):
        for value in values:
            joint["xyz".index(value), "pq".index(other)] += 1 / len(values) / 4
    rows, cols = joint.sum(1), joint.sum(0)
    inside = [(i, j) for i in range(3) for j in range(2) if joint[i, j]]
    mutual = sum(joint[i, j] * math.log(joint[i, j] / rows[i] / cols[j]) for i, j in inside)
    entropies = -sum(p * math.log(p) for p in [*rows, *cols])
    found = overlap(table(columns).align(tokens(4), min_group=0))
    assert found[0, 1] == pytest.approx(2 * mutual / entropies)


def test_overlap_without_common_items_or_without_any_information():
    apart = table({"a": one(["x", "y", "", ""]), "b": one(["", "", "x", "y"]), "c": one("zzzz")})
    found = overlap(apart.align(tokens(4), min_group=0))
    assert np.isnan(found[0, 1])
    assert found[0, 2] == 0
    assert found[2, 2] == 1


def test_pairs_are_of_one_user_and_keep_their_popularity():
    edges = torch.tensor([[0, 0, 0, 1, 1, 2, 0], [1, 2, 3, 3, 4, 5, 2]])  # one repeat, one user with a single item
    pairs = sample_pairs(edges, pairs=3000, seed=1)
    baskets = [{1, 2, 3}, {3, 4}]
    assert all(a != b and any({a, b} <= basket for basket in baskets) for a, b in pairs.bought.T.tolist())
    seen = {tuple(sorted(pair)) for pair in pairs.bought.T.tolist()}
    assert seen == {pair for basket in baskets for pair in combinations(sorted(basket), 2)}
    assert not (pairs.chance[0] == pairs.chance[1]).any()
    # A user counts as often as they bought: 3 of the 5 usable interactions are the first user's.
    first = np.isin(pairs.bought[0], (1, 2)) | np.isin(pairs.bought[1], (1, 2))
    assert first.mean() == pytest.approx(3 / 5, abs=0.04)
    again = sample_pairs(edges, pairs=3000, seed=1)
    assert np.array_equal(pairs.bought, again.bought)
    assert not np.array_equal(pairs.bought, sample_pairs(edges, pairs=3000, seed=2).bought)
    with pytest.raises(RecplugError, match="no user has two items"):
        sample_pairs(torch.tensor([[0, 1, 1], [1, 2, 2]]))


def slow_lift(sets, other, pairs):
    """P(share a value | bought) / P(share a value | chance), item by item."""

    def share(drawn):
        known = [(sets[a], sets[b]) for a, b in drawn.T.tolist() if sets[a] and sets[b]]
        return sum(bool((a & b) - {other}) for a, b in known) / len(known)

    return share(pairs.bought) / share(pairs.chance)


@pytest.mark.parametrize("values", [3, 150])
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("other", [None, "v1"])
def test_lift_equals_a_loop(values, most, other):
    draw = np.random.default_rng(values + most)
    names = [f"v{x}" for x in range(values)]
    column = [tuple(sorted(draw.choice(names, draw.integers(0, most + 1), replace=False))) for _ in range(60)]
    made = table({"f": column}, other=other, vocabulary=names)
    pairs = Pairs(draw.integers(1, 61, (2, 4000)), draw.integers(1, 61, (2, 6000)))
    pairs = Pairs(*(drawn[:, drawn[0] != drawn[1]] for drawn in (pairs.bought, pairs.chance)))
    (found,) = lifts(made.align(tokens(60), min_group=0), pairs, permutations=3)
    sets = [set(), *map(set, column)]
    assert found.value == pytest.approx(slow_lift(sets, other, pairs))
    assert found.pairs == sum(bool(sets[a] and sets[b]) for a, b in pairs.bought.T.tolist())


def planted(seed, users=400, items=120, values=6):
    """Users who buy within one group of items; the groups."""
    draw = np.random.default_rng(seed)
    group = draw.integers(0, values, items)
    rows = [(u, i) for u in range(users) for i in draw.choice(np.flatnonzero(group == u % values), 4, replace=False)]
    return torch.tensor(rows).T + torch.tensor([[0], [1]]), group


def test_a_planted_factor_is_far_above_chance_and_a_random_one_within():
    edges, group = planted(0)
    noise = np.random.default_rng(9).integers(0, 6, len(group))
    made = table({"planted": one([f"g{x}" for x in group]), "random": one([f"g{x}" for x in noise])})
    good, idle = (factor.lift for factor in report(made, tokens(len(group)), edges, pairs=4000).factors)
    # every bought pair is equal; by chance, one of six groups
    assert good.value == pytest.approx(6, rel=0.15)
    assert good.p == 1 / 100
    assert good.low < 1 < good.high < 1.5
    assert idle.low < idle.value < idle.high
    assert idle.p > 0.01
    assert idle.pairs == good.pairs == 4000


def test_the_null_holds_its_promise():
    """Random labels reach the highest twentieth of their null about as often as a twentieth of the time."""
    edges, group = planted(1)
    pairs = sample_pairs(edges, pairs=1500)
    draw = np.random.default_rng(2)
    columns = {f"f{k}": one([f"g{x}" for x in draw.integers(0, 6, len(group))]) for k in range(60)}
    found = lifts(table(columns).align(tokens(len(group)), min_group=0), pairs, permutations=39)
    assert sum(lift.p <= 0.05 for lift in found) <= 9  # 3 expected; 9 or more with a chance of 0.3 %


def test_a_factor_that_nobody_shares_has_no_lift():
    edges, group = planted(0, users=40)
    made = table({"f": one([f"v{i}" for i in range(len(group))]), "g": one(["x", *[""] * (len(group) - 1)])})
    for lift in lifts(made.align(tokens(len(group)), min_group=0), sample_pairs(edges, pairs=500)):
        assert all(math.isnan(x) for x in (lift.value, lift.low, lift.high, lift.p))


def test_agreement_is_scikit_learns_kappa():
    draw = np.random.default_rng(3)
    first = draw.integers(0, 4, 200)
    second = np.where(draw.random(200) < 0.6, first, draw.integers(0, 4, 200))
    words = [[["", "a", "b", "c"][x] for x in column] for column in (first, second)]
    status = ("ok",) * 190 + ("failed",) * 10
    a, b = table({"f": one(words[0])}), table({"f": one(words[1])}, status=status)
    found = agreement(a, b, "f")
    assert found.items == 190
    assert found.share == pytest.approx((first[:190] == second[:190]).mean())
    assert found.kappa == pytest.approx(cohen_kappa_score(first[:190], second[:190]))
    assert agreement(a, b, "g") is None
    assert report(a, tokens(200), second=a).factors[0].agreement.kappa == pytest.approx(1)


def test_constant_answers_have_no_kappa():
    same = table({"f": one("aaaa")})
    found = agreement(same, same, "f")
    assert found.share == 1
    assert math.isnan(found.kappa)


def test_panels_can_be_drawn(tmp_path):
    edges, group = planted(0, users=40)
    made = table({"f": one([f"g{x}" for x in group]), "h": one(["", *"ab" * 59, "a"])})
    found = report(made, tokens(len(group)), edges, pairs=200, permutations=9)
    assert set(found.panels()) == {"coverage", "groups", "overlap", "lift"}
    assert "lift" not in report(made, tokens(len(group))).panels()
    for name, panel in found.panels().items():
        assert panel.rows == ("f", "h")
        assert panel.values.shape == (2, len(panel.columns))
        draw(panel, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_a_data_set_without_any_of_the_items_is_refused():
    with pytest.raises(RecplugError, match="none of the dataset's 2 items"):
        report(table({"f": one("ab")}), ["[PAD]", "x", "y"])


def test_a_factor_whose_values_are_all_too_small_is_called_so_and_has_no_lift():
    made = table({"f": one([f"v{number // 2}" for number in range(20)])})
    edges = torch.tensor([[user for user in range(5) for _ in range(4)], list(range(1, 21))])
    found = report(made, tokens(20), edges, pairs=50, permutations=5)
    assert found.factors[0].small == 10
    line, *remarks = found.lines()[1:]
    assert "10 too small" in line
    assert "lift" not in line
    assert remarks == ["    every value is too small for a group, so training sees nothing of it; merge values"]
