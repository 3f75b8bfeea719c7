"""What is read from a run directory is what was written into it; what is broken is told in one line each."""

import json
import re
import shutil

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recplug.adapters.recbole.state.run_directory import RunDirectory
from recplug.adapters.report import write_report
from recplug.adapters.report.run_contents import KINDS, lower_is_better, read_run
from recplug.plugins.errors import RecplugError

KEY = st.from_regex(r"[A-Za-z_]{1,12}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=30)  # a line each
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUE = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(KEY, PLAIN, max_size=3)
ORIGIN = st.sampled_from(["given", "RecBole", "recplug", "the run", "my file.yaml"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEY, st.tuples(VALUE, ORIGIN), max_size=6), st.dictionaries(KEY, st.tuples(PLAIN, ORIGIN)))
@example({}, {"NO": (None, "given")})
def test_settings_are_those_that_were_written(tmp_path_factory, flat, nested):
    flat.pop("Plugin_", None)
    values = {key: value for key, (value, _) in flat.items()} | {"Plugin_": {k: v for k, (v, _) in nested.items()}}
    origins = {key: origin for key, (_, origin) in flat.items()}
    origins |= {f"Plugin_.{key}": origin for key, (_, origin) in nested.items()}
    path = tmp_path_factory.mktemp("run")
    RunDirectory(path).write_config(values, origins)
    found = read_run(path).settings
    expected = {key: (value, origins[key]) for key, (value, _) in flat.items()}
    expected |= {f"Plugin_.{key}": (value, origins[f"Plugin_.{key}"]) for key, (value, _) in nested.items()}
    if not nested:
        expected["Plugin_"] = ({}, "RecBole")
    assert {setting.key: (yaml.safe_load(setting.text), setting.origin) for setting in found} == expected
    assert {setting.key for setting in found if setting.chosen} == {
        key for key, (_, origin) in expected.items() if origin not in ("RecBole", "recplug")
    }


def test_a_whole_run(make_run, panels):
    ranks = [("u1", "i2", 3), ("u2", "i9", 30)]
    path = make_run(ranks=ranks)
    make_run("run/baseline", plugins=())
    run = read_run(path)
    assert (run.what, run.status, run.metric, run.missing) == ("SASRec + toy", "finished", "ndcg@10", [])
    assert run.best_epoch == 1
    assert run.epochs["loss/toy.part"] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert run.ranks == {("u1", "i2"): 3, ("u2", "i9"): 30}
    assert run.value("learning_rate") == 0.001
    assert run.value("field_separator") == "\t"
    assert run.value("toy.scale") == 0.5
    assert run.events == [(2, "magnet: stage 2, trigger armed")]
    assert run.coverage == ["text: 28 of 30 items have a vector (93.3 %); 4-d made up, tiny.text.safetensors"]
    assert run.baseline.what == "bare SASRec"
    shown = {picture.name: picture for picture in run.pictures["toy"]}
    assert set(shown) == {*panels, "gamma"}
    for name, panel in panels.items():
        assert (shown[name].title, shown[name].caption) == (panel.title, panel.caption)
        assert shown[name].values.tolist() == panel.values.tolist()
        assert tuple(shown[name].labels["rows"]) == panel.rows
        assert [tuple(mark) for mark in shown[name].labels["marks"]] == list(panel.marks)


def test_the_best_epoch_is_recboles(make_run):
    """Of equal ones the last; where less is better, the least."""
    path = make_run()
    run = read_run(path)
    object.__setattr__(run, "epochs", {"valid/ndcg@10": [0.2, 0.5, None, 0.5, 0.1, float("nan")]})
    assert run.best_epoch == 3
    less = read_run(make_run("other", valid_metric="RMSE"))
    object.__setattr__(less, "epochs", {"valid/rmse": [0.9, 0.4, 0.8, 0.4]})
    assert less.best_epoch == 3
    assert lower_is_better("valid/rmse")
    assert lower_is_better("LogLoss")
    assert not lower_is_better("ndcg@10")


FILES = ("result.json", "config.yaml", "metrics.csv", "ranks.parquet", "run.log", "diagnostics")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_line(make_run, tmp_path, name):
    path = make_run(ranks=[("u1", "i2", 3)])
    file = path / name
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert write_report(path, tmp_path / "a.html", examples=False) == read_one(path)
    (line,) = read_run(path).missing
    assert line.startswith(f"{name} is not there")
    assert line in (tmp_path / "a.html").read_text().replace("&#39;", "'")


def read_one(path):
    run = read_run(path)
    return [f"{run.what}: {line}" for line in run.missing]


BROKEN = {
    "result.json": (b'{"status": "fini', b"[]", b'{"plugins": "prism"}', b'{"test_result": 3}', b"\xff\xfe"),
    "metrics.csv": (b"epoch,loss\n0,abc\n", b"\xff\xfe\n\xff"),
    "config.yaml": (b"\xff\xfe",),
    "ranks.parquet": (b"PAR1", b""),
    "diagnostics/toy.npz": (b"PK", b"", b"\x93NUMPY"),
    "diagnostics/toy.sizes.png": (b"\x89PNG\r\n", b"", b"GIF89a"),
}


@pytest.mark.parametrize(
    ("name", "content"), [(n, c) for n, cases in BROKEN.items() for c in cases], ids=lambda v: ascii(v).strip("'b")
)
def test_a_broken_file_is_one_line_and_the_rest_is_shown(make_run, tmp_path, name, content):
    path = make_run(ranks=[("u1", "i2", 3)])
    (path / name).write_bytes(content)
    (line,) = write_report(path, tmp_path / "a.html", examples=False)
    assert line.startswith(f"SASRec + toy: {name} cannot be read")
    assert "\n" not in line
    text = (tmp_path / "a.html").read_text()
    assert ("toy.part" in text) == (name != "metrics.csv")
    assert ("0.2500" in text) == (name != "result.json")


INNER = ("backbone", "plugins", "source", "file", "sha256", "links", "test_result", "dataset", "ndcg@10", "text")
NESTED = st.dictionaries(st.sampled_from(INNER), PLAIN | st.dictionaries(st.sampled_from(INNER), PLAIN, max_size=2))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([*KINDS, "error", "checkpoint"]), VALUE | NESTED, min_size=1, max_size=4))
@example({"source": {"test_result": 1}})
@example({"source": {"test_result": [1]}, "parameters": {"plugins": {"toy": "many"}, "source": {}}})
@example({"test_result": {"ndcg@10": 10**400}})
@example({"features": {"image": 3}, "factors": {"file": None}})
def test_whatever_a_result_holds_there_is_a_page(tmp_path_factory, changed):
    path = tmp_path_factory.mktemp("run")
    (path / "result.json").write_text(json.dumps(changed))
    (path / "config.yaml").write_text("model: SASRec  # the run\ndataset: tiny  # the run\nplugin: [toy]  # the run\n")
    lines = write_report(path, path / "a.html", examples=False)
    assert all("\n" not in line for line in lines)
    assert "<h1>" in (path / "a.html").read_text()


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", ""])
def test_an_epoch_without_a_number_has_its_place(make_run, tmp_path, number):
    path = make_run()
    head, *rows = (path / "metrics.csv").read_text().splitlines()
    assert head.startswith("epoch,")
    for place in (0, read_run(path).best_epoch):
        damaged = [f"{number},{row.partition(',')[2]}" if at == place else row for at, row in enumerate(rows)]
        (path / "metrics.csv").write_text("\n".join([head, *damaged]) + "\n")
        write_report(path, tmp_path / f"{place}.html", examples=False)
    words = (tmp_path / "0.html").read_text()
    assert re.search(r"at epoch 0 to \S+ at \d", words)  # a drawing's


