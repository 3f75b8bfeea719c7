"""A study of stand-ins: it goes on after anything, several share it, and validation alone chooses."""

import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from recplug.adapters.tune import results, tune
from recplug.adapters.tune import worker as tune_worker
from recplug.adapters.tune.spec import remembered
from recplug.adapters.tune.study import Study
from recplug.plugins.errors import RecplugError

WORKER = str(Path(__file__).with_name("worker.py"))


def rows(found):
    """What a search has tried, whatever the trials' numbers."""
    keys = ("state", "score", "prism.scale", "prism.candidates", "hidden_dropout_prob")
    return [tuple(row[key] for key in keys) for row in found.trials]


@pytest.fixture(scope="module")
def worker():
    """``worker(search, trials, ...)``: one in a process of its own, which has imported everything before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["recplug.adapters.tune", "recplug.adapters.recbole", "optuna.samplers._tpe.sampler", "sqlalchemy",
         "recbole.model.sequential_recommender.sasrec", "recplug.plugins.prism.plugin"]
    )  # fmt: skip

    def begin(search, trials, **options):
        process = context.Process(
            target=runpy.run_path,
            args=(WORKER, {"GIVEN": (str(search.output), str(search.behaviours), trials, options)}),
        )
        process.start()
        return process

    return begin


def until(there):
    end = time.monotonic() + 120
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_first_trial_has_the_defaults_and_the_best_is_the_best_validation(search):
    found = search(8)
    assert len(found.trials) == 8
    first = found.trials[0]
    assert (first["prism.scale"], first["prism.candidates"], first["hidden_dropout_prob"]) == (1.0, "fused", 0.5)
    assert found.best["score"] == max(row["score"] for row in found.trials)
    written = yaml.safe_load((search.output / "best.yaml").read_text())
    assert written["model"] == "SASRec"
    assert written["plugin"] == "prism"
    assert written["prism.scale"] == found.best["prism.scale"]
    table = pq.read_table(search.output / "trials.parquet").to_pylist()
    assert [row["score"] for row in table] == [row["score"] for row in found.trials]
    # The score does not depend on dropout, and on the scale most.
    assert max(found.importance, key=found.importance.get) == "prism.scale"
    assert "| `prism.scale` |" in (search.output / "table.md").read_text()


def test_only_the_best_keeps_its_checkpoint_unless_asked(searches):
    one, other = searches("one"), searches("other")
    found = one(4)
    assert [int(p.parent.name) for p in one.output.glob("trials/*/checkpoint.pth")] == [found.best["number"]]
    other(4, keep_checkpoints=True)
    assert len(list(other.output.glob("trials/*/checkpoint.pth"))) == 4


def test_going_on_equals_one_search(searches):
    whole, parts = searches("whole"), searches("parts")
    expected = rows(whole(9))
    assert len({row[2] for row in expected}) > 5
    parts(2)
    parts(5)
    assert rows(parts(9)) == expected
    assert rows(tune(output=parts.output, trials=9, command=parts.command, final_seeds=0)) == expected
    assert len(parts.begun()) == 9
    other = searches("other")
    assert rows(other(9, seed=1)) != expected


def test_a_killed_worker_costs_one_trial_which_is_tried_again(searches, worker):
    whole, killed = searches("whole"), searches("killed")
    expected = rows(whole(5))
    killed.behave(2, "hang")
    process = worker(killed, 5)
    until(lambda: (killed.behaviours / "2.hangs").exists())
    process.kill()
    process.join()
    child = int((killed.behaviours / "2.hangs").read_text())
    # The child is alive and holds the trial: nobody takes it for lost.
    study = Study(killed.output, remembered(killed.output))
    assert study.running() == [2]
    os.kill(child, signal.SIGKILL)
    until(lambda: study.running() == [])
    found = killed(5)
    assert rows(found) == expected
    assert [row["number"] for row in found.trials] == [0, 1, 3, 4, 5]


def test_a_stopped_worker_gives_its_trial_back_and_leaves_nobody(searches, worker):
    whole, stopped = searches("whole"), searches("stopped")
    expected = rows(whole(4))
    stopped.behave(1, "hang")
    process = worker(stopped, 4)
    until(lambda: (stopped.behaviours / "1.hangs").exists())
    process.terminate()
    process.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((stopped.behaviours / "1.hangs").read_text()), 0)
    assert (stopped.output / "table.md").is_file()
    assert rows(stopped(4)) == expected


@pytest.mark.parametrize("storage", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_two_workers_share_a_study(search, storage, worker):
    options = {} if storage == "journal" else {"study": str(search.output.parent / "study.db")}
    search.output.mkdir()
    both = [worker(search, 8, **options) for _ in range(2)]
    for each in both:
        each.join()
    assert [each.exitcode for each in both] == [0, 0]
    assert sorted(search.begun()) == list(range(8))
    found = search(8)
    assert [row["state"] for row in found.trials] == ["complete"] * 8
    assert len(search.begun()) == 8


def test_a_trial_that_fails_is_told_and_the_others_go_on(search):
    search.behave(1, "wrong")
    search.behave(2, "kill")
    found = search(4)
    assert [row["state"] for row in found.trials] == ["complete", "failed", "failed", "complete"]
    assert found.trials[1]["error"] == "no such thing; do another"
    assert found.trials[2]["error"].startswith("killed by SIGKILL")


def test_a_search_in_which_everything_fails_ends(search):
    for number in range(5):
        search.behave(number, "wrong")
    with pytest.raises(RecplugError, match="first 3 trials failed, the last with: no such thing"):
        search(5)
    assert search.begun() == [0, 1, 2]


def test_the_median_prunes_what_is_worse_half_way(search):
    found = search(20, pruner="median", sampler="random")
    pruned = [row for row in found.trials if row["state"] == "pruned"]
    finished = [row for row in found.trials if row["state"] == "complete"]
    assert pruned
    assert len(finished) >= 5
    assert all(json.loads((search.output / "trials" / str(r["number"]) / "result.json").read_text())["status"]
               == "pruned" for r in pruned)  # fmt: skip
    assert all(row["epochs"] < 4 for row in pruned)
    # Nothing better than the best was thrown away: the score of an epoch is a share of the last one's.
    last = {row["number"]: row["score"] * 4 / row["epochs"] for row in pruned}
    assert max(last.values()) < found.best["score"]


def test_the_best_is_tested_once_at_the_end_and_not_before(search):
    assert search(2, final_seeds=2, timeout=0).tests == {}
    found = search(4, final_seeds=2)
    assert found.tests == {1: {"ndcg@10": 0.1}, 2: {"ndcg@10": 0.2}}
    again = search(4, final_seeds=3)
    assert again.tests[3] == {"ndcg@10": pytest.approx(0.3)}
    folder = search.output / "final" / f"trial-{found.best['number']}"
    assert (folder / "tested.txt").read_text().split() == ["1", "2", "3"]
    assert "| mean ± sd | 0.2000 ± 0.1000 |" in (search.output / "table.md").read_text()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dataset": "amazon-scientific-full"}, "another dataset"),
        ({"fixed": {"epochs": 3}}, "another fixed"),
        ({"space": ["prism.scale"]}, "another space"),
        ({"study": "elsewhere.db"}, "leave --study out"),
    ],
    ids=["dataset", "fixed", "space", "study"],
)
def test_another_search_is_refused(search, options, why):
    search(1)
    with pytest.raises(RecplugError, match=why):
        search(2, **options)
    assert search.begun() == [0]


def test_a_study_of_another_folder_is_refused(searches, tmp_path):
    one, other = searches("one"), searches("other")
    one(1, study=tmp_path / "study.db")
    with pytest.raises(RecplugError, match="another folder"):
        other(1, study=tmp_path / "study.db")
    assert other.begun() == []


def test_what_cannot_be_a_study_is_one_line(search, tmp_path):
    (tmp_path / "study.db").write_text("no data base")
    with pytest.raises(RecplugError, match="holds no study") as caught:
        search(1, study=tmp_path / "study.db")
    assert "\n" not in str(caught.value)


def test_three_kills_of_a_worker_count_as_a_failure(search, asked):
    """Parameters that take the worker down with them are not tried for ever."""
    from recplug.adapters.tune.spec import remember

    search.output.mkdir()
    study = Study(search.output, remember(search.output, asked))
    tried = []
    for _ in range(3):
        taken = study.take(1)
        tried.append(dict(taken.trial.params))
        os.close(taken.lock)  # as the end of a process does
    assert study.take(1) is None
    assert tried[0] == tried[1] == tried[2]
    assert [row["state"] for row in results.collect(study).trials] == ["failed"]


def test_a_path_that_run_recbole_could_not_read_is_refused_before_any_trial(tmp_path):
    with pytest.raises(RecplugError, match="has a space in it"):
        tune("SASRec", "prism", output=tmp_path / "a b")
    assert not (tmp_path / "a b").exists()


def test_optuna_is_named_where_it_is_missing(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecplugError, match=r"needs optuna; pip install 'recplug\[tune\]'"):
        search(1)


def test_the_default_command_trains_what_was_drawn(asked, tmp_path):
    words = tune_worker.train(asked, tmp_path)(tune_worker.Trial(3, {"prism.scale": 0.2}, tmp_path / "3"), 7)
    about = json.loads(words[-2])
    assert words[-1] == "7"
    assert (about["model"], about["plugins"], about["values"]) == ("SASRec", ["prism"], {"prism.scale": 0.2})
