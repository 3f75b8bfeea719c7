"""What a run directory holds, whatever state it is in: what is not there is said, and the rest is read."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from recplug.adapters.ownership import check_bytes, read_result
from recplug.adapters.report.diagnostics import Picture, read_pictures
from recplug.plugins.errors import RecplugError

UNCHANGED = ("RecBole", "recplug", "default")  # origins of values that nobody chose
LOWER_IS_BETTER = ("rmse", "mae", "logloss", "averagepopularity", "giniindex")
LOG_LINES = 30
# What is read of result.json, and what it has to be; RecBole's own names and numbers are inside.
KINDS: dict[str, type | tuple[type, ...]] = {
    "status": str, "model": str, "dataset": str, "plugins": list, "versions": dict, "valid_metric": str,
    "best_valid_result": dict, "test_result": dict, "epochs": int, "seconds_per_epoch": (int, float),
    "peak_memory_bytes": int, "parameters": dict, "data_fingerprint": str, "features": dict, "factors": dict,
    "source": dict, "files": dict, "mask_history": bool, "resumed": int, "seed": int,
}  # fmt: skip
EVENT = re.compile(r"INFO (\w+): (stage \d+) since step \d+ of epoch (\d+) \((.*)\)")  # as MAGNET tells it
COVERAGE = re.compile(r"INFO (\S.*: [\d,]+ of [\d,]+ items have a .*)")  # as Coverage tells it
Found = TypeVar("Found")


@dataclass(frozen=True)
class Setting:
    """One line of ``config.yaml``.

    Attributes:
        key: with the plugin's name in front where it is a plugin's.
        text: the value as it stands in the file.
        origin: where it comes from.
    """

    key: str
    text: str
    origin: str

    @property
    def chosen(self) -> bool:
        """Whether it is anything but a default."""
        return self.origin not in UNCHANGED


@dataclass(frozen=True)
class Run:
    """One run directory, as far as it goes.

    Attributes:
        path: where it lies.
        result: what ``result.json`` holds; what can be told without it where it is missing.
        settings: the lines of ``config.yaml``.
        epochs: ``metrics.csv`` by column; None where an epoch has no value.
        ranks: of every test target by (user, item); empty without ``ranks.parquet``.
        pictures: diagnostics, by plugin.
        log: the last lines of ``run.log``, where the run did not end well.
        coverage: what the run said about how many items have content.
        events: what the log says has happened in an epoch.
        missing: what is not there, in one line each.
        baseline: the bare backbone's run beside it.
    """

    path: Path
    result: Mapping[str, Any]
    settings: Sequence[Setting] = ()
    epochs: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    ranks: Mapping[tuple[str, str], int] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    log: str = ""
    coverage: Sequence[str] = ()
    events: Sequence[tuple[int, str]] = ()
    missing: Sequence[str] = ()
    baseline: Run | None = None

    @property
    def what(self) -> str:
        """``SASRec + prism``, or ``bare SASRec``."""
        model, plugins = str(self.result["model"]), self.result.get("plugins") or []
        return " + ".join([model, *map(str, plugins)]) if plugins else f"bare {model}"

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``interrupted``, or ``unfinished`` where nothing was written about it."""
        return str(self.result.get("status", "unfinished"))

    @property
    def test(self) -> Mapping[str, float]:
        """Test metrics by name."""
        return numbers(self.result.get("test_result"))

    @property
    def valid(self) -> Mapping[str, float]:
        """Validation metrics of the best epoch."""
        return numbers(self.result.get("best_valid_result"))

    def value(self, key: str) -> Any:
        """A setting's value, or None."""
        text = self._texts.get(key)
        try:
            return None if text is None else yaml.safe_load(text)
        except yaml.YAMLError:
            return text

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {setting.key: setting.text for setting in self.settings}

    @property
    def metric(self) -> str | None:
        """The metric that the best epoch was chosen by, as results spell it."""
        named = self.result.get("valid_metric") or self.value("valid_metric")
        return None if named is None else str(named).lower()

    @cached_property
    def best_epoch(self) -> int | None:
        """The place among the epochs of the best validation, the last of equal ones, as RecBole keeps them."""
        scores = self.epochs.get(f"valid/{self.metric}", ())
        known = [(score, place) for place, score in enumerate(scores) if score is not None and math.isfinite(score)]
        if not known:
            return None
        return max((-score if lower_is_better(self.metric or "") else score, place) for score, place in known)[1]


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric.split("/")[-1].partition("@")[0].lower() in LOWER_IS_BETTER


