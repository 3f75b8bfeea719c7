"""Gaps in atomic files: every value as RecBole gives it on pandas 2.

``missing_values_truth.json`` is of bare RecBole on pandas 2.3.3; in the pandas2 leg this file, as a program, renews it.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recplug.adapters.recbole.compat.remedies import numpy_aliases, recbole_compat
from recplug.adapters.recbole.config.host_config import make_config

TRUTH = Path(__file__).with_name("missing_values_truth.json")
INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float\tsource:token\tseen:token_seq
u1\ti1\t4\t1\tweb\ti2 i3
u1\ti2\t\t2\t\t
u1\ti3\t2\t3\tapp\ti1
u2\ti1\t5\t4\tweb\ti1 i9
u2\ti4\t3\t5\t\ti4
u2\ti4\t1\t6\tapp\ti4 i1
u3\ti2\t4\t\tweb\t
u3\ti5\t\t8\tapp\ti3 i2 i1
\ti3\t3\t9\tweb\ti1
u4\ti1\t2\t10\tweb\ti1
"""
ITEM = """item_id:token\tbrand:token\tprice:float\ttags:token_seq\timage:float_seq\tyear:float
i1\tacme\t10\tred blue\t0.1 0.2 0.3\t1999
i2\t\t\t\t\t2001
i3\tacme\t20\tblue\t1.5 -2.5 0.5\t
i7\tzeta\t\tgreen red\t4 5 6\t2005
"""
USER = """user_id:token\tage:float\tcity:token
u1\t31\tRome
u2\t\t
u9\t50\tOslo
"""
EMB = "vector_id:token\tvector:float_seq\ni3\t1 2\ni1\t\ni5\t-1 0.5\n"
SPLIT = "user_id:token\titem_id:token\titem_id_list:token_seq\tlabel:float\n"
PARTS = {"train": "u1\ti1\ti2 i3\t1\nu2\ti2\ti1\t0\n", "valid": "u1\ti4\ti1\t1\n", "test": "u2\ti3\ti1 i4\t1\n"}
LOAD = {
    "inter": ["user_id", "item_id", "rating", "timestamp", "source", "seen"],
    "item": ["item_id", "brand", "price", "tags", "image", "year"],
    "user": ["user_id", "age", "city"],
}
CASES = {
    "plain": {},
    "normalised": {"normalize_all": True},
    "alias": {"alias_of_item_id": ["seen"]},
    "core": {"user_inter_num_interval": "[2,inf)", "item_inter_num_interval": "[1,inf)"},
    "duplicates": {"rm_dup_inter": "last"},
    "values": {"val_interval": {"rating": "[2,inf)", "source": ["web"]}},
    "known items": {"filter_inter_by_user_or_item": True},
    "kept duplicates": {"rm_dup_inter": "first", "filter_inter_by_user_or_item": False},
    "cut": {"seq_len": {"tags": 1, "image": 2}},
    "label": {"threshold": {"rating": 3}, "LABEL_FIELD": "label"},
    "buckets": {
        "numerical_features": ["price", "image"],
        "discretization": {"price": {"method": "ED", "bucket": 4}, "image": {"method": "LD"}},
    },
    "weights": {
        "additional_feat_suffix": ["emb"],
        "load_col": LOAD | {"emb": ["vector_id", "vector"]},
        "alias_of_item_id": ["vector_id"],
        "preload_weight": {"vector_id": "vector"},
    },
    "sequential": {"model": "SASRec"},
    "split files": {
        "benchmark_filename": list(PARTS),
        "load_col": {"inter": ["user_id", "item_id", "item_id_list", "label"], "item": LOAD["item"]},
        "alias_of_item_id": ["item_id_list"],
    },
}


def write_files(root, inter=INTER):
    folder = root / "gaps"
    folder.mkdir()
    for suffix, text in (("inter", inter), ("item", ITEM), ("user", USER), ("emb", EMB)):
        (folder / f"gaps.{suffix}").write_text(text)
    for part, rows in PARTS.items():
        (folder / f"gaps.{part}.inter").write_text(SPLIT + rows)


