"""A worker: it takes one trial after the other and trains each in a process of its own, so that a crash costs one."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recplug.adapters.compare.cells.workers import STOPPED, reason
from recplug.adapters.ownership import read_result
from recplug.adapters.stopping import stopping
from recplug.adapters.tune.spec import SETTINGS_FILE, Asked
from recplug.adapters.tune.study import TRIALS, Study, Taken
from recplug.adapters.tune.trial import GO, PRUNE
from recplug.plugins.errors import RecplugError

log = logging.getLogger("recplug")
LOGS = "logs"
HOPELESS = 3  # trials that fail, with none that does not, before the search ends
TRAIN = "from recplug.adapters.tune.trial import main; main()"


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        number: of the study.
        values: what was drawn, by key.
        folder: for the run directory.
    """

    number: int
    values: dict[str, Any]
    folder: Path

    def title(self) -> str:
        """For people."""
        return "  ".join(f"{key}={_short(value)}" for key, value in self.values.items())


Command = Callable[[Trial, int], Sequence[str]]  # what trains a trial and reports to an open socket


def train(asked: Asked, output: Path) -> Command:
    """The command of a trial: a run without its test, that asks after every validation whether to go on."""

    def command(trial: Trial, channel: int) -> list[str]:
        about = {
            "model": asked.model,
            "dataset": asked.dataset,
            "plugins": list(asked.plugins),
            "values": trial.values,
            "settings": str(output / SETTINGS_FILE),
            "data_path": asked.data_path,
            "folder": str(trial.folder),
        }
        return [sys.executable, "-c", TRAIN, json.dumps(about), str(channel)]

    return command


def work(
    study: Study,
    *,
    trials: int,
    command: Command,
    timeout: float | None = None,
    keep_checkpoints: bool = False,
) -> None:
    """Train until ``trials`` have been taken, by whichever worker.

    Args:
        study: where trials come from.
        trials: of the whole study.
        command: what trains one.
        timeout: seconds after which no further trial is begun.
        keep_checkpoints: of trials that are not the best.

    Raises:
        RecplugError: where trials fail and none does not.
    """
    begun = time.monotonic()
    with stopping():
        while timeout is None or time.monotonic() - begun < timeout:
            taken = study.take(trials)
            if taken is None:
                return
            _one(study, taken, command, trials)
            if not keep_checkpoints:
                _tidy(study)
            _check_hope(study)


def _one(study: Study, taken: Taken, command: Command, trials: int) -> None:
    """Train one trial and note how it ended."""
    number, output = taken.trial.number, study.output
    trial = Trial(number, dict(taken.trial.params), output / TRIALS / str(number))
    shutil.rmtree(trial.folder, ignore_errors=True)
    begun = time.monotonic()
    try:
        code, pruned = _train(study, taken, trial, command)
        result = _result(trial.folder)
        metric, score = study.asked.metric, result.get("best_valid_score")
        where = f"[{len(study.taken())}/{trials}] trial {number}: {trial.title()}"
        if result.get("status") == "finished" and score is not None:
            study.study.tell(taken.trial, float(score))
            log.info("%s: valid %s %.4f, %.0f s", where, metric, score, time.monotonic() - begun)
        elif result.get("status") == "pruned" and pruned:
            study.study.tell(taken.trial, state=_state("PRUNED"))
            log.info("%s: pruned after %s epochs", where, result.get("epochs"))
        elif code in STOPPED:
            raise KeyboardInterrupt
        else:
            error = reason(output / LOGS / f"{number}.log", code)
            taken.trial.set_user_attr("error", error)
            study.study.tell(taken.trial, state=_state("FAIL"))
            log.info("%s: FAILED, %s", where, error)
    except KeyboardInterrupt:
        study.give_back(taken)
        shutil.rmtree(trial.folder, ignore_errors=True)
        raise
    finally:
        os.close(taken.lock)


def _train(study: Study, taken: Taken, trial: Trial, command: Command) -> tuple[int, bool]:
    """The exit code of the process, and whether it was told to stop."""
    (study.output / LOGS).mkdir(exist_ok=True)
    ours, theirs = socket.socketpair()
    pruned = False
    with ours, theirs, (study.output / LOGS / f"{trial.number}.log").open("wb") as file:
        words = list(command(trial, theirs.fileno()))
        file.write(f"$ {shlex.join(words)}\n".encode())
        file.flush()
        # The child holds the trial's lock too: if this process is killed alone, nobody begins while it still writes.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(), taken.lock),
        )
        try:
            theirs.close()
            with ours.makefile("rw") as channel:
                for line in channel:
                    epoch, score = line.split()
                    taken.trial.report(float(score), int(epoch))
                    pruned = taken.trial.should_prune()
                    channel.write(f"{PRUNE if pruned else GO}\n")
                    channel.flush()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it ended between a line and its answer, and its exit code says how
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
    return process.returncode, pruned


def _result(folder: Path) -> dict[str, Any]:
    try:
        return read_result(folder)
    except (OSError, ValueError):  # none, or only a part of one
        return {}


def _tidy(study: Study) -> None:
    """Checkpoints of all but the best trial are of no use any more."""
    best = study.best()
    for trial in study.taken():
        if trial.state.is_finished() and (best is None or trial.number != best.number):
            (study.output / TRIALS / str(trial.number) / "checkpoint.pth").unlink(missing_ok=True)


def _check_hope(study: Study) -> None:
    ended = [trial for trial in study.taken() if trial.state.is_finished()]
    errors = [trial.user_attrs["error"] for trial in ended if "error" in trial.user_attrs]
    if len(errors) >= HOPELESS and len(errors) == len(ended):
        raise RecplugError(
            f"the first {len(errors)} trials failed, the last with: {errors[-1]}; see {study.output / LOGS}"
        )


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
