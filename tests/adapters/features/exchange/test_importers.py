import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recplug.adapters.features import FeatureTable, Provenance, from_mmrec, from_npy, from_npz, from_parquet
from recplug.plugins.errors import RecplugError

MATRIX = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
TOKENS = ["d", "a", "c", "b"]


def told(action, *words):
    """The one line of the error that ``action`` raises."""
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


def same(table, tokens=TOKENS, matrix=MATRIX):
    assert table.tokens == tuple(tokens)
    assert np.array_equal(table.features.numpy(), matrix)
    return True


@pytest.fixture
def npy(tmp_path):
    np.save(tmp_path / "x.npy", MATRIX)
    return tmp_path / "x.npy"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ids.txt", "d\na\nc\nb\n"),
        ("ids.txt", "d\r\na\r\nc\r\nb"),
        ("ids.tsv", "item_id:token\tname\nd\tx\na\ty\nc\tz\nb\t\n"),
        ("ids.csv", 'item,name\nd,"x, y"\na,"two\nlines"\n"c",\nb,z\n'),
        ("shop.item", 'item_id:token\ttext:token_seq\nd\t5" pipe\na\t\nc\tz\nb\tz\n'),
    ],
)
def test_npy_takes_tokens_from_a_sequence_or_a_file(npy, tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    assert same(from_npy(npy, tmp_path / name, "image"))
    assert same(from_npy(str(npy), TOKENS, "image"))


def test_positions_are_tokens_only_when_asked_for(npy):
    told(lambda: from_npy(npy, None, "image"), "no item tokens")
    told(lambda: from_npy(npy, TOKENS, "image", positional=True), "choose one")
    assert same(from_npy(npy, None, "image", positional=True), ["0", "1", "2", "3"])


@pytest.mark.parametrize(
    ("stored", "kept"),
    [("float16", "float16"), ("float32", "float32"), ("float64", "float32"), (">f4", "float32"), (">f2", "float16")],
)
def test_precision_is_kept_up_to_float32(tmp_path, stored, kept):
    np.save(tmp_path / "x.npy", MATRIX.astype(stored))
    table = from_npy(tmp_path / "x.npy", TOKENS, "image")
    assert table.features.numpy().dtype == kept
    assert same(table)


def test_a_row_of_zeros_is_an_absent_item(tmp_path):
    matrix = MATRIX.copy()
    matrix[1] = 0
    np.save(tmp_path / "x.npy", matrix)
    table = from_npy(tmp_path / "x.npy", TOKENS, "image")
    assert same(table, ["d", "c", "b"], matrix[[0, 2, 3]])
    assert table.metadata["left_out"] == "1 all-zero rows"
    assert table.align(["[PAD]", "a", "b"]).present.tolist() == [False, False, True]


def test_the_header_tells_where_the_vectors_come_from(npy, tmp_path):
    table = from_npy(npy, TOKENS, "image", provenance=Provenance(encoder="CLIP", created="2020-01-02"))
    table.save(tmp_path / "t.safetensors")
    metadata = FeatureTable.load(tmp_path / "t.safetensors").metadata
    assert metadata["encoder"] == "CLIP"
    assert metadata["created"] == "2020-01-02"
    assert metadata["normalised"] == "false"
    np.save(npy, MATRIX / np.linalg.norm(MATRIX, axis=1, keepdims=True))
    assert from_npy(npy, TOKENS, "image").metadata["normalised"] == "true"


def test_bad_npy_files_are_refused_in_one_line(tmp_path, npy):
    told(lambda: from_npy(npy, TOKENS[:3], "image"), "4 rows", "3 item tokens")
    told(lambda: from_npy(npy, [*TOKENS, ""], "image"), "5 item tokens")
    told(lambda: from_npy(npy, ["a", "a", "b", "c"], "image"), "more than once")
    told(lambda: from_npy(tmp_path / "none.npy", TOKENS, "image"), "cannot read")
    told(lambda: from_npy(npy, tmp_path / "none.txt", "image"), "cannot read")
    (tmp_path / "latin.txt").write_bytes("é\n".encode("latin-1"))
    told(lambda: from_npy(npy, tmp_path / "latin.txt", "image"), "UTF-8")

    def saved(array):
        np.save(tmp_path / "bad.npy", array)
        return lambda: from_npy(tmp_path / "bad.npy", TOKENS, "image")

    told(saved(np.array([{"a": 1}] * 4, dtype=object)), "cannot read", "no objects")
    told(saved(MATRIX.astype(np.int64)), "int64")
    told(saved(MATRIX[:, None]), "3 dimensions")
    told(saved(np.float32(1)), "0 dimensions")
    told(saved(np.where(MATRIX == 6, np.nan, MATRIX)), "1 of 4 rows", "'a'")
    told(saved(MATRIX.astype(np.float64) * 1e38), "infinity")
    told(saved(MATRIX * 0), "0 x 3")
    (tmp_path / "bad.npy").write_bytes(npy.read_bytes()[:-4])
    told(lambda: from_npy(tmp_path / "bad.npy", TOKENS, "image"), "cannot read")
    np.savez(tmp_path / "a.npz", features=MATRIX)
    told(lambda: from_npy(tmp_path / "a.npz", TOKENS, "image"), "--from npz")


def test_npz_holds_both(tmp_path, npy):
    path = tmp_path / "x.npz"
    np.savez(path, features=MATRIX, tokens=np.array(TOKENS), bytes=np.array(TOKENS).astype("S"))
    assert same(from_npz(path, "text"))
    assert same(from_npz(path, "text", tokens="bytes"))
    assert same(from_npz(path, "text", positional=True), ["0", "1", "2", "3"])
    told(lambda: from_npz(path, "text", tokens="token"), "did you mean 'tokens'")
    told(lambda: from_npz(npy, "text"), "--from npy")
    np.savez(path, features=MATRIX, tokens=np.array(TOKENS, dtype=object))
    told(lambda: from_npz(path, "text"), "pickled")
    path.write_bytes(path.read_bytes()[:80])
    told(lambda: from_npz(path, "text"), "cannot read")


@pytest.fixture
def mmrec(tmp_path):
    np.save(tmp_path / "image_feat.npy", MATRIX)
    np.save(tmp_path / "text_feat.npy", MATRIX + 1)
    (tmp_path / "i_id_mapping.csv").write_text("asin\titemID\nb\t3\nd\t0\na\t1\nc\t2\n")
    return tmp_path


def test_mmrec_rows_are_named_by_its_mapping(mmrec):
    assert same(from_mmrec(mmrec, "image"))
    assert same(from_mmrec(mmrec / "text_feat.npy"), matrix=MATRIX + 1)
    assert from_mmrec(mmrec / "text_feat.npy").modality == "text"
    assert same(from_mmrec(mmrec, "image", positional=True), ["0", "1", "2", "3"])
    other = mmrec / "other.csv"
    other.write_text("itemID,parent\n3,b\n0,d\n1,a\n2,c\n")
    assert same(from_mmrec(mmrec, "image", mapping=other))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("asin\tid\nb\t3\n", "itemID"),
        ("", "itemID"),
        ("asin\titemID\nb\tx\n", "whole-number"),
        ("asin\titemID\nb\n", "whole-number"),
        ("asin\titemID\nd\t0\na\t1\nc\t2\nb\t2\n", "each once"),
        ("asin\titemID\nd\t0\na\t1\nc\t2\nb\t4\n", "each once"),
        ("asin\titemID\nd\t0\na\t1\nc\t2\n", "3 item tokens"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(mmrec, text, word):
    (mmrec / "i_id_mapping.csv").write_text(text)
    told(lambda: from_mmrec(mmrec, "image"), word)


def test_mmrec_says_what_it_lacks(mmrec):
    told(lambda: from_mmrec(mmrec), "image or text")
    told(lambda: from_mmrec(mmrec, "audio"), "audio_feat.npy")
    (mmrec / "i_id_mapping.csv").unlink()
    told(lambda: from_mmrec(mmrec, "image"), "i_id_mapping.csv", "positional")


def test_parquet_takes_lists_or_float_columns(tmp_path):
    path = tmp_path / "x.parquet"
    flat = pa.array(MATRIX.ravel())
    for lists in (pa.array(MATRIX.tolist(), pa.list_(pa.float32())), pa.FixedSizeListArray.from_arrays(flat, 3)):
        pq.write_table(pa.table({"year": [1, 2, 3, 4], "item": TOKENS, "vector": lists}), path, row_group_size=2)
        assert same(from_parquet(path, "text"))
    columns = {f"f{i}": MATRIX[:, i] for i in range(3)}
    pq.write_table(pa.table({**columns, "item": TOKENS, "number": [3, 1, 2, 0]}), path)
    assert same(from_parquet(path, "text"))
    assert same(from_parquet(path, "text", token_column="number", feature_columns=["f0"]), "3120", MATRIX[:, :1])


def test_parquet_leaves_null_vectors_out_and_refuses_null_numbers(tmp_path):
    path = tmp_path / "x.parquet"
    rows = MATRIX.tolist()
    pq.write_table(pa.table({"item": TOKENS, "v": [rows[0], None, rows[2], rows[3]]}), path)
    assert from_parquet(path, "text").tokens == ("d", "c", "b")
    pq.write_table(pa.table({"item": TOKENS, "v": [rows[0], [1.0, None, 2.0], *rows[2:]]}), path)
    told(lambda: from_parquet(path, "text"), "1 of 4 rows", "'a'")


def test_bad_parquet_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "x.parquet"
    told(lambda: from_parquet(path, "text"), "cannot read")
    path.write_bytes(b"nothing")
    told(lambda: from_parquet(path, "text"), "cannot read")
    rows = MATRIX.tolist()
    pq.write_table(pa.table({"item": TOKENS, "name": TOKENS, "v": rows, "w": rows}), path)
    told(lambda: from_parquet(path, "text"), "2 candidates", "token_column")
    told(lambda: from_parquet(path, "text", token_column="item"), "2 candidates", "feature_columns")
    told(lambda: from_parquet(path, "text", token_column="itm", feature_columns="v"), "did you mean 'item'")
    told(lambda: from_parquet(path, "text", token_column="item", feature_columns="name"), "floats")
    told(lambda: from_parquet(path, "text", token_column="item", feature_columns=["v", "w"]), "floats")
    pq.write_table(pa.table({"item": TOKENS, "v": [[1.0], [1.0, 2.0], [1.0], [3.0]]}), path)
    told(lambda: from_parquet(path, "text"), "2 lengths")
    pq.write_table(pa.table({"item": ["a", None, "b", "c"], "v": rows}), path)
    told(lambda: from_parquet(path, "text"), "empty")
    pq.write_table(pa.table({"item": TOKENS}), path)
    told(lambda: from_parquet(path, "text"), "0 candidates")


def test_tables_do_not_share_memory_with_what_they_came_from(npy):
    table = from_npy(npy, TOKENS, "image")
    assert torch.equal(table.features, from_npy(npy, TOKENS, "image").features)
    assert table.features.is_contiguous()


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000), }"


@pytest.mark.parametrize("header", [HEADER, "(" * 80, "{'descr': '<f4',  "], ids=["too large", "nested", "unfinished"])
def test_a_header_that_lies_is_one_line(tmp_path, header):
    text = header.encode().ljust(117) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"1234")
    told(lambda: from_npy(tmp_path / "x.npy", None, "image", positional=True), "cannot read")


def test_an_archive_of_other_things(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", b"xx")
    told(lambda: from_npz(path, "text", positional=True), "'features' is no array")
    for tokens in (np.array("a"), np.array([["a", "b"]] * 4)):
        np.savez(path, features=MATRIX, tokens=tokens)
        told(lambda: from_npz(path, "text"), f"'tokens' has {tokens.ndim} dimensions")
    np.savez(path, features=MATRIX, tokens=np.array([b"\xff"] * 4))
    told(lambda: from_npz(path, "text"), "not UTF-8")
