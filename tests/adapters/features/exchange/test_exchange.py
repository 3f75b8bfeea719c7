"""Every export, imported again, is the same table; and each is what its own toolkit reads."""

import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recplug.adapters.features import (
    FeatureTable,
    from_cornac,
    from_ducho,
    from_mmrec,
    from_npy,
    from_npz,
    from_parquet,
    from_recbole,
    to_cornac,
    to_ducho,
    to_mmrec,
    to_npy,
    to_npz,
    to_parquet,
    to_recbole,
)
from recplug.plugins.errors import RecplugError

OUT = {
    "npy": ("v.npy", to_npy, lambda path: from_npy(path, path.with_suffix(".tokens.txt"), "image")),
    "npz": ("v.npz", to_npz, lambda path: from_npz(path, "image")),
    "parquet": ("v.parquet", to_parquet, lambda path: from_parquet(path, "image")),
    "mmrec": ("mmrec", to_mmrec, lambda path: from_mmrec(path, "image")),
    "ducho": ("torch/net/avgpool", to_ducho, lambda path: from_ducho(path, "image")),
    "cornac": ("v.npy", to_cornac, lambda path: from_cornac(path, "image")),
    "recbole": ("d.image", to_recbole, lambda path: from_recbole(path, "image")),
}
FORMATS = pytest.mark.parametrize("kind", list(OUT))
# What no format may lose quietly: it carries the token, or says that it cannot.
ODD = ["a/b", "two words", " led", "trailed ", "t\tab", "n\nl", "r\rc", '"q"', 'in"q', "'", ",", ";", "é", "日本", "🎈",
       "NA", "nan", "null", "None", "", "0", "007", "1e5", "-", ".", "..", ".hidden", "a.b.npy", "CON", "\ufeffbom",
       "\u2028", "\x85", "\x1c", "\0nul", "nul\0", "x" * 260, "e\u0301", "#", "\\", "%2F", "a:b", "[PAD]",
       "True"]  # fmt: skip
TOKENS = ("d", "a", "c", "b", "e")


def vectors(n, width=3, dtype=torch.float32):
    return torch.arange(1, n * width + 1, dtype=dtype).reshape(n, width) / 7


def table(tokens=TOKENS, **kw):
    return FeatureTable(vectors(len(tokens), **kw), tuple(tokens), "image", {"encoder": "net"})


def equal(found, expected):
    """The same vector for the same token, whatever the order."""
    assert dict(zip(found.tokens, found.features.float().tolist(), strict=True)) == dict(
        zip(expected.tokens, expected.features.float().tolist(), strict=True)
    )
    return True


def told(action, *words):
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


def refusal(action):
    """The line of its error, or None where it succeeds."""
    try:
        action()
    except RecplugError as error:
        return str(error)
    return None


tables = st.integers(1, 4).flatmap(
    lambda width: st.dictionaries(
        st.one_of(st.sampled_from([token for token in ODD if token]), st.text(min_size=1, max_size=12)),
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=width, max_size=width).filter(
            any
        ),
        min_size=1,
        max_size=8,
    )
)


@FORMATS
@given(rows=tables, half=st.booleans())
@example(rows={token: [1.0 + place] for place, token in enumerate(ODD) if token}, half=False)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_exported_reads_back_as_the_same_table(kind, rows, half, tmp_path_factory):
    features = torch.tensor(list(rows.values()))
    if half:
        features = features.half()
        features[~torch.isfinite(features)] = 1
        features[~features.any(dim=1)] = 1
    before = FeatureTable(features, tuple(rows), "image")
    folder = tmp_path_factory.mktemp("x")
    name, export, read = OUT[kind]
    line = refusal(lambda: export(before, folder / name))
    if line is not None:
        assert kind != "parquet"
        assert any(repr(token) in line for token in rows)
        assert not any(path.is_file() for path in folder.rglob("*")), "a refusal leaves nothing behind"
        return
    after = read(folder / name)
    assert equal(after, before)
    assert after.features.dtype == (torch.float32 if kind == "recbole" else before.features.dtype)
    if kind != "ducho":
        assert after.tokens == before.tokens


