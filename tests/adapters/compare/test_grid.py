"""The grid: stopped, killed, resumed and grown; what validation chooses; what a control is."""

import errno
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from recplug.adapters import files as files_room
from recplug.adapters.compare import compare, show
from recplug.adapters.compare.cells.plan import Cell, ready, rows, total
from recplug.adapters.compare.cells.status import Outcome
from recplug.adapters.compare.cells.workers import run_recbole
from recplug.adapters.compare.controls import CONTROLS, overrides
from recplug.adapters.compare.spec import ask, parse_grid
from recplug.adapters.compare.statistics import paired
from recplug.plugins import available
from recplug.plugins.errors import RecplugError
from recplug.plugins.settings import loss_weights

SCIENTIFIC = "amazon-scientific_SASRec"


def files(output):
    """Every file below, by its path, but for the lock."""
    paths = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def in_a_group(target, *arguments, **options):
    """A process that leads a group of its own, with everything imported already."""

    def lead():
        os.setsid()
        target(*arguments, **options)

    process = multiprocessing.get_context("fork").Process(target=lead)
    process.start()
    return process


def killed_group(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_killed_twice_and_resumed_equals_the_uninterrupted_grid(standin, tmp_path):
    options = {"plugins": "prism,prism+mars", "grid": {"prism.scale": ["0.3", "1.0"]}, "jobs": 2}
    standin.compare(tmp_path / "whole", **options)
    begun = len(standin.begun())
    assert begun == 2 * (1 + 2 * (2 + 3))  # bare, and two sets of plugins: two settings and three controls each

    stops = [f"{SCIENTIFIC}_prism (prism.scale=1.0)_2", f"{SCIENTIFIC}_prism+mars (mlp)_1"]
    for name in stops:
        standin.behave(name, "hang")
    for name in stops:  # the second is a control, of which only the second life knows
        process = in_a_group(standin.compare, tmp_path / "cut", **options)
        until((standin.folder / f"{name}.hangs").exists)
        killed_group(process)
    standin.compare(tmp_path / "cut", **options)

    whole, cut = files(tmp_path / "whole"), files(tmp_path / "cut")
    logs = {path for path in whole if path.startswith("logs/")}  # these name the folder
    assert whole.keys() == cut.keys()
    assert {path for path in whole.keys() - logs if whole[path] != cut[path]} == set()
    # Each life loses at most the two cells that were at work.
    assert len(standin.begun()) - begun <= begun + 2 * 2


def test_a_cell_that_outlives_its_comparison_keeps_others_out(standin, tmp_path):
    name = f"{SCIENTIFIC}_bare_1"
    standin.behave(name, "hang")
    process = in_a_group(standin.compare, tmp_path / "out", controls="none")
    until((standin.folder / f"{name}.hangs").exists)
    os.kill(process.pid, signal.SIGKILL)  # it alone
    process.join(60)
    with pytest.raises(RecplugError, match="in use by another recplug compare, or by a cell"):
        standin.compare(tmp_path / "out", controls="none")
    os.killpg(process.pid, signal.SIGKILL)
    # The cell is init's child now; its lock goes with it.
    until(lambda: not _locked(tmp_path / "out"))
    assert standin.compare(tmp_path / "out", controls="none").tests


def test_a_second_comparison_that_is_kept_out_changes_nothing(standin, tmp_path):
    name = f"{SCIENTIFIC}_bare_1"
    standin.behave(name, "hang")
    process = in_a_group(standin.compare, tmp_path / "out", controls="none")
    until((standin.folder / f"{name}.hangs").exists)
    before = (tmp_path / "out" / "grid.yaml").read_bytes()
    with pytest.raises(RecplugError, match="in use"):
        standin.compare(tmp_path / "out", controls="none", seeds=7)
    assert (tmp_path / "out" / "grid.yaml").read_bytes() == before
    killed_group(process)


def test_a_damaged_ranking_loses_its_tests_alone(standin, tmp_path):
    standin.compare(tmp_path / "out", "prism,mars", controls="none", seeds=1)
    cell = next((tmp_path / "out" / "cells").glob("SASRec-prism-*"))
    file = cell / "ranks.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    found = show(tmp_path / "out", groups=False)
    problems = {"+".join(test.variant.plugins): test.problem for test in found.tests}
    assert "ranks.parquet is damaged" in problems["prism"]
    assert f"delete {cell}" in problems["prism"]
    assert problems["mars"] == ""


@pytest.mark.parametrize("where", ["a file", "below a file", "full"])
def test_a_folder_that_cannot_be_written_is_told_in_a_line(standin, tmp_path, monkeypatch, where):
    (tmp_path / "file").touch()
    output = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "out"}.get(where, tmp_path / "out")
    if where == "full":

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output / "table.md"))

        monkeypatch.setattr(files_room.os, "replace", full)
    with pytest.raises(RecplugError, match=r"cannot (write|read) .*choose another --output") as raised:
        standin.compare(output, controls="none", seeds=1)
    assert "\n" not in str(raised.value)


