import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from recplug.adapters.data import bundled, check, get, locate
from recplug.adapters.features import FeatureTable, load_modalities
from recplug.adapters.features.neighbours import NeighbourTable
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import kneighbours

SMALL, FULL, BABY = "amazon-scientific", "amazon-scientific-full", "amazon-baby-small"
# The digests of the source's own matrices, printed by benchmarks/build_bundled_data.py.
SHA256 = {
    "image": "99bd8d2842d92863a7584dd6fcf6686799bb04827b55ea341ac00f0af68a2051",
    "text": "95663f03ce5db9582b3021ecf39cff0f82308dd7dbcca543e25b3625f9b0b62b",
}
SHA256_BABY = {
    "image": "139a7d040f2523a20c0ef3b9a94acc72675fa9b7cfbeff62451a1312d5d70c9f",
    "text": "361b78abf3370c750ff33d3821a3706704ba1485f25281ace057ba94b9c4dd4e",
}


def told(action, *words):
    """The one line of the error that ``action`` raises."""
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


def rows(name, kind="inter"):
    lines = (bundled()[name].directory / f"{name}.{kind}").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [line.split("\t") for line in lines]


@pytest.mark.parametrize(("name", "counts"), [(SMALL, (2_928, 1_585, 19_712)), (FULL, (8_442, 4_385, 59_384))])
def test_bundled_sets_have_the_counts_they_state(name, counts):
    header, *interactions = rows(name)
    assert header == ["user_id:token", "item_id:token", "order:float"]
    users, items, _ = zip(*interactions, strict=True)
    data_set = bundled()[name]
    assert (len(set(users)), len(set(items)), len(interactions)) == counts
    assert (data_set.users, data_set.items, data_set.interactions) == counts
    header, *catalogue = rows(name, "item")
    assert header == ["item_id:token", "text:token_seq"]
    assert {row[0] for row in catalogue} == set(items)
    assert len(catalogue) == counts[1]
    assert all(len(row) == 2 and row[1] for row in catalogue)


