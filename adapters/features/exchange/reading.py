"""What every importer needs: where vectors come from, item tokens out of text files, and a matrix made a table."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recplug.adapters.features.table import FeatureTable
from recplug.adapters.features.tokens import Array, StrPath
from recplug.plugins.errors import RecplugError, did_you_mean


@dataclass(frozen=True)
class Provenance:
    """Where vectors come from, as far as their user knows; goes into the table's header.

    Attributes:
        encoder, revision: the model and its version.
        pooling: how one vector was made of many (``"CLS"``, ``"mean"``, ...).
        licence: under which terms the vectors may be used.
        source: citation or address.
        created: date, ISO 8601.
    """

    encoder: str = "unknown"
    revision: str = "unknown"
    pooling: str = "unknown"
    licence: str = "unknown"
    source: str = "unknown"
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).date().isoformat())


def read_tokens(path: StrPath) -> list[str]:
    """One token a line, or the first column under a header where the file is a ``.tsv``, ``.csv`` or ``.item``.

    Raises:
        RecplugError: for a file that cannot be read as UTF-8.
    """
    suffix = Path(path).suffix.lower()
    lines = lines_of(path)
    if suffix == ".csv":
        return [row[0] if row else "" for row in csv.reader(lines)][1:]
    if suffix in {".tsv", ".item"}:
        return [line.split("\t")[0] for line in lines[1:]]
    return lines


def read_items(path: StrPath) -> list[str]:
    """The items of a file in its order: MMRec's ``i_id_mapping.csv``, or whatever :func:`read_tokens` takes.

    Raises:
        RecplugError: for a file that cannot be read, or a mapping with holes.
    """
    header = next(iter(lines_of(path)), "")
    return mapped_tokens(Path(path)) if "itemID" in header.replace("\t", ",").split(",") else read_tokens(path)


def mapped_tokens(path: Path) -> list[str]:
    """The tokens in the order of MMRec's item ids, from an ``i_id_mapping.csv``.

    Raises:
        RecplugError: where it does not name every id from 0 on exactly once.
    """
    lines = lines_of(path)
    rows = list(csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ","))
    header = rows[0] if rows else []
    others = [name for name in header if name != "itemID"]
    name = "asin" if "asin" in others else others[0] if len(others) == 1 else None
    if "itemID" not in header or name is None:
        raise RecplugError(f"{path} has the columns {', '.join(header) or 'none'}; it needs asin and itemID")
    number, token = header.index("itemID"), header.index(name)
    try:
        tokens = {int(row[number]): row[token] for row in rows[1:]}
    except (ValueError, IndexError):
        raise RecplugError(f"{path}: a row has no whole-number itemID; export the mapping again") from None
    if sorted(tokens) != list(range(len(rows) - 1)):
        raise RecplugError(f"{path}: its itemIDs are not 0 to {len(rows) - 2}, each once; give the whole mapping")
    return [tokens[i] for i in range(len(tokens))]


def load_numpy(path: StrPath) -> Any:
    """An array, or an archive of arrays; nothing is ever unpickled.

    Raises:
        RecplugError: for any other file.
    """
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # damaged bytes lead NumPy into errors of every kind
        raise RecplugError(
            f"cannot read {path}: {reason_of(error)}; save it with numpy.save and no objects in it"
        ) from None


def load_arrays(path: StrPath, archive: Any, names: Sequence[str]) -> list[Array]:
    """Some arrays of an archive.

    Raises:
        RecplugError: where one is not there, or is none, or would have to be unpickled.
    """
    for name in names:
        if name not in archive.files:
            hint = did_you_mean(name, archive.files) or f"; it has: {', '.join(archive.files) or 'nothing'}"
            raise RecplugError(f"{path} has no array {name!r}{hint}")
    try:
        arrays = [archive[name] for name in names]
    except Exception as error:  # damaged bytes lead NumPy and zlib into errors of every kind
        raise RecplugError(
            f"{path} holds pickled or broken arrays ({reason_of(error)}); save texts with .astype(str), and no objects"
        ) from None
    raw = next((name for name, array in zip(names, arrays, strict=True) if not isinstance(array, np.ndarray)), None)
    if raw is not None:
        raise RecplugError(f"{path}: {raw!r} is no array; save it with numpy.savez")
    return arrays


def row_tokens(given: StrPath | Sequence[str] | None, rows: int, positional: bool) -> list[str]:
    """The tokens given, those of the file given, or the row numbers where they are asked for.

    Raises:
        RecplugError: where neither or both are given.
    """
    if positional:
        if given is not None:
            raise RecplugError("item tokens and positional=True were both given; choose one")
        return [str(row) for row in range(rows)]
    if given is None:
        raise RecplugError(
            "no item tokens: a row number says nothing about an item; give one token a row, or ask for positional"
            " tokens if your items are named 0, 1, 2, ..."
        )
    return read_tokens(given) if isinstance(given, str | os.PathLike) else list(given)


def as_table(
    matrix: Array, tokens: list[str], modality: str, provenance: Provenance | None, path: StrPath
) -> FeatureTable:
    """A table of a matrix ``[n, d]`` and its n tokens: rows of zeros are left out, lengths are measured.

    Raises:
        RecplugError: for another shape or type, and for what the table refuses.
    """
    if matrix.dtype.kind != "f":
        raise RecplugError(f"{path} holds {matrix.dtype} values; features are floats: save it with .astype('float32')")
    if matrix.ndim != 2:
        raise RecplugError(f"{path} has {matrix.ndim} dimensions; it needs two, [items, width]")
    if len(tokens) != len(matrix):
        raise RecplugError(f"{path} has {len(matrix)} rows, but there are {len(tokens)} item tokens; give one for each")
    kept = (matrix != 0).any(axis=1)
    # What float32 cannot hold becomes infinite, and the table says so by token.
    with np.errstate(over="ignore"):
        features = torch.from_numpy(matrix[kept].astype(np.float16 if matrix.dtype.itemsize == 2 else np.float32))
    lengths = torch.linalg.vector_norm(features, dim=1, dtype=torch.float32)
    metadata = asdict(provenance or Provenance())
    metadata["normalised"] = str(bool(((lengths - 1).abs() < 1e-2).all())).lower()
    if not kept.all():
        metadata["left_out"] = f"{int((~kept).sum())} all-zero rows"
    return FeatureTable(features, tuple(t for t, keep in zip(tokens, kept, strict=True) if keep), modality, metadata)


def lines_of(path: StrPath) -> list[str]:
    """The lines of a text file, without their ends.

    Raises:
        RecplugError: for a file that cannot be read as UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.rstrip("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise RecplugError(f"cannot read {path}: {reason_of(error)}; give a UTF-8 text file") from None


def reason_of(error: Exception) -> str:
    """What an error says, on one line and without its kind."""
    return " ".join(str(error).split())
