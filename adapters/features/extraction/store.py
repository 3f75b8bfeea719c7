"""Vectors as they are made, on disk: a run that is killed at any moment goes on where it was.

A folder with a matrix (``vectors.bin``) and a journal, one line for each finished batch with the checksum of its rows.
The rows are written first. A batch counts if its line is whole and the rows on disk have that checksum, so neither a
kill nor a power cut can make one count that is not there.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recplug.adapters.features.extraction.identity import MARKS, ORDER, PLAN, TOKENS, Work, write_array
from recplug.adapters.features.extraction.sources import Missing
from recplug.plugins.errors import RecplugError

SYNC_SECONDS = 5.0  # what a power cut may cost; a kill costs only the batches under way
VECTORS, JOURNAL = "vectors.bin", "journal.jsonl"
_FILES = (PLAN, TOKENS, MARKS, ORDER, VECTORS, JOURNAL)
Matrix = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Done:
    """One finished batch.

    Attributes:
        crc: of its rows.
        truncated: how many of its texts were cut.
        broken: what has no vector after all, by place in the batch; its rows are zeros.
    """

    crc: int
    truncated: int
    broken: Mapping[int, Missing]


class Store:
    """The folder, held by one process at a time.

    Args:
        folder: made where missing.

    Raises:
        RecplugError: where another process holds it, or it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work: Work | None = None
        self.done: dict[int, Done] = {}
        self._files: dict[str, int] = {}
        self._synced = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._files["lock"] = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _refused(folder, error) from None
        if not _locked(self._files["lock"]):
            self.close()
            raise RecplugError(f"{folder} is in use by another run; wait for its end, or stop it")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume(self, work: Work, *, restart: bool = False, retry_broken: bool = False) -> None:
        """Go on with ``work``, or begin it.

        Args:
            work: what is to be done; its date gives way to that of the beginning.
            restart: throw away what is there.
            retry_broken: do batches again in which something was broken; their contents may have changed.

        Raises:
            RecplugError: where the folder holds other work, or something else.
        """
        for name in _FILES:  # a kill in the middle of a file leaves its beginning
            for partial in self.folder.glob(f".{name}.*.part"):
                partial.unlink()
        strange = sorted({entry.name for entry in self.folder.iterdir()} - {*_FILES, "lock"})
        if strange:
            raise RecplugError(f"{self.folder} holds {strange[0]}, which is not ours; move it away")
        begun = (self.folder / PLAN).exists()
        if begun and not restart:
            self.read()
            there = self._known()
            if self.done:
                self._check(there, work, retry_broken)
                return
        # Nothing is lost where no batch was finished: another size of batch needs no --restart then.
        self.close(keep_lock=True)
        self._create(work)
        self.read()

    def read(self) -> Work:
        """What the folder holds, with :attr:`done`.

        Raises:
            RecplugError: where it is damaged.
        """
        try:
            self.work = Work.read(self.folder)
            for name in (VECTORS, JOURNAL):
                if name not in self._files:
                    self._files[name] = os.open(self.folder / name, os.O_RDWR)
            self.done = self._read_journal()
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise RecplugError(f"{self.folder} is damaged ({reason}); begin anew with --restart") from None
        return self.work

    @property
    def left(self) -> list[int]:
        """The batches that are still to be done."""
        return [batch for batch in self._known().plan.batches if batch not in self.done]

    def put(self, batch: int, rows: Matrix, *, truncated: int, broken: Mapping[int, Missing]) -> None:
        """Keep one batch: its rows ``[b, d]``, zeros where something is broken.

        Raises:
            RecplugError: where it cannot be written; what was kept before stays.
        """
        work = self._known()
        data = np.ascontiguousarray(rows, dtype=work.dtype).tobytes()
        done = Done(zlib.crc32(data), truncated, broken)
        told = {place: [item.token, item.file, item.reason] for place, item in broken.items()}
        line = json.dumps({"batch": batch, "crc": done.crc, "truncated": truncated, "broken": told})
        try:
            _write(self._files[VECTORS], data, work.plan.row(batch) * self._row_bytes)
            journal = self._files[JOURNAL]
            _write(journal, f"{line}\n".encode(), os.lseek(journal, 0, os.SEEK_END))
            self.done[batch] = done
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise _refused(self.folder, error) from None

    def rows(self, batch: int) -> Matrix:
        """The rows ``[b, d]`` of a finished batch."""
        work = self._known()
        data = self._read_rows(batch)
        return np.frombuffer(data, dtype=work.dtype).reshape(-1, work.width)

    def sync(self) -> None:
        """Have the system write everything to the disk, the rows before what counts them."""
        for name in (VECTORS, JOURNAL):
            if name in self._files:
                os.fsync(self._files[name])
        self._synced = time.monotonic()

    def close(self, *, keep_lock: bool = False) -> None:
        """Let the next process in."""
        kept = {"lock"} if keep_lock else set()
        for name in self._files.keys() - kept:
            os.close(self._files.pop(name))

    def remove(self) -> None:
        """Delete the folder."""
        self.close(keep_lock=True)
        for name in (*_FILES, "lock"):
            (self.folder / name).unlink(missing_ok=True)
        self.close()
        self.folder.rmdir()

    # --- inside ---

    @property
    def _row_bytes(self) -> int:
        work = self._known()
        return work.width * work.dtype.itemsize

    def _known(self) -> Work:
        assert self.work is not None, "resume or read comes first"
        return self.work

    def _check(self, there: Work, work: Work, retry_broken: bool) -> None:
        again = {batch for batch, done in self.done.items() if done.broken} if retry_broken else set()
        broken = {there.plan.items(batch)[place] for batch in again for place in self.done[batch].broken}
        difference = there.difference(work, changed=frozenset(map(int, broken)))
        if difference is not None:
            held = sum(len(there.plan.items(batch)) for batch in self.done)
            raise RecplugError(
                f"{self.folder} holds {held:,} vectors of other work ({difference}); go on as before, or throw them"
                " away with --restart"
            )
        if again:
            write_array(self.folder / MARKS, work.marks)
            self.done = {batch: done for batch, done in self.done.items() if batch not in again}

    def _create(self, work: Work) -> None:
        try:
            for name in _FILES:  # the plan first: without it nothing counts
                (self.folder / name).unlink(missing_ok=True)
            for name in (VECTORS, JOURNAL):
                (self.folder / name).touch()
            work.write(self.folder)
        except OSError as error:
            raise _refused(self.folder, error) from None

    def _read_journal(self) -> dict[int, Done]:
        """The batches that count; a last line that a kill cut short is taken away."""
        journal = self._files[JOURNAL]
        text = (self.folder / JOURNAL).read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.ftruncate(journal, whole)
        done: dict[int, Done] = {}
        for line in text[:whole].splitlines():
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # a damaged line: its batch is done again
                told = json.loads(line)
                broken = {int(place): Missing(*item) for place, item in told["broken"].items()}
                done[int(told["batch"])] = Done(int(told["crc"]), int(told["truncated"]), broken)
        ours = self._known().plan.batches
        done = {batch: done[batch] for batch in sorted(done) if batch in ours}
        return {batch: it for batch, it in done.items() if zlib.crc32(self._read_rows(batch)) == it.crc}

    def _read_rows(self, batch: int) -> bytes:
        plan = self._known().plan
        wanted = len(plan.items(batch)) * self._row_bytes
        os.lseek(self._files[VECTORS], plan.row(batch) * self._row_bytes, os.SEEK_SET)
        data = b""
        while len(data) < wanted and (more := os.read(self._files[VECTORS], wanted - len(data))):
            data += more
        return data


def _write(file: int, data: bytes, place: int) -> None:
    os.lseek(file, place, os.SEEK_SET)
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _locked(file: int) -> bool:
    """Take the lock, which the system drops when the process dies; where there are no such locks, go without."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        # Not flock: worker processes would inherit it, and outlive a killed run by seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a network drive without locks
        return True
    return True


def _refused(folder: Path, error: OSError) -> RecplugError:
    return RecplugError(
        f"cannot write {folder}: {error.strerror}; what was kept stays, so make room (or choose another --output) and"
        " run the same command again"
    )
