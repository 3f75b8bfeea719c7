"""What a run has left so far, as the process reads it that takes the run up again."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recplug.adapters.ownership import check_owned, read_result
from recplug.adapters.recbole.config.host_config import read_yaml
from recplug.adapters.recbole.state.run_directory import RunDirectory, write
from recplug.adapters.recbole.state.run_state import read_state, settle_checkpoint
from recplug.plugins.errors import RecplugError

log = logging.getLogger("recplug")
NEEDED = ("model", "dataset", "epochs")  # without which no run can be told from its config.yaml
# What may differ between two parts of one run: it changes no number.
FREE = ("epochs", "show_progress", "data_path", "log_wandb")


@dataclass
class Before:
    """What a run has left so far.

    Attributes:
        directory: the run's.
        values: its ``config.yaml``.
        result: its ``result.json``; empty if it has none yet.
        epochs: how many are whole; 0 if it has to begin anew.
        stopped: whether it ended by itself, because validation no longer improved.
        about: what its state belongs to.
    """

    directory: RunDirectory
    values: dict[str, Any]
    result: dict[str, Any]
    epochs: int = 0
    stopped: bool = False
    about: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> Before:
        """Read it, and clear away what a kill left half done.

        Raises:
            RecplugError: if there is no run, another process is at it, or its files do not belong together.
        """
        file = path / "config.yaml"
        if not file.is_file():
            what = "stopped before it had read its data" if (path / "run.log").is_file() else "is no run"
            raise RecplugError(f"{path} {what}; start it anew, and name a directory that run_recbole has left")
        check_owned(path, "run")
        directory, values = RunDirectory(path), read_yaml(file)
        if lacking := [key for key in NEEDED if values.get(key) is None]:
            raise RecplugError(f"{file} lacks {lacking[0]}, as one that was not copied whole; copy the run again")
        found = cls(directory, values, _result(path))
        with directory.held():
            if directory.state.is_file():
                state = read_state(directory, whole=False)
                settle_checkpoint(directory, state["checkpoint"])
                found.epochs, found.stopped, found.about = state["epoch"] + 1, state["stopped"], state["about"]
            elif directory.checkpoint.is_file():
                raise RecplugError(
                    f"{path} has a checkpoint, but not the state to go on from ({directory.state.name}); begin another "
                    f"run from its parameters with --warm_start {path}"
                )
            directory.sweep()
        return found

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return self.result.get("status") == "finished"

    @property
    def resumed(self) -> int:
        """How often it has been taken up again, this time included."""
        return int(self.result.get("resumed", 0)) + 1

    def begin(self, epochs: int) -> None:
        """Note in the directory that it is being taken up, and how many epochs it has now."""
        told = {**self.result, "status": "interrupted", "resumed": self.resumed}
        self.directory.write_result(told, going_on=True)
        file = self.directory.path / "config.yaml"
        text = file.read_text(encoding="utf-8")
        if epochs != self.values["epochs"]:
            write(file, re.sub(r"(?m)^epochs:.*$", f"epochs: {epochs}  # given with --resume", text))


def check_same(path: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Compare what a state belongs to with what it would go on with.

    Raises:
        RecplugError: for other settings, data, content or versions of plugins, naming the first.
    """
    assert before is not None
    earlier, later = _flat(before["config"]), _flat(now["config"])
    for key in sorted({*earlier, *later} - {*FREE}):
        was, found = earlier.get(key), later.get(key)
        if was != found:
            raise RecplugError(
                f"config.yaml of {path} says {key}: {found}, and the run was trained with {was}; put it back, or start "
                "a run of its own"
            )
    for plugin, package in now["plugins"].items():
        _same(path, f"the plugin {plugin}", before["plugins"].get(plugin), package, "install that version")
    _same(path, "recplug", before["versions"]["recplug"], now["versions"]["recplug"], "install that version")
    for name, number in now["versions"].items():
        if before["versions"].get(name) != number:
            log.warning("%s was %s and is %s: numbers may differ", name, before["versions"].get(name), number)
    if before["data_fingerprint"] != now["data_fingerprint"]:
        raise RecplugError(f"the data are not those that {path} was trained on; put the old files back")
    _same_content(path, "", before, now)
    if before["source"] != now["source"]:
        source, other = before["source"] or {}, now["source"] or {}
        _same_content(path, " of the second domain", source, other)
        raise RecplugError(f"the data of the second domain are not those that {path} was trained on; put them back")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings nested under a plugin's name as ``PLUGIN.NAME``."""
    nested = {key for key, value in config.items() if isinstance(value, Mapping)}
    inner = {f"{key}.{name}": value for key in nested for name, value in config[key].items()}
    return {key: value for key, value in config.items() if key not in nested} | inner


def _same(path: Path, what: str, was: Any, found: Any, advice: str) -> None:
    if was != found:
        raise RecplugError(f"{path} was trained with {what} {was}, and this is {found}; {advice}, or start it anew")


def _same_content(path: Path, whose: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for kind in ("features", "factors"):
        was, found = before.get(kind) or {}, now.get(kind) or {}
        if was != found:
            names = [key for key in {**was, **found} if was.get(key) != found.get(key)] if kind == "features" else []
            what = f"the feature table {names[0]}" if names else "the factor table"
            raise RecplugError(
                f"{what}{whose} is not the one that {path} was trained with; put the old file back, or start it anew"
            )


def _result(path: Path) -> dict[str, Any]:
    try:
        return read_result(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RecplugError(f"cannot read {path / 'result.json'} ({error}); copy the run again") from error
