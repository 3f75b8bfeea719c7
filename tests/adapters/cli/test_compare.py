"""``recplug compare``: two real cells, the same as ``run_recbole`` alone; and what people type."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

GRID = ("--models", "LightGCN", "--plugins", "micrec", "--datasets", "tiny", "--data_path", "data", "--seeds", "1")
TINY = {"epochs": "1", "embedding_size": "8", "train_batch_size": "256"}


def settings():
    return [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


def test_two_real_cells(recplug_cli, run_cli, data):
    ended = recplug_cli("compare", *GRID, *settings(), "--controls", "none", "--output", "out", "--jobs", "2")
    assert ended.code == 0, ended.err
    rows = pq.read_table("out/results.parquet").to_pylist()
    assert [(row["plugins"], row["status"]) for row in rows] == [("none", "finished"), ("micrec", "finished")]
    for row in rows:
        result = json.loads((Path("out/cells") / row["key"] / "result.json").read_text())
        assert row["test/ndcg@10"] == result["test_result"]["ndcg@10"]
        assert row["parameters_plugins"] == sum(result["parameters"]["plugins"].values())

    alone = run_cli("--model", "LightGCN", "--seed", "1", "--output_dir", "alone", "--fast_propagation", "true",
                    *[word for key, value in TINY.items() for word in (f"--{key}", value)])  # fmt: skip
    assert alone.code == 0, alone.err
    expected = json.loads(Path("alone/result.json").read_text())
    assert {k: rows[0][f"test/{k}"] for k in expected["test_result"]} == pytest.approx(
        expected["test_result"], abs=2e-4
    )

    # The metric user by user is RecBole's own mean.
    test = next(line for line in ended.out.splitlines() if line.startswith("| micrec | bare |"))
    users = int(test.split("|")[3])
    ranks = pq.read_table(next(Path("out/cells").glob("LightGCN-micrec-*")) / "ranks.parquet").to_pylist()
    assert users == len({row["user"] for row in ranks})
    for row in rows:
        ranks = pq.read_table(Path("out/cells") / row["key"] / "ranks.parquet").to_pydict()
        hits = {user: [] for user in ranks["user"]}
        for user, rank in zip(ranks["user"], ranks["rank"], strict=True):
            hits[user].append(rank <= 10)
        recall = sum(sum(each) / len(each) for each in hits.values()) / len(hits)
        assert row["test/recall@10"] == pytest.approx(recall, abs=1e-4)

    # Groups are counted from the training part alone.
    counted = pq.read_table(next(Path("out/groups").glob("*.parquet"))).to_pylist()
    total = sum(row["interactions"] for row in counted if row["side"] == "user")
    assert total == sum(row["interactions"] for row in counted if row["side"] == "item")
    written = len((data / "tiny.inter").read_text().splitlines()) - 1
    assert total == written - 2 * users  # of 4 to 7 items, one is for validation and one for the test
    assert "interactions |" in ended.out

    listed = recplug_cli("compare", *GRID[:-1], "2", *settings(), "--controls", "none", "--output", "out", "--dry_run")
    assert "4 cells: 2 finished, 0 failed, 2 to train (0 wait for others)" in listed.out
    assert "LightGCN, micrec, seed 2" in listed.out
    assert re.search(r"about \d+ min with 1 at once, at \d+ s a cell so far", listed.out)
    shown = recplug_cli("compare", "--output", "out", "--show", "--metric", "recall@5")
    assert "recall@5" in shown.out
    assert shown.code == 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--models", "LightGCN", "--output", "out"), "belong together"),
        (("--output", "out"), "holds no comparison"),
        (("--output", "out", "--show"), "holds no comparison"),
        (("--output", "out", "--seeds", "3"), "--seeds belongs to --models"),
        ((*GRID, "--output", "out", "--set", "epochs"), "is no KEY=VALUE"),
        ((*GRID, "--output", "out", "--set", "epochs=1", "--set", "epochs=2"), "given twice"),
        ((*GRID, "--output", "out", "--set", "epochs=0.5", "--grid", "micrec.share=2"), "micrec.share=2"),
        ((*GRID, "--output", "out", "--activity", "few"), "no list of numbers"),
        ((*GRID, "--output", "out", "--show"), "leave --models"),
        ((*GRID, "--output", "out", "--config_files", "none.yaml"), "cannot read the configuration file"),
        ((*GRID, "--output", "a folder"), "has a space in it"),
        (GRID, "Missing option '--output'"),
    ],
    ids=range(12),
)
def test_wrong_input_is_one_line(recplug_cli, refused, data, words, match):
    assert match in refused(recplug_cli("compare", *words))
    assert not Path("out").exists()
