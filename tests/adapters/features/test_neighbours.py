"""Neighbour tables: the file, alignment by token against a slow loop, discovery, and the importer."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.adapters.features import FeatureTable, Provenance, find_tables
from recplug.adapters.features.find import find_neighbours, load_neighbours
from recplug.adapters.features.neighbours import NeighbourTable, from_knn, is_neighbour_table
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import kneighbours

EDGES = [("a", "b", 0.5), ("a", "c", 0.75), ("b", "a", 0.5), ("c", "a", 0.75), ("é", "a", 0.25), ("é", "b", 0.25)]
TOKENS = ("a", "b", "c", "é", "lonely")


def table(edges=EDGES, tokens=TOKENS, modality="image", dtype=np.float16, **metadata):
    row, neighbour = (np.array([tokens.index(edge[side]) for edge in edges], np.int64) for side in (0, 1))
    return NeighbourTable(tokens, row, neighbour, np.array([edge[2] for edge in edges], dtype), modality, metadata)


def told(action, *words):
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_table_comes_back_as_it_was(tmp_path):
    before = table(encoder="CNN", note="ünïcode")
    path = tmp_path / "new" / "shop.image.knn.safetensors"
    before.save(path)
    after = NeighbourTable.load(path)
    assert (after.tokens, after.modality, after.sha256) == (before.tokens, "image", before.sha256)
    assert (after.metadata["encoder"], after.metadata["note"]) == ("CNN", "ünïcode")
    for name in ("row", "neighbour", "cosine"):
        assert getattr(after, name).tolist() == getattr(before, name).tolist()
    assert after.cosine.dtype == np.float16
    assert after.counts.tolist() == [2, 1, 1, 2, 0]
    assert after.k == 2
    again = tmp_path / "again"
    after.save(again)
    assert again.read_bytes() == path.read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_edges_are_sorted_whatever_their_order():
    forward, backward = table(), table(EDGES[::-1])
    assert forward.row.tolist() == [0, 0, 1, 2, 3, 3]
    assert forward.neighbour.tolist() == [2, 1, 0, 0, 0, 1]  # nearest first, equal ones by place
    assert forward.sha256 == backward.sha256


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modality": "a.b"}, ["modality's name"]),
        ({"tokens": ("a", "b", "c", "é", "a")}, ["more than once"]),
        ({"tokens": ("a", "b", "c", "")}, ["row 3 is empty"]),
        ({"row": np.array([0, 1])}, ["one length"]),
        ({"row": np.array([[0]])}, ["one length"]),
        ({"row": np.array([4]), "tokens": TOKENS[:4]}, ["0 to 4", "4 item tokens"]),
        ({"row": np.array([-1])}, ["-1 to 0"]),
        ({"row": np.array([0])}, ["its own neighbour"]),
        ({"row": np.array([1, 1]), "neighbour": np.array([0, 0]), "cosine": np.ones(2, np.float16)}, ["comes twice"]),
        ({"cosine": np.ones(1)}, ["float64"]),
        ({"cosine": np.array([1.1], np.float32)}, ["between -1 and 1"]),
        ({"cosine": np.array([math.nan], np.float32)}, ["between -1 and 1"]),
        ({"row": np.empty(0, int), "neighbour": np.empty(0, int), "cosine": np.empty(0)}, ["no edges"]),
        ({"metadata": {"sha256": "x"}}, ["written by the table itself"]),
    ],
)
def test_what_is_wrong_is_refused(change, words):
    given_parts = {"tokens": TOKENS, "row": np.array([1]), "neighbour": np.array([0]), "modality": "image"}
    given_parts["cosine"] = np.array([0.5], np.float16)
    told(lambda: NeighbourTable(**{**given_parts, **change}), *words)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "shop.image.knn.safetensors"
    table().save(path)
    sound = path.read_bytes()
    path.write_bytes(sound[:-3])
    told(lambda: NeighbourTable.load(path), "truncated or corrupt")
    start = 8 + int.from_bytes(sound[:8], "little")
    cosines = json.loads(sound[8:start])["cosine"]["data_offsets"][0] + start
    path.write_bytes(sound[:cosines] + bytes([sound[cosines] ^ 1]) + sound[cosines + 1 :])
    told(lambda: NeighbourTable.load(path), "sha256")
    told(lambda: NeighbourTable.load(tmp_path / "none"), "--from knn")
    assert not is_neighbour_table(tmp_path / "none")
    FeatureTable(torch.ones(1, 2), ("a",), "image").save(path)
    told(lambda: NeighbourTable.load(path), "not a neighbour table")
    assert not is_neighbour_table(path)
    path.write_bytes(sound)
    assert is_neighbour_table(path)
    told(lambda: FeatureTable.load(path), "not a feature table")
    (tmp_path / "file").write_text("")
    told(lambda: table().save(tmp_path / "file" / "t"), "cannot write")


def test_align_goes_by_token_and_leaves_out_what_the_host_lacks():
    found = table().align(["[PAD]", "é", "new", "b", "a"])
    assert found.index.tolist() == [[0, 0], [3, 4], [2, 2], [4, 3], [3, 4]]  # equal cosines by the host's row
    assert found.weight.tolist() == [[0, 0], [0.25, 0.25], [0, 0], [0.5, 0], [0.5, 0]]
    assert found.valid.tolist() == [[False] * 2, [True] * 2, [False] * 2, [True, False], [True, False]]
    own = table().align(["[PAD]", "é", "new", "b", "a"], k=2, include_self=True)
    assert own.index.tolist() == [[0, 0], [1, 3], [2, 2], [3, 4], [4, 3]]
    assert own.weight.tolist() == [[0, 0], [1, 0.25], [0, 0], [1, 0.5], [1, 0.5]]
    told(lambda: table().align(["[PAD]", "x", "y"]), "joins none of the dataset's 2 items", "'a'", "'x'")
    told(lambda: table().align(["[PAD]", "lonely", "é"]), "joins none")
    told(lambda: table().align(["a", "b"]), "[PAD]")
    told(lambda: table().align(["[PAD]", "a"], k=0), "at least 1")


def test_a_padding_token_in_the_table_is_no_item():
    found = table([("[PAD]", "a", 0.5), ("a", "[PAD]", 0.5), ("a", "b", 0.1)], ("[PAD]", "a", "b")).align(
        ["[PAD]", "a", "b"]
    )
    assert found.index[found.valid].tolist() == [2]
    assert not found.valid[0].any()


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] != pair[1]),
        st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0]),
        min_size=1,
    ),
    st.permutations(range(8)),
    st.integers(1, 6) | st.none(),
)
def test_align_is_a_loop_over_the_host(edges, order, k):
    tokens = [f"t{i}" for i in range(6)]
    host = ["[PAD]", *(f"t{i}" for i in order[:7])]
    known = {
        (host.index(tokens[a]), host.index(tokens[b])): c
        for (a, b), c in edges.items()
        if tokens[a] in host and tokens[b] in host
    }
    named = [(tokens[a], tokens[b], c) for (a, b), c in edges.items()]
    made = table(named, tuple(tokens), dtype=np.float32)
    if not known:
        told(lambda: made.align(host, k=k), "joins none")
        return
    found = made.align(host, k=k)
    width = k or max(sum(a == row for a, _ in known) for row in range(8))
    assert found.index.shape == (8, width)
    for row in range(8):
        near = sorted((-c, b) for (a, b), c in known.items() if a == row)[:width]
        spare = width - len(near)
        assert found.index[row].tolist() == [b for _, b in near] + [row] * spare
        assert found.weight[row].tolist() == [-c for c, _ in near] + [0.0] * spare
        assert found.valid[row].tolist() == [True] * len(near) + [False] * spare


def test_a_stored_graph_equals_the_computed_one(tmp_path):
    """What kneighbours finds, stored by token and aligned with another order of the items, is what it finds there."""
    values = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    first = kneighbours(values, torch.ones(30, dtype=torch.bool), 4)
    row = torch.arange(30).repeat_interleave(4).numpy()
    np.savez(tmp_path / "g.npz", row=row, col=first.index.flatten().numpy(), cos=first.weight.flatten().numpy())
    stored = from_knn(tmp_path / "g.npz", "image", tokens=[f"t{i}" for i in range(30)])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.zeros(1, 6), values[order]])
    for include_self in (False, True):
        k = 4 + include_self
        expected = kneighbours(padded, torch.arange(31) > 0, k, include_self=include_self)
        found = stored.align(["[PAD]", *(f"t{i}" for i in order.tolist())], include_self=include_self)
        for a, b in zip(vars(found).values(), vars(expected).values(), strict=True):
            assert torch.equal(a, b)


# -- import


@pytest.fixture
def npz(tmp_path):
    """``npz(row=..., ...)``: an .npz like the precomputed ones, with an item that is its own neighbour."""

    def write(**changes):
        arrays = {
            "row": np.array([0, 0, 1, 2], np.uint16),
            "col": np.array([0, 1, 2, 1], np.uint16),
            "cos": np.array([1.0, 0.5, 0.25, 0.25], np.float16),
        }
        arrays = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
        np.savez(tmp_path / "knn.npz", **arrays)
        return tmp_path / "knn.npz"

    return write


def test_import_names_the_items(npz, tmp_path):
    (tmp_path / "items.tsv").write_text("item_id:token\tasin:token\nx\tA\ny\tB\nz\tC\nspare\tD\n")
    made = from_knn(npz(), "text", tokens=tmp_path / "items.tsv", provenance=Provenance(encoder="BERT"))
    assert made.tokens == ("x", "y", "z", "spare")
    assert (made.row.tolist(), made.neighbour.tolist()) == ([0, 1, 2], [1, 2, 1])  # the own edge is gone
    assert made.cosine.tolist() == [0.5, 0.25, 0.25]
    assert made.cosine.dtype == np.float16
    assert (made.modality, made.metadata["encoder"]) == ("text", "BERT")
    assert from_knn(npz(), "text", positional=True).tokens == ("0", "1", "2")
    assert from_knn(npz(cos=np.ones(4)), "text", positional=True).cosine.dtype == np.float32


def test_import_refuses_in_one_line(npz, tmp_path):
    told(lambda: from_knn(npz(cos=None), "text", positional=True), "no array 'cos'")
    told(lambda: from_knn(npz(col=np.ones(4)), "text", positional=True), "whole numbers")
    told(lambda: from_knn(npz(cos=np.ones(3)), "text", positional=True), "one length")
    told(lambda: from_knn(npz(cos=np.array([None] * 4)), "text", positional=True), "broken arrays")
    far = np.array([0, 1, 2, 2**40])
    told(lambda: from_knn(npz(col=far), "text", positional=True), "4 edges join items up to 1,099,511,627,776")
    told(lambda: from_knn(npz(), "text"), "either the item tokens or positional")
    told(lambda: from_knn(npz(), "text", tokens=["a"], positional=True), "either the item tokens or positional")
    told(lambda: from_knn(npz(), "text", tokens=["a", "b"]), "0 to 2", "2 item tokens", "knn.npz")
    whole = npz().read_bytes()
    npz().write_bytes(whole[: len(whole) // 2])
    told(lambda: from_knn(tmp_path / "knn.npz", "text", positional=True), "cannot read")
    np.save(tmp_path / "one.npy", np.ones(3))
    told(lambda: from_knn(tmp_path / "one.npy", "text", positional=True), "one array")
    told(lambda: from_knn(tmp_path / "none.npz", "text", positional=True), "cannot read")


# -- discovery


def test_tables_and_graphs_are_told_apart(tmp_path):
    for modality in ("text", "sound", "image"):
        table(modality=modality).save(tmp_path / f"shop.{modality}.knn.safetensors")
    table().save(tmp_path / "shop.old.image.knn.safetensors")  # of the data set shop.old
    table().save(tmp_path / "shopping.image.knn.safetensors")
    FeatureTable(torch.ones(2, 2), ("a", "b"), "image").save(tmp_path / "shop.image.safetensors")
    assert list(find_tables(tmp_path, "shop", {})) == ["image"]
    assert find_neighbours(tmp_path, "shop") == {
        name: tmp_path / f"shop.{name}.knn.safetensors" for name in ("image", "text", "sound")
    }
    assert list(find_neighbours(tmp_path, "shop")) == ["image", "text", "sound"]
    found, lines = load_neighbours(tmp_path, "shop", ["[PAD]", "a", "b", "x"], k=3, include_self=True)
    assert list(found) == ["image", "text", "sound"]
    assert found["text"].index.tolist() == [[0, 0, 0], [1, 2, 1], [2, 1, 2], [3, 3, 3]]
    assert lines[1] == (
        "text: 2 of 3 items have neighbours (66.7 %), 3 items of the table unused; up to 2 each,"
        " shop.text.knn.safetensors"
    )
    assert load_neighbours(tmp_path, "elsewhere", ["[PAD]", "a"]) == ({}, [])
