import os
from pathlib import Path

import pytest
import torch
import yaml

from recplug.adapters.data import bundled, check, get, locate
from recplug.adapters.features import FeatureTable, load_modalities
from recplug.plugins.errors import RecplugError

SMALL, FULL = "amazon-scientific", "amazon-scientific-full"
# The digests of the source's own matrices, printed by benchmarks/build_bundled_data.py.
SHA256 = {
    "image": "99bd8d2842d92863a7584dd6fcf6686799bb04827b55ea341ac00f0af68a2051",
    "text": "95663f03ce5db9582b3021ecf39cff0f82308dd7dbcca543e25b3625f9b0b62b",
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


@pytest.mark.parametrize("name", [SMALL, FULL])
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
    for word in ("3d93ec5", "db47560", "EMNLP", "UniSRec", "MISSRec", "DeCoRec", "not commercial", "CLIP ViT-B/32"):
        assert word in terms
