"""``run_recbole --resume``: what it goes on with, and what it refuses; ``--adapter`` and ``--warm_start``."""

import json
from pathlib import Path

import pytest
from recbole.trainer import Trainer

from recplug.adapters.cli import run_recbole
from recplug.adapters.recbole.state import run_directory

EPOCHS = ("--epochs", "3")


def result(directory="out"):
    return json.loads((Path(directory) / "result.json").read_text())


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than these trainings."""
    monkeypatch.setattr(run_directory, "draw", lambda panel, path: path.touch())


@pytest.fixture
def cut(run_cli, data, monkeypatch):
    """``cut(*words)``: a run of three epochs that is interrupted in the second; how the command ended."""

    def start(*words):
        train = Trainer._train_epoch

        def interrupted(self, data, epoch, *args, **kwargs):
            if epoch == 1 and (len(words) < 2 or "baseline" not in self.saved_model_file):
                raise KeyboardInterrupt
            return train(self, data, epoch, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_train_epoch", interrupted)
            return run_cli(*EPOCHS, "--output_dir", "out", *words)

    return start


def test_an_interrupted_run_says_how_to_go_on_and_does(cut, command, run_cli, data):
    ended = cut()
    assert ended.code == 130
    assert "go on after epoch 0 with: run_recbole --resume out" in ended.out
    again = command(run_recbole.main, "--resume", "out")
    assert (again.code, again.err) == (0, "")
    assert "out goes on after 1 of 3 epochs" in again.out
    assert "test result on tiny" in again.out
    assert (result()["status"], result()["epochs"], result()["resumed"]) == ("finished", 3, 1)
    whole = run_cli(*EPOCHS, "--output_dir", "whole")
    assert whole.code == 0
    assert result()["test_result"] == result("whole")["test_result"]

    before = Path("out/result.json").read_bytes()
    ended = command(run_recbole.main, "--resume=out")
    assert (ended.code, ended.err, ended.out.count("\n")) == (0, "", 1)
    assert "out has finished; its result is in out/result.json, and --epochs N with more of them trains on" in ended.out
    assert Path("out/result.json").read_bytes() == before
    assert command(run_recbole.main, "--resume=out", "--epochs", "4").code == 0
    assert result()["epochs"] == 4


def test_the_same_command_may_be_repeated_with_resume(cut, run_cli, data):
    cut("--plugin", "prism", "--prism.scale=0.5")
    again = run_cli(*EPOCHS, "--plugin", "prism", "--prism.scale=0.5", "--resume", "out")
    assert (again.code, again.err) == (0, "")
    assert result()["status"] == "finished"


def test_the_baseline_goes_on_too(cut, command):
    assert cut("--plugin", "prism", "--baseline", "true").code == 130
    assert result("out/baseline")["status"] == "finished"
    again = command(run_recbole.main, "--resume", "out", "--baseline", "true")
    assert (again.code, again.err) == (0, "")
    assert f"{result('out/baseline')['test_result']['recall@10']:.4f}" in again.out
    assert "%" in again.out, "beside it"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prism.scale=0.7"], "out was started with prism.scale=0.5, not 0.7; leave it out"),
        (["--learning_rate", "0.5"], "out was started with learning_rate=0.001, not 0.5"),
        (["--model", "GRU4Rec"], "out was started with model=SASRec, not GRU4Rec"),
        (["--plugin", "mars"], "out was started with plugin=['prism'], not mars"),
        (["--dataset", "other"], "out was started with dataset=tiny, not other"),
        (["--epochs", "2"], "out has 3 epochs, more than 2"),
        (["--epochs", "many"], "--epochs many is no whole number"),
        (["--output_dir", "elsewhere"], "leave --output_dir out"),
        (["--baseline", "true"], "out was started without a baseline"),
        (["--nproc", "2"], "--resume goes on in one process; leave --nproc out"),
        (["--data_path", "nowhere"], "no tiny.inter in nowhere"),
    ],
    ids=lambda value: value[0].lstrip("-") if isinstance(value, list) else None,
)
def test_other_settings_are_refused(words, told, interrupted_run, command, refused):
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file() and path.name != "run.log"}
    assert told in refused(command(run_recbole.main, "--resume", "out", *words))
    assert {path: path.read_bytes() for path in before} == before


@pytest.fixture
def interrupted_run(cut):
    cut("--plugin", "prism", "--prism.scale=0.5")


def test_what_cannot_be_resumed(run_cli, command, refused, data):
    assert "nowhere is no run" in refused(command(run_recbole.main, "--resume", "nowhere"))
    assert "no run in runs" in refused(command(run_recbole.main, "--resume", "last"))


def test_the_last_run_is_resumed(run_cli, command, data):
    run_cli("--epochs", "1")
    assert "has finished" in command(run_recbole.main, "--resume", "last").out


def test_a_run_begins_from_another(run_cli, data):
    assert run_cli("--plugin", "prism", "--output_dir", "first").code == 0
    words = ("--plugin", "prism", "--learning_rate", "0", "--adapter", "first", "--warm_start", "first")
    ended = run_cli(*words, "--output_dir", "second")
    assert (ended.code, ended.err) == (0, "")
    assert "adapter: " in ended.out
    assert "warm start: " in ended.out
    assert result("second")["test_result"] == result("first")["test_result"]
