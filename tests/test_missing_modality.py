"""The study of missing content: who counts where, and tables of what is there."""

import csv
from pathlib import Path

import numpy as np
import pytest

from recplug.adapters.data import locate
from recplug.adapters.features import FeatureTable


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import missing_modality

    return missing_modality


def test_users_are_told_apart_by_their_last_item(study):
    folder = locate("amazon-scientific-full", None)
    with open(folder / "amazon-scientific-full.inter", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    last, places = {}, {}
    for row in rows:
        user, order = row["user_id:token"], float(row["order:float"])
        assert order not in places.setdefault(user, set()), "no two items at one place"
        places[user].add(order)
        if order == max(places[user]):
            last[user] = row["item_id:token"]
    table = folder.parent / "amazon-scientific" / "amazon-scientific.image.safetensors"
    has = set(FeatureTable.load(table).tokens)
    users = sorted(last)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(users))
    cell = {"user": np.array(users)[order], "rank": rng.integers(1, 15, len(users))}
    gain = {u: 1 / np.log2(r + 1) if r <= 10 else 0.0 for u, r in zip(cell["user"], cell["rank"], strict=True)}
    found = {name: measure(cell) for name, measure in study.groups(study.NATURAL).items()}
    np.testing.assert_allclose(found["all users"], [gain[u] for u in users])
    np.testing.assert_allclose(found["target with a vector"], [gain[u] for u in users if last[u] in has])
    np.testing.assert_allclose(found["target without"], [gain[u] for u in users if last[u] not in has])


def filled(study, value, seeds=(0, 1), measure="ndcg@10"):
    about = {"ndcg@10": value, "epochs": 5}
    return [study.Filled(about, {measure: np.array([value, value + 0.1])}, seed) for seed in seeds]


def test_tables_and_the_picture_show_what_is_there(study, tmp_path):
    removal = study.REMOVAL[0]
    names = study.removal_variants(removal, together=True)
    assert names["PRISM 0.6"] == (["prism"], {"drop_features": 0.6, "drop_features_together": True})
    assert names["PRISM 0"] == (["prism"], {})
    assert names["MARS, shuffled"] == (["mars"], {"shuffle_features": True})
    grid = {name: [] for name in names} | {"bare": filled(study, 0.1), "PRISM 0.3": filled(study, 0.2)}
    lines = study.removal_table(removal, grid).splitlines()[2:]
    assert {line.count("|") for line in lines} == {8}
    assert lines[2] == "| bare |  | 2 | 0.1000 ± 0.0000 | 5 |  |  |"
    assert next(line for line in lines if line.startswith("| PRISM | 30%")).startswith(
        "| PRISM | 30% | 2 | 0.2000 ± 0.0000 | 5 | +66.7 % | +66.7 ... +66.7 %, p "
    )
    assert "| PRISM | none, but shuffled | 0 | | | | |" in lines
    study.draw([(removal, grid)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    natural = {name: [] for name in study.natural_variants(study.NATURAL)} | {"bare": filled(study, 0.1, measure="all")}
    lines = study.natural_table(study.NATURAL, {"all": None}, natural).splitlines()[2:]
    assert {line.count("|") for line in lines} == {8}
    assert lines[2] == "| all | bare | 2 | 2 | 0.1500 ± 0.0000 |  |  |"
