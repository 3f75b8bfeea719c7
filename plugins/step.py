"""What an augmentation sees of the training step, or of the evaluation, that is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.errors import RecplugError

if TYPE_CHECKING:
    from recplug.plugins.chain import Chain
    from recplug.plugins.contract import Side
    from recplug.plugins.nn.propagation import Adjacency

Rows = Tensor | tuple[Tensor, ...]
RowFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
BLOCK = 65_536  # rows that an evaluation computes at once


@dataclass(frozen=True)
class Batch:
    """Ids of one training batch, or of a block that is ranked; what the host does not use is None.

    Attributes:
        users: ``[B]`` user ids.
        positives: ``[B]`` target item ids.
        negatives: ``[B]`` sampled item ids.
        sequence: ``[B, L]`` padded histories.
        lengths: ``[B]`` their lengths.
        labels: ``[B]`` 1 for an item that the user had, 0 for a sampled one, where ``positives`` holds both.
    """

    users: Tensor | None = None
    positives: Tensor | None = None
    negatives: Tensor | None = None
    sequence: Tensor | None = None
    lengths: Tensor | None = None
    labels: Tensor | None = None

    def items(self) -> list[Tensor]:
        """Every item id of the batch, flattened, in a list."""
        return [t.reshape(-1) for t in (self.sequence, self.positives, self.negatives) if t is not None]


@dataclass
class _Known:
    """Values per item: row ``slot[id]`` of each tensor, or row ``id`` where there is no slot map."""

    values: tuple[Tensor, ...]
    slot: Tensor | None


class Step:
    """One training step, or one whole evaluation: batch ids, the host's tables, and memory that ends with it.

    Args:
        chain: the augmentations and the tables they act on.
        kind: ``"training"``, ``"evaluation"`` (memory is kept until the model changes) or ``"call"`` (a single use).
        batch: the batch's ids; outside of training empty, but while scores are being changed (:meth:`showing`).
        whole_table: whether every row may be asked for: the host scores against all items, or reads beyond the batch.
        score_is_dot: whether the host scores by the dot product with the candidate table.
    """

    def __init__(
        self,
        chain: Chain,
        *,
        kind: Literal["training", "evaluation", "call"],
        batch: Batch | None = None,
        whole_table: bool = False,
        score_is_dot: bool = False,
    ) -> None:
        self.chain = chain
        self.kind = kind
        self.batch = batch or Batch()
        self.whole_table = whole_table
        self.score_is_dot = score_is_dot
        self.encoder: Callable[[], Tensor] | None = None
        self.encoded: Tensor | None = None
        self.graph: Adjacency | None = None
        self.propagated: tuple[Tensor, Tensor] | None = None
        self.scored = False
        self.memory: dict[str, Tensor] = {}
        self._known: dict[str, _Known] = {}
        self._asked: tuple[Tensor, Tensor | None] | None = None
        self._all_ids: Tensor | None = None

    @contextmanager
    def showing(self, batch: Batch) -> Iterator[None]:
        """Hold what the host is shown while a block's scores are being changed."""
        previous, self.batch = self.batch, batch
        try:
            yield
        finally:
            self.batch = previous

    def table(self, side: Side) -> Tensor:
        """The host's whole raw table after the *tables* seam: ``[n_rows, d]``."""
        return self.chain.raw_table(self, side)

    def candidates(self) -> Tensor:
        """The table that the host scores against: ``[n_rows, d]``, augmented; computed once."""
        return self.chain.item_weight(self)

    def nodes(self) -> tuple[Tensor, Tensor]:
        """``users [n_users, w]`` and ``items [n_items, w]``, whose dot product is the score of a host with that seam.

        Propagated and augmented where the host propagates, else its two augmented tables. ``w`` is the context's width
        of ``"propagated"``, or else of ``"items"``, unless a plugin on a host of free width has changed it.

        Raises:
            RecplugError: before the host has propagated, or where there is no table of users.
        """
        if self.propagated is not None:
            return self.propagated
        if self.chain.propagates:
            raise RecplugError(f"{self.chain.host} has not propagated yet in this step; ask for its nodes in score()")
        return self.chain.user_weight(self), self.chain.item_weight(self)

    def all_ids(self) -> Tensor:
        """``[n_rows]``: every row id of the item table."""
        if self._all_ids is None:
            raw = self.chain.table("items").raw
            self._all_ids = torch.arange(raw.shape[0], device=raw.device)
        return self._all_ids

    def encode_users(self) -> Tensor:
        """``[B, d]``: the backbone's own user representations of this batch."""
        if self.encoded is None and self.encoder is not None:
            self.encoded = self.encoder()
        if self.encoded is None:
            raise RecplugError(f"{self.chain.host} does not expose its user encoder; choose a loss that needs none")
        return self.encoded

    def vectors_of(self, users: Tensor) -> Tensor:
        """The host's vectors of any users, in the batch or not, with a gradient in training.

        A host that propagates gives rows of the step's nodes; one with a table of users, augmented rows of it; a
        sequential one, encodings of the users' whole *training* histories, in which dropout draws anew without
        shifting the host's own draws. A user without an interaction has a vector too, which says nothing.

        Args:
            users: ``[b]`` user ids.

        Returns:
            ``[b, d]``.

        Raises:
            RecplugError: where the host has no vectors of users.
        """
        chain = self.chain
        if self.propagated is not None:
            return F.embedding(users, self.propagated[0])
        if chain.vectors is None:
            if chain.user_table is None:
                raise RecplugError(f"{chain.host} has no vectors of users to ask for; choose a loss that needs none")
            return F.embedding(users, chain.user_weight(self))
        device = chain.table("items").raw.device
        # Nodes belong to this step; histories are of items that its batch does not name.
        step = self if chain.propagates or self.kind == "evaluation" else self._aside()
        with chain.asking(step), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return chain.vectors(users)

    def _aside(self) -> Step:
        """A step for other items than the batch's, with what this one knows of every row."""
        step = Step(self.chain, kind="call", whole_table=self.whole_table, score_is_dot=self.score_is_dot)
        # What acts on rows may have kept things for the batch's rows alone when it made the tables: it makes them anew.
        if not self.chain.acting("items"):
            step.memory = {key: value for key, value in self.memory.items() if key.startswith("tables.")}
        step._known = {key: known for key, known in self._known.items() if known.slot is None}
        return step

    def reencode(self, row_fn: RowFunction) -> Tensor:
        """Run the backbone's encoder again on this batch, with another row function.

        Args:
            row_fn: ``(rows [B, L, d], ids [B, L], sequence [B, L]) -> [B, L, d]``, in place of the whole chain.

        Returns:
            ``[B, d]``.
        """
        if self.encoder is None:
            raise RecplugError(f"{self.chain.host} does not expose its user encoder; choose a loss that needs none")
        # The host's dropout draws anew, the same for every re-encoding of a step, and its own sequence is not shifted.
        device = self.chain.table("items").raw.device
        devices = [device] if device.type == "cuda" else []
        with self.chain.override(row_fn), torch.random.fork_rng(devices=devices):
            return self.encoder()

    def asked(self) -> Tensor:
        """``[r]``: the item rows that this step works on, each once where that is free to know.

        On the CPU these are the distinct items of the batch. On an accelerator, where counting distinct values would
        stop the host, they are the batch's ids as they stand, or the whole table when that is smaller.
        """
        return self._rows()[0]

    def first_asked(self) -> Tensor:
        """``[r]`` bool: one occurrence of every item in :meth:`asked`, so that a loss counts each item once."""
        rows, slot = self._rows()
        if slot is None:
            return torch.ones_like(rows, dtype=torch.bool)
        return slot[rows] == torch.arange(len(rows), device=rows.device)

    def lookup(self, key: str, ids: Tensor, compute: Callable[[Tensor], Rows]) -> tuple[Tensor, ...]:
        """A per-item function, computed once per item and step, gathered at ``ids``.

        Args:
            key: names the function within this step, for all plugins; begin it with your plugin's name.
            ids: item ids of any shape; in training they must belong to the batch, or be :meth:`all_ids`.
            compute: ``[r]`` item ids to one tensor ``[r, ...]`` or a tuple of them.

        Returns:
            A tuple of tensors ``[*ids.shape, ...]``.
        """
        values, where = self.rows_of(key, ids, compute)
        if ids is self._all_ids:
            return values
        return tuple(_gather(each, where) for each in values)

    def rows_of(self, key: str, ids: Tensor, compute: Callable[[Tensor], Rows]) -> tuple[tuple[Tensor, ...], Tensor]:
        """:meth:`lookup` before it gathers: each item's values once, ``[r, ...]``, and ids' rows ``[*ids.shape]``.

        For a sum that reads the values where they are (``F.embedding_bag``) instead of a copy for every id.
        """
        known = self._known.get(key)
        whole = ids is self._all_ids
        if known is None or (whole and known.slot is not None):
            rows, slot = (self.all_ids(), None) if whole or self.kind == "evaluation" else self._rows(ids)
            known = _Known(self._compute(rows, compute), slot)
            if self.kind != "call":
                self._known[key] = known
        return known.values, ids if known.slot is None else known.slot[ids]

    def _compute(self, rows: Tensor, compute: Callable[[Tensor], Rows]) -> tuple[Tensor, ...]:
        if self.kind != "evaluation" or rows.numel() <= BLOCK:
            return _as_tuple(compute(rows))
        blocks = [_as_tuple(compute(block)) for block in rows.split(BLOCK)]
        return tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))

    def _rows(self, ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self._asked is not None:
            return self._asked
        items = self.batch.items() if self.kind == "training" else []
        if not items and ids is not None:
            items = [ids.reshape(-1)]
        answer = self._distinct(items)
        if self.kind != "call":
            self._asked = answer
        return answer

    def _distinct(self, items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        everything = self.all_ids()
        if self.whole_table or not items:
            return everything, None
        # Padding and mask rows are asked for without being announced: BERT4Rec masks inside its loss.
        special = [everything[row : row + 1] for row in (self.chain.padding_id, self.chain.mask_id) if row is not None]
        asked = torch.cat([*items, *special])
        if asked.device.type == "cpu":
            asked = torch.unique(asked)
        if asked.numel() >= everything.numel():
            return everything, None
        # -1 makes a gather fail loudly for an item that no id field of the batch announced.
        slot = torch.full_like(everything, -1)
        slot[asked] = torch.arange(asked.numel(), device=asked.device)
        return asked, slot


def _as_tuple(rows: Rows) -> tuple[Tensor, ...]:
    return rows if isinstance(rows, tuple) else (rows,)


def _gather(values: Tensor, where: Tensor) -> Tensor:
    """``values [r, ...]`` at ``where [...]``; an embedding's backward adds up duplicates faster than an index's."""
    flat = F.embedding(where, values.reshape(values.shape[0], -1))
    return flat.reshape(*where.shape, *values.shape[1:])
