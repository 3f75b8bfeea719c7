"""Bring vectors in from other toolkits' own layouts: Ducho's folders, Cornac's two files, RecBole's atomic files.

As everywhere, a vector of zeros means that there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from recplug.adapters.features.exchange.reading import Provenance, as_table, lines_of, load_numpy, reason_of
from recplug.adapters.features.table import FeatureTable
from recplug.adapters.features.tokens import Array, StrPath
from recplug.plugins.errors import RecplugError, did_you_mean

CORNAC_IDS = "item_ids.txt"
DUCHO_BACKENDS = ("torch", "torchaudio", "tensorflow", "transformers", "sentence_transformers")


def from_ducho(folder: StrPath, modality: str, *, provenance: Provenance | None = None) -> FeatureTable:
    """Ducho's output: one ``.npy`` an item, called by the item's token, at ``BACKEND/MODEL/LAYER`` in its folder.

    Args:
        folder: that of one layer, or any folder above it that holds no other.
        modality: ``"image"``, ``"text"``, ...
        provenance: for the header; an unknown encoder is read off the path.

    Raises:
        RecplugError: for no or several layers, an array that is not one vector, vectors of several widths, or what
            the table refuses.
    """
    layer = _ducho_layer(Path(folder))
    files = sorted(layer.glob("*.npy"))
    vectors = [_one_vector(file) for file in files]
    for file, vector in zip(files, vectors, strict=True):
        if len(vector) != len(vectors[0]):
            raise RecplugError(
                f"{file} has {len(vector)} numbers, but {files[0].name} has {len(vectors[0])};"
                " extract all items with one model"
            )
    origin = provenance or Provenance()
    if origin.encoder == "unknown":
        origin = replace(origin, encoder=_ducho_encoder(layer.resolve().parts))
    return as_table(np.stack(vectors), [file.name.removesuffix(".npy") for file in files], modality, origin, layer)


def _ducho_layer(folder: Path) -> Path:
    if not folder.is_dir():
        raise RecplugError(f"{folder} is no folder; give the one that Ducho wrote, with a .npy for each item")
    layers = sorted(Path(at) for at, _, names in os.walk(folder) if any(name.endswith(".npy") for name in names))
    if len(layers) != 1:
        found = ", ".join(str(layer.relative_to(folder)) for layer in layers)
        advice = f"the vectors of {len(layers)} layers: {found}; name one of them" if layers else "no .npy file"
        raise RecplugError(f"{folder} holds {advice}")
    return layers[0]


def _one_vector(file: Path) -> Array:
    """``[d]``, stored like that or with axes of length 1 around it."""
    array = load_numpy(file)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.size != max(array.shape, default=1):
        what = f"{array.dtype} values {list(array.shape)}" if isinstance(array, np.ndarray) else "several arrays"
        raise RecplugError(f"{file} holds {what}; one vector of floats is wanted: extract a layer that pools")
    return array.ravel()


def _ducho_encoder(parts: Sequence[str]) -> str:
    start = max((place for place, part in enumerate(parts[:-1]) if part in DUCHO_BACKENDS), default=None)
    return "unknown" if start is None else f"{'/'.join(parts[start:-1])}, layer {parts[-1]}"


def from_cornac(
    matrix: StrPath, modality: str, *, ids: StrPath | None = None, provenance: Provenance | None = None
) -> FeatureTable:
    """The two files behind Cornac's ``FeatureModality``: a ``.npy`` matrix ``[n, d]``, and its ids, one a line.

    Args:
        matrix: the file; it is never unpickled.
        modality: ``"image"``, ``"text"``, ...
        ids: default is the ``item_ids.txt`` beside the matrix. As in Cornac, white space around an id does not count.
        provenance: for the header.

    Raises:
        RecplugError: for an unreadable file, as many ids as the matrix has not rows, or what the table refuses.
    """
    file = Path(matrix).with_name(CORNAC_IDS) if ids is None else Path(ids)
    if not file.is_file():
        raise RecplugError(f"no item ids at {file}; give Cornac's file of ids, one a line, in the order of the rows")
    loaded = load_numpy(matrix)
    if not isinstance(loaded, np.ndarray):
        raise RecplugError(f"{matrix} is an archive of arrays; import it with --from npz")
    return as_table(loaded, cornac_ids(file), modality, provenance, matrix)


def cornac_ids(path: StrPath) -> list[str]:
    """The ids of a file as Cornac reads them.

    Raises:
        RecplugError: for a file that cannot be read as UTF-8.
    """
    return [line.strip() for line in lines_of(path)]


def from_recbole(
    path: StrPath,
    modality: str,
    *,
    token_column: str | None = None,
    feature_columns: str | Sequence[str] | None = None,
    provenance: Provenance | None = None,
) -> FeatureTable:
    """Vectors in one of RecBole's atomic files: ``DATASET.item``, or a file of additional features.

    Args:
        path: tab-separated, with types in its header; RecBole's own separators.
        modality: ``"image"``, ``"text"``, ...
        token_column: default is the first field of type ``token``.
        feature_columns: default is the only field of type ``float_seq``; or several fields of type ``float``.
        provenance: for the header.

    Raises:
        RecplugError: for an unreadable file, fields that are missing or could be meant twice, vectors of several
            lengths, or what the table refuses. An empty vector is an item without one.
    """
    lines = _cells(path)
    header = [(name, kind) for name, _, kind in (cell.partition(":") for cell in next(lines, []))]
    token, columns = _recbole_fields(path, header, token_column, feature_columns)
    tokens, rows, width = [], [], 0
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(header):
            raise RecplugError(f"{path}, line {number} has {len(cells)} fields, its header {len(header)}; mend it")
        given = [cells[column] for column in columns]
        if len(given) == 1:
            given = [number for number in given[0].split(" ") if number]
        try:
            row = np.array(given if any(given) else [], dtype=np.float32)  # [d], or [0]
        except ValueError:
            raise RecplugError(f"{path}, line {number} holds no vector: {' '.join(given)[:40]!r}; mend it") from None
        width = width or len(row)
        if len(row) not in (0, width):
            raise RecplugError(f"{path}, line {number} has {len(row)} numbers, others {width}; all vectors need one")
        tokens.append(cells[token])
        rows.append(row)
    if not width:
        raise RecplugError(f"{path} has no vector in {header[columns[0]][0]!r}; name another field")
    matrix = np.stack([row if len(row) else np.zeros(width, np.float32) for row in rows])  # [n, d]
    return as_table(matrix, tokens, modality, provenance, path)


def _cells(path: StrPath) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for line in lines:
                yield line.rstrip("\n").split("\t")
    except (OSError, UnicodeDecodeError) as error:
        raise RecplugError(f"cannot read {path}: {reason_of(error)}; give a tab-separated UTF-8 file") from None


def _recbole_fields(
    path: StrPath, header: Sequence[tuple[str, str]], token: str | None, columns: str | Sequence[str] | None
) -> tuple[int, list[int]]:
    """The places of the tokens and of the vectors."""
    names = [name for name, _ in header]
    tokens = [name for name, kind in header if kind == "token"]
    sequences = [name for name, kind in header if kind == "float_seq"]
    if token is None and not tokens:
        raise RecplugError(f"{path} has no field of type token; its header is to be like item_id:token")
    if columns is None and len(sequences) != 1:
        raise RecplugError(f"{path} has {len(sequences)} fields of type float_seq; name the one with feature_columns")
    wanted = sequences if columns is None else [columns] if isinstance(columns, str) else list(columns)
    for name in (token or tokens[0], *wanted):
        if name not in names:
            hint = did_you_mean(name, names) or f"; it has: {', '.join(names)}"
            raise RecplugError(f"{path} has no field {name!r}{hint}")
    kinds = {dict(header)[name] for name in wanted}
    if kinds != {"float"} and (len(wanted) > 1 or kinds != {"float_seq"}):
        raise RecplugError(f"{path}: {', '.join(wanted)} are not one float_seq, nor fields of type float; name others")
    return names.index(token or tokens[0]), [names.index(name) for name in wanted]
