"""``resume``: a run that was stopped goes on, and ends as if it had not been."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recplug.adapters.data import locate
from recplug.adapters.recbole import processes
from recplug.adapters.recbole.config.host_config import model_class, model_names
from recplug.adapters.recbole.state.previous_run import Before
from recplug.adapters.recbole.state.run_directory import RunDirectory, plain
from recplug.adapters.recbole.state.spec import chosen
from recplug.adapters.recbole.train.job import Job
from recplug.adapters.recbole.train.run import RunResult, bare_speed
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import parse_names

log = logging.getLogger("recplug")


def latest(folder: str | Path = "runs") -> Path:
    """The run in ``folder`` that was worked on last.

    Raises:
        RecplugError: if there is none.
    """
    logs = [each for each in Path(folder).glob("*/run.log") if (each.parent / "config.yaml").is_file()]
    if not logs:
        raise RecplugError(f"no run in {folder}; name its directory: --resume DIR")
    return max(logs, key=lambda each: each.stat().st_mtime_ns).parent


def resume(
    run_dir: str | Path,
    *,
    epochs: int | None = None,
    model: type | None = None,
    data_path: str | Path | None = None,
    table: str | None = None,
    users: str | None = None,
) -> RunResult:
    """Go on with a run that was stopped at any moment: what it ends with is what it would have ended with.

    The state after the latest whole epoch counts; a run that has none yet begins anew in its directory. A bare backbone
    that was to train first does so.

    Args:
        run_dir: its directory.
        epochs: how many it is to have in all, if more than before; also for one that has finished.
        model: the class, for a model of your own.
        data_path: folder that holds ``DATASET/DATASET.inter``, where it is not at the run's place any more.
        table, users: as they were given to ``run()``, for a model of your own.

    Returns:
        As :func:`run`; the baseline's ``model`` is None where it had finished before.

    Raises:
        RecplugError: for a directory that is no run, or whose settings, data, content or packages have changed. It
            stays as it is then.
    """
    path = Path(run_dir)
    if processes.here() is not None:
        raise RecplugError("a run goes on in one process; leave --nproc and --world_size out")
    before = Before.read(path)
    if is_finished(before, epochs):
        raise RecplugError(f"{path} has finished; see its result.json, or train on with more epochs (--epochs N)")
    names = parse_names(before.values.get("plugin"))
    host = _host(before, model)
    folder = _folder(before, data_path)
    asked = {} if epochs is None else {"epochs": epochs}
    bare: RunResult | None = None
    below = path / "baseline"
    if below.is_dir():
        bare = _baseline(before, host, below, asked, folder, (table, users))
    found = _job(before, host, names, asked, folder, (table, users))
    return RunResult(path, found.result, found.run(), bare)


def is_finished(before: Before, epochs: int | None) -> bool:
    """Whether a run has nothing left to do.

    Raises:
        RecplugError: for a number of epochs that it cannot have.
    """
    has = before.values["epochs"]
    if epochs is None or epochs == has:
        return before.finished
    path = before.directory.path
    if epochs < has:
        raise RecplugError(f"{path} has {has} epochs, more than {epochs}; what is trained stays trained")
    if before.stopped:
        raise RecplugError(
            f"{path} ended by itself after {before.epochs} epochs, because validation no longer improved: more epochs "
            "change nothing; start a run with a higher stopping_step"
        )
    if before.finished and not before.epochs:
        raise RecplugError(f"{path} was trained with resumable=false; begin another run with --warm_start {path}")
    return False


def check_asked(before: Before, asked: Mapping[str, Any]) -> None:
    """Compare settings that are given once more with those that the run has.

    Args:
        before: the run.
        asked: by key; a plugin's nested under its name, or dotted.

    Raises:
        RecplugError: for one that is another.
    """
    for key, value in asked.items():
        if isinstance(value, Mapping) and isinstance(before.values.get(key), Mapping):
            check_asked(before, {f"{key}.{name}": each for name, each in value.items()})
            continue
        outer, dot, name = key.partition(".")
        has = before.values.get(outer)
        if dot:
            has = has.get(name) if isinstance(has, Mapping) else None
        if key == "plugin":
            same = parse_names(value) == parse_names(has)
        elif key == "model":
            same = str(value).lower() == str(has).lower()
        else:
            same = plain(value) == has
        if not same:
            raise RecplugError(
                f"{before.directory.path} was started with {key}={has}, not {value}; leave it out, or start another run"
            )


def _job(
    before: Before,
    host: type,
    names: list[str],
    asked: dict[str, Any],
    folder: Path | None,
    tables: tuple[str | None, str | None],
) -> Job:
    given = {name: chosen(name, before.values.get(name) or {}) for name in names}
    values = {key: value for key, value in before.values.items() if key not in names}
    files = {before.directory.path / "config.yaml": values}
    if before.epochs:
        total = {**values, **asked}["epochs"]
        log.info("%s goes on after %d of %d epochs", before.directory.path, before.epochs, total)
    else:
        log.info("%s has no whole epoch yet and begins anew", before.directory.path)
    dataset = str(values["dataset"])
    return Job(host, dataset, names, given, asked, folder, files, before.directory, tables, before)


def _baseline(
    whole: Before,
    host: type,
    path: Path,
    asked: dict[str, Any],
    folder: Path | None,
    tables: tuple[str | None, str | None],
) -> RunResult:
    """The bare backbone's result, after the training that it still lacks."""
    if (path / "config.yaml").is_file():
        before = Before.read(path)
        if is_finished(before, asked.get("epochs")):
            return RunResult(path, before.result, None)
        job = _job(before, host, [], asked, folder, tables)
    else:
        values = {k: v for k, v in whole.values.items() if k not in {"plugin", *(whole.values.get("plugin") or [])}}
        files = {whole.directory.path / "config.yaml": values}
        dataset = str(values["dataset"])
        speed = bare_speed(host, [values])
        job = Job(host, dataset, [], {}, {**asked, **speed}, folder, files, RunDirectory(path), tables)
    return RunResult(path, job.result, job.run())


def _host(before: Before, model: type | None) -> type:
    name = str(before.values["model"])
    if model is not None:
        if model.__name__ != name:
            raise RecplugError(f"the run's model is {name}, not {model.__name__}; give its own class")
        return model
    if name not in model_names():
        raise RecplugError(f"{name} is a model of your own; pass its class, resume(run_dir, model={name})")
    return model_class(name)


def _folder(before: Before, data_path: str | Path | None) -> Path | None:
    """Where the data lie: where they are said to, or where they were."""
    was = Path(str(before.values.get("data_path", "")))
    if data_path is None and was.is_dir():
        return was
    return locate(str(before.values["dataset"]), data_path)