def test_the_cut_of_baby_is_dense_and_keeps_its_split():
    folder, data_set = bundled()[BABY].directory, bundled()[BABY]
    header, *catalogue = rows(BABY, "item")
    assert header == ["item_id:token", "asin:token"]
    parts = {part: rows(BABY, f"{part}.inter") for part in ("train", "valid", "test")}
    assert all(part.pop(0) == ["user_id:token", "item_id:token"] for part in parts.values())
    everything = [tuple(row) for part in parts.values() for row in part]
    users, items = ({row[side] for row in everything} for side in (0, 1))
    assert (len(users), len(items), len(everything)) == (1_489, 890, 16_880)
    assert (data_set.users, data_set.items, data_set.interactions) == (1_489, 890, 16_880)
    assert len(set(everything)) == len(everything)  # no pair in two parts
    assert {item for item, _ in catalogue} == items
    assert len({asin for _, asin in catalogue}) == len(catalogue) == len(items)
    for side in (0, 1):
        assert min(Counter(row[side] for row in parts["train"]).values()) >= 5
    assert users == {user for user, _ in parts["valid"]} == {user for user, _ in parts["test"]}
    tables = {m: FeatureTable.load(folder / f"{BABY}.{m}.safetensors") for m in ("image", "text")}
    for modality, table in tables.items():
        assert table.sha256 == SHA256_BABY[modality]
        assert set(table.tokens) == items
        assert table.features.shape == (890, 128)
        assert "fitted" in table.metadata["encoder"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000


@pytest.mark.parametrize("modality", ["image", "text"])
def test_babys_neighbours_are_bought_by_the_same_users(modality):
    """Nearest items share training users more often than items at random do: vectors and ids belong together."""
    table = FeatureTable.load(bundled()[BABY].directory / f"{BABY}.{modality}.safetensors")
    place = {token: row for row, token in enumerate(table.tokens)}
    buyers = {}
    for user, item in rows(BABY, "train.inter")[1:]:
        buyers.setdefault(user, []).append(place[item])
    bought = torch.zeros(len(buyers), len(place))
    for row, items in enumerate(buyers.values()):
        bought[row, items] = 1
    shared = torch.nn.functional.normalize(bought, dim=0)
    shared = (shared.T @ shared).fill_diagonal_(0)
    nearest = kneighbours(table.features, torch.ones(len(place), dtype=torch.bool), 5).index
    by_chance = shared.sum() / (len(place) * (len(place) - 1))
    assert shared.gather(1, nearest).mean() > 1.5 * by_chance  # of 50 random orders of the items, the best has 1.1


@pytest.mark.parametrize("name", [SMALL, FULL])
def test_order_counts_from_zero_within_each_user(name):
    position = {}
    for user, _, order in rows(name)[1:]:
        assert float(order) == position.get(user, 0)
        position[user] = float(order) + 1


@pytest.mark.parametrize("modality", ["image", "text"])
def test_bundled_vectors_are_the_sources(modality):
    table = FeatureTable.load(bundled()[SMALL].directory / f"{SMALL}.{modality}.safetensors")
    assert table.sha256 == SHA256[modality]
    assert table.features.shape == (1_585, 512)
    assert table.features.dtype == torch.float16
    assert table.tokens == tuple(row[0] for row in rows(SMALL, "item")[1:])
    assert table.metadata["encoder"] == "CLIP ViT-B/32"
    assert "cite" in table.metadata["licence"]
    assert "3d93ec5" in table.metadata["source"]


@pytest.mark.parametrize("modality", ["image", "text"])
def test_vectors_belong_to_the_items_they_are_filed_under(modality):
    """Neighbours share the last word of their text (the brand) far more often than items at random do."""
    table = FeatureTable.load(bundled()[SMALL].directory / f"{SMALL}.{modality}.safetensors")
    brand = {item: text.split()[-1] for item, text in rows(SMALL, "item")[1:]}
    codes = torch.tensor([sorted(set(brand.values())).index(brand[token]) for token in table.tokens])
    vectors = torch.nn.functional.normalize(table.features.float(), dim=1)
    nearest = (vectors @ vectors.T).fill_diagonal_(-1).argmax(dim=1)
    by_chance = (codes[:, None] == codes[None, :]).float().mean()
    assert (codes[nearest] == codes).float().mean() > 10 * by_chance


def test_both_sets_share_the_tables_and_agree_on_the_items():
    texts = {name: dict(rows(name, "item")[1:]) for name in (SMALL, FULL)}
    assert texts[SMALL].items() <= texts[FULL].items()
    directory = bundled()[FULL].directory
    settings = yaml.safe_load((directory / f"{FULL}.yaml").read_text())
    tokens = ["[PAD]", *texts[FULL]]
    modalities, lines = load_modalities(directory, FULL, None, settings["features"], tokens)
    assert list(modalities) == ["image", "text"]
    assert lines[0].startswith("image: 1,585 of 4,385 items have a vector (36.1 %); 512-d CLIP ViT-B/32")
    for modality in modalities.values():
        assert modality.present.tolist() == [token in texts[SMALL] for token in tokens]


@pytest.mark.parametrize("name", [SMALL, FULL])
def test_settings_sort_by_order_and_load_it(name):
    settings = yaml.safe_load((bundled()[name].directory / f"{name}.yaml").read_text())
    assert settings["TIME_FIELD"] == "order"
    assert settings["load_col"] == {"inter": ["user_id", "item_id", "order"]}
    assert settings["valid_metric"] == "NDCG@10"


def test_checking_a_bundled_set_reports_what_is_in_it():
    assert check(SMALL)[:5] == [
        "amazon-scientific: 2,928 users, 1,585 items, 19,712 interactions",
        "time: order, from 0 to 35",
        "repeats: 144 rows name a pair of user and item again (114 users); rm_dup_inter drops them",
        "amazon-scientific.item: describes 1,585 of 1,585 items",
        "image: 1,585 of 1,585 items have a vector (100.0 %); licence: none stated; research use only, not commercial,"
        " cite the papers (TERMS.md)",
    ]
    assert sum("1,585 of 4,385 items have a vector" in line for line in check(bundled()[FULL].directory)) == 2


def test_places_are_searched_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(SMALL, None) == bundled()[SMALL].directory
    assert locate("ml-100k", None) is None
    assert locate("ml-100k", "anywhere") is None

    def placed(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{SMALL}.inter").write_text("")
        return folder

    assert locate(SMALL, "mine") == bundled()[SMALL].directory
    assert placed(Path("dataset") / SMALL) == locate(SMALL, None) == locate(SMALL, "mine")
    assert placed(Path("mine")) == locate(SMALL, "mine")
    assert placed(Path("mine") / SMALL) == locate(SMALL, "mine")
    told(lambda: locate(FULL + "l", "mine"), "mine", "dataset", f"did you mean '{FULL}'", SMALL, "ml-100k")
    told(lambda: locate("mine/" + SMALL, None), "--data_path")
    told(lambda: locate("", None), "--data_path")


def test_ready_made_splits_are_found(tmp_path):
    (tmp_path / "shop.train.inter").write_text("")
    assert locate("shop", tmp_path) == tmp_path
    told(lambda: locate("sho", tmp_path), "no sho.inter")
    (tmp_path / "a[b].inter").write_text("")
    assert locate("a[b]", tmp_path) == tmp_path


@pytest.mark.parametrize("name", [SMALL, FULL, BABY, "food-small"])
def test_a_copy_is_whole_and_stands_alone(tmp_path, name):
    folder = get(name, tmp_path / "data")
    assert folder == tmp_path / "data" / name
    assert "cite" in (folder / "TERMS.md").read_text().lower()
    assert check(folder) == check(name)
    assert get(name, tmp_path / "data") == folder
    assert not [path for path in (tmp_path / "data").rglob("*") if path.name.endswith(".part")]


def test_a_users_file_is_never_overwritten(tmp_path):
    mine = tmp_path / SMALL / f"{SMALL}.yaml"
    mine.parent.mkdir()
    mine.write_text("epochs: 1\n")
    told(lambda: get(SMALL, tmp_path), "exists and differs", mine.name)
    assert mine.read_text() == "epochs: 1\n"
    assert os.listdir(mine.parent) == [mine.name]
    (tmp_path / "file").write_text("mine")
    told(lambda: get(SMALL, tmp_path / "file"), "cannot copy")
    told(lambda: get("amazon-scientifc", tmp_path), f"did you mean '{SMALL}'")


GOOD = "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\tb\t2\nv\ta\t978300760\n"


@pytest.fixture
def shop(tmp_path):
    """Writes a small data set's files by kind and returns its folder."""

    def write(inter=GOOD, **others):
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        for kind, text in {"inter": inter, **others}.items():
            (folder / f"shop.{kind}").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return write


def test_a_good_set_passes(shop):
    assert check(shop()) == [
        "shop: 2 users, 2 items, 3 interactions",
        "time: timestamp, from 1 to 978300760",
        "repeats: none",
        "no feature tables; make one with `recplug features import --from npy ...`",
    ]
    assert "no time field" in check(shop("user_id:token\titem_id:token\nu\ta\n"))[1]
    assert "describes 1 of 2 items" in check(shop(item='item_id:token\ttext:token_seq\na\t5" pipe\nz\t\n'))[3]
    assert check(shop(GOOD.replace("\n", "\r\n")))[0] == "shop: 2 users, 2 items, 3 interactions"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("item_id:token", "item_id", ["'item_id'", "NAME:TYPE"]),
        ("item_id:token", "item_id:text", ["'item_id:text'"]),
        ("item_id:token", "user_id:token", ["twice"]),
        ("item_id:token", "item:token", ["no field 'item_id'", "did you mean"]),
        ("item_id:token", "item_id:float", ["ids are 'token'"]),
        ("timestamp:float", "timestamp:token", ["time field", "'float'"]),
        ("978300760", "yesterday", ["yesterday"]),
        ("978300760", "", ["time field"]),
        ("978300760", "nan", ["not finite in line 4"]),
        ("978300760", "inf", ["not finite in line 4"]),
        ("u\tb", "u\t", ["item_id is ''", "line 3", "missing"]),
        ("v\ta", "NA\ta", ["user_id is 'NA'", "line 4"]),
        ("v\ta", "[PAD]\ta", ["padding"]),
        ("v\ta", "v", ["cannot read", "3 columns"]),
        ("v\ta", "v\ta\ta", ["cannot read", "3 columns"]),
        (GOOD, "", ["NAME:TYPE"]),
        (GOOD, "user_id:token\titem_id:token\n", ["no rows"]),
    ],
)
def test_a_broken_inter_file_is_refused_in_one_line(shop, old, new, words):
    assert old in GOOD
    told(lambda: check(shop(GOOD.replace(old, new))), *words)


