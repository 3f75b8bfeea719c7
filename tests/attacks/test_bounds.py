"""No end in sight, or a beginning that is none: told at once."""

import json
import logging
import time
from pathlib import Path

import pytest
import torch

CASES = {
    "nproc": (("--nproc", "5000"), "nproc=5000 is more than"),
    "worker": (("--worker", "100000"), "worker=100000 processes"),
    "ip": (("--nproc=1", "--world_size=2", "--port=5678", "--group_offset=1", "--ip=nowhere.invalid"),
           "ip=nowhere.invalid is no machine"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_would_never_end_is_refused(name, train, refused, tmp_path):
    words, line = CASES[name]
    begun = time.monotonic()
    refused(train("--output_dir", "out", *words), line)
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - begun < 60


def test_a_million_seeds_are_refused(ask, data, refused):
    words = ("--models", "SASRec", "--plugins", "prism", "--datasets", "tiny", "--data_path", "data", "--output", "out")
    refused(ask("compare", *words, "--seeds", "1000000", "--dry_run"), "seeds=1000000 are more than")


def test_a_picture_that_cannot_be_drawn_is_noted(data, train, monkeypatch, tmp_path):
    from recplug.adapters.recbole.state import run_directory

    monkeypatch.setattr(run_directory, "draw", lambda panel, path: min([]))
    ended = train("--output_dir", "out", "--plugin", "prism")
    assert ended.code == 0, ended
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["diagnostics"] == []
    assert any("no picture prism." in line for line in result["notes"])


SPLITS = {
    "no test": ("RS: [0.8, 0.2, 0.0]", True, False),
    "no validation": ("RS: [0.8, 0.0, 0.2]", False, True),
}


@pytest.mark.parametrize("name", SPLITS)
def test_data_without_a_part_train_to_the_end(name, data, train, tmp_path):
    split, validated, tested = SPLITS[name]
    with Path("mine.yaml").open("w") as file:
        file.write(f"eval_args: {{split: {{{split}}}, order: TO, group_by: user, mode: full}}\n")
    ended = train("--output_dir", "out", "--config_files", "mine.yaml")
    assert ended.code == 0, ended
    text = (tmp_path / "out" / "result.json").read_text()
    assert "Infinity" not in text
    result = json.loads(text)
    assert result["status"] == "finished"
    assert (result["best_valid_score"] is not None) == validated
    assert (result["test_result"] is not None) == tested


@pytest.mark.slow
def test_two_domains_begin_with_both_backbones(data, train, tmp_path, caplog):
    from recplug.adapters.recbole import load

    other = data.parent / "other"
    other.mkdir()
    for file in data.iterdir():
        (other / file.name.replace("tiny", "other")).write_bytes(file.read_bytes())
    words = ("--plugin", "micrec", "--micrec.source=other", "--learning_rate")
    assert train("--output_dir", "first", *words, "0.1").code == 0
    begins = ("--warm_start", "first", "--adapter", "first")
    with caplog.at_level(logging.WARNING, logger="recplug"):
        ended = train("--output_dir", "second", *words, "0", *begins)
    assert ended.code == 0, ended
    before, after = (load(tmp_path / name).model.state_dict() for name in ("first", "second"))
    rows = [key for key in before if key.endswith("item_embedding.weight")]
    assert len(rows) > 1, "the second domain's too"
    assert all(torch.equal(before[key], after[key]) for key in rows)
