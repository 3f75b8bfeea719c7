"""What is to be encoded: the items of a data set, and the text or the picture of each."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recplug.adapters.data.check import interaction_files, read_atomic, settings_of
from recplug.adapters.plain_text import is_missing, plain
from recplug.plugins.errors import RecplugError, did_you_mean

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Missing:
    """An item that gets no vector.

    Attributes:
        token: the item.
        file: its picture's file or address; empty where it has none.
        reason: in a few words.
    """

    token: str
    file: str
    reason: str


@dataclass(frozen=True, eq=False)
class Items:
    """The items of a data set that have something to encode, in the data set's order.

    Attributes:
        modality: what there is of them.
        tokens: their n item tokens.
        contents: their texts, or their pictures' files and addresses.
        marks: ``[n, 2]``: what tells whether a content has changed. A text's digest; a file's size and its time, of
            which the time does not count between two machines.
        missing: the items that have nothing.
        source: where the contents come from, for the table's header.
    """

    modality: Literal["image", "text"]
    tokens: tuple[str, ...]
    contents: tuple[str, ...]
    marks: IntArray
    missing: tuple[Missing, ...]
    source: str

    def where(self, kept: Sequence[bool], reason: str) -> Items:
        """The items without those that are not ``kept [n]``, which are missing for that reason."""
        tokens, contents = tuple(compress(self.tokens, kept)), tuple(compress(self.contents, kept))
        lost = tuple(Missing(token, "", reason) for token, keep in zip(self.tokens, kept, strict=True) if not keep)
        marks = self.marks[np.asarray(kept, dtype=bool)]
        return replace(self, tokens=tokens, contents=contents, marks=marks, missing=(*self.missing, *lost))


def text_items(folder: Path, dataset: str, columns: Sequence[str] | None = None, *, separator: str = ". ") -> Items:
    """Texts of ``DATASET.item``: the columns in the order given, cleaned of HTML, with ``separator`` between them.

    Args:
        folder, dataset: where the data set lies, and its name.
        columns: default all text columns (``token_seq``).
        separator: between two columns of an item.

    Raises:
        RecplugError: where there is no such file or column, or not one item has text.
    """
    file = folder / f"{dataset}.item"
    if not file.is_file():
        raise RecplugError(
            f"no {file}, where texts are read from; write one, tab-separated, with item_id:token and text:token_seq"
        )
    table, types = read_atomic(file)
    if columns is None:
        columns = [name for name, kind in types.items() if kind == "token_seq"]
        if not columns:
            raise RecplugError(f"{file} has no text column (token_seq); name some of {', '.join(types)} with --columns")
    columns = list(dict.fromkeys(columns))
    tokens, rows = _first_rows(table, _item_field(folder, dataset, file, types), file)
    cells = [table[_column(name, types, file)].take(rows).to_pylist() for name in columns]
    found: dict[str, str] = {}
    for token, *parts in zip(tokens, *cells, strict=True):
        cleaned = [text for part in parts if not is_missing(text := plain(part))]
        if cleaned:
            found[token] = separator.join(cleaned)
    source = f"column{'s' if len(columns) > 1 else ''} {', '.join(columns)}"
    if not found:
        raise RecplugError(f"{file}: not one item has text in {source}; choose others with --columns A,B")
    marks = np.array([[_digest(text), 0] for text in found.values()], dtype=np.int64)
    missing = tuple(Missing(token, "", "no text") for token in tokens if token not in found)
    return Items("text", tuple(found), tuple(found.values()), marks, missing, source)


def image_items(folder: Path, dataset: str, images: str | os.PathLike[str]) -> Items:
    """Pictures of the items of ``DATASET.item``, or without that file of ``DATASET.inter``.

    Args:
        folder, dataset: where the data set lies, and its name.
        images: a column of ``DATASET.item`` with files (relative to ``folder``) or http addresses; else a folder with
            files ``TOKEN.jpg``, ``.png``, ...

    Raises:
        RecplugError: for no such column or folder, two pictures of one item, or not one item with a picture.
    """
    name, file = os.fspath(images), folder / f"{dataset}.item"
    table, types = read_atomic(file) if file.is_file() else (None, {})
    if table is not None and name in types:
        tokens, rows = _first_rows(table, _item_field(folder, dataset, file, types), file)
        named = dict(zip(tokens, table[name].take(rows).to_pylist(), strict=True))
        found = {token: _in_column(folder, token, cell) for token, cell in named.items()}
        example = next((cell for cell in named.values() if not is_missing(cell)), "")
        place, advice = f"column {name}", f"it holds {example!r}, which is no file in {folder}; give paths from there"
    else:
        place, advice = "files named by item token", f"name the files in {name} like items, TOKEN.jpg"
        if not Path(name).is_dir():
            columns = f", nor a column of {file.name}{did_you_mean(name, types)}" if types else ""
            raise RecplugError(f"--images {name} is not a folder{columns}; give a folder with files TOKEN.jpg")
        tokens = _tokens(folder, dataset, table, types)
        by_token = _files(Path(name), set(tokens))
        found = {token: _in_folder(token, by_token.get(token)) for token in tokens}
    usable = {token: known for token, known in found.items() if not isinstance(known, Missing)}
    if not usable:
        raise RecplugError(f"not one of the {len(found):,} items of {dataset} has a picture ({place}); {advice}")
    marks = np.array([mark for _, mark in usable.values()], dtype=np.int64)
    missing = tuple(known for known in found.values() if isinstance(known, Missing))
    return Items("image", tuple(usable), tuple(path for path, _ in usable.values()), marks, missing, place)


def is_address(content: str) -> bool:
    """Whether a picture lies on a web server."""
    return content.lower().startswith(("http://", "https://"))


Known = tuple[str, tuple[int, int]]


def _in_column(folder: Path, token: str, cell: str) -> Known | Missing:
    if is_missing(cell):
        return Missing(token, "", "none named")
    if is_address(cell):
        return cell, (_digest(cell), 0)
    try:
        status = os.stat(folder / cell)
    except (OSError, ValueError):
        return Missing(token, cell, "no such file")
    if not stat.S_ISREG(status.st_mode):
        return Missing(token, cell, "not a file")
    return str(folder / cell), (status.st_size, status.st_mtime_ns)


def _in_folder(token: str, file: os.DirEntry[str] | None) -> Known | Missing:
    if file is None:
        return Missing(token, "", "no file can have a '/' in its name" if "/" in token else "no file")
    status = file.stat()
    return file.path, (status.st_size, status.st_mtime_ns)


def _files(folder: Path, tokens: set[str]) -> dict[str, os.DirEntry[str]]:
    """The pictures of ``tokens`` in ``folder``; other files are no concern of ours."""
    found: dict[str, os.DirEntry[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            token, suffix = os.path.splitext(entry.name)
            if suffix.lower() not in SUFFIXES or token not in tokens or not entry.is_file():
                continue
            if token in found:
                names = " and ".join(sorted((found[token].name, entry.name)))
                raise RecplugError(f"{folder} holds {names}; keep one picture an item")
            found[token] = entry
    return found


def _tokens(folder: Path, dataset: str, table: pa.Table | None, types: dict[str, str]) -> list[str]:
    """The data set's items, each once."""
    if table is not None:
        file = folder / f"{dataset}.item"
        return _first_rows(table, _item_field(folder, dataset, file, types), file)[0]
    tokens: dict[str, None] = {}
    for path in interaction_files(folder, dataset, settings_of(folder, dataset)).values():
        read, kinds = read_atomic(path)
        field = _item_field(folder, dataset, path, kinds)
        tokens |= dict.fromkeys(_first_rows(read, field, path)[0])
    return list(tokens)


def _item_field(folder: Path, dataset: str, file: Path, types: Iterable[str]) -> str:
    return _column(settings_of(folder, dataset).get("ITEM_ID_FIELD") or "item_id", types, file)


def _column(name: str, types: Iterable[str], file: Path) -> str:
    if name in types:
        return name
    hint = did_you_mean(name, types) or f"; it has {', '.join(types)}"
    raise RecplugError(f"{file} has no column {name!r}{hint}")


def _first_rows(table: pa.Table, field: str, file: Path) -> tuple[list[str], pa.Array]:
    """Every item token once, and the row where it stands first."""
    column = table[field].combine_chunks()
    tokens = pc.unique(column)
    rows = pc.index_in(tokens, value_set=column)
    kept = pc.not_equal(tokens, "")
    if not pc.any(kept).as_py():
        raise RecplugError(f"{file}: {field} is empty in every row; give each item its token")
    return tokens.filter(kept).to_pylist(), rows.filter(kept)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