@pytest.mark.parametrize("token", [token for token in ODD if token], ids=json.dumps)
@FORMATS
def test_plain_tokens_are_carried_and_the_others_named(kind, token, tmp_path):
    refuses = {
        "npy": lambda t: t.startswith("\ufeff") or {"\n", "\r"} & set(t),
        "npz": lambda t: "\0" in t,
        "parquet": lambda t: False,
        "mmrec": lambda t: t.startswith("\ufeff") or {"\n", "\r", "\0"} & set(t),
        "ducho": lambda t: {"/", "\0"} & set(t) or len(t) > 250,
        "cornac": lambda t: t.startswith("\ufeff") or {"\n", "\r"} & set(t) or t != t.strip(),
        "recbole": lambda t: (
            t.startswith(("\ufeff", '"')) or {"\n", "\r", "\t", "\0"} & set(t) or t in {"NA", "nan", "null", "None"}
        ),
    }[kind]
    name, export, read = OUT[kind]
    before = table(("plain", token))
    if refuses(token):
        told(lambda: export(before, tmp_path / name), repr(token))
        assert not os.listdir(tmp_path)
    else:
        export(before, tmp_path / name)
        assert equal(read(tmp_path / name), before)


@FORMATS
def test_items_give_the_order_and_the_absent(kind, tmp_path):
    name, export, read = OUT[kind]
    told = export(table(), tmp_path / name, items=["a", "none", "d", "other"])
    assert str(told).endswith(": 4 items, 2 with a vector; 3 vectors of other items left out")
    after = read(tmp_path / name)
    assert equal(after, FeatureTable(table().features[[1, 0]], ("a", "d"), "image"))
    assert after.align(["[PAD]", "none", "d"]).present.tolist() == [False, False, True]


def test_files_by_row_hold_zeros_for_who_has_none(tmp_path):
    items = ["a", "none", "d"]
    wanted = np.stack([table().features[1], np.zeros(3, np.float32), table().features[0]])
    for kind, file in (("npy", "v.npy"), ("mmrec", "image_feat.npy"), ("cornac", "v.npy")):
        name, export, _ = OUT[kind]
        export(table(), tmp_path / kind / name, items=items)
        (found,) = (tmp_path / kind).rglob(file)
        assert np.array_equal(np.load(found), wanted)
    to_npz(table(), tmp_path / "v.npz", items=items)
    with np.load(tmp_path / "v.npz") as archive:
        assert archive["tokens"].tolist() == items
        assert np.array_equal(archive["features"], wanted)
    to_parquet(table(), tmp_path / "v.parquet", items=items)
    assert pq.read_table(tmp_path / "v.parquet")["features"].to_pylist() == [
        wanted[0].tolist(),
        None,
        wanted[2].tolist(),
    ]
    to_recbole(table(), tmp_path / "d.image", items=items)
    assert (tmp_path / "d.image").read_text().splitlines()[2] == "none\t"
    to_ducho(table(), tmp_path / "ducho", items=items)
    assert sorted(os.listdir(tmp_path / "ducho")) == ["a.npy", "d.npy"]


def test_a_vector_of_zeros_is_told_of(tmp_path):
    before = FeatureTable(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), ("a", "b"), "image")
    assert "1 of them zeros" in str(to_npy(before, tmp_path / "v.npy"))


@FORMATS
def test_nothing_is_replaced_unasked(kind, tmp_path):
    name, export, read = OUT[kind]
    export(table(), tmp_path / name)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told(lambda: export(table(width=2), tmp_path / name), "exists")
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if kind == "ducho":
        told(lambda: export(table(width=2), tmp_path / name, overwrite=True), "a folder is never replaced")
        return
    export(table(width=2), tmp_path / name, overwrite=True)
    assert equal(read(tmp_path / name), table(width=2))


@pytest.mark.parametrize(("kind", "file"), [("mmrec", "mmrec/i_id_mapping.csv"), ("cornac", "item_ids.txt")])
def test_an_order_that_other_matrices_go_by_stays(kind, file, tmp_path):
    name, export, read = OUT[kind]
    export(table(), tmp_path / name, items=["x", "b", "a"])
    order = (tmp_path / file).read_bytes()
    told(lambda: export(table(), tmp_path / name, items=["a", "b", "x"], overwrite=True), "another order")
    assert (tmp_path / file).read_bytes() == order
    export(table(width=4), tmp_path / name, overwrite=True)
    assert (tmp_path / file).read_bytes() == order
    assert equal(read(tmp_path / name), FeatureTable(table(width=4).features[[3, 1]], ("b", "a"), "image"))