def values(root, case):
    """Everything the dataset holds after RecBole's processing, as plain lists."""
    from recbole.data import create_dataset

    settings = {
        "data_path": str(root),
        "load_col": LOAD,
        "filter_inter_by_user_or_item": False,
        "numerical_features": [],
    }
    settings |= CASES[case]
    dataset = create_dataset(make_config(settings.pop("model", "BPR"), "gaps", [], settings))
    dataset._change_feat_format()
    found = {"tokens": {field: list(map(str, tokens)) for field, tokens in dataset.field2id_token.items()}}
    for name in dataset.feat_name_list:
        feat = getattr(dataset, name)
        found[name] = {field: feat[field].double().numpy().round(5).tolist() for field in feat.interaction}
    found["lengths"] = {field: np.ravel(size).tolist() for field, size in dataset.field2seqlen.items()}
    found["weights"] = {field: matrix.tolist() for field, matrix in dataset._preloaded_weight.items()}
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_value_is_that_of_pandas_2(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    with recbole_compat():
        found = values(tmp_path, case)
    assert found == json.loads(TRUTH.read_text())[case]


def test_what_the_truth_says_in_words(tmp_path, monkeypatch):
    """A guard on the truth file itself: the rules of the imputation, worked out by hand."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    with recbole_compat():
        found = values(tmp_path, "plain")
    tokens, item = found["tokens"], found["item_feat"]
    row = {token: position for position, token in enumerate(tokens["item_id"])}
    assert item["brand"][row["i2"]] == 0
    assert item["brand"][row["i5"]] == 0
    assert tokens["brand"][int(item["brand"][row["i3"]])] == "acme"
    assert item["price"][row["i2"]] == item["price"][row["i5"]] == 15
    assert item["tags"][row["i2"]] == item["tags"][row["i4"]] == [0, 0]
    assert item["image"][row["i2"]] == item["image"][row["i4"]] == [0, 0, 0]
    assert item["image"][row["i3"]] == [1.5, -2.5, 0.5]
    assert found["inter_feat"]["rating"][1] == 3
    assert found["inter_feat"]["source"][1] == 0
    assert found["user_feat"]["age"] == [40.5, 31, 40.5, 40.5, 40.5, 50]


@pytest.mark.parametrize("case", ["plain", "core", "duplicates", "values", "sequential", "alias"])
def test_no_invalid_id_comes_out(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    with recbole_compat():
        found = values(tmp_path, case)
    for name in ("inter_feat", "item_feat", "user_feat"):
        for field, ids in found[name].items():
            if field in found["tokens"]:
                assert np.min(ids) >= 0
                assert np.max(ids) < len(found["tokens"][field])


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("hole", [2, 5, 9])
def test_a_row_without_an_id_goes_and_no_other(tmp_path, monkeypatch, column, hole):
    """Line 1 has no user already, so that labels and positions differ when the items are looked at."""
    rows = [line.split("\t") for line in INTER.splitlines()]
    rows[1][0], rows[9][0] = "", "u3"
    rows[1 + hole][column] = ""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, "\n".join(map("\t".join, rows)) + "\n")
    kept = [row for row in rows[1:] if row[0] and row[1]]
    with recbole_compat():
        found = values(tmp_path, "plain")
    users = [found["tokens"]["user_id"][int(i)] for i in found["inter_feat"]["user_id"]]
    items = [found["tokens"]["item_id"][int(i)] for i in found["inter_feat"]["item_id"]]
    assert list(zip(users, items, strict=True)) == [(row[0], row[1]) for row in kept]


def test_pandas_is_as_before_outside():
    from recbole.data.dataset import dataset as host

    before = host.pd, host.Dataset._fill_nan, host.Dataset._filter_nan_user_or_item, pd.Series.agg, pd.read_csv
    with pytest.raises(ZeroDivisionError), recbole_compat():
        raise ZeroDivisionError
    assert before == (
        host.pd,
        host.Dataset._fill_nan,
        host.Dataset._filter_nan_user_or_item,
        pd.Series.agg,
        pd.read_csv,
    )


if __name__ == "__main__":
    assert pd.__version__ < "3", "the truth is pandas 2's"
    with tempfile.TemporaryDirectory() as folder, numpy_aliases():
        os.chdir(folder)
        write_files(Path(folder))
        truth = {case: values(Path(folder), case) for case in CASES}
    TRUTH.write_text(json.dumps(truth, separators=(",", ":")) + "\n")
