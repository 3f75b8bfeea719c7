"""Sets whose users are the same people under the same tokens: Food and Kitchen, Baby and Beauty, and the bundled cut.

With ``RECPLUG_SOURCES`` naming a folder that holds ``amazon2014/`` and ``food_kitchen/``, the originals are read too.
"""

import dataclasses
import gzip
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from recplug.adapters import data
from recplug.adapters.data import bundled, check
from recplug.adapters.data.recipes import RECIPES
from recplug.adapters.features import FeatureTable
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import kneighbours

SOURCES = os.environ.get("RECPLUG_SOURCES")
needs_sources = pytest.mark.skipif(not SOURCES, reason="RECPLUG_SOURCES names no folder of original files")
SMALL = ("food-small", "kitchen-small")
SHA256 = {
    "food-small": "a2f73dc61247ccd47b4a5bd0cb1bfc5eafac81898f9b33bd856f002977e4a8f8",
    "kitchen-small": "87ee8b3e5cce5d219e78f15f7eee47870dec665d043b327e2684c1f4adaf8e23",
}


def told(action, *words):
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def pack(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        file.writelines("\t".join(map(str, row)) + "\n" for row in rows)


def lines(path):
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def users_of(folder):
    return {row[0] for file in folder.glob("*.inter") for row in lines(file)[1:]}


# -- Food and Kitchen

HEADER = ("user_id:token", "item_id:token", "order:float", "domain:token", "split:token")
FOOD, KITCHEN = "food", "kitchen"
# Users 0 and 1 have one domain, 2 both; 3 and 4 are new. Items 0 to 3 are food; 3 and 7 occur with new users alone.
SEQUENCES = {
    (0, "train_A"): [(0, FOOD), (1, FOOD), (2, FOOD), (0, FOOD)],
    (1, "train_B"): [(4, KITCHEN), (5, KITCHEN)],
    (2, "train_overlap"): [(5, KITCHEN), (1, FOOD), (6, KITCHEN), (2, FOOD)],
    (3, "valid"): [(1, FOOD), (4, KITCHEN), (3, FOOD), (6, KITCHEN)],
    (4, "test"): [(3, FOOD), (7, KITCHEN), (0, FOOD), (3, FOOD), (5, KITCHEN), (7, KITCHEN)],
}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """``food_kitchen/`` in its source's format, and recipes with its counts."""
    folder = tmp_path / "food_kitchen"
    rows = [
        (user, item, place, domain, split)
        for (user, split), items in SEQUENCES.items()
        for place, (item, domain) in enumerate(items)
    ]
    pack(folder / "food_kitchen.inter.gz", HEADER, *rows[::-1])  # the order is that of the column, not of the file
    titles = [f"thing {i}" for i in range(8)]
    titles[5] = '"A 3"" spoon"'
    about = [(i, FOOD if i < 4 else KITCHEN, f"B{i}", title) for i, title in enumerate(titles)]
    pack(folder / "items.tsv.gz", ("item_id:token", "domain:token", "asin:token", "title:token_seq"), *about)
    vectors = np.eye(8, dtype=np.float16)
    vectors[6] = 0  # no known word, no vector
    np.save(folder / "text_feat_lsa128.npy", vectors)
    for domain, counts in ((FOOD, (4, 4, 11)), (KITCHEN, (4, 4, 9))):
        recipe = dataclasses.replace(
            RECIPES[domain], **dict(zip(("users", "items", "interactions"), counts, strict=True))
        )
        monkeypatch.setitem(RECIPES, domain, recipe)
    return folder


def test_a_domain_is_a_set_of_its_own_with_its_new_users_apart(source, tmp_path):
    food, kitchen = (data.get(domain, tmp_path / "sets", source) for domain in (FOOD, KITCHEN))
    kinds = ("inter", "support.inter", "query.inter", "item", "text.safetensors", "yaml")
    assert sorted(os.listdir(food)) == sorted(["TERMS.md", *(f"food.{kind}" for kind in kinds)])
    header, *rows = lines(food / "food.inter")
    assert header == list(HEADER[:3])
    assert Counter(map(tuple, rows)) == Counter(
        (f"fk{user}", str(item), str(place))
        for (user, split), items in SEQUENCES.items()
        for place, (item, domain) in enumerate(items)
        if domain == FOOD and split.startswith("train")
    )
    apart = [*HEADER[:3], "split:token", "group:token"]
    assert lines(food / "food.support.inter") == [
        apart, ["fk4", "3", "0", "test", "new_both"], ["fk4", "0", "2", "test", "new_user"],
        ["fk3", "1", "0", "valid", "new_user"],
    ]  # fmt: skip
    assert lines(food / "food.query.inter") == [
        apart, ["fk4", "3", "3", "test", "new_both"], ["fk3", "3", "2", "valid", "new_both"],
    ]  # fmt: skip
    assert lines(kitchen / "kitchen.query.inter")[1:] == [
        ["fk4", "7", "5", "test", "new_both"], ["fk3", "6", "3", "valid", "new_user"],
    ]  # fmt: skip
    assert lines(kitchen / "kitchen.item") == [
        ["item_id:token", "asin:token", "title:token_seq"], ["4", "B4", "thing 4"], ["5", "B5", "A 3' spoon"],
        ["6", "B6", "thing 6"], ["7", "B7", "thing 7"],
    ]  # fmt: skip
    table = FeatureTable.load(kitchen / "kitchen.text.safetensors")
    assert table.tokens == ("4", "5", "7")
    np.testing.assert_array_equal(table.features.numpy(), np.eye(8)[[4, 5, 7]])
    assert FeatureTable.load(food / "food.text.safetensors").tokens == ("0", "1", "2", "3")


def test_a_source_that_is_not_this_one_is_refused(source, tmp_path):
    old = gzip.decompress((source / "food_kitchen.inter.gz").read_bytes())
    for change, words in (
        ((b"train_A", b"train_C"), ["'train_C' is no split"]),
        ((b"\tkitchen\ttrain_B", b"\t\ttrain_B"), ["'' is no domain"]),
        ((b"\tkitchen\ttrain_B", b"\tgarden\ttrain_B"), ["3 users", "7 interactions", "original files"]),
    ):
        (source / "food_kitchen.inter.gz").write_bytes(gzip.compress(old.replace(*change)))
        told(lambda: data.get(KITCHEN, tmp_path / "sets", source), *words)
    (source / "items.tsv.gz").write_bytes(gzip.compress(b"item_id:token\n0\n"))
    told(lambda: data.get(FOOD, tmp_path / "sets", source), "lacks the columns domain, asin, title")


# -- Baby and Beauty: the trap


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    """``baby/`` and ``beauty/`` with three users each, numbered alike; one person is in both, as 2 and as 0."""
    people = {"baby": ("ANN", "BOB", "CAT"), "beauty": ("CAT", "DAN", "EVE")}
    rows = [(user, item) for user in range(3) for item in range(2)]
    for name, names in people.items():
        folder = tmp_path / "amazon2014" / name
        told_, third = (("split:token", [0, 0, 0, 1, 0, 2]), ("order:float", [0, 1] * 3))[name == "beauty"]
        interactions = [(*row, cell) for row, cell in zip(rows, third, strict=True)]
        pack(folder / f"{name}.inter.gz", ("user_id:token", "item_id:token", told_), *interactions)
        header = ("item_id:token", "asin:token", "attributes:token_seq")
        pack(folder / "items.tsv.gz", header, (0, "A", "1"), (1, "B", "2"))
        pack(folder / "users.tsv.gz", ("user_id:token", "reviewer_id:token"), *enumerate(names))
        for content in RECIPES[f"amazon-{name}"].features:
            np.save(folder / content.file, np.eye(2, dtype=np.float16))
        for content in RECIPES[f"amazon-{name}"].graphs:
            row = np.array([0, 1], np.uint16)
            np.savez(folder / content.file, row=row, col=row[::-1], cos=np.full(2, 0.5, np.float16))
        recipe = dataclasses.replace(RECIPES[f"amazon-{name}"], users=3, items=2, interactions=6)
        monkeypatch.setitem(RECIPES, recipe.name, recipe)
    return tmp_path / "amazon2014"


def test_numbers_of_two_sets_are_different_people(numbered, tmp_path):
    raw = [gzip.decompress((numbered / name / f"{name}.inter.gz").read_bytes()) for name in ("baby", "beauty")]
    numbers = [{line.split("\t")[0] for line in text.decode().splitlines()[1:]} for text in raw]
    assert numbers[0] & numbers[1] == {"0", "1", "2"}  # every number matches, nobody is the same
    baby, beauty = (data.get(f"amazon-{name}", tmp_path / "sets", numbered) for name in ("baby", "beauty"))
    assert users_of(baby) & users_of(beauty) == {"CAT"}
    assert users_of(baby) == {"ANN", "BOB", "CAT"}
    assert lines(beauty / "amazon-beauty.user")[1:] == [["CAT", "0"], ["DAN", "1"], ["EVE", "2"]]


@pytest.mark.parametrize(
    "table",
    [
        [("user_id:token", "reviewer_id:token"), (0, "ANN"), (1, "ANN"), (2, "CAT")],
        [("user_id:token", "reviewer_id:token"), (0, "ANN"), (1, ""), (2, "CAT")],
        [("user_id:token",), (0,), (1,), (2,)],
    ],
    ids=["twice", "empty", "missing"],
)
def test_users_without_a_name_of_their_own_are_refused(numbered, tmp_path, table):
    pack(numbered / "baby" / "users.tsv.gz", *table)
    told(lambda: data.get("amazon-baby", tmp_path / "sets", numbered), "each user once", "reviewer_id")


# -- the bundled cut


@pytest.mark.parametrize("name", SMALL)
def test_the_cut_is_dense_and_says_what_it_holds(name):
    data_set = bundled()[name]
    header, *rows = lines(data_set.directory / f"{name}.inter")
    assert header == list(HEADER[:3])
    users, items = Counter(row[0] for row in rows), {row[1] for row in rows}
    assert (len(users), len(items), len(rows)) == (data_set.users, data_set.items, data_set.interactions)
    assert min(users.values()) >= 4  # so that graph models and sequential ones validate and test the same items
    histories = {}
    for row in rows:
        histories.setdefault(row[0], []).append(row)
    trains = Counter(row[1] for own in histories.values() for row in sorted(own, key=lambda row: float(row[2]))[:-2])
    assert trains.keys() == items
    assert min(trains.values()) >= 3
    assert len({(user, item) for user, item, _ in rows}) == len(rows)
    table = FeatureTable.load(data_set.directory / f"{name}.text.safetensors")
    assert table.sha256 == SHA256[name]
    assert table.features.shape == (len(items) + 80, 128)
    header, *about = lines(data_set.directory / f"{name}.item")
    assert {row[0] for row in about} == set(table.tokens) > items
    assert all(row[2] for row in about)


def test_the_cut_is_a_pair_of_up_to_two_megabytes():
    folders = [bundled()[name].directory for name in SMALL]
    linked = set.intersection(*({row[0] for row in lines(f / f"{f.name}.inter")[1:]} for f in folders))
    assert len(linked) == 595
    assert not any(user.isdigit() for user in linked)  # the tokens of other sets are numbers
    assert all(f"595 users are users of {other}" in bundled()[name].summary for name, other in (SMALL, SMALL[::-1]))
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 2_000_000


@pytest.mark.parametrize("name", SMALL)
def test_new_users_of_the_cut_are_new(name):
    folder = bundled()[name].directory
    known_users, known_items = ({row[side] for row in lines(folder / f"{name}.inter")[1:]} for side in (0, 1))
    support, query = (lines(folder / f"{name}.{part}.inter")[1:] for part in ("support", "query"))
    assert not {row[0] for row in support + query} & known_users
    assert {row[0] for row in support} == {row[0] for row in query}
    assert max(Counter(row[0] for row in query).values()) == 1
    last = {row[0]: float(row[2]) for row in query}
    assert all(float(row[2]) < last[row[0]] for row in support)
    shown = {row[1] for row in support}
    for row in support + query:
        new = row[1] not in known_items
        assert row[4] == ("new_user" if not new else "new_both" if row[1] in shown else "cold_item")
        assert row[3] in ("valid", "test")
    items = {row[0] for row in lines(folder / f"{name}.item")[1:]}
    assert {row[1] for row in support + query} <= items
    other = bundled()[SMALL[1 - SMALL.index(name)]].directory
    assert not {row[0] for row in query} & {row[0] for row in lines(other / f"{other.name}.inter")[1:]}


@pytest.mark.parametrize("name", SMALL)
def test_neighbours_in_the_cut_are_bought_by_the_same_users(name):
    folder = bundled()[name].directory
    table = FeatureTable.load(folder / f"{name}.text.safetensors")
    place = {token: row for row, token in enumerate(table.tokens)}
    users, items = zip(*(row[:2] for row in lines(folder / f"{name}.inter")[1:]), strict=True)
    rows = np.unique(users, return_inverse=True)[1]
    bought = np.zeros((rows.max() + 1, len(place)), dtype=np.float32)
    bought[rows, [place[item] for item in items]] = 1
    bought /= np.maximum(np.linalg.norm(bought, axis=0), 1)
    shared = bought.T @ bought
    np.fill_diagonal(shared, 0)
    nearest = kneighbours(table.features, table.features.norm(dim=1) > 0, 5).index.numpy()
    by_chance = shared.sum() / (len(place) * (len(place) - 1))
    assert np.take_along_axis(shared, nearest, axis=1).mean() > 3 * by_chance


@pytest.mark.parametrize("model", ["LightGCN", "SASRec"])
@pytest.mark.parametrize("name", SMALL)
def test_graph_and_sequential_models_train_and_test_alike(name, model):
    from recplug.adapters.recbole.compat.remedies import recbole_compat
    from recplug.adapters.recbole.config.host_config import make_config
    from recplug.adapters.recbole.data.interactions import interactions

    folder = bundled()[name].directory
    overrides = {"data_path": str(folder.parent), "state": "ERROR", "use_gpu": False}
    with recbole_compat():
        from recbole.data import create_dataset, data_preparation

        config = make_config(model, name, [folder / f"{name}.yaml"], overrides)
        dataset = create_dataset(config)
        parts = [loader._dataset for loader in data_preparation(config, dataset)]
    tokens = [dataset.field2id_token[field] for field in ("user_id", "item_id")]
    histories = {}
    for row in lines(folder / f"{name}.inter")[1:]:
        histories.setdefault(row[0], []).append((float(row[2]), row[1]))
    expected = [(user, *(item for _, item in sorted(own))) for user, own in histories.items()]
    found = {
        (tokens[0][u], tokens[1][i]) for u, i in zip(*(side.tolist() for side in interactions(parts[0])), strict=True)
    }
    assert found == {(user, item) for user, *items in expected for item in items[:-2]}
    for place, part in ((-2, parts[1]), (-1, parts[2])):
        users, items = (part.inter_feat[field].tolist() for field in ("user_id", "item_id"))
        pairs = {(tokens[0][u], tokens[1][i]) for u, i in zip(users, items, strict=True)}
        assert pairs == {(user, items[place]) for user, *items in expected}


@pytest.mark.parametrize("name", [*SMALL, *("food", "kitchen")])
def test_settings_leave_the_last_two_out_of_training(name):
    settings = yaml.safe_load((Path(data.HERE) / name / f"{name}.yaml").read_text())
    assert settings["eval_args"] == {
        "split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full",
    }  # fmt: skip
    assert settings["load_col"] == {"inter": ["user_id", "item_id", "order"]}
    assert settings["mask_history"]


BESIDE = "user_id:token\titem_id:token\tgroup:token\n"


@pytest.mark.parametrize(
    ("support", "query", "words"),
    [
        (BESIDE + "n\ta\tnew_user\n", None, ["support.inter alone", "go together"]),
        (BESIDE + "n\ta\tnew_user\n", BESIDE + "n\ta\tnew_user\n", ["asks for 1 pairs", "leave them out"]),
        (BESIDE + "u\ta\tnew_user\n", BESIDE + "n\ta\tnew_user\n", ["line 2", "neither user nor item is new"]),
        (BESIDE + "n\ta\tnew\n", BESIDE + "n\tb\tnew_user\n", ["group:token", "cold_item", "not new"]),
        ("user_id:token\titem_id:token\nn\ta\n", BESIDE + "n\tb\tnew_user\n", ["group:token", "not nothing"]),
        (BESIDE + "\ta\tnew_user\n", BESIDE + "n\tb\tnew_user\n", ["user_id is ''", "support.inter"]),
    ],
    ids=["alone", "repeated", "known", "group", "no group", "no user"],
)
def test_what_stands_beside_is_checked(tmp_path, support, query, words):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.inter").write_text("user_id:token\titem_id:token\nu\ta\nv\tb\n")
    (folder / "shop.support.inter").write_text(support)
    if query is not None:
        (folder / "shop.query.inter").write_text(query)
    told(lambda: check(folder), *words)


# -- the originals


@needs_sources
def test_the_cut_is_made_again_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import build_bundled_data

    build_bundled_data.food_kitchen(Path(SOURCES) / "food_kitchen", tmp_path)
    for name in SMALL:
        made = sorted(path.name for path in (tmp_path / name).iterdir())
        assert made == sorted(path.name for path in bundled()[name].directory.iterdir() if path.suffix != ".yaml")
        for file in made:
            assert (tmp_path / name / file).read_bytes() == (bundled()[name].directory / file).read_bytes()


@needs_sources
def test_baby_and_beauty_have_1126_people_in_common(tmp_path):
    folders = [data.get(name, tmp_path, Path(SOURCES) / "amazon2014") for name in ("amazon-baby", "amazon-beauty")]
    linked = set.intersection(*map(users_of, folders))
    assert len(linked) == 1_126
    numbers = [dict(lines(next(folder.glob("*.user")))[1:]) for folder in folders]
    assert len(set(numbers[0].values()) & set(numbers[1].values())) == 19_445
    assert not any(numbers[0][person] == numbers[1][person] for person in linked)


@needs_sources
def test_food_and_kitchen_have_7501_training_users_in_common(tmp_path):
    folders = [data.get(name, tmp_path, Path(SOURCES) / "food_kitchen") for name in ("food", "kitchen")]
    reports = [check(folder) for folder in folders]
    assert reports[0][0] == "food: 12,973 users, 8,635 items, 83,130 interactions"
    assert reports[1][0] == "kitchen: 45,692 users, 27,594 items, 319,138 interactions"
    known = [{row[0] for row in lines(folder / f"{folder.name}.inter")[1:]} for folder in folders]
    assert len(known[0] & known[1]) == 7_501
    new = [users_of(folder) - own for folder, own in zip(folders, known, strict=True)]
    assert new[0] == new[1]
    assert len(new[0]) == 960 + 937
    assert not new[0] & (known[0] | known[1])