def test_other_broken_files_are_refused_in_one_line(shop, tmp_path):
    told(lambda: check(shop("é:token\n".encode("latin-1"))), "UTF-8")
    told(lambda: check(shop(item="item_id:token\na\na\n")), "1 items twice")
    told(lambda: check(shop(item="item_id:token\ta:token\na\tx\n\tx\n")), "item_id is ''")
    (tmp_path / "shop" / "shop.item").unlink()
    told(lambda: check(shop(yaml="a: [")), "not YAML")
    told(lambda: check(shop(yaml="features: [a]")), "'features'")
    told(lambda: check(shop(yaml="- a")), "'key: value'")
    told(lambda: check(shop(yaml="TIME_FIELD: timestmp")), "did you mean 'timestamp'")
    told(lambda: check(shop(yaml="features: {image: gone.safetensors}")), "gone.safetensors")
    shop(yaml="")
    FeatureTable(torch.ones(1, 2), ("elsewhere",), "image").save(tmp_path / "shop" / "shop.image.safetensors")
    told(lambda: check(tmp_path / "shop"), "none of the dataset's 2 items")


HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"
SPLIT = {"train.inter": HEAD + "u\ta\t1\nv\tb\t2\n", "valid.inter": HEAD + "u\tc\t3\n",
         "test.inter": HEAD + "v\td\t4\nv\ta\t5\n"}  # fmt: skip