def _locked(output):
    import fcntl

    with (output / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_sigterm_ends_the_cells_too_and_counts_as_no_failure(standin, tmp_path):
    name = f"{SCIENTIFIC}_prism_1"
    standin.behave(name, "hang")
    process = in_a_group(standin.compare, tmp_path / "out", controls="none")
    until((standin.folder / f"{name}.hangs").exists)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode not in (None, 0)
    assert not _locked(tmp_path / "out")  # which the cell had held
    assert not (tmp_path / "out" / "failed").exists()
    found = standin.compare(tmp_path / "out", controls="none")
    assert set(found.table()["status"].to_pylist()) == {"finished"}


def test_failures_lose_one_cell_each_and_are_tried_again_on_request(standin, tmp_path):
    names = [f"{SCIENTIFIC}_{kind}" for kind in ("prism_1", "bare_2", "mars_2")]
    for name, does in zip(names, ("wrong", "kill", "crash"), strict=True):
        standin.behave(name, does)
    found = standin.compare(tmp_path / "out", plugins="prism,mars", controls="none")
    rows = {(row["plugins"], row["seed"]): row for row in found.table().to_pylist()}
    assert {place for place, row in rows.items() if row["status"] == "failed"} == {
        ("prism", 1),
        ("none", 2),
        ("mars", 2),
    }
    assert rows["prism", 1]["error"] == "no such thing; do another"
    assert rows["none", 2]["error"] == "killed by SIGKILL, maybe for want of memory"
    assert rows["mars", 2]["error"] == "ended with code 139: Segmentation something"
    assert "no such thing; do another" in found.to_markdown()
    assert {test.variant.plugins: test.seeds for test in found.tests} == {("prism",): 0, ("mars",): 1}
    assert found.tests[0].problem == "no seed in common"

    before = len(standin.begun())
    standin.compare(tmp_path / "out", plugins="prism,mars", controls="none")
    assert len(standin.begun()) == before  # neither the finished nor the failed ones
    for name in names:
        (standin.folder / f"{name}.behaviour").unlink()
    again = standin.compare(tmp_path / "out", plugins="prism,mars", controls="none", retry=True)
    assert sorted(standin.begun()[before:]) == sorted(names)
    assert set(again.table()["status"].to_pylist()) == {"finished"}


def test_where_nothing_finishes_the_tables_say_why(standin, tmp_path):
    for kind in ("bare_1", "prism_1"):
        standin.behave(f"{SCIENTIFIC}_{kind}", "wrong")
    found = standin.compare(tmp_path / "out", seeds=1, controls="mlp,shuffled,no_losses")
    assert (found.best(), found.tests, found.groups) == ([], [], [])
    assert found.to_markdown().count("no such thing; do another") == 2
    assert "waits until what it controls has finished" in found.to_markdown()
    assert show(tmp_path / "out").to_html() == found.to_html()
    assert pq.read_table(tmp_path / "out" / "results.parquet")["status"].to_pylist() == ["failed"] * 2


def test_two_at_once(standin, tmp_path):
    one, other = f"{SCIENTIFIC}_bare_1", f"{SCIENTIFIC}_prism_1"
    standin.behave(one, f"meet {other}")
    standin.behave(other, f"meet {one}")  # neither ends before the other has begun
    found = standin.compare(tmp_path / "out", controls="none", seeds=1, jobs=2)
    assert found.tests[0].seeds == 1


def test_a_comparison_grows_and_trains_only_what_is_new(standin, tmp_path):
    standin.compare(tmp_path / "out", controls="shuffled")
    first = len(standin.begun())
    assert first == 2 * 3
    standin.compare(tmp_path / "out", plugins="mars,prism", controls="shuffled,no_losses", seeds=3)
    assert len(standin.begun()) == 3 * (1 + 3 + 3)
    assert len(set(standin.begun())) == len(standin.begun())
    # Alone, the folder's name goes on with what there is.
    compare(output=tmp_path / "out", command=standin.command, groups=False)
    assert len(standin.begun()) == 21
    for options, match in (
        ({"plugins": "prism", "controls": "shuffled,no_losses", "seeds": 3}, "holds --plugins mars too"),
        ({"plugins": "prism,mars", "controls": "shuffled,no_losses"}, "holds --seeds 3 too"),
        ({"plugins": "prism,mars", "seeds": 3, "controls": "none"}, "--controls shuffled"),
        ({"plugins": "prism,mars", "seeds": 3, "settings": {"epochs": 3}}, r"other settings \(epochs\)"),
        ({"plugins": "prism,mars", "seeds": 3, "grid": {"prism.scale": [1, 2]}}, "begun without --grid prism.scale"),
    ):
        with pytest.raises(RecplugError, match=match):
            standin.compare(tmp_path / "out", **options)
    assert len(standin.begun()) == 21


def test_validation_chooses_and_the_test_of_the_others_stays_unseen(standin, tmp_path):
    # The test set prefers 0.3 by far; validation prefers 1.0.
    standin.strength |= {"prism (prism.scale=0.3)": 1.5, "prism (prism.scale=1.0)": 0.4}
    standin.validation = {"prism (prism.scale=0.3)": 0.111, "prism (prism.scale=1.0)": 0.222, "bare": 0.1}
    found = standin.compare(tmp_path / "out", grid={"prism.scale": ["0.3", "1.0"]}, controls="no_losses,mlp")
    best = found.best()[0]
    assert (best["plugins"], best["settings"], best["valid"]) == ("prism", {"prism.scale": "1.0"}, pytest.approx(0.222))
    variant = found.tests[0].variant
    assert variant.choice == (("prism.scale", "1.0"),)
    hidden = {f"{json.loads(path.read_text())['test_result']['ndcg@10']:.4f}" for path in
              standin.folder.glob("*scale=0.3)_*/result.json")}  # fmt: skip
    mean = np.mean([json.loads(path.read_text())["test_result"]["ndcg@10"] for path in
                    standin.folder.glob("*prism (prism.scale=0.3)_*/result.json")])  # fmt: skip
    shown = found.to_markdown() + found.to_latex() + found.to_html()
    assert f"{mean:.4f}" not in shown
    assert not [number for number in hidden if number in shown]
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {row["grid"] for row in rows if row["test/ndcg@10"] is None} == {'{"prism.scale": "0.3"}'}
    # Controls have the chosen settings; the MLP has none of prism's, and prism's size.
    kinds = {(cell.control, cell.choice, cell.parameters) for cell in standin.cells.values() if cell.control}
    assert kinds == {("no_losses", (("prism.scale", "1.0"),), None), ("mlp", (), 5500)}


def test_settings_whose_seeds_failed_are_not_chosen_before_whole_ones(standin, tmp_path):
    standin.validation = {"prism (prism.scale=0.3)": 0.9, "prism (prism.scale=1.0)": 0.2}
    standin.behave(f"{SCIENTIFIC}_prism (prism.scale=0.3)_2", "wrong")
    found = standin.compare(tmp_path / "out", grid={"prism.scale": ["0.3", "1.0"]}, controls="none")
    assert found.tests[0].variant.choice == (("prism.scale", "1.0"),)


def test_the_mlp_reads_the_content_that_validation_chose(standin, tmp_path):
    grid = {"features.text": ["one", "two"], "prism.scale": ["0.5"], "learning_rate": ["0.01"]}
    standin.validation["prism (features.text=two, learning_rate=0.01, prism.scale=0.5)"] = 0.9
    found = standin.compare(tmp_path / "out", grid=grid, controls="mlp", seeds=1)
    assert [dict(v.choice) for v in found.variants() if v.control == "mlp"] == [
        {"features.text": "two", "learning_rate": "0.01"}
    ]


def test_the_backbones_own_settings_are_chosen_for_it_too(standin, tmp_path):
    standin.validation = {"bare (learning_rate=0.01)": 0.5, "prism (learning_rate=0.001)": 0.6}
    grid = {"learning_rate": [0.001, 0.01]}
    found = standin.compare(tmp_path / "out", grid=grid, controls="mlp", seeds=1)
    chosen = {variant.plugins: dict(variant.choice) for variant in found.variants() if not variant.control}
    assert chosen == {(): {"learning_rate": "0.01"}, ("prism",): {"learning_rate": "0.001"}}
    assert [dict(v.choice) for v in found.variants() if v.control] == [{"learning_rate": "0.001"}]


def test_what_is_there_is_shown_before_everything_is(standin, tmp_path):
    name = f"{SCIENTIFIC}_prism_2"
    standin.behave(name, "hang")
    process = in_a_group(standin.compare, tmp_path / "out")
    until((standin.folder / f"{name}.hangs").exists)
    found = show(tmp_path / "out", groups=False)
    assert [(test.against, test.seeds) for test in found.tests] == [("bare", 1)]
    killed_group(process)
    with pytest.raises(RecplugError, match="holds no comparison"):
        show(tmp_path / "elsewhere")


# -- numbers


def test_the_table_says_what_the_ranks_say(standin, tmp_path):
    found = standin.compare(tmp_path / "out", plugins="prism", controls="shuffled", seeds=3)
    test = found.tests[0]

    def ndcg(kind):
        return [(ranks <= 10) / np.log2(ranks + 1.0) for ranks in (standin.ranks(kind, seed) for seed in (1, 2, 3))]

    ours, theirs = np.mean(ndcg("prism"), axis=0), np.mean(ndcg("bare"), axis=0)
    assert (test.against, test.seeds, test.pairs.users) == ("bare", 3, 120)
    assert (test.pairs.ours, test.pairs.theirs) == (pytest.approx(ours.mean()), pytest.approx(theirs.mean()))
    assert test.pairs.p == pytest.approx(paired(ours, theirs).p)
    assert test.won == sum(a.mean() > b.mean() for a, b in zip(ndcg("prism"), ndcg("bare"), strict=True))
    second = found.tests[1]
    raw = sorted((test.pairs.p, second.pairs.p))
    assert sorted((test.holm, second.holm)) == pytest.approx([min(1, 2 * raw[0]), max(min(1, 2 * raw[0]), raw[1])])
    assert f"{100 * test.pairs.gain:+.1f} %" in found.to_markdown()
    cost = next(line for line in found.to_markdown().splitlines() if "| 1.25 | 1.25 |" in line)
    assert "| 1,100 | 1.10 | 100,000 | 5,500 |" in cost


def test_random_splits_average_a_user_over_the_seeds_that_test_it(standin, tmp_path):
    users = standin.users
    template = standin.template

    def other_users(cell):  # another half of the users with each seed
        standin.users = [f"{user}-{cell.seed}" if place % 2 else user for place, user in enumerate(users)]
        standin.fingerprint = str(cell.seed) * 64
        return template(cell)

    standin.template = other_users
    test = standin.compare(tmp_path / "out", controls="none").tests[0]
    assert test.pairs.users == 60 + 2 * 60


def test_cells_of_other_data_are_not_compared(standin, tmp_path):
    standin.compare(tmp_path / "out", controls="none", seeds=1)
    standin.fingerprint = "0" * 64  # the files have changed
    found = standin.compare(tmp_path / "out", controls="none", seeds=1, plugins="prism,mars")
    assert [test.problem[:27] for test in found.tests] == ["", "the two saw other data; run"]
    assert "the two saw other data" in found.to_markdown()


# -- controls


@pytest.mark.parametrize("name", sorted(available()))
def test_no_losses_sets_every_declared_weight_to_zero(name):
    found = overrides("no_losses", [name], None)
    assert found == {f"{name}.{key}": "0.0" for key in loss_weights(available()[name].settings)}
    assert found or name in CONTROLS


def test_a_plugin_as_a_control_is_trained_once_for_all_that_it_controls():
    asked = ask("LightGCN,SASRec", "ssr,mars,itemgraph", "d", seeds=2, controls="itemgraph", grid={"epochs": [3]})
    cells = ready(asked, {})
    assert len(cells) == len({cell.key for cell in cells}) == total(asked, {}) == 2 * (4 + 4)
    controls = {(v.model, v.plugins): v for _, _, found in rows(asked, {}) for v in found}
    assert set(controls) == {("LightGCN", ("ssr",)), ("LightGCN", ("mars",))}  # it has no sequential hosts
    assert {c.key for v in controls.values() for c in v.cells} < {cell.key for cell in cells}
    (word,) = {w for v in controls.values() for c in v.cells for w in c.arguments() if w.startswith("--plugin")}
    assert word == "--plugin=itemgraph"


def test_the_filter_alone_controls_every_host_and_the_filter_beside_one():
    asked = ask("LightGCN,SASRec", "ssr,filter", "d", seeds=1, controls="filter")
    controls = [v for _, _, found in rows(asked, {}) for v in found]
    assert [(v.model, v.plugins) for v in controls] == [
        (m, (p,)) for m in ("LightGCN", "SASRec") for p in ("ssr", "filter")
    ]
    cells = ready(asked, {})
    alone = {cell.model: cell.arguments() for cell in cells if "--filter.alone=true" in cell.arguments()}
    assert {model: "--plugin=filter" in words for model, words in alone.items()} == {"LightGCN": True, "SASRec": True}
    assert len(cells) == total(asked, {}) == 2 * (3 + 1)


def test_what_a_cell_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = run_recbole(ask("SASRec", "prism", "food-small", settings={"epochs": 1}), tmp_path / "out")

    def words(control="", plugins=("prism", "mars"), parameters=None, choice=(("prism.scale", "0.3"),)):
        cell = Cell("food-small", "SASRec", plugins, choice, 4, control, parameters)
        return command(cell, tmp_path / "out" / "cells" / "x")

    shared = {"--model=SASRec", "--dataset=food-small", "--seed=4", "--config_files=out/settings.yaml"}
    for found in (words(), words("shuffled"), words("no_losses"), words("mlp", parameters=77, choice=())):
        assert shared <= set(found)
    assert {"--plugin=prism,mars", "--prism.scale=0.3"} <= set(words())
    assert {"--plugin=prism,mars", "--shuffle_features=true", "--factor_control=shuffled"} <= set(words("shuffled"))
    assert "--factor_control=shuffled" not in words("shuffled", ("prism",))
    assert {"--prism.lambda_unique=0.0", "--mars.lambda_view=0.0"} <= set(words("no_losses"))
    assert {"--plugin=mlp", "--mlp.parameters=77"} <= set(words("mlp", parameters=77, choice=()))
    bare = words(plugins=(), choice=())
    assert {"--trim_padding=true", "--fast_propagation=true"} <= set(bare)
    assert not [word for word in bare if word.startswith("--plugin")]
    # What the grid chooses from is not said a second time.
    grid = words(plugins=(), choice=(("trim_padding", "false"),))
    assert [word for word in grid if word.startswith("--trim_padding")] == ["--trim_padding=false"]


def test_cells_come_seed_by_seed_with_stable_keys():
    asked = ask("A,B", "prism", "d", seeds=2, controls="none")
    cells = ready(asked, {})
    assert [cell.seed for cell in cells] == [1] * 4 + [2] * 4
    assert len({cell.key for cell in cells}) == 8
    assert cells[0].key.startswith("A-bare-d-1-")
    more = ready(ask("B,C,A", "mars,prism", "e,d", seeds=3, controls="mlp", settings={"epochs": 9}), {})
    assert {cell.key for cell in cells} < {cell.key for cell in more}


@pytest.mark.parametrize(("parameters", "cells"), [(0, 2), (70, 3)])
def test_plugins_without_parameters_leave_no_control_to_wait_for(parameters, cells):
    asked = ask("A", "prism", "d", seeds=1, controls="mlp")
    assert total(asked, {}) == 3  # as far as can be told before anything has finished
    result = {"valid_metric": "NDCG@10", "best_valid_score": 0.1, "parameters": {"plugins": {"prism": parameters}}}
    outcomes = {cell.key: Outcome(result) for cell in ready(asked, {})}
    assert total(asked, outcomes) == cells
    assert len(outcomes) + len(ready(asked, outcomes)) == cells


# -- what people write


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"models": "SASReq"}, "did you mean 'SASRec'"),
        ({"plugins": "prims"}, "did you mean 'prism'"),
        ({"plugins": "prism+prism"}, "named twice"),
        ({"plugins": "prism+"}, "is no set of plugins"),
        ({"datasets": "amazon-scientifc"}, "did you mean 'amazon-scientific'"),
        ({"controls": "shufled"}, "did you mean 'shuffled'"),
        ({"seeds": 0}, "no positive whole number"),
        ({"jobs": 0}, "no positive number"),
        ({"metric": "ndgc@10"}, "did you mean 'ndcg'"),
        ({"metric": "ndcg@²"}, "write one of|did you mean"),
        ({"activity": (5, 5)}, "does not rise"),
        ({"settings": {"seed": 3}}, "'seed' is for the grid itself"),
        ({"settings": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"settings": {"prism": {"scal": 3}}}, "did you mean 'scale'"),
        ({"grid": {"mars.factor_weight": [0.1]}}, "'mars' is in no set"),
        ({"grid": {"prism.scale": ["loud"]}}, "prism.scale='loud'"),
        ({"grid": {"prism.scale": [1, 1]}}, "a value twice"),
        ({"grid": {"epochs": [1]}, "settings": {"epochs": 1}}, "keep one of the two"),
        ({"models": None}, "belong together"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_wrong_input_is_told_before_anything_is_trained(standin, tmp_path, options, match):
    with pytest.raises(RecplugError, match=match) as raised:
        standin.compare(tmp_path / "out", **options)
    assert "\n" not in str(raised.value)
    assert not standin.begun()
    assert not (tmp_path / "out").exists()


def test_a_grids_values_may_hold_commas():
    words = ["prism.scale=0.3,1", "mars.modalities=(image,text),text", "x='a,b',c"]
    assert parse_grid(words) == {
        "prism.scale": ["0.3", "1"],
        "mars.modalities": ["(image,text)", "text"],
        "x": ["'a,b'", "c"],
    }
    for word, match in (("prism.scale", "no KEY=VALUE"), ("=3", "no KEY=VALUE")):
        with pytest.raises(RecplugError, match=match):
            parse_grid([word])
    with pytest.raises(RecplugError, match="given twice"):
        parse_grid(["a=1", "a=2"])


def test_a_damaged_grid_file_is_told(standin, tmp_path):
    standin.compare(tmp_path / "out", controls="none", seeds=1)
    (tmp_path / "out" / "grid.yaml").write_text("models: [SASRec\n")
    with pytest.raises(RecplugError, match=r"grid\.yaml is damaged"):
        show(tmp_path / "out")
