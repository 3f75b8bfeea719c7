"""The statistics that the quality benchmarks share, against slow definitions."""

import itertools
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def paired(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import paired

    return paired


def cells(paired, rows, seeds, **about):
    return [paired.Filled(about, {"m": np.array(row)}, seed) for row, seed in zip(rows, seeds, strict=True)]


def test_p_is_the_share_of_sign_flips_that_are_as_far(paired):
    difference = np.array([0.3, -0.1, 0.2, 0.4, 0.0, 0.25, -0.05, 0.15])
    base = np.linspace(0.1, 0.8, 8)
    found = paired.paired(cells(paired, [base + difference], [0]), cells(paired, [base], [0]), "m")
    flips = [np.mean(np.array(signs) * difference) for signs in itertools.product((-1, 1), repeat=8)]
    exact = np.mean(np.abs(flips) >= abs(difference.mean()) - 1e-12)
    assert 0 < exact < 0.2
    assert found.p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / paired.DRAWS))
    assert found.mean == pytest.approx(difference.mean())
    assert found.half == pytest.approx(1.96 * difference.std(ddof=1) / np.sqrt(8))
    assert found.share() == f"{100 * difference.mean() / base.mean():+.1f} %"


def test_only_seeds_that_both_have_count(paired):
    ours = cells(paired, [[1.0, 3.0], [5.0, 7.0], [100.0, 100.0]], [0, 1, 2])
    theirs = cells(paired, [[0.0, 0.0], [2.0, 2.0], [-100.0, 0.0]], [0, 1, 3])
    found = paired.paired(ours, theirs, "m")
    assert (found.mean, found.base) == (3.0, 1.0)
    assert paired.paired(ours[2:], theirs, "m") is None


def test_a_missing_cell_stays_empty_in_a_table_of_even_rows(paired):
    own = cells(paired, [[0.2, 0.4], [0.3, 0.1]], [0, 1], recall=0.25, epochs=7)
    bare = cells(paired, [[0.1, 0.3]], [0], recall=0.2, epochs=9)
    header = ("backbone", "variant", "seeds", "R", "epochs", "to bare", "own against it")
    grids = {("A",): {"bare": bare, "own": own, "later": []}}
    text = paired.table(grids, header, own="own", metrics=("recall",), measures=("m",), epochs=True)
    lines = text.splitlines()
    assert {line.count("|") for line in lines} == {len(header) + 1}
    assert lines[2].startswith("| A | bare | 1 | 0.2000 | 9 |  | +50.0 ... +50.0 %, p ")
    assert lines[3] == "| A | own | 2 | 0.2500 ± 0.0000 | 7 | +50.0 % |  |"
    assert lines[4] == "| A | later | 0 | | | | |"
