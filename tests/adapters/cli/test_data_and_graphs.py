"""``recplug data`` for sets that are not bundled, and graphs in ``recplug features``."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from recplug.adapters.data import RECIPES
from recplug.adapters.features.neighbours import NeighbourTable

TINY = ["--dataset", "tiny", "--data_path", "data"]
IMPORT = ["features", "import", "--from", "knn", "g.npz", "--modality", "image"]


@pytest.fixture
def graph(data):
    """``g.npz`` over the 30 items of the tiny data set: neighbours are next in number; and their tokens."""
    row = np.arange(30).repeat(2)
    col = np.stack([(np.arange(30) + 1) % 30, (np.arange(30) + 2) % 30], axis=1).ravel()
    np.savez("g.npz", row=row.astype(np.uint16), col=col.astype(np.uint16), cos=np.tile([0.75, 0.5], 30))
    Path("tokens.txt").write_text("".join(f"i{i}\n" for i in range(30)))
    return data


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A toy of Baby's files, three users and two items, and a recipe that expects it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "files"
    folder.mkdir()
    tables = {
        "baby.inter": "user_id:token\titem_id:token\tsplit:token\n0\t0\t0\n1\t1\t0\n2\t0\t0\n0\t1\t1\n2\t1\t2\n",
        "items.tsv": "item_id:token\tasin:token\n0\tA\n1\tB\n",
        "users.tsv": "user_id:token\treviewer_id:token\n0\tR\n1\tS\n2\tT\n",
    }
    for name, text in tables.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    for modality in ("image", "text"):
        np.save(folder / f"{modality}_feat_rec128.npy", np.eye(2, dtype=np.float16))
        row = np.array([0, 1], np.uint16)
        np.savez(folder / f"{modality}_knn.npz", row=row, col=row[::-1], cos=np.full(2, 0.5, np.float16))
    recipe = dataclasses.replace(RECIPES["amazon-baby"], users=3, items=2, interactions=5)
    monkeypatch.setitem(RECIPES, "amazon-baby", recipe)
    return folder


def test_list_says_how_to_make_what_is_not_bundled(recplug_cli):
    out = recplug_cli("data", "list").out
    for name, counts in (
        ("amazon-baby-small", "1,489 users, 890 items, 16,880 interactions"),
        ("amazon-baby", "19,445 users, 7,050 items, 160,792 interactions"),
        ("amazon-beauty", "22,363 users, 12,101 items, 198,502 interactions"),
        ("movielens-small", "1,954 users, 2,686 items, 193,558 interactions"),
        ("food-small", "1,983 users, 780 items, 12,044 interactions"),
        ("kitchen-small", "2,797 users, 1,267 items, 17,272 interactions"),
        ("food", "14,870 users, 8,661 items, 98,316 interactions"),
        ("kitchen", "47,589 users, 27,637 items, 337,811 interactions"),
    ):
        _, _, after = out.partition(f"\n{name}: ")
        assert after.splitlines()[1].strip() == counts
    assert "recplug data get amazon-baby --from DIR" in out
    assert out.count("research only, not commercial, cite the papers") == 10


@pytest.mark.parametrize("place", [["--to", "sets"], ["sets"], []])
def test_get_makes_a_set_from_its_files(place, source, recplug_cli):
    ended = recplug_cli("data", "get", "amazon-baby", *place, "--from", source)
    assert (ended.code, ended.err) == (0, "")
    folder = Path(place[-1] if place else "dataset")
    assert f"run_recbole --dataset amazon-baby --data_path {folder}" in ended.out
    assert (folder / "amazon-baby" / "TERMS.md").is_file()
    ended = recplug_cli("data", "check", folder / "amazon-baby")
    assert ended.out.startswith(
        "amazon-baby: 3 users, 2 items, 5 interactions\nsplit: train 3, valid 1, test 1; 0 items"
    )
    assert "image: 2 of 2 items have neighbours (100.0 %); up to 1 each" in ended.out


def test_get_refuses_in_one_line(source, recplug_cli, refused):
    get = ["data", "get", "amazon-baby"]
    assert "get its files and make it" in refused(recplug_cli(*get))
    assert "two places" in refused(recplug_cli(*get, "a", "--to", "b", "--from", source))
    assert "leave --from out" in refused(recplug_cli("data", "get", "amazon-baby-small", "--from", source))
    (source / "text_knn.npz").unlink()
    assert "lacks text_knn.npz" in refused(recplug_cli(*get, "--from", source))
    assert not Path("dataset").exists()
    assert "recplug data get amazon-baby --from DIR" in refused(recplug_cli("data", "check", "amazon-baby"))


def test_get_copies_the_cut_where_to_says(tmp_path, monkeypatch, recplug_cli):
    monkeypatch.chdir(tmp_path)
    ended = recplug_cli("data", "get", "amazon-baby-small", "--to", "sets")
    assert (ended.code, ended.err) == (0, "")
    here = recplug_cli("data", "check", "sets/amazon-baby-small").out
    assert here == recplug_cli("data", "check", "amazon-baby-small").out
    assert "split: train 13,098, valid 1,788, test 1,994" in here


def test_holdout_makes_a_set_that_checks_and_says_who_is_new(tmp_path, monkeypatch, recplug_cli, refused):
    monkeypatch.chdir(tmp_path)
    words = ["data", "holdout", "food-small", "--to", "held", "--new_users", "0.1", "--new_items", "0", "--seed", "3"]
    ended = recplug_cli(*words, "--pair", "kitchen-small")
    assert (ended.code, ended.err) == (0, "")
    said = ended.out.splitlines()
    story = json.loads(Path("held/food-small/food-small.holdout.json").read_text())
    assert said[0].startswith(f"new users: {len(story['new_users'])} of 1,983")
    assert f"{len(story['known_in']['users'])} of the new users are users of kitchen-small" in said
    assert said[-2] == "the new users that food-small had before are left out"
    assert said[-1].endswith("run_recbole --dataset food-small --data_path held")
    line = next(line for line in recplug_cli("data", "check", "held/food-small").out.splitlines() if "support" in line)
    counts = story["interactions"]
    assert line.startswith(f"new users and items: support {counts['support']:,}, query {counts['query']:,} (new_user ")
    assert "exists; move it away" in refused(recplug_cli(*words))
    assert "new_users is 1.0" in refused(recplug_cli(*words[:3], "--to", "other", "--new_users", "1"))
    assert "RecBole's own" in refused(recplug_cli("data", "holdout", "ml-100k", "--to", "other"))
    assert "did you mean 'food-small'" in refused(recplug_cli("data", "holdout", "food-smal", "--to", "other"))
    assert not Path("other").exists()


def test_import_puts_a_graph_beside_the_interactions(graph, recplug_cli, refused):
    words = [*IMPORT, "--tokens", "tokens.txt", "--encoder", "CNN", *TINY]
    ended = recplug_cli(*words)
    assert (ended.code, ended.err) == (0, "")
    file = graph / "tiny.image.knn.safetensors"
    assert ended.out.splitlines() == [
        f"{file.relative_to(Path.cwd())}: 30 items, 60 edges, up to 2 each",
        "image: 30 of 30 items have neighbours (100.0 %)",
    ]
    made = NeighbourTable.load(file)
    assert made.tokens[29] == "i29"
    assert made.neighbour[made.row == 29].tolist() == [0, 1]
    assert made.metadata["encoder"] == "CNN"
    assert "add --overwrite" in refused(recplug_cli(*words))
    assert recplug_cli(*words, "--overwrite").code == 0


def test_import_takes_row_numbers_for_tokens(graph, recplug_cli):
    assert recplug_cli(*IMPORT, "--positional", "--output", "o.knn.safetensors").code == 0
    assert NeighbourTable.load("o.knn.safetensors").tokens[:2] == ("0", "1")


def test_import_refuses_in_one_line(graph, recplug_cli, refused):
    output = ["--output", "o.safetensors"]
    for words, told in (
        ([*IMPORT, *output], "give --tokens FILE, or --positional"),
        ([*IMPORT, "--positional", "--tokens", "tokens.txt", *output], "either the item tokens or positional"),
        ([*IMPORT, "--positional", "--mapping", "m.csv", *output], "--mapping belongs to --from mmrec"),
        ([*IMPORT, "--positional", *TINY, *output], "joins none of the dataset's 30 items"),
        (["features", "import", "--from", "npz", "g.npz", "--modality", "image", "--tokens", "t", *output],
         "--tokens belongs to --from npy or knn"),
    ):  # fmt: skip
        assert told in refused(recplug_cli(*words))
    assert not Path("o.safetensors").exists()


def test_inspect_shows_a_graph(graph, recplug_cli, refused):
    (graph / "tiny.item").write_text("item_id:token\ttitle:token_seq\ni0\tA thing\n")
    recplug_cli(*IMPORT, "--tokens", "tokens.txt", *TINY)
    file = graph / "tiny.image.knn.safetensors"
    ended = recplug_cli("features", "inspect", file, *TINY)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "image: graph of 30 items, 60 edges, float32"
    assert "coverage of tiny: image: 30 of 30 items have neighbours (100.0 %)" in lines
    assert "k: 2 to 2 neighbours an item; 30 of 30 items have some" in lines
    assert "cosines: 0.500 to 0.750" in lines
    start = lines.index("nearest to i0  A thing")
    assert lines[start + 1 : start + 3] == ["    0.750  i1", "    0.500  i2"]
    assert sum(line.startswith("nearest to") for line in lines) == 3
    file.write_bytes(file.read_bytes()[:-4])
    assert "truncated or corrupt" in refused(recplug_cli("features", "inspect", file))
