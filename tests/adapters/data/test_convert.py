"""Sets made from source files: the bundled cut of Baby, written as its source was, must come back."""

import dataclasses
import gzip
import os

import numpy as np
import pytest
import torch
import yaml

from recplug.adapters import data
from recplug.adapters.data.convert import PARTS, convert
from recplug.adapters.data.recipes import RECIPES
from recplug.adapters.factors import FactorTable
from recplug.adapters.features import FeatureTable
from recplug.adapters.features.neighbours import NeighbourTable
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import kneighbours

CUT = "amazon-baby-small"


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
    return [line.split("\t") for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def cut():
    """The bundled cut with ids from 0: interactions by part, asins, vectors, graphs; item 5 occurs in the test only."""
    folder = data.bundled()[CUT].directory
    catalogue = lines(folder / f"{CUT}.item")[1:]
    parts = {part: lines(folder / f"{CUT}.{part}.inter")[1:] for part in PARTS}
    items = {token: number for number, (token, _) in enumerate(catalogue)}
    users = {}
    rows = [
        (users.setdefault(user, len(users)), items[item], 2 if items[item] == 5 else number)
        for number, part in enumerate(PARTS)
        for user, item in parts[part]
    ]
    vectors = {m: FeatureTable.load(folder / f"{CUT}.{m}.safetensors").features for m in ("image", "text")}
    graphs = {m: kneighbours(values, torch.ones(len(values), dtype=torch.bool), 9) for m, values in vectors.items()}
    return rows, [asin for _, asin in catalogue], vectors, graphs


@pytest.fixture
def source(cut, tmp_path, monkeypatch):
    """``baby/`` in the original's format, and the recipe's counts changed to the cut's."""
    rows, asins, vectors, graphs = cut
    folder = tmp_path / "amazon2014" / "baby"
    pack(folder / "baby.inter.gz", ("user_id:token", "item_id:token", "split:token"), *rows)
    header = ("item_id:token", "asin:token", "image_url:token", "image_missing:float")
    catalogue = [(i, asin, f"http://pictures/{i}.jpg" if i else "", 0) for i, asin in enumerate(asins)]
    pack(folder / "items.tsv.gz", header, *catalogue)
    n_users = len({row[0] for row in rows})
    pack(folder / "users.tsv.gz", ("user_id:token", "reviewer_id:token"), *((u, f"R{u}") for u in range(n_users)))
    for modality, values in vectors.items():
        np.save(folder / f"{modality}_feat_rec128.npy", values.numpy())
        found = graphs[modality]
        row = torch.arange(len(values)).repeat_interleave(9).numpy().astype(np.uint16)
        col, cos = found.index.flatten().numpy().astype(np.uint16), found.weight.flatten().numpy().astype(np.float16)
        np.savez(folder / f"{modality}_knn.npz", row=row, col=col, cos=cos)
    counts = {"users": n_users, "items": len(asins), "interactions": len(rows)}
    monkeypatch.setitem(RECIPES, "amazon-baby", dataclasses.replace(RECIPES["amazon-baby"], **counts))
    return folder


def test_baby_comes_whole(source, cut, tmp_path):
    rows, asins, vectors, graphs = cut
    folder = data.get("amazon-baby", tmp_path / "sets", source)
    assert folder == tmp_path / "sets" / "amazon-baby"
    kinds = [*(f"{part}.inter" for part in PARTS), "item", "user", "yaml"]
    kinds += [f"{modality}.{kind}" for modality in ("image", "text") for kind in ("safetensors", "knn.safetensors")]
    assert sorted(os.listdir(folder)) == sorted(["TERMS.md", *(f"amazon-baby.{kind}" for kind in kinds)])
    assert os.listdir(tmp_path / "sets") == ["amazon-baby"]
    for number, part in enumerate(PARTS):
        header, *own = lines(folder / f"amazon-baby.{part}.inter")
        assert header == ["user_id:token", "item_id:token"]
        assert own == [[f"R{user}", str(item)] for user, item, split in rows if split == number]
    assert [row[1] for row in lines(folder / "amazon-baby.item")[1:]] == asins
    assert lines(folder / "amazon-baby.user")[0] == ["user_id:token", "number:token"]
    assert lines(folder / "amazon-baby.user")[8] == ["R7", "7"]
    tokens = tuple(map(str, range(len(asins))))
    for modality in ("image", "text"):
        table = FeatureTable.load(folder / f"amazon-baby.{modality}.safetensors")
        assert (table.tokens, table.modality) == (tokens, modality)
        assert torch.equal(table.features, vectors[modality])
        assert "cite" in table.metadata["licence"]
        graph = NeighbourTable.load(folder / f"amazon-baby.{modality}.knn.safetensors")
        aligned = graph.align(["[PAD]", *tokens])
        assert torch.equal(aligned.index[1:].sort(dim=1).values - 1, graphs[modality].index.sort(dim=1).values)
    settings = yaml.safe_load((folder / "amazon-baby.yaml").read_text())
    assert settings["benchmark_filename"] == ["train", "valid", "test"]
    assert settings["valid_metric"] == "Recall@20"


def test_baby_passes_the_check(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told(lambda: data.check("amazon-baby"), "recplug data get amazon-baby --from DIR")
    told(lambda: data.locate("amazon-baby", "mine"), "recplug data get amazon-baby --from DIR", "mine")
    data.get("amazon-baby", "dataset", source.parent)  # the folder above does as well
    report = data.check("amazon-baby")
    assert report == data.check("dataset/amazon-baby")
    assert report[0] == "amazon-baby: 1,489 users, 890 items, 16,880 interactions"
    assert report[1].startswith("split: train 13,0")
    assert report[1].endswith("; 1 items occur outside train only")
    assert report[2].startswith("no time field")
    assert "amazon-baby.item: describes 890 of 890 items" in report
    assert sum("890 of 890 items have a vector" in line for line in report) == 2
    assert sum("890 of 890 items have neighbours (100.0 %); up to 9 each" in line for line in report) == 2


def test_recbole_reads_the_split_as_it_is(source, cut, tmp_path, monkeypatch):
    from recplug.adapters.recbole.compat.remedies import recbole_compat

    monkeypatch.setattr("sys.argv", ["pytest"])
    folder = data.get("amazon-baby", tmp_path / "sets", source)
    overrides = {"data_path": str(folder.parent), "state": "ERROR", "use_gpu": False}
    with recbole_compat():
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation

        config = Config("BPR", "amazon-baby", [str(folder / "amazon-baby.yaml")], overrides)
        dataset = create_dataset(config)
        loaders = data_preparation(config, dataset)
    rows = cut[0]
    assert (dataset.user_num, dataset.item_num) == (1_490, 891)
    for number, loader in enumerate(loaders):
        features = loader._dataset.inter_feat
        pairs = zip(
            dataset.id2token("user_id", features["user_id"].numpy()),
            dataset.id2token("item_id", features["item_id"].numpy()),
            strict=True,
        )
        expected = sorted((f"R{user}", str(item)) for user, item, split in rows if split == number)
        assert sorted((str(user), str(item)) for user, item in pairs) == expected
    assert dataset.token2id("item_id", "5") > 0  # known, though not in training
    assert loaders[1].step >= 256  # users a batch
    assert config["train_neg_sample_args"]["sample_num"] == 1


def test_the_same_source_gives_the_same_bytes(source, tmp_path):
    first, second = (data.get("amazon-baby", tmp_path / place, source) for place in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


DAMAGE = {
    "missing": (["items.tsv.gz", "text_knn.npz"], None, ["lacks items.tsv.gz, text_knn.npz", "--from"]),
    "half": (["baby.inter.gz"], lambda old: old[: len(old) // 2], ["baby.inter.gz is damaged"]),
    "not packed": (["items.tsv.gz"], lambda old: gzip.decompress(old), ["items.tsv.gz is damaged"]),
    "flipped": (["baby.inter.gz"], lambda old: old[:-6] + bytes([old[-6] ^ 1]) + old[-5:], ["is damaged"]),
    "empty": (["users.tsv.gz"], lambda old: gzip.compress(b""), ["users.tsv.gz is damaged"]),
    "short row": (
        ["baby.inter.gz"],
        lambda old: gzip.compress(gzip.decompress(old) + b"1\t2\n"),
        ["rows of another length"],
    ),
    "unknown part": (
        ["baby.inter.gz"],
        lambda old: gzip.compress(gzip.decompress(old) + b"1\t2\t3\n"),
        ["'3' is no split"],
    ),
    "other header": (
        ["baby.inter.gz"],
        lambda old: gzip.compress(gzip.decompress(old).replace(b"split", b"fold", 1)),
        ["header", "fold:token"],
    ),
    "rows lost": (
        ["baby.inter.gz"],
        lambda old: gzip.compress(gzip.decompress(old).rpartition(b"\n")[0].rpartition(b"\n")[0] + b"\n"),
        ["16,879 interactions", "16,880", "original files"],
    ),
    "unnumbered": (
        ["items.tsv.gz"],
        lambda old: gzip.compress(gzip.decompress(old).replace(b"\n7\t", b"\n77\t")),
        ["items.tsv.gz", "numbers of the rows"],
    ),
    "broken matrix": (["text_feat_rec128.npy"], lambda old: old[:-9], ["cannot read", "text_feat_rec128.npy"]),
    "broken graph": (["text_knn.npz"], lambda old: old[:-40], ["cannot read", "text_knn.npz"]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_source_is_refused_and_nothing_stays(case, source, tmp_path):
    names, change, words = DAMAGE[case]
    for name in names:
        old = (source / name).read_bytes()
        (source / name).unlink()
        if change is not None:
            assert change(old) != old
            (source / name).write_bytes(change(old))
    (tmp_path / "sets").mkdir()
    told(lambda: data.get("amazon-baby", tmp_path / "sets", source), *words)
    assert os.listdir(tmp_path / "sets") == []


def test_places_and_names(source, tmp_path):
    (tmp_path / "sets" / "amazon-baby").mkdir(parents=True)
    told(lambda: data.get("amazon-baby", tmp_path / "sets", source), "exists", "move it away")
    assert os.listdir(tmp_path / "sets") == ["amazon-baby"]
    (tmp_path / "file").write_text("")
    told(lambda: data.get("amazon-baby", tmp_path / "file", source), "cannot write")
    told(lambda: data.get("amazon-baby", tmp_path), "not bundled", "--from DIR")
    told(lambda: data.get(CUT, tmp_path, source), "leave --from out")
    told(lambda: data.get("amazon-babi", tmp_path), "did you mean 'amazon-baby'")


def test_beauty_comes_in_order(tmp_path):
    folder = tmp_path / "beauty"
    recipe = dataclasses.replace(RECIPES["amazon-beauty"], users=2, items=3, interactions=5)
    rows = [(0, 2, 0), (0, 0, 1), (0, 1, 2), (1, 1, 0), (1, 2, 1)]
    pack(folder / "beauty.inter.gz", ("user_id:token", "item_id:token", "order:float"), *rows)
    header = ("item_id:token", "asin:token", "title:token_seq", "attributes:token_seq")
    pack(folder / "items.tsv.gz", header, (0, "A", "a soap", "17 4"), (1, "B", "", ""), (2, "C", "soap", "4 4"))
    pack(folder / "users.tsv.gz", ("user_id:token", "reviewer_id:token"), (0, "R"), (1, "S"))
    vectors = np.eye(3, 4, dtype=np.float16)
    vectors[1] = 0  # no title, no vector
    np.save(folder / "text_feat_lsa128.npy", vectors)
    made = convert(recipe, folder, tmp_path / "sets")
    assert lines(made / "amazon-beauty.inter")[1:] == [
        ["RS"[user], str(item), str(order)] for user, item, order in rows
    ]
    assert FeatureTable.load(made / "amazon-beauty.text.safetensors").tokens == ("0", "2")
    factors = FactorTable.load(made / "amazon-beauty.factors.json")
    assert factors.values == {"broad attributes": (("4", "17"), (), ("4",))}  # with three items no id is rare
    assert "names unknown" in factors.schema.factors[0].description
    settings = yaml.safe_load((made / "amazon-beauty.yaml").read_text())
    assert settings["TIME_FIELD"] == "order"
    assert settings["eval_args"]["split"] == {"LS": "valid_and_test"}
    report = data.check(made)
    assert report[:2] == ["amazon-beauty: 2 users, 3 items, 5 interactions", "time: order, from 0 to 2"]
    assert any("2 of 3 items have a vector" in line for line in report)
    pack(folder / "beauty.inter.gz", ("user_id:token", "item_id:token", "order:float"), *rows[:-1], (1, 2, "late"))
    told(lambda: convert(recipe, folder, tmp_path / "more"), "'late' is no order")
    pack(folder / "items.tsv.gz", header[:3], (0, "A", "a soap"), (1, "B", ""), (2, "C", "soap"))
    told(lambda: convert(recipe, folder, tmp_path / "more"), "lacks the columns attributes")


FILMS = [
    (7, "Heat", 1995, "Action|Crime", "heist", "A cop hunts a thief.", "Heat is a 1995 American film, a remake of"),
    (11, '"""High"" Noon"', 1952, "Western", "", '"The sheriff said ""no"" to love."', "It is based on a short story."),
    (5, "Nothing", "", "", "", "", ""),
]
RATED = [("a", 11, "4.5", 900), ("a", 7, "3", 1000), ("b", 5, "0.5", 800), ("b", 7, "5.0", 801)]


@pytest.fixture
def films(tmp_path):
    """``movielens/`` in its source's format, three films only, and the recipe with their counts."""
    folder = tmp_path / "movielens"
    fields = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    pack(folder / "movielens.inter.gz", fields, *RATED)
    texts = [f"{name}:token_seq" for name in ("genres", "tags", "plot", "abstract")]
    pack(folder / "items.tsv.gz", ("item_id:token", "title:token_seq", "year:token", *texts), *FILMS)
    np.save(folder / "image_feat.npy", np.eye(3, 4, dtype=np.float16))
    np.save(folder / "text_feat_lsa256.npy", np.ones((3, 2), dtype=np.float16))
    (folder / "LICENSE-MovieLens.txt").write_text("terms")
    return folder, dataclasses.replace(RECIPES["movielens-small"], users=2, items=3, interactions=4)


def test_movielens_keeps_its_ids_and_ratings_and_brings_profiles(films, tmp_path):
    folder, recipe = films
    made = convert(recipe, folder, tmp_path / "sets")
    kinds = ["inter", "item", "yaml", "image.safetensors", "text.safetensors", "factors.json", "factors.parquet"]
    assert sorted(os.listdir(made)) == sorted(
        ["TERMS.md", "LICENSE-MovieLens.txt", *(f"movielens-small.{kind}" for kind in kinds)]
    )
    assert lines(made / "movielens-small.inter")[1:] == [list(map(str, row)) for row in RATED]
    header, *catalogue = lines(made / "movielens-small.item")
    assert header == ["item_id:token", "title:token_seq", "year:token", "genres:token_seq", "plot:token_seq"]
    assert catalogue[1] == ["11", "'High' Noon", "1952", "Western", "The sheriff said 'no' to love."]
    assert catalogue[0][3] == "Action Crime"
    assert FeatureTable.load(made / "movielens-small.image.safetensors").tokens == ("7", "11", "5")
    assert "GroupLens" in FeatureTable.load(made / "movielens-small.text.safetensors").metadata["licence"]
    factors = FactorTable.load(made / "movielens-small.factors.json")
    assert factors.tokens == ("7", "11", "5")
    assert factors.values == {
        "genre": (("Action", "Crime"), ("Western",), ()),
        "decade": (("1990s",), ("1950s",), ()),
        "theme": (("crime",), ("love", "wild and west"), ()),
        "origin": (("remake",), ("novel",), ()),
    }
    assert data.check(made)[1] == "time: timestamp, from 800 to 1000"


def test_recbole_takes_every_rating_as_an_interaction(films, tmp_path, monkeypatch):
    from recplug.adapters.recbole.compat.remedies import recbole_compat

    monkeypatch.setattr("sys.argv", ["pytest"])
    folder, recipe = films
    made = convert(recipe, folder, tmp_path / "sets")
    settings = [str(made / "movielens-small.yaml")]
    quiet = {"data_path": str(made.parent), "state": "ERROR", "use_gpu": False}
    with recbole_compat():
        from recbole.config import Config
        from recbole.data import create_dataset

        rated = create_dataset(Config("LightGCN", "movielens-small", settings, quiet))
        liked = create_dataset(
            Config("LightGCN", "movielens-small", settings, quiet | {"val_interval": {"rating": "[4,inf)"}})
        )
    assert rated.inter_num == 4
    assert liked.inter_num == 2  # as the settings' comment says


def test_a_film_that_is_named_twice_is_refused(films, tmp_path):
    folder, recipe = films
    packed = gzip.decompress((folder / "items.tsv.gz").read_bytes()).replace(b"\n5\t", b"\n7\t")
    (folder / "items.tsv.gz").write_bytes(gzip.compress(packed))
    told(lambda: convert(recipe, folder, tmp_path / "sets"), "does not name each item once")
    (folder / "LICENSE-MovieLens.txt").unlink()
    told(lambda: convert(recipe, folder, tmp_path / "sets"), "lacks LICENSE-MovieLens.txt")


@pytest.mark.parametrize(("cell", "word"), [("4.5.", "rating"), ("-1", "rating"), ("", "rating")])
def test_a_rating_that_is_none_is_refused(films, tmp_path, cell, word):
    folder, recipe = films
    packed = gzip.decompress((folder / "movielens.inter.gz").read_bytes()).replace(b"4.5", cell.encode())
    (folder / "movielens.inter.gz").write_bytes(gzip.compress(packed))
    told(lambda: convert(recipe, folder, tmp_path / "sets"), f"{cell!r} is no {word}")
