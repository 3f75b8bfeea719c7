"""Recommendations as a table that is made block by block, and written whole or not at all."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from recplug.adapters.files import replacing
from recplug.plugins.errors import RecplugError

SCHEMA = pa.schema([("user", pa.string()), ("item", pa.string()), ("score", pa.float32()), ("rank", pa.int32())])
KINDS = (".parquet", ".csv", ".jsonl")


def check_output(path: str | os.PathLike[str]) -> Path:
    """The path of a table to be written.

    Raises:
        RecplugError: for an ending that is not ``.parquet``, ``.csv`` or ``.jsonl``, and as :func:`check_place`.
    """
    target = Path(path)
    if target.suffix not in KINDS:
        raise RecplugError(f"cannot tell the format of {target}; let it end with {', '.join(KINDS)}")
    check_place(target)
    return target


def check_place(target: Path) -> None:
    """Whether a file can be written there, before what it is to hold is computed.

    Raises:
        RecplugError: for a folder that is not there or cannot be written to, or a folder in the file's place.
    """
    if not target.parent.is_dir():
        raise RecplugError(f"no folder {target.parent} to write {target.name} to; make it first")
    if target.is_dir():
        raise RecplugError(f"cannot write {target}: it is a folder; choose another name")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise RecplugError(f"cannot write {target}: the folder is not yours to write to; choose another place")


def cannot_write(target: Path, error: OSError) -> RecplugError:
    """One line for what went wrong when writing; pyarrow's own words name the partial file."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return RecplugError(f"cannot write {target}: {reason}; choose another place")


def put(target: Path, content: bytes | memoryview) -> None:
    """Write a whole file or none.

    Raises:
        RecplugError: where it cannot be written.
    """
    try:
        with replacing(target) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise cannot_write(target, error) from error


class Recommendations:
    """Who is recommended what: columns ``user``, ``item``, ``score``, ``rank`` (1 is best), best first.

    Nothing is computed before it is asked for, and then a block of users at a time: writing to a file never holds more
    than a block's scores. :meth:`table` keeps what it has computed.

    Args:
        make: gives the blocks, from the beginning at every call.
        users: how many users there are.
    """

    def __init__(self, make: Callable[[], Iterator[pa.RecordBatch]], users: int) -> None:
        self._make = make
        self._table: pa.Table | None = None
        self.users = users

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, a block of users at a time."""
        yield from self._make() if self._table is None else self._table.to_batches()

    def table(self) -> pa.Table:
        """Everything, as a pyarrow table; ``.table().to_pandas()`` is a data frame."""
        if self._table is None:
            self._table = pa.Table.from_batches(self._make(), SCHEMA)
        return self._table

    def lists(self) -> dict[str, list[str]]:
        """Each user's items, best first."""
        found: dict[str, list[str]] = {}
        for user, item in zip(*(self.table()[name].to_pylist() for name in ("user", "item")), strict=True):
            found.setdefault(user, []).append(item)
        return found

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file, a row group a block."""
        with replacing(path) as partial, pyarrow.parquet.ParquetWriter(partial, SCHEMA) as writer:
            for batch in self.batches():
                writer.write_batch(batch)

    def to_csv(self, path: str | os.PathLike[str], *, safe: bool = False) -> None:
        """Write comma-separated UTF-8 with a header.

        Args:
            path: the file.
            safe: put a quote mark before tokens that a spreadsheet would take for a formula, such as ``=cmd|...``.
        """
        with replacing(path) as partial, pyarrow.csv.CSVWriter(partial, SCHEMA) as writer:
            for batch in self.batches():
                writer.write_batch(_as_text(batch) if safe else batch)

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON object a row, as UTF-8."""
        with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
            for batch in self.batches():
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())

    def save(self, path: str | os.PathLike[str], *, csv_safe: bool = False) -> None:
        """Write in the format that the path's ending names; a reader never sees half a file.

        Args:
            path: the file.
            csv_safe: see :meth:`to_csv`.

        Raises:
            RecplugError: see :func:`check_output`; where the file cannot be written.
        """
        target = check_output(path)
        as_csv = functools.partial(self.to_csv, safe=csv_safe)
        formats: dict[str, Callable[[Path], None]]
        formats = {".parquet": self.to_parquet, ".csv": as_csv, ".jsonl": self.to_jsonl}
        try:
            formats[target.suffix](target)
        except OSError as error:
            raise cannot_write(target, error) from error

    def __repr__(self) -> str:
        return f"Recommendations(users={self.users}, columns={SCHEMA.names})"


def _as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Users and items with a quote mark before what a spreadsheet would compute."""
    quoted = functools.partial(pyarrow.compute.replace_substring_regex, pattern=r"^([=+\-@\t\r])", replacement=r"'\1")
    columns = [quoted(column) if column.type == pa.string() else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
