"""The cells at work: each in a process of its own, a few at once, and what they leave when they are killed."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from recplug.adapters.compare.cells.plan import Cell, ready, rows, total
from recplug.adapters.compare.cells.status import CELLS, FAILED, LOGS, Outcome, outcome
from recplug.adapters.compare.spec import SETTINGS_FILE, Asked, remember
from recplug.adapters.files import replacing
from recplug.adapters.ownership import claim
from recplug.adapters.stopping import stopping
from recplug.plugins.errors import RecplugError

log = logging.getLogger("recplug")
Command = Callable[[Cell, Path], Sequence[str]]  # what trains a cell into a folder
POLL = 0.05  # seconds between two looks at what runs
STOPPED = (-signal.SIGINT, -signal.SIGTERM, 130, 143)  # exit codes of what was asked to end
RUN = "from recplug.adapters.cli.run_recbole import main; main()"


def run_recbole(asked: Asked, output: Path) -> Command:
    """The command of a cell: ``run_recbole``, with the same speed for the bare backbone as for plugins.

    Raises:
        RecplugError: where the folder cannot stand in ``--config_files``, whose files are separated by spaces.
    """
    settings = os.path.relpath(output / SETTINGS_FILE)
    if any(character.isspace() for character in settings):
        raise RecplugError(f"the path {settings} has a space in it; choose an --output without")

    def command(cell: Cell, folder: Path) -> list[str]:
        words = [sys.executable, "-c", RUN, *cell.arguments(), f"--config_files={settings}", f"--output_dir={folder}"]
        words += [f"--data_path={asked.data_path}"] if asked.data_path else []
        if not cell.plugins:
            given = asked.settings.keys() | dict(cell.choice).keys()
            words += [f"--{key}={value}" for key, value in _speed(cell.model).items() if key not in given]
        return [*words, "--show_progress=false"] if "show_progress" not in asked.settings else words

    return command


def _speed(model: str) -> dict[str, str]:
    """The adapter's speed, which plugins have anyway and which changes no number beyond rounding."""
    from recplug.adapters.recbole import augment
    from recplug.adapters.recbole.config.host_config import model_class

    trims = augment(model_class(model), []).recplug_host.trim  # type: ignore[attr-defined]
    return {"trim_padding": str(trims).lower(), "fast_propagation": "true"}


def collect(output: Path, asked: Asked) -> dict[str, Outcome]:
    """Every outcome that the folder holds of what is asked, by key; what depends on others after them."""
    found: dict[str, Outcome] = {}
    while new := {cell.key: each for cell in ready(asked, found) if (each := outcome(output, cell.key)) is not None}:
        found |= new
    return found


def finished_cells(asked: Asked, outcomes: Mapping[str, Outcome]) -> list[Cell]:
    """The cells whose result there is, each once."""
    cells = [cell for variants, _, more in rows(asked, outcomes) for v in (*variants, *more) for cell in v.cells]
    found = {cell.key: cell for cell in cells if (ended := outcomes.get(cell.key)) and ended.result is not None}
    return list(found.values())


def fill(output: Path, asked: Asked, *, command: Command, jobs: int = 1, retry: bool = False) -> None:
    """Note what is asked, and train every cell that has not ended; whatever happens to one, the others go on.

    Args:
        output: the folder of the comparison; made where there is none.
        asked: the grid.
        command: what trains a cell into a folder.
        jobs: how many cells at once.
        retry: whether cells that failed before are tried again.

    Raises:
        RecplugError: where another comparison, or a cell that a killed one left, still works in this folder.
    """
    claim(output, "comparison", again=True)
    with _alone(output) as lock, stopping():
        remember(output, asked)  # not before: another comparison may be at work here, and goes by these files
        if retry:
            shutil.rmtree(output / FAILED, ignore_errors=True)
        outcomes, running = collect(output, asked), dict[str, _Running]()
        todo = ready(asked, outcomes)
        try:
            while todo or running:
                while todo and len(running) < jobs:
                    cell = todo.pop(0)
                    running[cell.key] = _start(output, cell, command, lock, jobs)
                time.sleep(POLL)
                ended = [key for key, each in running.items() if each.process.poll() is not None]
                for key in ended:
                    each = running.pop(key)
                    outcomes[key] = _ended(output, each)
                    log.info("[%d/%d] %s", len(outcomes), total(asked, outcomes), _told(each, outcomes[key]))
                if ended:  # what they have made known may be what a control waited for
                    todo = [cell for cell in ready(asked, outcomes) if cell.key not in running]
        finally:
            for each in running.values():
                each.process.terminate()
            for each in running.values():
                each.process.wait()
                each.log.close()


@dataclass(frozen=True)
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    begun: float


def _start(output: Path, cell: Cell, command: Command, lock: int, jobs: int) -> _Running:
    folder = Path(os.path.relpath(output)) / CELLS / cell.key
    shutil.rmtree(folder, ignore_errors=True)  # of a cell that was cut off
    (output / CELLS).mkdir(exist_ok=True)
    (output / LOGS).mkdir(exist_ok=True)
    words = list(command(cell, folder))
    file = (output / LOGS / f"{cell.key}.log").open("wb")
    file.write(f"$ {shlex.join(words)}\n".encode())
    file.flush()
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    # A cell holds the lock too: if this process is killed alone, nobody else begins while the cell still writes.
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        env={"OMP_NUM_THREADS": threads, **os.environ},
        pass_fds=(lock,),
    )
    return _Running(cell, process, file, time.monotonic())


def _ended(output: Path, ended: _Running) -> Outcome:
    """What a process has left; a failure is noted, so that it is not tried again and again.

    Not where someone has ended it: whoever goes on wants that cell.
    """
    ended.log.close()
    code = ended.process.returncode
    found = outcome(output, ended.cell.key)
    if found is not None and found.result is not None:
        return found
    error = reason(output / LOGS / f"{ended.cell.key}.log", code)
    if code not in STOPPED:
        (output / FAILED).mkdir(exist_ok=True)
        with replacing(output / FAILED / f"{ended.cell.key}.json") as partial:
            partial.write_text(json.dumps({"error": error, "code": code}) + "\n", encoding="utf-8")
    return Outcome(None, error)


def reason(file: Path, code: int) -> str:
    """One line on why a process ended without a result."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", maybe for want of memory" if name == "SIGKILL" else "")
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[1:]]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = told or [line for line in lines if line] or ["it said nothing"]
    return last[-1] if told else f"ended with code {code}: {last[-1]}"


def _told(ended: _Running, found: Outcome) -> str:
    """A line for the console."""
    about = f"{ended.cell.title()}, seed {ended.cell.seed}"
    if found.result is None:
        return f"{about}: FAILED, {found.error}"
    score, metric = found.result.get("best_valid_score"), found.result.get("valid_metric", "score")
    return f"{about}: valid {metric} {score:.4f}, {time.monotonic() - ended.begun:.0f} s"


@contextmanager
def _alone(output: Path) -> Iterator[int]:
    """The folder's lock: a file that this process and its cells hold."""
    handle = os.open(output / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    except BlockingIOError:
        raise RecplugError(
            f"{output} is in use by another recplug compare, or by a cell that a killed one left at work; wait for it, "
            "or end it"
        ) from None
    finally:
        os.close(handle)
