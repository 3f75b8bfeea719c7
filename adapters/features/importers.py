"""Bring vectors in from other tools' files: ``.npy``, MMRec, ``.npz`` and Parquet.

Every importer needs the item tokens, since a row number says nothing about an item. ``positional=True`` is for
datasets whose item tokens *are* the row numbers ``"0" .. "n-1"``.

A row of zeros is how these formats write "no vector": it is left out, so that the item counts as absent.
"""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from recplug.adapters.features.table import FeatureTable
from recplug.plugins.errors import RecplugError, did_you_mean

Matrix = np.ndarray[Any, np.dtype[Any]]
StrPath = str | os.PathLike[str]


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


def from_npy(
    matrix: StrPath,
    tokens: StrPath | Sequence[str] | None,
    modality: str,
    *,
    positional: bool = False,
    provenance: Provenance | None = None,
) -> FeatureTable:
    """A ``.npy`` matrix ``[n, d]`` and its n item tokens.

    Args:
        matrix: the file; it is never unpickled.
        tokens: the tokens in row order, or their file: one a line, or the first column of a ``.tsv``, ``.csv`` or
            ``.item`` with a header.
        modality: ``"image"``, ``"text"``, ...
        positional: take the row numbers for tokens, in place of ``tokens``.
        provenance: for the header.

    Raises:
        RecplugError: for an unreadable file, as many tokens as the matrix has not rows, or what the table refuses.
    """
    loaded = _load_numpy(matrix)
    if not isinstance(loaded, np.ndarray):
        raise RecplugError(f"{matrix} is an archive of arrays; import it with --from npz")
    return _table(loaded, _tokens(tokens, len(loaded) if loaded.ndim else 0, positional), modality, provenance, matrix)


def from_npz(
    path: StrPath,
    modality: str,
    *,
    features: str = "features",
    tokens: str = "tokens",
    positional: bool = False,
    provenance: Provenance | None = None,
) -> FeatureTable:
    """An ``.npz`` with a matrix ``[n, d]`` and an array of n text tokens, under the names given.

    Raises:
        RecplugError: as :func:`from_npy`, and where an array is missing or pickled.
    """
    loaded = _load_numpy(path)
    if isinstance(loaded, np.ndarray):
        raise RecplugError(f"{path} is one array; import it with --from npy")
    with loaded as archive:
        for name in [features] if positional else [features, tokens]:
            if name not in archive.files:
                hint = did_you_mean(name, archive.files) or f"; it has: {', '.join(archive.files) or 'nothing'}"
                raise RecplugError(f"{path} has no array {name!r}{hint}")
        try:
            matrix = archive[features]
            given = None if positional else archive[tokens]
            if given is not None and given.dtype.kind == "S":
                given = np.char.decode(given, "utf-8")
        except (ValueError, EOFError, OSError, zipfile.BadZipFile):
            raise RecplugError(f"{path} holds pickled or broken arrays; save its tokens with .astype(str)") from None
    names = None if given is None else [str(token) for token in given]
    return _table(matrix, _tokens(names, len(matrix) if matrix.ndim else 0, positional), modality, provenance, path)


def from_mmrec(
    source: StrPath,
    modality: str | None = None,
    *,
    mapping: StrPath | None = None,
    positional: bool = False,
    provenance: Provenance | None = None,
) -> FeatureTable:
    """MMRec's ``image_feat.npy`` or ``text_feat.npy``, whose row number is MMRec's item id.

    Args:
        source: the dataset's folder, or one of the two files.
        modality: which of the two; needed with a folder.
        mapping: a file with the column ``itemID`` and one column of tokens (``asin``); default is the
            ``i_id_mapping.csv`` beside the matrix.
        positional: the dataset's item tokens are MMRec's item ids themselves, so no mapping is needed.
        provenance: for the header.

    Raises:
        RecplugError: as :func:`from_npy`, and where the mapping does not name every row exactly once.
    """
    path = Path(source)
    if path.is_dir():
        if modality is None:
            raise RecplugError(f"{path} is a folder; say which features to take, image or text")
        path = path / f"{modality}_feat.npy"
    elif modality is None:
        modality = path.name.removesuffix("_feat.npy")
    if positional:
        return from_npy(path, None, modality, positional=True, provenance=provenance)
    file = Path(mapping) if mapping is not None else path.with_name("i_id_mapping.csv")
    if not file.is_file():
        raise RecplugError(f"no item mapping at {file}; give one, or ask for positional tokens if items are numbered")
    return from_npy(path, _mapped_tokens(file), modality, provenance=provenance)


