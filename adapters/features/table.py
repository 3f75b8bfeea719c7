"""The feature table: one vector an item, aligned by item token and never by row number.

On disk it is one safetensors file: ``features [n, d]`` with the item tokens, and a header that says where the vectors
come from (see :mod:`recplug.adapters.features.tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from recplug.adapters.features.tokens import (
    Array,
    Kind,
    StrPath,
    check_padding,
    digest,
    name_problem,
    read_table,
    token_problem,
    write_table,
)
from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError

SUFFIX = ".safetensors"
KIND = Kind("feature table", "recplug.features/1", "--from npy", ("features",))


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
        metadata: where the vectors come from, by :data:`~recplug.adapters.features.tokens.ORIGIN_KEYS` and any further
            key.

    Raises:
        RecplugError: for a wrong shape, dtype, device, name, token or value.
    """

    features: Tensor
    tokens: tuple[str, ...]
    modality: str
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = name_problem(self.modality, self.metadata) or _matrix_problem(self.features)
        problem = (
            problem or token_problem(self.tokens, len(self.features)) or _value_problem(self.features, self.tokens)
        )
        if problem:
            raise RecplugError(f"feature table {self.modality!r}: {problem}")

    @classmethod
    def load(cls, path: StrPath) -> FeatureTable:
        """Read and validate a table.

        Raises:
            RecplugError: for a missing, truncated or altered file, or contents that the class refuses.
        """
        found = read_table(path, KIND)
        try:
            (features,) = found.arrays
            table = cls(features, found.tokens, found.modality, found.metadata)
        except RecplugError as error:
            raise RecplugError(f"{path}: {error}") from None
        if found.sha256 != table.sha256:
            raise RecplugError(f"{path}: the matrix does not match its sha256 in the header; copy or import it again")
        return table

    def save(self, path: StrPath) -> None:
        """Write the table; equal tables give equal bytes, and a reader never sees half a file.

        Raises:
            RecplugError: where the file cannot be written.
        """
        write_table(path, KIND, self.tokens, [self._matrix], self.modality, self.metadata)

    @cached_property
    def sha256(self) -> str:
        """The digest of the matrix bytes, row by row, little-endian."""
        return digest(self._matrix)

    def coverage(self, id_tokens: Sequence[str]) -> Coverage:
        """Compare with a dataset's items; ``id_tokens[0]`` is the padding token.

        Raises:
            RecplugError: where not one item of the dataset has a vector.
        """
        check_padding(id_tokens)
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
        check_padding(id_tokens)
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

    @property
    def _matrix(self) -> Array:
        matrix = self.features.detach().numpy()
        return matrix.astype(matrix.dtype.newbyteorder("<"), copy=False)


def _matrix_problem(features: Tensor) -> str | None:
    if features.ndim != 2:
        return f"the matrix has {features.ndim} dimensions; it needs two, [items, width]"
    if not features.numel():
        return f"the matrix is {features.shape[0]} x {features.shape[1]}; it needs at least one row and one column"
    if features.dtype not in (torch.float16, torch.float32):
        return f"the matrix holds {str(features.dtype).removeprefix('torch.')}; convert it to float16 or float32"
    return None if features.device.type == "cpu" else "the matrix is not on the CPU; call .cpu() first"


def _value_problem(features: Tensor, tokens: tuple[str, ...]) -> str | None:
    broken = (~torch.isfinite(features).all(dim=1)).nonzero()
    if not len(broken):
        return None
    return (
        f"{len(broken)} of {len(tokens)} rows hold NaN or infinity (first: {tokens[int(broken[0])]!r});"
        " extract them again, or leave these items out"
    )
