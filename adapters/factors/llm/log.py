"""Every answer that was paid for, kept: a run that is killed and started again asks nothing twice."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from recplug.plugins.errors import RecplugError

_FORMAT = 0x52504C32  # marks the file as ours; the last byte is the version
_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, text TEXT, status TEXT, model TEXT, place TEXT, mode TEXT, day TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    number INTEGER PRIMARY KEY, status TEXT, text TEXT, input_tokens INTEGER, output_tokens INTEGER, attempts INTEGER,
    model TEXT, at TEXT
);
"""


@dataclass(frozen=True)
class Entry:
    """What is known under one key.

    Attributes:
        text: the answer, as whoever chose the key wants to read it back.
        status: ``"ok"``, ``"failed"``, ``"refused"``, ...
        model, place, mode, day: which model (as its server reports it) said so, where, asked how and when.
    """

    text: str
    status: str
    model: str
    place: str
    mode: str
    day: str


@dataclass(frozen=True)
class Call:
    """One request: answered, or ``"unanswered"``.

    Attributes:
        status: the finish reason, or that.
        text: the raw answer, or what went wrong.
        input_tokens, output_tokens: what it cost.
        attempts: requests sent for it.
        model: as its server reports it.
        at: date and time, ISO 8601.
    """

    status: str
    text: str
    input_tokens: int
    output_tokens: int
    attempts: int
    model: str
    at: str


@dataclass(frozen=True)
class Usage:
    """Sums over all calls of a log."""

    calls: int
    attempts: int
    input_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens


class AnswerLog:
    """A sqlite file that only grows. Every write is committed at once; a killed process loses only calls in flight.

    It holds answers and their circumstances, and neither prompts nor keys of servers.

    Args:
        path: made with its folder where missing. One process at a time holds it.

    Raises:
        RecplugError: where another process holds it, or it is damaged or no such log.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self._telling():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=0.2, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, key: str) -> Entry | None:
        """What was put under ``key``."""
        return self.find(key, exact=True).get(key)

    def find(self, prefix: str, *, exact: bool = False) -> dict[str, Entry]:
        """All entries whose key begins with ``prefix``, or is it."""
        last = prefix if exact else prefix + chr(0x10FFFF)
        with self._telling():
            rows = self._file.execute("SELECT * FROM entries WHERE key BETWEEN ? AND ?", (prefix, last)).fetchall()
        return {key: Entry(*rest) for key, *rest in rows}

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Keep all or none of ``entries``; an older one under the same key is replaced."""
        rows = [(key, *astuple(entry)) for key, entry in entries.items()]
        with self._telling(), self._commit():
            self._file.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def record(self, call: Call) -> None:
        """Keep what one call said and cost."""
        with self._telling(), self._commit():
            self._file.execute("INSERT INTO calls VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", astuple(call))

    def usage(self) -> Usage:
        """What all calls together cost, in this run and those before."""
        with self._telling():
            sums = self._file.execute(
                "SELECT count(*), total(attempts), total(input_tokens), total(output_tokens) FROM calls"
            ).fetchone()
        return Usage(*map(int, sums))

    def _open(self) -> None:
        run = self._file.execute
        # Held from here until closed, also against readers; the system drops it when the process dies.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        with self._commit():
            (mark,) = run("PRAGMA application_id").fetchone()
            (objects,) = run("SELECT count(*) FROM sqlite_master").fetchone()
            (health,) = run("PRAGMA quick_check(1)").fetchone()
            if health != "ok":
                raise sqlite3.DatabaseError(health)
            if objects and mark != _FORMAT:
                raise RecplugError(f"{self.path} is not a log of answers, or an earlier version's; name another file")
            for statement in _TABLES.split(";"):
                run(statement)
            run(f"PRAGMA application_id = {_FORMAT}")

    @contextmanager
    def _commit(self) -> Iterator[None]:
        self._file.execute("BEGIN EXCLUSIVE")
        try:
            yield
        except BaseException:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what sqlite says into one line that helps."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                line = f"{self.path} is in use by another run; wait for its end or name another log"
            else:
                line = f"cannot use the log {self.path}: {error}; free some space or name another file"
            raise RecplugError(line) from None
        except sqlite3.DatabaseError as error:
            reason = " ".join(str(error).split())
            raise RecplugError(f"the log {self.path} is damaged ({reason}); move it away to begin a new one") from None
        except OSError as error:
            raise RecplugError(f"cannot use the log {self.path}: {error.strerror}; name another file") from None


def provenance(model: str, sampling: str, entries: Iterable[Entry]) -> dict[str, str]:
    """Who answered, where, how and when: told by the entries, which may come from several runs."""
    entries = list(entries)
    days = sorted({entry.day for entry in entries})
    told = {"model_reported": "model", "server": "place", "mode": "mode"}
    found = {key: sorted({getattr(entry, name) for entry in entries} - {""}) for key, name in told.items()}
    return {
        "model": model,
        **{key: ", ".join(words) or "unknown" for key, words in found.items()},
        "sampling": sampling,
        "created": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "unknown",
    }