@FORMATS
def test_bad_orders_are_refused_in_one_line(kind, tmp_path):
    name, export, _ = OUT[kind]
    told(lambda: export(table(), tmp_path / name, items=["a", "b", "a"]), "more than once", "'a'")
    told(lambda: export(table(), tmp_path / name, items=["a", ""]), "empty")
    told(lambda: export(table(), tmp_path / name, items=["x", "y"]), "none of the dataset's 2 items")
    assert not os.listdir(tmp_path)


@FORMATS
def test_a_place_that_cannot_be_written_is_told_in_one_line(kind, tmp_path):
    name, export, _ = OUT[kind]
    (tmp_path / "file").write_text("")
    told(lambda: export(table(), tmp_path / "file" / name), "cannot write", "choose another place")


# -- what the toolkits themselves read


def test_ducho_finds_the_layer_and_names_the_encoder(tmp_path):
    layer = tmp_path / "visual_embeddings" / "torch" / "ResNet50" / "avgpool"
    layer.mkdir(parents=True)
    for token, row in zip(TOKENS, vectors(5).numpy(), strict=True):
        shape = {"a": (3,), "b": (1, 3, 1, 1)}.get(token, (1, 3))  # squeezed, of a convolution, of a batch of one
        np.save(layer / f"{token}.npy", row.reshape(shape))
    (layer / "notes.txt").write_text("not a vector")
    found = from_ducho(tmp_path, "image")
    assert equal(found, table())
    assert found.metadata["encoder"] == "torch/ResNet50, layer avgpool"
    assert from_ducho(layer, "image").metadata["encoder"] == "torch/ResNet50, layer avgpool"
    other = tmp_path / "visual_embeddings" / "transformers" / "google" / "vit" / "pooler_output"
    other.mkdir(parents=True)
    np.save(other / "a.npy", np.ones(4, np.float32))
    told(lambda: from_ducho(tmp_path, "image"), "2 layers", "torch/ResNet50/avgpool", "google/vit/pooler_output")
    assert from_ducho(other.parents[1], "image").metadata["encoder"] == "transformers/google/vit, layer pooler_output"


def test_bad_ducho_folders_are_refused_in_one_line(tmp_path):
    told(lambda: from_ducho(tmp_path / "none", "image"), "no folder")
    told(lambda: from_ducho(tmp_path, "image"), "no .npy file")
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))
    np.save(tmp_path / "b.npy", np.ones(4, np.float32))
    told(lambda: from_ducho(tmp_path, "image"), "b.npy has 4 numbers", "a.npy has 3")
    for wrong in (np.ones((1, 197, 8), np.float32), np.ones(3, np.int64), np.array([{}], dtype=object)):
        np.save(tmp_path / "b.npy", wrong, allow_pickle=True)
        told(lambda: from_ducho(tmp_path, "image"), "b.npy")
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-2])
    told(lambda: from_ducho(tmp_path, "image"), "cannot read", "b.npy")


def test_cornac_ids_are_read_as_cornac_reads_them(tmp_path):
    np.save(tmp_path / "image_features.npy", vectors(3).numpy())
    (tmp_path / "item_ids.txt").write_text(" d\na \r\nc\n")
    assert equal(from_cornac(tmp_path / "image_features.npy", "image"), table(("d", "a", "c")))
    (tmp_path / "ids").write_text("a\nb\nc")
    assert from_cornac(tmp_path / "image_features.npy", "image", ids=tmp_path / "ids").tokens == ("a", "b", "c")
    (tmp_path / "ids").write_text("a\nb\n")
    told(lambda: from_cornac(tmp_path / "image_features.npy", "image", ids=tmp_path / "ids"), "3 rows", "2 item tokens")
    (tmp_path / "item_ids.txt").unlink()
    told(lambda: from_cornac(tmp_path / "image_features.npy", "image"), "no item ids")
    np.save(tmp_path / "p.npy", np.array([{}], dtype=object), allow_pickle=True)
    told(lambda: from_cornac(tmp_path / "p.npy", "image", ids=tmp_path / "ids"), "cannot read")


