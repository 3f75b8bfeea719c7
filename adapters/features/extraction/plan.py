"""Which items are encoded together: decided once over the whole list, so that nothing depends on kills and shards.

A vector's last bits may depend on the batch that it was made in. Each batch is therefore planned beforehand, made whole
or not at all, and a shard takes whole batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recplug.adapters.features.extraction.sources import IntArray
from recplug.plugins.errors import RecplugError


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of the work, from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``"2/4"``.

        Raises:
            RecplugError: for anything else.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise RecplugError(f"--shard {text!r} is not I/N with I from 1 to N; give 1/4, 2/4, 3/4 and 4/4 for four")
        return shard

    @property
    def name(self) -> str:
        """The ending of its folder's name; the whole has a name too."""
        return "partial" if self.count == 1 else f"shard-{self.index}-of-{self.count}"


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches.

    Attributes:
        order: ``[n]``, every item's number once, in the order of encoding.
        size: items of a batch; the last may have fewer.
        shard: whose batches are ours.
    """

    order: IntArray
    size: int
    shard: Shard

    def items(self, batch: int) -> IntArray:
        """The items of one batch."""
        return self.order[batch * self.size : (batch + 1) * self.size]

    @property
    def batches(self) -> range:
        """The numbers of our batches: every ``count``-th, so that shards have equally much of each kind."""
        return range(self.shard.index - 1, -(-len(self.order) // self.size), self.shard.count)

    def row(self, batch: int) -> int:
        """Where a batch of ours begins, with ours put one behind the other."""
        return batch // self.shard.count * self.size


def plan(n: int, size: int, shard: Shard, lengths: Sequence[int] | None = None) -> Plan:
    """Batches of ``n`` items, in their order or, where they have ``lengths``, the longest first and like with like.

    So the batch that needs most memory comes first, and little of any batch is padding.
    """
    order = np.arange(n) if lengths is None else np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return Plan(order.astype(np.int64), size, shard)
