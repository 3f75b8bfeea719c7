"""``DATASET.factors.parquet``: the labels of a factor table as a file that other tools can read.

Columns: ``item_id`` (text), one a factor (dictionary-encoded text, null where unknown; a list of text where the factor
takes several values, empty where unknown), ``status``, and ``content_sha256`` where it is kept. The file's metadata
carry what the maker of the labels gave, under ``recplug.KEY``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recplug.adapters.factors.schema import CONTENT, FORMAT, ITEM, RESERVED, STATUS
from recplug.plugins.errors import RecplugError

PREFIX = "recplug."
_WRITTEN_BY_SAVE = ("format", "schema_sha256", "sha256")
_REMEDY = "copy it again, or make it again with `recplug factors import`"


@dataclass(frozen=True)
class Stored:
    """What the file says, in the words that were current when it was written."""

    tokens: tuple[str, ...]
    values: dict[str, tuple[tuple[str, ...], ...]]
    status: tuple[str, ...]
    metadata: dict[str, str]
    content_sha256: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The digest of everything but the metadata."""
        whole = [self.tokens, list(self.values.items()), self.status, self.content_sha256]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def write(stored: Stored, path: Path, *, schema_sha256: str, multi: Collection[str]) -> None:
    """Write the labels; equal ones give equal bytes.

    Args:
        stored: the labels.
        path: where to.
        schema_sha256: of the schema whose words they are.
        multi: the factors that take several values.
    """
    text = pa.dictionary(pa.int32(), pa.string())
    columns: dict[str, pa.Array] = {ITEM: pa.array(stored.tokens, pa.string())}
    for name, column in stored.values.items():
        if name in multi:
            columns[name] = pa.array(column, pa.list_(pa.string()))
        else:
            columns[name] = pa.array([names[0] if names else None for names in column], pa.string()).cast(text)
    columns[STATUS] = pa.array(stored.status, pa.string()).cast(text)
    if stored.content_sha256:
        columns[CONTENT] = pa.array(stored.content_sha256, pa.string())
    header = {"format": FORMAT, "schema_sha256": schema_sha256, "sha256": stored.sha256}
    header |= {key: stored.metadata[key] for key in sorted(stored.metadata)}
    metadata = {f"{PREFIX}{key}": value for key, value in header.items()}
    pq.write_table(pa.table(columns, metadata=metadata), path, compression="zstd")


def read(path: Path) -> Stored:
    """Read the labels as they were written.

    Raises:
        RecplugError: for a missing, foreign, truncated or altered file.
    """
    if not path.is_file():
        raise RecplugError(f"no labels at {path}, beside the schema; {_REMEDY}")
    try:
        # Not pq.read_table, which takes a path like year=2000/x.parquet for a column.
        table = pq.ParquetFile(path).read()
        table.validate(full=True)  # a damaged page may refer to words that there are not
        header = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        header = {key.removeprefix(PREFIX): value for key, value in header.items() if key.startswith(PREFIX)}
        if header.get("format") != FORMAT:
            raise RecplugError(
                f"{path} does not hold factor labels (format {header.get('format')!r}, expected {FORMAT!r}); bring"
                " other files in with `recplug factors import`"
            )
        names = [name for name in table.column_names if name not in RESERVED]
        stored = Stored(
            _texts(table, ITEM),
            {name: _several(table, name) for name in names},
            _texts(table, STATUS),
            {key: value for key, value in header.items() if key not in _WRITTEN_BY_SAVE},
            _texts(table, CONTENT) if CONTENT in table.column_names else (),
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RecplugError(f"{path} is truncated or corrupt ({reason}); {_REMEDY}") from None
    if header.get("sha256") != stored.sha256:
        raise RecplugError(f"{path}: the labels do not match the sha256 in its metadata; {_REMEDY}")
    return stored


def metadata_problem(metadata: Mapping[str, str]) -> str | None:
    """Why ``metadata`` cannot be written, in words; None where it can."""
    for key, value in metadata.items():
        if key in _WRITTEN_BY_SAVE:
            return f"metadata key {key!r} is written by the table itself; leave it out"
        if not isinstance(value, str):
            return f"metadata[{key!r}] is not text; give a string"
    return None


def _texts(table: pa.Table, name: str) -> tuple[str, ...]:
    column = table[name].to_pylist()
    if not all(isinstance(text, str) for text in column):
        raise ValueError(f"column {name!r} is not all text")
    return tuple(column)


_TEXT = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null


def _several(table: pa.Table, name: str) -> tuple[tuple[str, ...], ...]:
    column = table[name]
    inner = column.type.value_type if hasattr(column.type, "value_type") else column.type
    if not any(is_kind(inner) for is_kind in _TEXT):
        raise ValueError(f"column {name!r} is not all text")
    if pa.types.is_list(column.type):
        return tuple(tuple(names or ()) for names in column.to_pylist())
    coded = (column if pa.types.is_dictionary(column.type) else column.dictionary_encode()).combine_chunks()
    words = [(word,) for word in coded.dictionary.to_pylist()]
    return tuple(() if place is None else words[place] for place in coded.indices.to_pylist())
