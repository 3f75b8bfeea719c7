"""Runs side by side, against slow loops and closed forms."""

import math
import random

import pytest

from recplug.adapters.report import write_report
from recplug.adapters.report.run_contents import read_run
from recplug.adapters.report.side_by_side import columns, differing, duels, results, verdict, warnings


@pytest.fixture
def pair(make_run):
    """Two runs whose ranks of 60 targets differ, some missing on either side."""
    draw = random.Random(1)
    targets = [(f"u{i}", f"i{i % 7}") for i in range(60)]
    before = [(*target, draw.randrange(1, 40)) for target in targets]
    after = [(*target, max(1, rank + draw.choice((-9, -3, -1, 0, 4)))) for *target, rank in before]
    first = make_run("first", plugins=(), ranks=before[:-2])
    second = make_run("second", ranks=after[1:], shift=0.05)
    return first, second


def test_targets_are_counted(pair):
    shown = columns([read_run(path) for path in pair])
    (duel,) = duels(shown, 10)
    one, two = (column.run.ranks for column in shown)
    better = worse = same = entered = left = 0
    for key, before in one.items():
        if key not in two:
            continue
        now = two[key]
        better, worse, same = better + (now < before), worse + (now > before), same + (now == before)
        entered, left = entered + (before > 10 >= now), left + (now > 10 >= before)
    assert (duel.targets, duel.better, duel.worse) == (57, better, worse)
    assert better + worse + same == 57
    assert (duel.entered, duel.left) == (entered, left)
    n = better + worse
    tail = sum(math.comb(n, i) for i in range(max(better, worse), n + 1)) / 2**n
    assert duel.chance == pytest.approx(min(1.0, 2 * tail))
    ratios = sorted(two[key] / one[key] for key in one if key in two)
    assert [now / before for *_, before, now in duel.most] == pytest.approx([*ratios[:3], *ratios[:-4:-1]])


def test_equal_rankings_prove_nothing(make_run):
    ranks = [("u1", "i1", 3), ("u2", "i2", 5)]
    shown = columns([read_run(make_run(name, ranks=ranks)) for name in ("a", "b")])
    (duel,) = duels(shown, 10)
    assert (duel.better, duel.worse, duel.chance, list(duel.most)) == (0, 0, 1.0, [])


def test_results_and_words(pair):
    shown = columns([read_run(path) for path in pair])
    rows = dict(results(shown, "test"))
    assert [(cell.shown, cell.change, cell.good) for cell in rows["ndcg@10"]] == [
        ("0.2500", "", None),
        ("0.3000", "+20.0 %", True),
    ]
    assert rows["recall@10"][1].good is None
    assert verdict(shown)[1] == (
        "SASRec + toy reaches ndcg@10 0.3000 on the test part of tiny, 20.0 % above bare SASRec (0.2500)."
    )


def test_less_of_an_error_is_better(make_run):
    paths = [make_run(name, valid_metric="RMSE", test_result={"rmse": v}) for name, v in (("a", 2.0), ("b", 1.0))]
    ((_, cells),) = results(columns([read_run(path) for path in paths]), "test")
    assert (cells[1].change, cells[1].good) == ("-50.0 %", True)


def test_names_tell_runs_apart(make_run):
    for name in ("a", "b"):
        make_run(name)
        make_run(f"{name}/baseline", plugins=())
    other = make_run("c", plugins=("toy", "more"))
    runs = [read_run(other.parent / name) for name in ("a", "b", "c")]
    shown = columns(runs)
    assert [(column.name, column.given) for column in shown] == [
        ("bare SASRec (a/baseline)", False), ("SASRec + toy (a)", True), ("bare SASRec (b/baseline)", False),
        ("SASRec + toy (b)", True), ("SASRec + toy + more", True),
    ]  # fmt: skip


def test_other_data_are_not_compared(make_run):
    ranks = [("u1", "i1", 3)]
    one = make_run("a", ranks=ranks)
    two = make_run("b", ranks=ranks, data_fingerprint="0" * 64)
    three = make_run("c", ranks=ranks, mask_history=False)
    shown = columns([read_run(path) for path in (one, two, three)])
    told = warnings(shown)
    assert len(told) == 2
    assert "fingerprint" in told[0]
    assert "masking" in told[1]
    assert [duel.name for duel in duels(shown, 10)] == ["SASRec + toy (c)"]


def test_settings_that_differ(make_run):
    one, two, bare = make_run("a"), make_run("b"), make_run("c", plugins=())
    file = two / "config.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.001  # RecBole", "learning_rate: 0.01  # given"))
    rows = dict(differing(columns([read_run(path) for path in (one, two, bare)])))
    assert rows["learning_rate"] == ["0.001", "0.01", "0.001"]
    assert rows["toy.scale"] == ["0.5", "0.5", "–"]  # somebody chose it
    assert "toy.mode" not in rows  # a default of a plugin that one run lacks
    assert "topk" not in rows


def test_the_page_of_several(pair, tmp_path):
    lines = write_report(list(pair), tmp_path / "a.html", examples=False, k=5)
    text = (tmp_path / "a.html").read_text()
    assert lines == []
    assert "SASRec + toy against bare SASRec" in text
    assert "enter the first 5" in text
    assert 'id="curve-loss-backbone-t"' in text
    assert text.count("magnet: stage 2, trigger armed") >= 1