def test_a_result_nested_without_end_is_one_line(make_run, tmp_path):
    path = make_run()
    (path / "result.json").write_text("[" * 100_000)
    lines = write_report(path, tmp_path / "a.html", examples=False)
    assert any("result.json cannot be read" in line for line in lines)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_ended_early_shows_the_end_of_its_log(make_run, tmp_path, status):
    path = make_run(status=status, error="ValueError: <b>", test_result=None, panels={})
    with (path / "run.log").open("a") as log:
        log.write("Traceback: <i>oh</i>\n")
    write_report(path, tmp_path / "a.html", examples=False)
    text = (tmp_path / "a.html").read_text()
    assert "Traceback: &lt;i&gt;oh&lt;/i&gt;" in text
    assert f"has no test result: its status is {status}" in text


def test_what_is_no_run_is_refused(tmp_path, make_run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "grid" / "cells").mkdir(parents=True)  # as recplug compare leaves one
    path = make_run()
    cases = [
        ((tmp_path / "gone", "a.html"), "no run at"),
        ((tmp_path / "empty", "a.html"), "holds none of result.json, config.yaml, metrics.csv"),
        ((tmp_path / "grid", "a.html"), "name one of those in .*cells"),
        (([path, path / ".." / path.name], "a.html"), "is named twice"),
        (([], "a.html"), "no run to report on"),
        ((path, "a.pdf"), "let its name end with .html"),
        ((path, tmp_path / "no" / "a.html"), "no folder"),
    ]
    for arguments, message in cases:
        with pytest.raises(RecplugError, match=message) as told:
            write_report(*arguments, examples=False)
        assert "\n" not in str(told.value)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(RecplugError, match="it is a folder"):
        write_report(path, tmp_path / "folder.html", examples=False)
    for wrong, message in (({"k": 0}, "1 or more"), ({"users": []}, "names nobody"), ({"users": ["u"]}, "choose one"),
                           ({"users": ["u"] * 51}, "50 at most")):  # fmt: skip
        with pytest.raises(RecplugError, match=message):
            write_report(path, tmp_path / "a.html", examples=False, **wrong)
    assert not (tmp_path / "a.html").exists()


def test_an_old_page_stays_until_the_new_one_is_whole(make_run, tmp_path, monkeypatch):
    output = tmp_path / "a.html"
    output.write_text("old")
    from recplug.adapters.report import write

    monkeypatch.setattr(write, "page", lambda *_: 1 / 0)
    with pytest.raises(RecplugError, match="exists; add --overwrite"):
        write_report(make_run(), output, examples=False)
    with pytest.raises(ZeroDivisionError):
        write_report(make_run("again"), output, examples=False, overwrite=True)
    assert output.read_text() == "old"
