import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

from recplug.adapters import data, doctor
from recplug.adapters.doctor import Finding, report
from recplug.adapters.recbole.compat.remedies import REMEDIES, recbole_compat
from recplug.plugins import registry
from recplug.plugins.errors import RecplugError


@pytest.fixture
def without(monkeypatch):
    """Make distributions look as if they were not installed, or of another version."""

    def pretend(**versions):
        real = metadata.version

        def version(name):
            if name not in versions:
                return real(name)
            if versions[name] is None:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)

    return pretend


@pytest.fixture(autouse=True)
def vision(request, monkeypatch):
    """Importing torchvision takes seconds: one test does it, the others are told that it loads."""
    if "for_real" not in request.fixturenames:
        whole = SimpleNamespace(returncode=0, stdout="whole\n")
        monkeypatch.setattr(subprocess, "run", lambda *command, **given: whole)


@pytest.fixture
def for_real():
    """What is installed is looked at."""


def named(findings):
    return {finding.name: finding for finding in findings}


def test_a_working_installation_has_no_problem_and_every_line_is_one_line(for_real):
    findings = report()
    assert [finding for finding in findings if finding.status == "problem"] == []
    found = named(findings)
    assert len(found) == len(findings)
    assert {"python", "torch", "numpy", "pandas", "scipy", "recbole", "ray", "torchvision", "plugins"} <= set(found)
    for finding in findings:
        assert "\n" not in finding.found + finding.advice
        assert finding.found
        assert finding.advice or finding.status == "ok"
    assert found["numpy"].found == np.__version__
    assert "prism" in found["plugins"].found


def test_the_remedies_of_this_environment_are_listed_with_their_threads():
    found = named(report())
    for remedy in REMEDIES:
        assert remedy.why in found[f"remedy: {remedy.name}"].found
    assert found["remedy: numpy aliases"].found.startswith("active")
    with recbole_compat():
        assert named(report())["remedy: numpy aliases"].found.startswith("not needed")


@pytest.mark.parametrize(
    ("python", "words"), [((3, 12, 1), ["--no-deps", "ray"]), ((3, 11, 7), ["pip install recbole=="])]
)
def test_a_missing_recbole_is_a_problem_with_the_command_for_this_python(without, monkeypatch, python, words):
    without(recbole=None)
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=python, executable=sys.executable))
    found = named(report())
    assert found["recbole"].status == "problem"
    assert "recbole==1.2.1" in found["recbole"].advice
    assert ("--no-deps" in found["recbole"].advice) == ("ray" in found["recbole"].advice) == (python >= (3, 12))
    assert found["remedies"].status == "note"


def test_another_recbole_is_noted(without):
    without(recbole="1.2.0")
    assert named(report())["recbole"].status == "note"


def test_a_recbole_that_does_not_import_is_a_problem(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'colorlog'", name="colorlog")

    monkeypatch.setattr(doctor, "importlib", SimpleNamespace(import_module=missing))
    assert "colorlog" in named(report())["recbole"].found
    assert named(report())["recbole"].status == "problem"


def test_a_torchvision_that_cannot_load_is_told_with_its_partner(without, monkeypatch):
    stderr = "Traceback\nRuntimeError: operator torchvision::nms does not exist\n"
    failed = SimpleNamespace(returncode=1, stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *command, **given: failed)
    without(torchvision="0.29.0", torch="2.13.0+cpu")
    vision = named(report())["torchvision"]
    assert vision.status == "problem"
    assert "torchvision::nms" in vision.found
    assert "torchvision==0.28.0 " in vision.advice
    assert vision.advice.endswith("/whl/cpu")
    without(torchvision=None)
    assert named(report())["torchvision"].status == "note"


@pytest.mark.parametrize(("state", "status"), [("whole", "ok"), ("remedied", "note")])
def test_a_torchvision_that_can_be_used_is_told_with_what_it_lacks(without, monkeypatch, state, status):
    answered = SimpleNamespace(returncode=0, stdout=f"{state}\n")
    monkeypatch.setattr(subprocess, "run", lambda *command, **given: answered)
    without(torchvision="0.28.0", torch="2.13.0+cpu")
    vision = named(report())["torchvision"]
    assert vision.status == status
    assert vision.found.startswith("0.28.0")
    assert ("compiled part missing next to torch 2.13.0+cpu; remedied" in vision.found) == (state == "remedied")
    assert ("torchvision==0.28.0 --index-url" in vision.advice) == (state == "remedied")


def test_the_encoders_libraries_are_listed_and_whether_the_hub_may_be_asked(without, monkeypatch):
    without(**{"open_clip_torch": "3.3.0", "sentence-transformers": None})
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = named(report())["encoders"].found
    assert "open_clip_torch 3.3.0, " in found
    assert "sentence-transformers not installed" in found
    assert found.endswith("models from folders, the cache and the hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert named(report())["encoders"].found.endswith("HF_HUB_OFFLINE is set, so only folders and the cache")


def test_extras_are_those_of_the_package(without):
    declared = set(metadata.metadata("recplug").get_all("Provides-Extra"))
    found = named(report())
    assert {name.removeprefix("extra: ") for name in found if name.startswith("extra: ")} == declared
    without(openai=None, optuna="3.6")
    found = named(report())
    assert found["extra: llm"] == Finding(
        "extra: llm", "note", "missing openai", "where you need it: pip install -c constraints.txt 'recplug[llm]'"
    )
    assert found["extra: tune"].status == "ok"


def test_what_breaks_is_reported_and_the_rest_is_still_looked_at(monkeypatch):
    def broken():
        raise RecplugError("plugin 'x' does not load; uninstall it")

    monkeypatch.setattr(registry, "available", broken)
    monkeypatch.setattr(data, "bundled", lambda: 1 / 0)
    found = named(report())
    assert found["plugins"].status == "problem"
    assert found["plugins"].found == "plugin 'x' does not load; uninstall it"
    assert found["data"].found == "ZeroDivisionError: division by zero"
    assert found["python"].status == "ok"


@pytest.mark.parametrize("file", ["gone.inter", "gone.train.inter"])
def test_bundled_data_without_files_is_a_problem(file, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "bundled", lambda: {"gone": SimpleNamespace(directory=tmp_path)})
    assert named(report())["data: gone"].status == "problem"
    (tmp_path / file).write_text("user_id:token\n")
    assert named(report())["data: gone"].status == "ok"