ITEM = """item_id:token\tname:token_seq\tvec:float_seq\tprice:float\tweight:float
d\tA "b\t1 2.5\t3\t4
a\t\t\t\t
c\tx\t0 7\t1\t2
"""


def test_recbole_columns(tmp_path):
    (tmp_path / "d.item").write_text(ITEM)
    found = from_recbole(tmp_path / "d.item", "image")
    assert (found.tokens, found.features.tolist()) == (("d", "c"), [[1.0, 2.5], [0.0, 7.0]])
    assert found.metadata["left_out"] == "1 all-zero rows"
    found = from_recbole(tmp_path / "d.item", "image", feature_columns=["weight", "price"])
    assert (found.tokens, found.features.tolist()) == (("d", "c"), [[4.0, 3.0], [2.0, 1.0]])
    assert from_recbole(tmp_path / "d.item", "image", token_column="name").tokens == ('A "b', "x")


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("", {}, ["no field of type token"]),
        ("a:float\n1\n", {}, ["no field of type token"]),
        ("i:token\tv:float_seq\tw:float_seq\n", {}, ["2 fields of type float_seq"]),
        ("i:token\tv:float_seq\na\t1 2\nb\t1\n", {}, ["line 3", "1 numbers, others 2"]),
        ("i:token\tv:float_seq\na\t1 x\n", {}, ["line 2", "1 x"]),
        ("i:token\tv:float_seq\na\t1 2\tb\n", {}, ["line 2", "3 fields"]),
        ("i:token\tv:float_seq\na\t\n", {}, ["no vector in 'v'"]),
        ("i:token\tv:float_seq\na\tnan 1\n", {}, ["NaN", "'a'"]),
        ("i:token\tv:float_seq\na\t1e39 1\n", {}, ["infinity", "'a'"]),
        ("i:token\tv:float_seq\na\t1\na\t2\n", {}, ["more than once"]),
        ("i:token\tv:float\tw:float\na\t1\t\n", {"feature_columns": ["v", "w"]}, ["line 2", "no vector"]),
        ("i:token\tv:float_seq\na\t1\n", {"feature_columns": "vv"}, ["no field 'vv'", "'v'"]),
        ("i:token\tv:float_seq\tw:float_seq\na\t1\t2\n", {"feature_columns": ["v", "w"]}, ["not one float_seq"]),
    ],
    ids=["empty", "no token", "two", "widths", "word", "cells", "none", "nan", "inf", "twice", "hole", "typo", "mixed"],
)  # fmt: skip
def test_bad_recbole_files_are_refused_in_one_line(text, more, words, tmp_path):
    (tmp_path / "d.item").write_text(text)
    told(lambda: from_recbole(tmp_path / "d.item", "image", **more), *words)


def test_recbole_loads_what_was_exported(tmp_path):
    from recbole.data import create_dataset

    from recplug.adapters.recbole.compat.remedies import recbole_compat
    from recplug.adapters.recbole.config.host_config import make_config

    folder = tmp_path / "d"
    folder.mkdir()
    lines = [f"u{user}\ti{(user * 3 + time) % 12}\t{time}" for user in range(9) for time in range(5)]
    (folder / "d.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n")
    features = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    before = FeatureTable(features, tuple(f"i{i}" for i in reversed(range(10))), "image")
    to_recbole(before, folder / "d.image", items=[f"i{i}" for i in range(12)])
    config = {
        "data_path": str(tmp_path),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "image": ["iid", "image"]},
        "additional_feat_suffix": ["image"],
        "alias_of_item_id": ["iid"],
        "preload_weight": {"iid": "image"},
    }
    with recbole_compat():
        dataset = create_dataset(make_config("BPR", "d", [], config))
    tokens = dataset.field2id_token["item_id"]
    assert len(tokens) == 13, "no item but the data set's own"
    modality = before.align(tokens)
    assert np.array_equal(dataset.get_preload_weight("iid").astype(np.float32), modality.values.numpy())
