"""A safetensors file by item token: what feature tables and neighbour tables share.

The file holds the tokens as UTF-8 bytes (``item_tokens``) with their offsets (``item_token_offsets [n + 1]``), the
table's own arrays, and a header: format, modality, where the contents come from, and the sha256 of the arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recplug.adapters.files import replacing
from recplug.plugins.errors import RecplugError

PADDING = "[PAD]"
ORIGIN_KEYS = ("encoder", "revision", "pooling", "normalised", "licence", "created")
Array = np.ndarray[Any, np.dtype[Any]]
StrPath = str | os.PathLike[str]
_WRITTEN_BY_SAVE = {"format", "modality", "sha256"}
_DTYPES = {"<i4": "I32", "<i8": "I64", "<f2": "F16", "<f4": "F32", "|u1": "U8"}
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Kind:
    """A kind of table.

    Attributes:
        name: what to call it in an error.
        format: what its header says.
        source: how ``recplug features import`` makes one.
        arrays: its own arrays, in the order in which they are written and hashed.
    """

    name: str
    format: str
    source: str
    arrays: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """What a file holds, before the table checks it: ``arrays`` in the kind's order, on the CPU."""

    tokens: tuple[str, ...]
    arrays: tuple[Tensor, ...]
    modality: str
    metadata: dict[str, str]
    sha256: str | None


def read_table(path: StrPath, kind: Kind) -> Contents:
    """Read a table's file.

    Raises:
        RecplugError: for a missing or truncated file, one of another kind, or broken tokens.
    """
    if not Path(path).is_file():
        raise RecplugError(f"no {kind.name} at {path}; make one with `recplug features import {kind.source} ...`")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header: dict[str, str] = file.metadata() or {}
            if header.get("format") != kind.format:
                raise RecplugError(
                    f"{path} is not a {kind.name} (format {header.get('format')!r}, expected {kind.format!r});"
                    " bring other files in with `recplug features import`"
                )
            data, offsets, *arrays = (
                file.get_tensor(name) for name in ("item_tokens", "item_token_offsets", *kind.arrays)
            )
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RecplugError(f"{path} is truncated or corrupt ({reason}); copy or import it again") from None
    metadata = {key: value for key, value in header.items() if key not in _WRITTEN_BY_SAVE}
    tokens = _unpack(data, offsets, path)
    return Contents(tokens, tuple(arrays), header.get("modality", ""), metadata, header.get("sha256"))


def write_table(
    path: StrPath,
    kind: Kind,
    tokens: Sequence[str],
    arrays: Sequence[Array],
    modality: str,
    metadata: Mapping[str, str],
    *,
    origin: Sequence[str] = ORIGIN_KEYS,
) -> None:
    """Write a table's file; equal contents give equal bytes, and a reader never sees half a file.

    Args:
        path: its folder is made where it is missing.
        kind, tokens, arrays, modality, metadata: as :class:`Contents` has them.
        origin: which keys of ``metadata`` are written even where nobody knows them.

    Raises:
        RecplugError: where the file cannot be written.
    """
    # Written here and not by the safetensors package: that one orders the header at random and makes the file
    # readable by its owner only.
    encoded = [token.encode() for token in tokens]
    parts = {
        "item_token_offsets": np.cumsum([0, *map(len, encoded)], dtype="<i8"),
        **dict(zip(kind.arrays, arrays, strict=True)),
        "item_tokens": np.frombuffer(b"".join(encoded), dtype="|u1"),
    }
    about = {key: metadata.get(key, "unknown") for key in origin}
    about |= {key: metadata[key] for key in sorted(metadata.keys() - about.keys())}
    about = {"format": kind.format, "modality": modality, **about, "sha256": digest(*arrays)}
    header: dict[str, object] = {"__metadata__": about}
    end = 0
    for name, part in parts.items():
        offsets = [end, end := end + part.nbytes]
        header[name] = {"dtype": _DTYPES[part.dtype.str], "shape": list(part.shape), "data_offsets": offsets}
    head = json.dumps(header, ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial, open(partial, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for part in parts.values():
                file.write(_bytes(part))
    except OSError as error:
        raise RecplugError(f"cannot write {target}: {error.strerror}; choose another place") from None


def digest(*arrays: Array) -> str:
    """The sha256 of arrays' bytes, one after the other, row by row, little-endian."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(_bytes(array))
    return found.hexdigest()


def is_kind(path: StrPath, kind: Kind) -> bool:
    """Whether the file says that it is one; False for any other, whole or not."""
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("format") == kind.format
    except (SafetensorError, OSError):
        return False


def check_padding(id_tokens: Sequence[str]) -> None:
    """Refuse a token list that does not start as a host's does.

    Raises:
        RecplugError: where row 0 is not the padding.
    """
    if not len(id_tokens) or id_tokens[0] != PADDING:
        raise RecplugError(f"the item tokens of a host start with {PADDING!r} in row 0; pass its whole token list")


def name_problem(modality: str, metadata: Mapping[str, str]) -> str | None:
    """What is wrong with a table's name or origin, and what to do; None where nothing is."""
    if not _NAME.fullmatch(modality):
        return "a modality's name has letters, digits, '_' and '-' only; choose another"
    reserved = sorted(_WRITTEN_BY_SAVE & metadata.keys())
    if reserved:
        return f"metadata key {reserved[0]!r} is written by the table itself; leave it out"
    wrong = next((key for key, value in metadata.items() if not isinstance(value, str)), None)
    return f"metadata[{wrong!r}] is not text; give a string" if wrong else None


def token_problem(tokens: Sequence[str], rows: int) -> str | None:
    """What is wrong with the tokens of ``rows`` rows, and what to do; None where nothing is."""
    if len(tokens) != rows:
        return f"{rows} rows but {len(tokens)} item tokens; give one token for each row"
    if not all(tokens):
        return f"the item token of row {list(tokens).index('')} is empty; every row needs the token of its item"
    repeated = [token for token, times in Counter(tokens).items() if times > 1]
    if repeated:
        return f"{len(repeated)} item tokens occur more than once (first: {repeated[0]!r}); keep one row for each item"
    broken = next((token for token in tokens if not _encodes(token)), None)
    return f"the item token {broken!r} cannot be written as UTF-8; rename the item" if broken else None


def _encodes(token: str) -> bool:
    return token.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in token)


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def _unpack(data: Tensor, offsets: Tensor, path: StrPath) -> tuple[str, ...]:
    """The tokens behind ``data`` (bytes) and ``offsets [n + 1]``."""
    sound = data.dtype == torch.uint8 and offsets.dtype == torch.int64 and data.ndim == offsets.ndim == 1
    if sound:
        ends = offsets.tolist()
        sound = bool(ends) and ends[0] == 0 and ends[-1] == len(data) and ends == sorted(ends)
    if not sound:
        raise RecplugError(f"{path}: the offsets of its item tokens are broken; copy or import it again")
    text = data.numpy().tobytes()
    try:
        return tuple(text[a:b].decode() for a, b in pairwise(ends))
    except UnicodeDecodeError:
        raise RecplugError(f"{path}: its item tokens are not UTF-8; copy or import it again") from None
