"""``recplug tune``: a real search of two trials, whose test set nothing sees before the end; and what people type."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from recplug.adapters.tune.spec import ask, remember
from recplug.adapters.tune.worker import Trial, train

TINY = {"epochs": 2, "embedding_size": 8, "train_batch_size": 256, "eval_batch_size": 4096}
SEARCH = ("--model", "LightGCN", "--plugin", "micrec", "--dataset", "tiny", "--data_path", "data", "--output", "out")


@pytest.mark.slow
def test_two_real_trials(recplug_cli, run_cli, data):
    fixed = [word for key, value in TINY.items() for word in ("--fixed", f"{key}={value}")]
    space = ("--space", "micrec.share,learning_rate=0.001..0.1:log")
    ended = recplug_cli("tune", *SEARCH, *fixed, *space, "--trials", "2", "--final_seeds", "1")
    assert ended.code == 0, ended.err
    trials = [json.loads(Path(f"out/trials/{n}/result.json").read_text()) for n in (0, 1)]
    assert [trial["status"] for trial in trials] == ["finished", "finished"]
    for number in (0, 1):
        left = {path.name for path in Path(f"out/trials/{number}").iterdir()}
        assert not left & {"ranks.parquet", "adapter.safetensors", "diagnostics", "resume.pth"}
        assert "test_result" not in trials[number]
    assert trials[0]["settings"]["micrec"]["share"] == 1.0
    scores = [trial["best_valid_score"] for trial in trials]
    best = yaml.safe_load(Path("out/best.yaml").read_text())
    config = yaml.safe_load(Path(f"out/trials/{scores.index(max(scores))}/config.yaml").read_text())
    assert best["learning_rate"] == config["learning_rate"]
    assert best["micrec.share"] == config["micrec"]["share"]
    tested = json.loads(next(Path("out/final").glob("trial-*/seed-1/result.json")).read_text())["test_result"]
    assert f"{tested['ndcg@10']:.4f}" in ended.out

    alone = run_cli("--model", "LightGCN", "--config_files", "out/best.yaml", "--seed", "1", "--output_dir", "alone")
    assert alone.code == 0, alone.err
    assert json.loads(Path("alone/result.json").read_text())["test_result"] == tested

    again = recplug_cli("tune", "--output", "out", "--trials", "2", "--final_seeds", "1")
    assert again.code == 0, again.err
    assert again.out.splitlines()[0] == "# LightGCN with micrec on tiny"


def test_a_real_trial_is_pruned_in_its_first_epoch(data):
    """The answer "prune" ends the trainer, and the run directory says so."""
    words = ["micrec.share"]
    asked = remember(Path("out"), ask("LightGCN", "micrec", "tiny", words=words, fixed=TINY, data_path="data"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        trial = Trial(0, {"micrec.share": 0.5}, Path("out/trials/0").absolute())
        command = train(asked, Path("out").absolute())(trial, theirs.fileno())
        with subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True) as process:  # fmt: skip
            theirs.close()
            with ours.makefile("rw") as channel:
                epoch, score = channel.readline().split()
                channel.write("prune\n")
                channel.flush()
                assert channel.readline() == ""
            out = process.communicate()[0]
    assert process.returncode == 0, out
    result = json.loads((trial.folder / "result.json").read_text())
    assert (result["status"], result["epochs"], result["best_valid_score"]) == ("pruned", 1, float(score))
    assert epoch == "0"
    assert result["settings"]["micrec"]["share"] == 0.5
    assert "Traceback" not in (trial.folder / "run.log").read_text()
    assert "Traceback" not in out


def test_what_would_be_searched(recplug_cli):
    declared = recplug_cli("tune", "--plugin", "prism", "--show_space")
    assert "prism.scale              0.05 .. 2, log  1.0" in declared.out
    both = recplug_cli("tune", "--model", "SASRec", "--plugin", "prism", "--show_space", "--space", "learning_rate")
    assert both.out.splitlines()[1:] == ["learning_rate  0.0001 .. 0.01, log  0.001"]
    assert "recplug tune tries: 0.05 .. 2, log" in recplug_cli("plugins", "show", "prism").out


def test_wrong_words(recplug_cli, refused, data):
    assert "--output is missing" in refused(recplug_cli("tune", "--model", "SASRec"))
    assert "holds no search" in refused(recplug_cli("tune", "--output", "out"))
    assert "belongs to --model" in refused(recplug_cli("tune", "--output", "out", "--plugin", "prism"))
    assert "--show_space needs" in refused(recplug_cli("tune", "--show_space"))
    assert "trials=0" in refused(recplug_cli("tune", *SEARCH, "--trials", "0"))
    assert "no setting 'shar'" in refused(recplug_cli("tune", *SEARCH, "--space", "micrec.shar"))
    assert not Path("out").exists()