def split_of(shop, **others):
    folder = shop(**{**SPLIT, "yaml": "", **others})
    (folder / "shop.inter").unlink()
    return folder


def test_a_ready_made_split_is_checked_as_one_set(shop, tmp_path):
    report = check(split_of(shop))
    assert report[:5] == [
        "shop: 2 users, 4 items, 5 interactions",
        "split: train 2, valid 1, test 2; 2 items occur outside train only; for RecBole to use it, set"
        " benchmark_filename: [train, valid, test]",
        "train time: timestamp, from 1 to 2",
        "valid time: timestamp, from 3 to 3",
        "test time: timestamp, from 4 to 5",
    ]
    assert report[5] == "repeats: none"
    folder = split_of(shop, yaml="benchmark_filename: [train, test]\n")
    assert check(folder)[1] == "split: train 2, test 2; 1 items occur outside train only"
    repeated = split_of(shop, **{"test.inter": HEAD + "u\ta\t9\n"})
    assert "repeats: 1 rows name a pair" in "\n".join(check(repeated))
    told(lambda: check(split_of(shop, **{"valid.inter": HEAD + "u\t\t3\n"})), "shop.valid.inter", "missing")
    told(lambda: check(split_of(shop, yaml="benchmark_filename: [train, gone]\n")), "shop.gone.inter")
    folder = shop(yaml="", **SPLIT)  # beside a whole file, nothing says that the split is meant
    assert check(folder)[0] == "shop: 2 users, 2 items, 3 interactions"


def test_the_name_of_a_split_is_without_its_parts(shop, tmp_path):
    split_of(shop).rename(tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere"
    assert check(folder)[0].startswith("shop: ")
    for part in ("train", "valid", "test"):
        (folder / f"shop.{part}.inter").rename(folder / f"shop.x{part}.inter")
    told(lambda: check(folder), "several data sets (shop.xtest, shop.xtrain, shop.xvalid)")
    (folder / "shop.yaml").write_text("benchmark_filename: [xtrain, xvalid, xtest]\n")
    assert check(folder)[1].startswith("split: xtrain 2, xvalid 1, xtest 2")


def test_graphs_are_checked_too(shop):
    folder = shop()
    table = NeighbourTable(("a", "b"), np.array([0]), np.array([1]), np.ones(1, np.float32), "image")
    table.save(folder / "shop.image.knn.safetensors")
    assert check(folder)[-1] == "image: 1 of 2 items have neighbours (50.0 %); up to 1 each"
    elsewhere = NeighbourTable(("x", "y"), np.array([0]), np.array([1]), np.ones(1, np.float32), "image")
    elsewhere.save(folder / "shop.image.knn.safetensors")
    told(lambda: check(folder), "joins none of the dataset's 2 items")


def test_the_set_in_a_folder_is_the_one_it_is_named_after(shop, tmp_path):
    folder = shop()
    (folder / "other.inter").write_text("x")
    assert check(folder)[0].startswith("shop:")
    folder.rename(tmp_path / "both")
    told(lambda: check(tmp_path / "both"), "several data sets (other, shop)")
    told(lambda: check(tmp_path), "no .inter file")
    told(lambda: check("amazon-scientfic"), f"did you mean '{SMALL}'")
    told(lambda: check(tmp_path / "nowhere"), "neither a folder")


def test_the_terms_carry_sources_and_citations():
    terms = (Path(bundled()[SMALL].directory).parent / "TERMS.md").read_text()
    for word in ("3d93ec5", "db47560", "EMNLP", "UniSRec", "MISSRec", "DeCoRec", "not commercial", "CLIP ViT-B/32",
                 "5a58082", "6502a00", "f29f02a", "SIGIR 2015", "WWW 2016",
                 "5825e99", "LLMCDSR", "CIKM 2022"):  # fmt: skip
        assert word in terms
