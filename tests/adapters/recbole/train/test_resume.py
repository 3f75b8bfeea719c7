"""A run that is stopped at any moment goes on, and ends as if it had not been: real processes, killed for good."""

import csv
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from recbole.trainer import Trainer
from torch import nn

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import resume, run
from recplug.adapters.recbole.state import run_directory, spec
from recplug.adapters.recbole.state.run_directory import RunDirectory
from recplug.adapters.recbole.train import job
from recplug.adapters.recbole.train.resume import latest
from recplug.plugins.errors import RecplugError
from recplug.plugins.prism import module as prism_module

SMALL = {
    "embedding_size": 8,
    "hidden_size": 8,
    "inner_size": 8,
    "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 6,
    "train_batch_size": 128,
    "epochs": 3,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "seed": 5,
    "use_gpu": False,
    "show_progress": False,
    "state": "ERROR",
}
SOURCE = {"micrec.source": "other", "micrec.warm_up": 1}
CASES = {
    "sequential": ("SASRec", "prism", {}, False),
    "three plugins": ("LightGCN", "itemgraph,magnet,prism", {}, False),
    "bands": ("SGL", "ssr", {"eval_step": 2}, False),
    "steps of its own": ("NCL", "prism", {"m_step": 2, "warm_up_step": 1, "num_clusters": 4, "eval_step": 2}, False),
    "dynamic negatives": (
        "BPR",
        "mars",
        {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "dynamic": True, "candidate_num": 2}},
        False,
    ),
    "two domains beside a baseline": ("LightGCN", "micrec", SOURCE, True),
}
SCRIPT = str(Path(__file__).with_name("killable.py"))


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """They take longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_directory, "draw", lambda panel, path: path.touch())
        yield


@pytest.fixture(scope="module")
def context():
    """Processes that have imported everything, and nothing of the tests' own."""
    found = multiprocessing.get_context("forkserver")
    models = ("sequential_recommender.sasrec", "general_recommender.lightgcn", "general_recommender.sgl")
    others = ("recplug.adapters.recbole.train.resume", "torch.utils.tensorboard", "torch._dynamo", "matplotlib.figure")
    found.set_forkserver_preload([*others, *(f"recbole.model.{name}" for name in models)])
    return found


@pytest.fixture
def begin(context, tmp_path):
    """``begin(function, arguments, **job)``: a process at work, and the file of its answer."""
    numbers = iter(range(1_000_000))

    def start(function, arguments, *, kill_at=None, full_after=None):
        answer = tmp_path / f"answer-{next(numbers)}.json"
        job = {"function": function, "arguments": arguments, "kill_at": kill_at, "full_after": full_after}
        job["answer"] = str(answer)
        process = context.Process(target=runpy.run_path, args=(SCRIPT, {"JOB": job}))
        process.start()
        return process, answer

    return start


@pytest.fixture
def go(begin):
    """``go(function, arguments, **job)``: what the process answers; None if it was killed."""

    def finish(function, arguments, **job):
        process, answer = begin(function, arguments, **job)
        process.join(240)
        assert process.exitcode in (0, -signal.SIGKILL)
        return json.loads(answer.read_text()) if process.exitcode == 0 else None

    return finish


@pytest.fixture(scope="module")
def shops(tiny, tmp_path_factory):
    """The tiny set, and another shop with the same people and other goods."""
    folder = tmp_path_factory.mktemp("shops")
    shutil.copytree(tiny / "tiny", folder / "tiny")
    (folder / "other").mkdir()
    rows = (tiny / "tiny" / "tiny.inter").read_text().splitlines()
    moved = [row.split("\t") for row in rows[1:]]
    draw = random.Random(3)
    lines = ["\t".join([user, f"o{draw.randrange(30)}", when]) for user, _, when, *_ in moved]
    (folder / "other" / "other.inter").write_text("\n".join(["\t".join(rows[0].split("\t")[:3]), *lines]) + "\n")
    for modality in ("image", "text"):
        features = torch.randn(30, 6, generator=torch.Generator().manual_seed(len(modality)))
        table = FeatureTable(features, tuple(f"o{i}" for i in range(30)), modality, {})
        table.save(folder / "other" / f"other.{modality}.safetensors")
    return folder