def from_parquet(
    path: StrPath,
    modality: str,
    *,
    token_column: str | None = None,
    feature_columns: str | Sequence[str] | None = None,
    provenance: Provenance | None = None,
) -> FeatureTable:
    """A Parquet file with a token column and either one column of lists or many columns of floats.

    Args:
        path: the file.
        modality: ``"image"``, ``"text"``, ...
        token_column: default is the only text column.
        feature_columns: default is the only list column, else all float columns in file order.
        provenance: for the header.

    Raises:
        RecplugError: for an unreadable file, columns that are missing or could be meant twice, lists of several
            lengths, or what the table refuses. A null list is an item without a vector and is left out.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RecplugError(f"cannot read {path}: {_line(error)}; give a Parquet file") from None
    kinds = pa.types
    text = [f.name for f in table.schema if kinds.is_string(f.type) or kinds.is_large_string(f.type)]
    token = token_column or _only(text, path, "text column", "token_column")
    if not feature_columns:
        lists = [f.name for f in table.schema if _is_list(f.type)]
        floats = [f.name for f in table.schema if kinds.is_floating(f.type)]
        columns = floats if floats and not lists else [_only(lists, path, "list column", "feature_columns")]
    else:
        columns = [feature_columns] if isinstance(feature_columns, str) else list(feature_columns)
    for name in (token, *columns):
        if name not in table.column_names:
            hint = did_you_mean(name, table.column_names) or f"; it has: {', '.join(table.column_names)}"
            raise RecplugError(f"{path} has no column {name!r}{hint}")
    if len(columns) == 1 and _is_list(table.schema.field(columns[0]).type):
        table = table.filter(pc.is_valid(table[columns[0]]))
        widths = pc.unique(pc.list_value_length(table[columns[0]])).to_pylist()
        if len(widths) > 1:
            raise RecplugError(f"{path}: the lists in {columns[0]!r} have {len(widths)} lengths; all vectors need one")
        matrix = pc.list_flatten(table[columns[0]]).to_numpy().reshape(len(table), *widths)
    else:
        matrix = np.stack([table[name].to_numpy() for name in columns], axis=1)
    tokens = ["" if value is None else str(value) for value in table[token].to_pylist()]
    return _table(matrix, tokens, modality, provenance, path)


def read_tokens(path: StrPath) -> list[str]:
    """One token a line, or the first column under a header where the file is a ``.tsv``, ``.csv`` or ``.item``.

    Raises:
        RecplugError: for a file that cannot be read as UTF-8.
    """
    suffix = Path(path).suffix.lower()
    lines = _lines(path)
    if suffix == ".csv":
        return [row[0] if row else "" for row in csv.reader(lines)][1:]
    if suffix in {".tsv", ".item"}:
        return [line.split("\t")[0] for line in lines[1:]]
    return lines


def _mapped_tokens(path: Path) -> list[str]:
    """The tokens in the order of MMRec's item ids, from an ``i_id_mapping.csv``."""
    lines = _lines(path)
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


def _load_numpy(path: StrPath) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise RecplugError(
            f"cannot read {path}: {_line(error)}; save it with numpy.save and no objects in it"
        ) from None


def _tokens(given: StrPath | Sequence[str] | None, rows: int, positional: bool) -> list[str]:
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


def _table(
    matrix: Matrix, tokens: list[str], modality: str, provenance: Provenance | None, path: StrPath
) -> FeatureTable:
    """Drop the rows of zeros, measure the lengths, and let the table refuse what is wrong."""
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


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _only(names: list[str], path: StrPath, what: str, argument: str) -> str:
    if len(names) != 1:
        raise RecplugError(f"{path} has {len(names)} candidates for the {what}; name it with {argument}")
    return names[0]


def _lines(path: StrPath) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.rstrip("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise RecplugError(f"cannot read {path}: {_line(error)}; give a UTF-8 text file") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
