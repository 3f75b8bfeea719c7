"""What a search leaves: the best configuration, a table of all trials, and the test of the best one alone."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recplug.adapters.compare.cells.workers import RUN, STOPPED, reason
from recplug.adapters.files import replacing
from recplug.adapters.ownership import read_result
from recplug.adapters.stopping import stopping
from recplug.adapters.tune.spec import Asked
from recplug.adapters.tune.study import Study
from recplug.adapters.tune.worker import LOGS
from recplug.plugins.errors import RecplugError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("recplug")
BEST, FINAL = "best.yaml", "final"
FinalCommand = Callable[[Path, int, Path], Sequence[str]]  # what trains and tests best.yaml with a seed into a folder


@dataclass(frozen=True)
class Tuned:
    """A search, as far as it has come.

    Attributes:
        output: its folder.
        asked: what was searched.
        trials: a row a trial: number, state, validation score, epochs, error, and its values by key.
        best: the row of the best one; None before a trial has finished.
        importance: of each key, where there are trials enough.
        tests: the test results of the best configuration, by seed; validation has chosen before they were made.
    """

    output: Path
    asked: Asked
    trials: list[dict[str, Any]]
    best: dict[str, Any] | None
    importance: dict[str, float]
    tests: dict[int, dict[str, float]] = field(default_factory=dict)

    def table(self) -> pa.Table:
        """``trials.parquet``: values as JSON where they are of several kinds."""
        import pyarrow as pa

        keys = list(dict.fromkeys(key for row in self.trials for key in row))
        columns = {key: [row.get(key) for row in self.trials] for key in keys}
        for key, values in columns.items():
            if len({type(value) for value in values if value is not None}) > 1:
                numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values if v is not None)
                columns[key] = [None if v is None else float(v) if numbers else json.dumps(v) for v in values]
        return pa.table(columns)

    def to_markdown(self) -> str:
        """The best configuration, what it is worth, and every trial."""
        asked = self.asked
        title = f"{asked.model} with {' + '.join(asked.plugins) or 'no plugin'} on {asked.dataset}"
        parts = [f"# {title}", self._summary()]
        if self.best is not None:
            rows = [
                [f"`{each.key}`", _shown(self.best.get(each.key)), _shown(each.default), each.text(),
                 f"{100 * self.importance[each.key]:.0f} %" if each.key in self.importance else ""]
                for each in asked.dimensions
            ]  # fmt: skip
            parts += ["## The best trial", _markdown(["key", "best", "default", "searched", "importance"], rows)]
            if self.importance:
                parts.append(
                    "Importance is the share of what validation varied by over the finished trials that a forest lays "
                    "to the key (fANOVA); of few trials it says little."
                )
        if self.tests:
            names = list(next(iter(self.tests.values())))
            rows = [[str(seed), *(f"{found[name]:.4f}" for name in names)] for seed, found in self.tests.items()]
            if len(self.tests) > 1:
                several = [[found[name] for found in self.tests.values()] for name in names]
                rows.append(["mean ± sd", *(f"{statistics.mean(v):.4f} ± {statistics.stdev(v):.4f}" for v in several)])
            parts += ["## Its test, once a seed", _markdown(["seed", *names], rows)]
        keys = [each.key for each in asked.dimensions]
        rows = [
            [str(row["number"]), row["state"], _shown(row["score"]), str(row["epochs"] or ""),
             *(_shown(row.get(key)) for key in keys), row["error"]]
            for row in self.trials
        ]  # fmt: skip
        if rows:
            parts += ["## All trials", _markdown(["trial", "state", "validation", "epochs", *keys, "error"], rows)]
        return "\n\n".join(parts) + "\n"

    def _summary(self) -> str:
        states = [row["state"] for row in self.trials]
        told = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
        if self.best is None:
            return f"{told or 'no trial has begun'}; none has finished."
        first = next((row for row in self.trials if row["state"] == "complete" and row["number"] == 0), None)
        against = f"; trial 0, with every default that the space holds, has {first['score']:.4f}" if first else ""
        return (
            f"{told}. Chosen by validation alone: trial {self.best['number']}, {self.asked.metric} "
            f"{self.best['score']:.4f}{against}."
        )

    def save(self) -> None:
        """Write ``best.yaml``, ``trials.parquet`` and ``table.md``, each whole."""
        import pyarrow.parquet as pq

        if self.best is not None:
            _write(self.output / BEST, _best_yaml(self.asked, self.best))
        if self.trials:
            with replacing(self.output / "trials.parquet") as partial:
                pq.write_table(self.table(), partial)
        _write(self.output / "table.md", self.to_markdown())


def collect(study: Study, tests: dict[int, dict[str, float]] | None = None) -> Tuned:
    """What a study has so far."""
    rows = [_row(trial) for trial in study.taken()]
    best = study.best()
    chosen = next((row for row in rows if best is not None and row["number"] == best.number), None)
    return Tuned(study.output, study.asked, rows, chosen, study.importance(), tests or {})


def _row(trial: Any) -> dict[str, Any]:
    steps = trial.intermediate_values
    return {
        "number": trial.number,
        "state": {"COMPLETE": "complete", "PRUNED": "pruned", "RUNNING": "running"}.get(trial.state.name, "failed"),
        "score": trial.value,
        "epochs": max(steps) + 1 if steps else None,
        "error": trial.user_attrs.get("error", ""),
        **trial.params,
    }


def _best_yaml(asked: Asked, best: dict[str, Any]) -> str:
    """All that ``run_recbole`` needs."""
    values: dict[str, Any] = {"model": asked.model, "dataset": asked.dataset}
    if asked.plugins:
        values["plugin"] = ",".join(asked.plugins)
    if asked.data_path:
        values["data_path"] = asked.data_path
    values |= dict(asked.fixed) | {each.key: best[each.key] for each in asked.dimensions}
    about = f"# Trial {best['number']} of a search: valid {asked.metric} {best['score']:.4f}.\n"
    return about + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


# -- the test


def run_best(best: Path, seed: int, folder: Path) -> list[str]:
    """``run_recbole`` with ``best.yaml``, as anyone would run it."""
    given = [f"--config_files={os.path.relpath(best)}", f"--seed={seed}", f"--output_dir={folder}"]
    return [sys.executable, "-c", RUN, *given, "--show_progress=false"]


def final(study: Study, seeds: int, command: FinalCommand = run_best) -> dict[int, dict[str, float]]:
    """Train and test the best configuration, once with each of the seeds 1, 2, ...

    Args:
        study: of which no trial runs any more.
        seeds: how many; 0 for no test.
        command: what trains one.

    Returns:
        Test results by seed; what was tested before is read, not repeated.

    Raises:
        RecplugError: where a training fails, or another worker is at it.
    """
    best = study.best()
    if best is None or not seeds:
        return {}
    folder = study.output / FINAL / f"trial-{best.number}"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with stopping():
            for seed in range(1, seeds + 1):
                found[seed] = _test(study, folder / f"seed-{seed}", seed, command, handle)
    except BlockingIOError:
        raise RecplugError(f"another worker tests the best trial in {folder}; wait for it") from None
    finally:
        os.close(handle)
    return found


def _test(study: Study, folder: Path, seed: int, command: FinalCommand, lock: int) -> dict[str, float]:
    result = _finished(folder)
    if result is None:
        shutil.rmtree(folder, ignore_errors=True)
        file = study.output / LOGS / f"{folder.parent.name}-seed-{seed}.log"
        words = list(command(study.output / BEST, seed, folder))
        log.info("the best trial with seed %d, tested at the end", seed)
        with file.open("wb") as out:
            out.write(f"$ {shlex.join(words)}\n".encode())
            out.flush()
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, pass_fds=(lock,)
            )
            try:
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
        result = _finished(folder)
        if code in STOPPED:
            raise KeyboardInterrupt
        if result is None:
            raise RecplugError(f"the best trial with seed {seed} failed: {reason(file, code)}; see {file}")
    if result["test_result"] is None:
        raise RecplugError("the data have no test part; add --final_seeds 0 to search without a test")
    return {name: float(value) for name, value in result["test_result"].items()}


def _finished(folder: Path) -> dict[str, Any] | None:
    try:
        found = read_result(folder)
    except (OSError, ValueError):  # none, or only a part of one
        return None
    return found if found.get("status") == "finished" else None


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