def read_run(path: Path) -> Run:
    """Everything in a run directory that can be read.

    Raises:
        RecplugError: if the directory is none of a run.
    """
    if not path.is_dir():
        raise RecplugError(f"no run at {path}; name a directory that run_recbole has left")
    files = ("result.json", "config.yaml", "metrics.csv")
    if not any((path / name).is_file() for name in files):
        better = f"one of those in {path / 'cells'}" if (path / "cells").is_dir() else "a directory of run_recbole's"
        raise RecplugError(f"{path} is no run: it holds none of {', '.join(files)}; name {better}")
    missing: list[str] = []

    def tried(name: str, read: Callable[[Path], Found], lost: str) -> Found | None:
        """What a file of the run holds, or None and a line on what the page lacks for it."""
        try:
            check_bytes(path, result, *(each for each in result.get("files", ()) if each.split("/")[0] == name))
            return read(path / name)
        except FileNotFoundError:
            missing.append(f"{name} is not there: {lost}.")
        except RecplugError as error:
            missing.append(f"{error}: {lost}.")
        except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
            missing.append(f"{name} cannot be read ({' '.join(str(error).split())[:200]}): {lost}.")
        return None

    result: Mapping[str, Any] = {}
    result = tried("result.json", _result, "the run is still going, or was killed; results are unknown") or {}
    settings = tried("config.yaml", _settings, "no configuration") or []
    texts = {setting.key: setting.text for setting in settings}
    plugins = [word for word in re.split(r"[\[\], ]+", texts.get("plugin", "")) if word]  # as a run writes them
    told = {"model": texts.get("model", path.name), "dataset": texts.get("dataset", "unknown"), "plugins": plugins}
    result = {**told, **result}
    epochs = tried("metrics.csv", _epochs, "no curves") or {}
    ended = "not every model can rank all items, sampled evaluation does not, and a run may end before its test"
    ranks = tried("ranks.parquet", _ranks, f"no ranks user by user ({ended})") or {}
    pictures: Mapping[str, Sequence[Picture]] = {}
    if result.get("plugins"):
        lost = "no diagnostics (they are written when a run with plugins ends)"
        pictures = tried("diagnostics", lambda folder: read_pictures(folder, missing), lost) or {}
    lines = tried("run.log", _log, "no log, and nothing on how many items have content") or []
    log = "" if result.get("status") == "finished" else "\n".join(lines[-LOG_LINES:])
    coverage = list(dict.fromkeys(found[1] for line in lines if (found := COVERAGE.search(line))))
    seen = (EVENT.search(line) for line in lines)
    events = list(dict.fromkeys((int(each[3]), f"{each[1]}: {each[2]}, {each[4]}") for each in seen if each))
    below = path / "baseline"
    baseline = read_run(below) if any((below / name).is_file() for name in files) else None
    return Run(path, result, settings, epochs, ranks, pictures, log, coverage, events, missing, baseline)


def _result(path: Path) -> dict[str, Any]:
    """``result.json``; what a run has not come to is absent from it, or null."""
    found = read_result(path.parent)
    for key, kind in KINDS.items():
        if found.get(key) is None:
            found.pop(key, None)
        elif not isinstance(found[key], kind):
            raise ValueError(f"its {key} is {found[key]!r}")
    return found


def _settings(path: Path) -> list[Setting]:
    """``key: value  # origin``, and the same indented under a plugin's name."""
    found, block = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = re.fullmatch(r"( *)([^:#]+):(?: (.*?))?(?:  # (.*))?", line)
        if entry is None:
            continue
        indent, key, text, origin = entry.groups()
        key = key.strip("'")  # YAML's way with a key like NO
        if text is None:
            block = f"{key}."
        else:
            found.append(Setting(f"{block if indent else ''}{key}", text, origin or "unknown"))
    return found


def _epochs(path: Path) -> dict[str, list[float | None]]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = dict.fromkeys(key for row in rows for key in row if key is not None)
    return {key: [float(row[key]) if row[key] else None for row in rows] for key in columns}


def _ranks(path: Path) -> dict[tuple[str, str], int]:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path, columns=["user", "item", "rank"]).to_pydict()
    return {(user, item): rank for user, item, rank in zip(rows["user"], rows["item"], rows["rank"], strict=True)}


def _log(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def numbers(found: Any) -> dict[str, float]:
    """The numbers of a mapping; of anything else, none."""
    entries = found if isinstance(found, Mapping) else {}
    return {
        k: float(v) for k, v in entries.items() if isinstance(v, float) or (isinstance(v, int) and abs(v) < 2**1023)
    }
