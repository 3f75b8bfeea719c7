"""The neighbour table: which items are nearest to which, aligned by item token like a feature table.

On disk it is one safetensors file, ``DATASET.MODALITY.knn.safetensors``: the item tokens, the edges ``row``,
``neighbour`` (int32, places among the tokens) and ``cosine`` (float16 or float32), and a header that says where they
come from (see :mod:`recplug.adapters.features.tokens`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import torch

from recplug.adapters.features.exchange.reading import Provenance, load_arrays, load_numpy, read_tokens
from recplug.adapters.features.table import Coverage
from recplug.adapters.features.tokens import (
    ORIGIN_KEYS,
    Array,
    Kind,
    StrPath,
    check_padding,
    digest,
    is_kind,
    name_problem,
    read_table,
    token_problem,
    write_table,
)
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import Neighbours

SUFFIX = ".knn.safetensors"
KIND = Kind("neighbour table", "recplug.neighbours/1", "--from knn", ("row", "neighbour", "cosine"))
EMPTY = 100  # of so many numbered items at least one has a neighbour
ORIGIN = tuple(key for key in ORIGIN_KEYS if key != "normalised")


class NeighbourCoverage(Coverage):
    """How a neighbour table meets a dataset; ``covered`` counts items that have a neighbour there."""

    def __str__(self) -> str:
        share = 100 * self.covered / self.items
        line = f"{self.modality}: {self.covered:,} of {self.items:,} items have neighbours ({share:.1f} %)"
        return line + (f", {self.unused:,} items of the table unused" if self.unused else "")


@dataclass(frozen=True, eq=False)
class NeighbourTable:
    """The nearest items in one modality, by item token. Validated when made; sorted by row, nearest first.

    Attributes:
        tokens: the n item tokens, unique. An item may be without neighbours.
        row: ``[e]`` int32, whose neighbour.
        neighbour: ``[e]`` int32, which item; not the item itself.
        cosine: ``[e]`` float16 or float32, from -1 to 1.
        modality: ``"image"``, ``"text"``, ...: letters, digits, ``_`` and ``-``.
        metadata: where the graph comes from, by :data:`~recplug.adapters.features.tokens.ORIGIN_KEYS` and further keys.

    Raises:
        RecplugError: for a wrong shape, name, token, place or cosine.
    """

    tokens: tuple[str, ...]
    row: Array
    neighbour: Array
    cosine: Array
    modality: str
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = (
            name_problem(self.modality, self.metadata)
            or token_problem(self.tokens, len(self.tokens))
            or _edge_problem(len(self.tokens), self.row, self.neighbour, self.cosine)
        )
        if problem:
            raise RecplugError(f"neighbour table {self.modality!r}: {problem}")
        order = np.lexsort((self.neighbour, -self.cosine.astype(np.float32), self.row))
        for name, dtype in (("row", "<i4"), ("neighbour", "<i4"), ("cosine", None)):
            array = getattr(self, name)[order]
            object.__setattr__(self, name, array.astype(dtype or array.dtype.newbyteorder("<")))

    @classmethod
    def load(cls, path: StrPath) -> NeighbourTable:
        """Read and validate a table.

        Raises:
            RecplugError: for a missing, truncated or altered file, or contents that the class refuses.
        """
        found = read_table(path, KIND)
        try:
            row, neighbour, cosine = (array.numpy() for array in found.arrays)
            table = cls(found.tokens, row, neighbour, cosine, found.modality, found.metadata)
        except RecplugError as error:
            raise RecplugError(f"{path}: {error}") from None
        if found.sha256 != table.sha256:
            raise RecplugError(f"{path}: the edges do not match their sha256 in the header; copy or import it again")
        return table

    def save(self, path: StrPath) -> None:
        """Write the table; equal tables give equal bytes, and a reader never sees half a file.

        Raises:
            RecplugError: where the file cannot be written.
        """
        arrays = [self.row, self.neighbour, self.cosine]
        write_table(path, KIND, self.tokens, arrays, self.modality, self.metadata, origin=ORIGIN)

    @cached_property
    def sha256(self) -> str:
        """The digest of the edges' bytes: rows, neighbours, cosines, little-endian."""
        return digest(self.row, self.neighbour, self.cosine)

    @cached_property
    def counts(self) -> Array:
        """``[n]``: how many neighbours each item has."""
        return np.bincount(self.row, minlength=len(self.tokens))

    @property
    def k(self) -> int:
        """The most neighbours that an item has."""
        return int(self.counts.max())

    def coverage(self, id_tokens: Sequence[str]) -> NeighbourCoverage:
        """Compare with a dataset's items; ``id_tokens[0]`` is the padding token.

        Raises:
            RecplugError: where no item of the dataset has a neighbour in it.
        """
        rows, _, _ = self._edges(id_tokens)
        unused = len(set(self.tokens) - set(id_tokens[1:]))
        return NeighbourCoverage(self.modality, len(id_tokens) - 1, len(np.unique(rows)), unused)

    def align(self, id_tokens: Sequence[str], *, k: int | None = None, include_self: bool = False) -> Neighbours:
        """Order the neighbours like a host's item table; what the host does not have is left out.

        Args:
            id_tokens: the token of every host row; row 0 is ``"[PAD]"`` and never has neighbours.
            k: keep the k nearest; None: all.
            include_self: put every item that has neighbours first among them, with weight 1; it counts as one of the k.

        Returns:
            ``[len(id_tokens), k]``, on the CPU, as :func:`recplug.plugins.nn.knn.kneighbours` gives them.

        Raises:
            RecplugError: where no item of the dataset has a neighbour in it, or ``k`` is below 1.
        """
        if k is not None and k < 1:
            raise RecplugError(f"neighbours need k of at least 1, not {k}")
        row, neighbour, cosine = self._edges(id_tokens)
        if include_self:
            own = np.unique(row)
            row, neighbour = np.concatenate([own, row]), np.concatenate([own, neighbour])
            cosine = np.concatenate([np.full(len(own), np.inf, np.float32), cosine])
        order = np.lexsort((neighbour, -cosine, row))
        row, neighbour, cosine = row[order], neighbour[order], cosine[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)  # within the row
        width = int(place.max()) + 1 if k is None else k
        near = place < width
        at = (row[near], place[near])
        index = np.repeat(np.arange(len(id_tokens))[:, None], width, axis=1)  # [n, k]
        weight, valid = np.zeros(index.shape, np.float32), np.zeros(index.shape, bool)
        index[at], weight[at], valid[at] = neighbour[near], np.minimum(cosine[near], 1.0), True
        return Neighbours(*map(torch.from_numpy, (index, weight, valid)))

    def _edges(self, id_tokens: Sequence[str]) -> tuple[Array, Array, Array]:
        """Edges between items of the dataset, as host rows, and their cosines in float32."""
        check_padding(id_tokens)
        rows = {token: row for row, token in enumerate(id_tokens) if row}
        host = np.array([rows.get(token, -1) for token in self.tokens], dtype=np.int64)
        row, neighbour = host[self.row], host[self.neighbour]
        known = (row > 0) & (neighbour > 0)
        if not known.any():
            example = f", the dataset's like {str(id_tokens[1])!r}" if len(id_tokens) > 1 else ""
            raise RecplugError(
                f"neighbour table {self.modality!r} joins none of the dataset's {len(id_tokens) - 1} items: its tokens"
                f" look like {self.tokens[0]!r}{example}; import it with the dataset's own item tokens"
            )
        return row[known], neighbour[known], self.cosine[known].astype(np.float32)


