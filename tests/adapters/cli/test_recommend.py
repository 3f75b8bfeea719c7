"""``recplug recommend`` and ``recplug evaluate``."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from recplug.adapters.features import FeatureTable


@pytest.fixture
def trained(run_cli, data):
    """``trained(*words)``: a run directory."""

    def train(*words):
        ended = run_cli("--output_dir", "run", *words)
        assert ended.code == 0, ended.err
        return "run"

    return train


@pytest.fixture
def graph(trained):
    return trained("--model", "LightGCN", "--plugin", "micrec", "--epochs", "1", "--embedding_size", "8")


def rows(out):
    lines = [line.split("\t") for line in out.splitlines() if "\t" in line]
    assert lines[0] == ["user", "rank", "score", "item"]
    return lines[1:]


def test_known_users_and_new_ones_of_a_sequential_run(trained, recplug_cli):
    trained()
    ended = recplug_cli("recommend", "run", "--users", "u1, u7", "--k", "3")
    assert ended.code == 0, ended.err
    ranked = [(user, int(rank)) for user, rank, *_ in rows(ended.out)]
    assert ranked == [(user, rank) for user in ("u1", "u7") for rank in (1, 2, 3)]
    Path("who.txt").write_text("u1\nu7\n")
    assert recplug_cli("recommend", "run", "--users", "who.txt", "--k", "3").out == ended.out

    # In the order of time, whatever the order of lines.
    Path("new.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nAnn\ti4\t9\nAnn\ti2\t3\n")
    new = recplug_cli("recommend", "run", "--interactions", "new.inter", "--k", "4")
    Path("sorted.inter").write_text("\ufeffitem_id:token\tuser_id:token\r\ni2\tAnn\r\ni4\tAnn\r\n", encoding="utf-8")
    assert new.out == recplug_cli("recommend", "run", "--interactions", "sorted.inter", "--k", "4").out
    assert {user for user, *_ in rows(new.out)} == {"Ann"}
    assert not {"i2", "i4"} & {item for *_, item in rows(new.out)}

    Path("few.txt").write_text("\ufeffi2\r\ni9\r\n", encoding="utf-8")  # as some editors write
    words = ("--interactions", "new.inter", "--candidates", "few.txt", "--no_mask_history")
    only = recplug_cli("recommend", "run", *words)
    assert sorted(item for *_, item in rows(only.out)) == ["i2", "i9"]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_everyone_into_a_file(graph, recplug_cli, ending):
    ended = recplug_cli("recommend", graph, "--output", f"best.{ending}", "--k", "2", "--batch", "7")
    assert ended.code == 0, ended.err
    assert "40 users, at most 2 items each: best." in ended.out
    file = Path(f"best.{ending}")
    if ending == "parquet":
        assert pyarrow.parquet.read_table(file).num_rows == 80
    elif ending == "jsonl":
        assert [json.loads(line)["rank"] for line in file.read_text().splitlines()] == [1, 2] * 40
    else:
        assert len(file.read_text().splitlines()) == 81
    assert not list(Path().glob(".best*"))


def test_new_users_and_new_items_of_a_graph_run(graph, data, recplug_cli):
    Path("new.inter").write_text("user_id:token\titem_id:token\nAnn\ti4\nAnn\ti2\nAnn\ti999\n")
    answers = {}
    for mode in ("fold_in", "exact"):
        ended = recplug_cli("recommend", graph, "--interactions", "new.inter", "--skip_unknown", "--mode", mode)
        assert ended.code == 0, ended.err
        answers[mode] = [item for *_, item in rows(ended.out)]
        assert len(answers[mode]) == 20
    assert len(set(answers["fold_in"]) & set(answers["exact"])) >= 18

    table = FeatureTable.load(data / "tiny.text.safetensors")
    new = FeatureTable(torch.cat([table.features[:1], table.features[3:4]]), ("fresh", "other"), "text")
    new.save("new.text.safetensors")
    Path("items.txt").write_text("fresh\n")
    words = ("--items", "items.txt", "--features", "text=new.text.safetensors", "--k", "99")
    ended = recplug_cli("recommend", graph, "--users", "u1", *words)
    assert ended.code == 0, ended.err
    assert "fresh" in {item for *_, item in rows(ended.out)}


def test_wrong_words_are_one_line(trained, recplug_cli, refused):
    trained()
    Path("new.inter").write_text("user_id:token\titem_id:token\nAnn\ti4\nAnn\ti999\n")
    Path("other.inter").write_text("who:token\twhat:token\nAnn\ti4\n")
    Path("late.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nAnn\ti4\tnoon\n")
    Path("never.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nAnn\ti4\tnan\n")
    Path("empty.txt").write_text("\n")
    for name in ("folder.csv", "folder.json"):
        Path(name).mkdir()
    cases = [
        (("nowhere",), "no run at nowhere"),
        (("run", "--users", "u1,u999"), "does not know the user 'u999'"),
        (("run", "--interactions", "new.inter"), "does not know the item 'i999'"),
        (("run", "--interactions", "other.inter"), "has no field 'user_id'"),
        (("run", "--interactions", "new.inter"), "leave such items out with --skip_unknown"),
        (("run", "--interactions", "late.inter"), "is not a number"),
        (("run", "--interactions", "never.inter"), "is not finite"),
        (("run", "--interactions", "gone.inter"), "cannot read gone.inter"),
        (("run", "--candidates", "empty.txt"), "empty.txt is empty"),
        (("run", "--users", ","), "--users names nobody"),
        (("run", "--users", ",".join(f"u{user + 1000}" for user in range(500))), "the user 'u1000' and 499 more"),
        (("run", "--users", ""), "--users names nobody"),
        (("run", "--output", "folder.csv"), "cannot write folder.csv: it is a folder"),
        (("run", "--output", "best.xls"), "cannot tell the format of best.xls"),
        (("run", "--output", "no/best.csv"), "no folder no"),
        (("run", "--items", "new.inter"), "train with --plugin micrec"),
        (("run", "--features", "text"), "write MODALITY=FILE"),
        (("run", "--features", "text=data/tiny/tiny.text.safetensors"), "name these with --items"),
        (("run", "--mode", "other"), "see: recplug recommend --help"),
    ]
    for words, message in cases:
        assert message in refused(recplug_cli("recommend", *words))
    assert "no data/tiny/tiny.support.inter" in refused(recplug_cli("evaluate", "run"))
    wrong = {
        "report.md": "has to be a .json file",
        "no/report.json": "no folder no",
        "folder.json": "cannot write folder.json: it is a folder",
    }
    for output, message in wrong.items():
        assert message in refused(recplug_cli("evaluate", "run", "--output", output))


def test_evaluate_prints_tables_and_writes_numbers(run_cli, recplug_cli, data):
    ended = recplug_cli("data", "holdout", "tiny", "--data_path", "data", "--to", "held")
    assert ended.code == 0, ended.err
    ended = run_cli("--model", "BPR", "--plugin", "micrec", "--epochs", "1", "--embedding_size", "8",
                    "--data_path", "held", "--output_dir", "run")  # fmt: skip
    assert ended.code == 0, ended.err
    ended = recplug_cli("evaluate", "run", "--k", "5", "--output", "report.json")
    assert ended.code == 0, ended.err
    report = json.loads(Path("report.json").read_text())
    assert report["new_users"] >= 1
    assert report["new_items"] >= 1
    for group, row in report["groups"].items():
        assert f"| {group} | {row['users']} | {row['queries']} |" in ended.out
        assert set(row["ranked"]) == {"model", "popularity", "global"}
        assert all(0 <= value <= 1 for each in row["ranked"].values() for value in each.values())