@pytest.fixture
def arguments(shops, tmp_path):
    def of(case, name, **more):
        model, plugins, settings, baseline = CASES[case]
        return {
            "model": model,
            "dataset": "tiny",
            "plugins": plugins,
            "config_dict": {**SMALL, **settings, **more},
            "data_path": str(shops),
            "output_dir": str(tmp_path / name),
            "baseline": baseline,
        }

    return of


def outcome(folder):
    """What a run ends with, without times: result, epochs, adapter, ranks, and files that should not be there."""
    folder = Path(folder)
    result = json.loads((folder / "result.json").read_text())
    for name in ("resumed", "seconds_per_epoch", "peak_memory_bytes", "files", "sha256"):  # metrics.csv has seconds
        result.pop(name)
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    rows = [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
    adapter = folder / "adapter.safetensors"
    stray = [path.name for path in folder.rglob(".*")]
    below = outcome(folder / "baseline") if (folder / "baseline").is_dir() else None
    tensors = adapter.read_bytes() if adapter.exists() else None
    return result, rows, tensors, (folder / "ranks.parquet").read_bytes(), stray, below


def is_done(folder):
    file = folder / "result.json"
    return file.is_file() and json.loads(file.read_text())["status"] == "finished"


def content(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.log"
    }


def finish(go, folder):
    """Resume until it is done, however often that is killed."""
    while not is_done(folder):
        answer = go("resume", {"run_dir": str(folder)})
        assert answer is None or "events" in answer, answer


@pytest.mark.parametrize("case", CASES)
def test_killed_anywhere_and_resumed_it_ends_the_same(case, go, arguments, tmp_path):
    events = go("run", arguments(case, "whole"))["events"]
    whole = outcome(tmp_path / "whole")
    assert whole[0]["status"] == "finished"
    at = random.Random(case).randrange(events // 3, events)
    killed = arguments(case, "killed")
    assert go("run", killed, kill_at=at) is None
    finish(go, tmp_path / "killed")
    assert outcome(tmp_path / "killed") == whole, f"killed at {at} of {events}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_many_moments_and_again_while_it_resumes(case, go, arguments, tmp_path):
    events = go("run", arguments(case, "whole"))["events"]
    whole, draw = outcome(tmp_path / "whole"), random.Random(case)
    for trial, at in enumerate(sorted(draw.sample(range(3, events), 8))):  # after config.yaml has taken its place
        assert go("run", arguments(case, f"killed-{trial}"), kill_at=at) is None
        folder = tmp_path / f"killed-{trial}"
        go("resume", {"run_dir": str(folder)}, kill_at=draw.randrange(1, events))
        finish(go, folder)
        assert outcome(folder) == whole, f"killed at {at} of {events}"


@pytest.mark.slow
def test_twenty_random_kills(begin, go, arguments, tmp_path):
    """By the clock, not by what the process is doing; each time another run, and what goes on with it is killed too."""
    case, begun = "two domains beside a baseline", time.monotonic()
    go("run", arguments(case, "whole"))
    seconds, whole = time.monotonic() - begun, outcome(tmp_path / "whole")
    draw, kills = random.Random(20), 0
    while kills < 20:
        killed = arguments(case, f"killed-{kills}")
        folder, process = Path(killed["output_dir"]), begin("run", killed)[0]
        process.join(draw.uniform(0, seconds))
        kills += process.is_alive()
        process.kill()
        process.join()
        if not (folder / "config.yaml").is_file():  # killed before it had read its data
            with pytest.raises(RecplugError, match="start it anew"):
                resume(folder)
            continue
        while not is_done(folder):
            process = begin("resume", {"run_dir": str(folder)})[0]
            process.join(draw.uniform(0, 2 * seconds))
            kills += process.is_alive()
            process.kill()
            process.join()
        assert outcome(folder) == whole


# -- one run that was interrupted in its third epoch, and what may be wrong with it afterwards


@pytest.fixture(scope="module")
def cut(shops, tmp_path_factory):
    """(an interrupted run of three epochs, the log of its interruption), not to be changed."""
    folder, told = tmp_path_factory.mktemp("cut") / "run", []
    train = Trainer._train_epoch

    def interrupted(self, data, epoch, *args, **kwargs):
        if epoch == 2:
            raise KeyboardInterrupt
        return train(self, data, epoch, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", interrupted)
        patch.setattr(job.log, "info", lambda line, *args: told.append(line % args if args else line))
        with pytest.raises(KeyboardInterrupt):
            run("SASRec", "tiny", "prism", SMALL, data_path=shops, output_dir=folder)
    return folder, told


@pytest.fixture
def again(cut, shops, tmp_path):
    """A copy of that run, with a copy of its data."""
    shutil.copytree(shops, tmp_path / "data")
    shutil.copytree(cut[0], tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace(str(shops), str(tmp_path / "data")))
    return tmp_path / "run"


def refused(folder, match, **more):
    """The run is refused in one line, and stays as it was."""
    before = content(folder)
    with pytest.raises(RecplugError, match=match) as failure:
        resume(folder, **more)
    assert "\n" not in str(failure.value)
    assert content(folder) == before


def test_an_interruption_says_how_to_go_on(cut):
    folder, told = cut
    assert f"go on after epoch 1 with: run_recbole --resume {folder}" in told
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["checkpoint"]) == ("interrupted", "checkpoint.pth")
    assert [path.name for path in folder.rglob(".*")] == [".recplug-run"]


def test_a_longer_run_is_a_finished_one_that_goes_on(again, shops, tmp_path):
    whole = run("SASRec", "tiny", "prism", {**SMALL, "epochs": 4}, data_path=shops, output_dir=tmp_path / "whole")
    resume(again)
    refused(again, r"has finished; .* more epochs \(--epochs N\)")
    refused(again, "has 3 epochs, more than 2", epochs=2)
    longer = resume(again, epochs=4)
    assert longer.result["resumed"] == 2
    assert "epochs: 4  # given with --resume" in (again / "config.yaml").read_text()
    found, wanted = outcome(again), outcome(tmp_path / "whole")
    assert found[1:] == wanted[1:]
    assert longer.test_result == whole.test_result
    assert [row["epoch"] for row in found[1]] == ["0", "1", "2", "3"]


def test_a_run_that_ended_by_itself_has_no_more_epochs(shops, tmp_path):
    worse = {**SMALL, "learning_rate": 0.0, "stopping_step": 0, "epochs": 9, "valid_metric_bigger": True}
    folder = tmp_path / "run"
    run("SASRec", "tiny", [], {**worse, "learning_rate": 0.3}, data_path=shops, output_dir=folder)
    assert json.loads((folder / "result.json").read_text())["epochs"] < 9, "it has to stop early for this test"
    refused(folder, "ended by itself after .* a higher stopping_step", epochs=12)


def test_whatever_belongs_to_another_run_is_refused(again, tmp_path):
    file = again / "config.yaml"
    right = file.read_text()
    file.write_text(right.replace("learning_rate: 0.001", "learning_rate: 0.01"))
    refused(again, "says learning_rate: 0.01, and the run was trained with 0.001; put it back")
    file.write_text(right.replace("  scale: ", "  scale: 0.25 # "))
    refused(again, "says prism.scale: 0.25, and the run was trained with 1.0; put it back")
    file.write_text(right)
    for name, told in (("text", "the feature table text is not the one"), ("tokens", "the data are not those")):
        kept = {path: path.read_bytes() for path in (tmp_path / "data" / "tiny").iterdir()}
        if name == "tokens":
            inter = tmp_path / "data" / "tiny" / "tiny.inter"
            inter.write_text(inter.read_text().replace("\ti3\t", "\ti4\t", 1))
        else:
            table = FeatureTable.load(tmp_path / "data" / "tiny" / "tiny.text.safetensors")
            FeatureTable(table.features * 2, table.tokens, "text", {}).save(
                tmp_path / "data" / "tiny" / "tiny.text.safetensors"
            )
        refused(again, told)
        for path, bytes_ in kept.items():
            path.write_bytes(bytes_)
    assert resume(again).result["resumed"] == 1, "as it was, it goes on"


@pytest.mark.parametrize("what", ["plugins", "versions"])
def test_another_version_is_refused(what, again, monkeypatch):
    if what == "plugins":
        monkeypatch.setattr(spec, "plugin_versions", lambda names: dict.fromkeys(names, "recplug 99"))
        refused(again, "with the plugin prism recplug .* and this is recplug 99; install that version")
    else:
        found = {**spec.versions(), "recplug": "99"}
        monkeypatch.setattr(job, "versions", lambda: found)
        refused(again, "was trained with recplug .*, and this is 99; install that version")


@pytest.mark.parametrize("name", ["resume.pth", "checkpoint.pth", "result.json"])
@pytest.mark.parametrize("how", ["truncated", "empty", "another"])
def test_a_damaged_file_is_one_line(name, how, again):
    whole = (again / name).read_bytes()
    (again / name).write_bytes(
        {"truncated": whole[: len(whole) // 2], "empty": b"", "another": b"PK\x03\x04" * 50}[how]
    )
    line = {"checkpoint.pth": "is not the checkpoint that the run's state names", "result.json": "cannot read"}
    refused(again, line.get(name, "cannot read .*resume.pth"))


@pytest.mark.parametrize("lines", [0, 20])
def test_a_configuration_that_is_not_whole_is_one_line(lines, again):
    file = again / "config.yaml"
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole[:lines]))
    refused(again, "config.yaml lacks model, as one that was not copied whole; copy the run again")


def test_a_state_runs_nothing_when_it_is_read(again, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"format": 1, "epoch": Harmful()}, again / "resume.pth")
    refused(again, "cannot read .*resume.pth")
    assert not (tmp_path / "harm").exists()


def test_a_checkpoint_of_another_run_is_refused(again, cut, tmp_path):
    stored = torch.load(cut[0] / "checkpoint.pth", weights_only=False)
    torch.save(stored, again / "checkpoint.pth")  # the same numbers, but not the file
    refused(again, "is not the checkpoint that the run's state names")


def test_a_run_without_state_is_not_overwritten(again):
    (again / "resume.pth").unlink()
    refused(again, "has a checkpoint, but not the state to go on from .* --warm_start")


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    refused(tmp_path, "is no run; start it anew, and name a directory that run_recbole has left")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_only_one_process_is_at_work_on_a_run(again):
    with RunDirectory(again).held():
        refused(again, "another process is at work on")
    resume(again)


def test_a_run_that_is_not_resumable_writes_no_state(shops, tmp_path):
    folder = tmp_path / "run"
    settings = {**SMALL, "resumable": False, "epochs": 1}
    run("SASRec", "tiny", "prism", settings, data_path=shops, output_dir=folder)
    assert (folder / "checkpoint.pth").is_file()
    assert not (folder / "resume.pth").exists()


def test_a_full_disk_is_one_line_and_what_is_whole_is_kept(go, arguments, tmp_path):
    go("run", arguments("sequential", "whole"))
    told = go("run", arguments("sequential", "full"), full_after=1)
    folder = tmp_path / "full"
    assert told["kind"] == "RecplugError"
    assert f"cannot write to {folder} (File too large)" in told["error"]
    assert f"run_recbole --resume {folder}" in told["error"]
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    assert [path.name for path in folder.rglob(".*")] == [".recplug-run"]
    finish(go, folder)
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_the_latest_run_is_found(again, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecplugError, match="no run in runs"):
        latest()
    for number, name in enumerate(("new", "old", "newest")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        for file in ("run.log", "config.yaml"):
            (tmp_path / "runs" / name / file).touch()
        os.utime(tmp_path / "runs" / name / "run.log", (number, number))
    os.utime(tmp_path / "runs" / "new" / "run.log", (9, 9))
    assert latest() == Path("runs/new")


class Hoarder(nn.Module):
    """A part of somebody's plugin that saves what no weights file may hold."""

    def get_extra_state(self):
        return {"path": Path("somewhere")}

    def set_extra_state(self, state):
        pass


def test_a_plugin_whose_state_cannot_be_read_back_is_told_at_once(shops, tmp_path, monkeypatch, caplog):
    made = prism_module.Prism.__init__

    def with_a_hoarder(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.hoarder = Hoarder()

    monkeypatch.setattr(prism_module.Prism, "__init__", with_a_hoarder)
    with caplog.at_level("WARNING", logger="recplug"):
        run("SASRec", "tiny", "prism", {**SMALL, "epochs": 2}, data_path=shops, output_dir=tmp_path / "run")
    told = [line for line in caplog.messages if "cannot be resumed" in line]
    assert len(told) == 1
    assert "pathlib" in told[0]
    assert not (tmp_path / "run" / "resume.pth").exists()
    assert (tmp_path / "run" / "checkpoint.pth").is_file()
