"""The feature table: one vector an item, aligned by item token and never by row number.

On disk it is one safetensors file: ``features [n, d]``, the tokens as UTF-8 bytes (``item_tokens``) with their offsets
(``item_token_offsets [n + 1]``), and a header that says where the vectors come from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recplug.adapters.files import replacing
from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError

FORMAT = "recplug.features/1"
SUFFIX = ".safetensors"
PADDING = "[PAD]"
ORIGIN_KEYS = ("encoder", "revision", "pooling", "normalised", "licence", "created")
_WRITTEN_BY_SAVE = {"format", "modality", "sha256"}
_DTYPES = {torch.float16: "F16", torch.float32: "F32"}
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Coverage:
    """How a feature table meets a dataset; ``str()`` gives the report line.

    Attributes:
        modality: the table's modality.
        items: the dataset's items, without the padding row.
        covered: how many of them have a vector.
        unused: rows of the table whose token the dataset does not have.
    """

    modality: str
    items: int
    covered: int
    unused: int

    def __str__(self) -> str:
        share = 100 * self.covered / self.items
        line = f"{self.modality}: {self.covered:,} of {self.items:,} items have a vector ({share:.1f} %)"
        return line + (f", {self.unused:,} table rows unused" if self.unused else "")


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Frozen vectors of one modality, by item token. Validated when made.

    Attributes:
        features: ``[n, d]``, float16 or float32, on the CPU, finite.
        tokens: the n item tokens, unique, in row order. An item without a vector is simply not here.
        modality: ``"image"``, ``"text"``, ...: letters, digits, ``_`` and ``-``.
        metadata: where the vectors come from, by :data:`ORIGIN_KEYS` and any further key.

    Raises:
        RecplugError: for a wrong shape, dtype, device, name, token or value.
    """

    features: Tensor
    tokens: tuple[str, ...]
    modality: str
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = _name_problem(self.modality, self.metadata) or _matrix_problem(self.features)
        problem = (
            problem or _token_problem(self.tokens, len(self.features)) or _value_problem(self.features, self.tokens)
        )
        if problem:
            raise RecplugError(f"feature table {self.modality!r}: {problem}")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureTable:
        """Read and validate a table.

        Raises:
            RecplugError: for a missing, truncated or altered file, or contents that the class refuses.
        """
        if not Path(path).is_file():
            raise RecplugError(f"no feature table at {path}; make one with `recplug features import --from npy ...`")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                header: dict[str, str] = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise RecplugError(
                        f"{path} is not a feature table (format {header.get('format')!r}, expected {FORMAT!r});"
                        " bring other files in with `recplug features import`"
                    )
                features, data, offsets = (
                    file.get_tensor(name) for name in ("features", "item_tokens", "item_token_offsets")
                )
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise RecplugError(f"{path} is truncated or corrupt ({reason}); copy or import it again") from None
        tokens = _unpack(data, offsets, path)
        metadata = {key: value for key, value in header.items() if key not in _WRITTEN_BY_SAVE}
        try:
            table = cls(features, tokens, header.get("modality", ""), metadata)
        except RecplugError as error:
            raise RecplugError(f"{path}: {error}") from None
        if header.get("sha256") != table.sha256:
            raise RecplugError(f"{path}: the matrix does not match its sha256 in the header; copy or import it again")
        return table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table; equal tables give equal bytes, and a reader never sees half a file.

        Raises:
            RecplugError: where the file cannot be written.
        """
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as partial:
                self._write(partial)
        except OSError as error:
            raise RecplugError(f"cannot write {target}: {error.strerror}; choose another place") from None

    @cached_property
    def sha256(self) -> str:
        """The digest of the matrix bytes, row by row, little-endian."""
        return hashlib.sha256(_bytes(self.features)).hexdigest()

    def coverage(self, id_tokens: Sequence[str]) -> Coverage:
        """Compare with a dataset's items; ``id_tokens[0]`` is the padding token.

        Raises:
            RecplugError: where not one item of the dataset has a vector.
        """
        _check_padding(id_tokens)
        covered = sum(token in self._rows for token in id_tokens[1:])
        if not covered:
            raise self._nothing_shared(id_tokens)
        return Coverage(self.modality, len(id_tokens) - 1, covered, len(self.tokens) - covered)

    def align(self, id_tokens: Sequence[str], *, name: str | None = None) -> Modality:
        """Order the vectors like a host's item table.

        Args:
            id_tokens: the token of every host row; row 0 is ``"[PAD]"`` and never has a vector.
            name: the modality's name in the run, where it is not the table's own.

        Returns:
            ``values [len(id_tokens), d]`` in the stored dtype, zero where ``present`` is False.

        Raises:
            RecplugError: where not one item of the dataset has a vector.
        """
        _check_padding(id_tokens)
        rows = torch.tensor([self._rows.get(token, -1) for token in id_tokens], dtype=torch.int64, device="cpu")
        rows[0] = -1
        present = rows >= 0
        if not present.any():
            raise self._nothing_shared(id_tokens)
        shape = (len(id_tokens), self.features.shape[1])
        values = torch.zeros(shape, dtype=self.features.dtype, device="cpu")
        values[present] = self.features[rows[present]]
        return Modality(name or self.modality, values, present)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {token: row for row, token in enumerate(self.tokens)}

    def _nothing_shared(self, id_tokens: Sequence[str]) -> RecplugError:
        example = f", the dataset's like {str(id_tokens[1])!r}" if len(id_tokens) > 1 else ""
        return RecplugError(
            f"feature table {self.modality!r} holds none of the dataset's {len(id_tokens) - 1} items: its tokens"
            f" look like {self.tokens[0]!r}{example}; import it with the dataset's own item tokens"
        )

    def _write(self, path: Path) -> None:
        # Written here and not by the safetensors package: that one orders the header at random and makes the file
        # readable by its owner only.
        encoded = [token.encode() for token in self.tokens]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        parts = {
            "item_token_offsets": ("I64", offsets.shape, offsets.data.cast("B")),
            "features": (_DTYPES[self.features.dtype], self.features.shape, _bytes(self.features)),
            "item_tokens": ("U8", (int(offsets[-1]),), memoryview(b"".join(encoded))),
        }
        header: dict[str, object] = {"__metadata__": self._header()}
        end = 0
        for name, (dtype, shape, data) in parts.items():
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + data.nbytes]}
            end += data.nbytes
        head = json.dumps(header, ensure_ascii=False).encode()
        head += b" " * (-len(head) % 8)
        with open(path, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for _, _, data in parts.values():
                file.write(data)

    def _header(self) -> dict[str, str]:
        origin = {key: self.metadata.get(key, "unknown") for key in ORIGIN_KEYS}
        further = {key: self.metadata[key] for key in sorted(self.metadata.keys() - origin.keys())}
        return {"format": FORMAT, "modality": self.modality, **origin, **further, "sha256": self.sha256}


def _bytes(features: Tensor) -> memoryview:
    return features.detach().contiguous().numpy().data.cast("B")


def _check_padding(id_tokens: Sequence[str]) -> None:
    if not len(id_tokens) or id_tokens[0] != PADDING:
        raise RecplugError(f"the item tokens of a host start with {PADDING!r} in row 0; pass its whole token list")


def _unpack(data: Tensor, offsets: Tensor, path: str | os.PathLike[str]) -> tuple[str, ...]:
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


def _name_problem(modality: str, metadata: Mapping[str, str]) -> str | None:
    if not _NAME.fullmatch(modality):
        return "a modality's name has letters, digits, '_' and '-' only; choose another"
    reserved = sorted(_WRITTEN_BY_SAVE & metadata.keys())
    if reserved:
        return f"metadata key {reserved[0]!r} is written by the table itself; leave it out"
    wrong = next((key for key, value in metadata.items() if not isinstance(value, str)), None)
    return f"metadata[{wrong!r}] is not text; give a string" if wrong else None


def _matrix_problem(features: Tensor) -> str | None:
    if features.ndim != 2:
        return f"the matrix has {features.ndim} dimensions; it needs two, [items, width]"
    if not features.numel():
        return f"the matrix is {features.shape[0]} x {features.shape[1]}; it needs at least one row and one column"
    if features.dtype not in _DTYPES:
        return f"the matrix holds {str(features.dtype).removeprefix('torch.')}; convert it to float16 or float32"
    return None if features.device.type == "cpu" else "the matrix is not on the CPU; call .cpu() first"


def _token_problem(tokens: tuple[str, ...], rows: int) -> str | None:
    if len(tokens) != rows:
        return f"{rows} rows but {len(tokens)} item tokens; give one token for each row"
    if not all(tokens):
        return f"the item token of row {tokens.index('')} is empty; every row needs the token of its item"
    repeated = [token for token, times in Counter(tokens).items() if times > 1]
    if repeated:
        return f"{len(repeated)} item tokens occur more than once (first: {repeated[0]!r}); keep one row for each item"
    return None


def _value_problem(features: Tensor, tokens: tuple[str, ...]) -> str | None:
    broken = (~torch.isfinite(features).all(dim=1)).nonzero()
    if not len(broken):
        return None
    return (
        f"{len(broken)} of {len(tokens)} rows hold NaN or infinity (first: {tokens[int(broken[0])]!r});"
        " extract them again, or leave these items out"
    )