def is_neighbour_table(path: StrPath) -> bool:
    """Whether the file says that it is one; False for any other, whole or not."""
    return is_kind(path, KIND)


def from_knn(
    path: StrPath,
    modality: str,
    *,
    tokens: StrPath | Sequence[str] | None = None,
    positional: bool = False,
    provenance: Provenance | None = None,
) -> NeighbourTable:
    """An ``.npz`` with the arrays ``row``, ``col`` (whole numbers from 0) and ``cos`` of equal length.

    Args:
        path: the file; it is never unpickled.
        modality: ``"image"``, ``"text"``, ...
        tokens: the item tokens in row order, or their file: one a line, or the first column of a ``.tsv``, ``.csv`` or
            ``.item`` with a header.
        positional: take the row numbers for tokens, in place of ``tokens``.
        provenance: for the header.

    Raises:
        RecplugError: for an unreadable file, a missing array, fewer tokens than rows, or what the table refuses. An
            item that is listed as its own neighbour is left out.
    """
    loaded = load_numpy(path)
    if isinstance(loaded, np.ndarray):
        raise RecplugError(f"{path} is one array; a graph is an .npz with row, col and cos")
    with loaded as archive:
        row, neighbour, cosine = load_arrays(path, archive, ("row", "col", "cos"))
    if row.dtype.kind not in "iu" or neighbour.dtype.kind not in "iu" or cosine.dtype.kind != "f":
        raise RecplugError(f"{path}: row and col must be whole numbers and cos floats; save them so")
    if positional == (tokens is not None):
        raise RecplugError("give either the item tokens or positional=True, if your items are named 0, 1, 2, ...")
    row, neighbour = row.astype(np.int64), neighbour.astype(np.int64)
    if tokens is None:
        count = 1 + max(row.max(initial=-1), neighbour.max(initial=-1))
        if count > EMPTY * (len(np.atleast_1d(row)) + 1):  # a damaged number, and names to fill the memory with
            raise RecplugError(f"{path}: its {row.size:,} edges join items up to {count - 1:,}; give the items' tokens")
        names = [str(number) for number in range(count)]
    else:
        names = read_tokens(tokens) if isinstance(tokens, str | os.PathLike) else list(tokens)
    kept = row != neighbour if row.shape == neighbour.shape == cosine.shape else slice(None)
    try:
        return NeighbourTable(
            tuple(names),
            row[kept],
            neighbour[kept],
            cosine[kept].astype(np.float16 if cosine.dtype.itemsize == 2 else np.float32),
            modality,
            asdict(provenance or Provenance()),
        )
    except RecplugError as error:
        raise RecplugError(f"{path}: {error}") from None


def _edge_problem(n: int, row: Array, neighbour: Array, cosine: Array) -> str | None:
    if not row.ndim == neighbour.ndim == cosine.ndim == 1 or not len(row) == len(neighbour) == len(cosine):
        return "rows, neighbours and cosines are not of one length; give one of each for every edge"
    if not len(row):
        return "it has no edges; give at least one"
    low, high = min(int(row.min()), int(neighbour.min())), max(int(row.max()), int(neighbour.max()))
    if low < 0 or high >= n:
        return f"it names the places {low} to {high}, but there are {n} item tokens; give one token for each place"
    if (row == neighbour).any():
        return "an item is its own neighbour; leave these edges out"
    if len(np.unique(row.astype(np.int64) * n + neighbour)) < len(row):
        return "an edge comes twice; keep one"
    if cosine.dtype not in (np.float16, np.float32):
        return f"the cosines are {cosine.dtype}; convert them to float16 or float32"
    if not (np.abs(cosine.astype(np.float32)) <= 1.001).all():  # NaN fails too
        return "a cosine is not between -1 and 1; normalise the vectors before comparing them"
    return None
