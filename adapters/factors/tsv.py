"""Factor profiles as a tab-separated table, which a person edits in a spreadsheet."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from recplug.adapters.factors.schema import ITEM, STATUS, UNKNOWN, FactorSchema, FactorSpec, Value, folded
from recplug.adapters.factors.table import FactorTable
from recplug.adapters.files import replacing
from recplug.plugins.errors import RecplugError

SEVERAL = "|"
FORMULA = ("=", "+", "-", "@")
Names = tuple[str, ...]
StrPath = str | os.PathLike[str]


def to_tsv(table: FactorTable, path: StrPath) -> None:
    """Write a table that a person can edit in a spreadsheet; :func:`from_tsv` reads it back exactly.

    ``item_id``, one column a factor with several values between ``|``, and ``status``. A cell that a spreadsheet would
    take for a formula begins with a backslash, which also stands before a ``|`` or a backslash that is meant itself.

    Raises:
        RecplugError: where the file cannot be written.
    """
    names = [spec.name for spec in table.schema.factors]
    text = io.StringIO()
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow([ITEM, *(_escaped(name) for name in names), STATUS])
    for token, status, *profile in zip(
        table.tokens, table.status, *(table.values[name] for name in names), strict=True
    ):
        writer.writerow([_escaped(token), *(SEVERAL.join(map(_escaped, values)) for values in profile), status])
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            partial.write_bytes(text.getvalue().encode())
    except OSError as error:
        raise RecplugError(f"cannot write {target}: {error.strerror}; choose another place") from None


def from_tsv(
    path: StrPath, schema: FactorSchema | None = None, *, metadata: Mapping[str, str] | None = None
) -> FactorTable:
    """Read a table like that of :func:`to_tsv`.

    Args:
        path: tab-separated, with a header; first column ``item_id``, last column perhaps ``status``.
        schema: the factors and their vocabularies; a word that it does not know is an error. None: make one, with the
            values in alphabetical order and ``other`` for what it says.
        metadata: where the labels come from; for the labels, and for the schema where it is made here.

    Raises:
        RecplugError: for an unreadable or uneven file, or contents that :class:`FactorTable` refuses.
    """
    table = read_cells(path)
    header = [_unescaped(name) for name in table[0]]
    if header[0] != ITEM or not all(header) or len(set(header)) < len(header):
        raise RecplugError(f"{path} has the columns {', '.join(header)}; it needs {ITEM} first, and different names")
    has_status = header[-1] == STATUS
    cells = list(zip(*table[1:], strict=True)) or [()] * len(header)
    status = tuple(word or "ok" for word in cells[-1]) if has_status else ("ok",) * len(table[1:])
    read = {
        name: tuple(tuple(word for word in _parted(cell) if folded(word) != UNKNOWN) for cell in column)
        for name, column in list(zip(header, cells, strict=True))[1 : len(header) - has_status]
    }
    origin = {"made_by": "recplug: a table made by hand", **(metadata or {})}
    try:
        if schema is None:
            specs = tuple(_spec_of(name, column) for name, column in read.items())
            schema = FactorSchema(factors=specs, provenance=origin)
        tokens = tuple(map(_unescaped, cells[0]))
        return FactorTable(schema, tokens, read, status, origin)
    except RecplugError as error:
        raise RecplugError(f"{path}: {error}") from None


def read_cells(path: StrPath, *, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> list[list[str]]:
    """The cells of a tab-separated file, header first, without empty lines."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = [cells for cells in csv.reader(file, dialect="excel-tab", quoting=quoting) if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise RecplugError(f"cannot read {path}: {reason}; give a tab-separated UTF-8 text file") from None
    if not table:
        raise RecplugError(f"{path} is empty; it needs a header and one line an item")
    for number, cells in enumerate(table[1:], 2):
        if len(cells) != len(table[0]):
            raise RecplugError(f"{path}: line {number} has {len(cells)} cells, the header {len(table[0])}; mend it")
    return table


def most_frequent(held: Iterable[Names]) -> dict[str, str]:
    """Each folded spelling to the most frequent of its spellings."""
    times = Counter(word for words in held for word in words)
    return {folded(word): word for word in sorted(times, key=lambda word: (times[word], word))}


def _spec_of(name: str, column: tuple[Names, ...]) -> FactorSpec:
    """A vocabulary of what stands in a hand-made column."""
    spelled = most_frequent(column)
    return FactorSpec(
        name=name,
        source="catalogue",
        multi=any(len(set(map(folded, words))) > 1 for words in column),
        other=spelled.get("other"),
        values=tuple(Value(name=word) for word in sorted(spelled.values())),
    )


def _escaped(word: str) -> str:
    word = re.sub(r"([\\|])", r"\\\1", word)
    return f"\\{word}" if word.startswith(FORMULA) else word


def _unescaped(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word)


def _parted(cell: str) -> Names:
    """The words of a cell."""
    words = (_unescaped(word).strip() for word in re.findall(r"(?:\\.|[^|])+", cell))
    return tuple(filter(None, words))
