"""Bring vectors in from other tools' files: ``.npy``, MMRec, ``.npz`` and Parquet.

Every importer needs the item tokens, since a row number says nothing about an item. ``positional=True`` is for
datasets whose item tokens *are* the row numbers ``"0" .. "n-1"``.

A row of zeros is how these formats write "no vector": it is left out, so that the item counts as absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recplug.adapters.features.exchange.reading import (
    Provenance,
    as_table,
    load_arrays,
    load_numpy,
    mapped_tokens,
    reason_of,
    row_tokens,
)
from recplug.adapters.features.table import FeatureTable
from recplug.adapters.features.tokens import Array, StrPath
from recplug.plugins.errors import RecplugError, did_you_mean


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
    loaded = load_numpy(matrix)
    if not isinstance(loaded, np.ndarray):
        raise RecplugError(f"{matrix} is an archive of arrays; import it with --from npz")
    return as_table(
        loaded, row_tokens(tokens, len(loaded) if loaded.ndim else 0, positional), modality, provenance, matrix
    )


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
    loaded = load_numpy(path)
    if isinstance(loaded, np.ndarray):
        raise RecplugError(f"{path} is one array; import it with --from npy")
    with loaded as archive:
        matrix, *given = load_arrays(path, archive, [features] if positional else [features, tokens])
    names = _text(path, tokens, given[0]) if given else None
    return as_table(
        matrix, row_tokens(names, len(matrix) if matrix.ndim else 0, positional), modality, provenance, path
    )


def _text(path: StrPath, name: str, tokens: Array) -> list[str]:
    if tokens.ndim != 1:
        raise RecplugError(f"{path}: {name!r} has {tokens.ndim} dimensions; one item token for each row is wanted")
    try:
        return [str(token) for token in (np.char.decode(tokens, "utf-8") if tokens.dtype.kind == "S" else tokens)]
    except UnicodeDecodeError:
        raise RecplugError(f"{path}: {name!r} is not UTF-8; save it with .astype(str)") from None


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
    return from_npy(path, mapped_tokens(file), modality, provenance=provenance)


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
        raise RecplugError(f"cannot read {path}: {reason_of(error)}; give a Parquet file") from None
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
    return as_table(matrix, tokens, modality, provenance, path)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _only(names: list[str], path: StrPath, what: str, argument: str) -> str:
    if len(names) != 1:
        raise RecplugError(f"{path} has {len(names)} candidates for the {what}; name it with {argument}")
    return names[0]
