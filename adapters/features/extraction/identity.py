"""What is to be done, in full: by this a run knows its own earlier work again, and a merge the shards of one run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recplug.adapters.features.extraction.plan import Plan, Shard
from recplug.adapters.features.extraction.sources import IntArray, Items, Missing
from recplug.adapters.files import replacing

FORMAT = "recplug.extraction/1"
PLAN, TOKENS, MARKS, ORDER = "plan.json", "tokens.json", "marks.npy", "order.npy"


@dataclass(frozen=True, eq=False)
class Work:
    """All that says what the vectors are.

    Attributes:
        settings: whatever changes a vector, by name, but for the contents.
        plan: the batches.
        tokens, marks, missing: as of :class:`Items`.
        width, dtype: of the matrix.
        created: the date on which the work began, ISO 8601.
    """

    settings: Mapping[str, str]
    plan: Plan
    tokens: tuple[str, ...]
    marks: IntArray
    missing: tuple[Missing, ...]
    width: int
    dtype: np.dtype[Any]
    created: str

    @classmethod
    def of(cls, items: Items, plan: Plan, settings: Mapping[str, str], width: int, dtype: str, created: str) -> Work:
        """The work on ``items``."""
        kind = np.dtype(dtype)
        return cls(settings, plan, items.tokens, items.marks, items.missing, width, kind, created)

    @classmethod
    def read(cls, folder: Path) -> Work:
        """What :meth:`write` wrote.

        Raises:
            OSError, EOFError, ValueError, KeyError, TypeError: where it did not, or the files were damaged since.
        """
        facts = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r}, not {FORMAT!r}")
        told = json.loads((folder / TOKENS).read_text(encoding="utf-8"))
        order = np.load(folder / ORDER, allow_pickle=False)
        marks = np.load(folder / MARKS, allow_pickle=False)
        if order.shape != (len(told["tokens"]),) or marks.shape != (len(told["tokens"]), 2):
            raise ValueError("its files do not belong together")
        return cls(
            settings=facts["settings"],
            plan=Plan(order, facts["batch"], Shard(*facts["shard"])),
            tokens=tuple(told["tokens"]),
            marks=marks,
            missing=tuple(Missing(*item) for item in told["missing"]),
            width=facts["width"],
            dtype=np.dtype(facts["dtype"]),
            created=facts["created"],
        )

    def write(self, folder: Path) -> None:
        """Write everything to ``folder``, the plan last: it is what makes the others count.

        Raises:
            OSError: where that cannot be done.
        """
        write_array(folder / MARKS, self.marks)
        write_array(folder / ORDER, self.plan.order)
        missing = [[item.token, item.file, item.reason] for item in self.missing]
        _write_json(folder / TOKENS, {"tokens": self.tokens, "missing": missing})
        facts = {"settings": dict(self.settings), "batch": self.plan.size, "width": self.width}
        facts |= {"shard": [self.plan.shard.index, self.plan.shard.count], "dtype": self.dtype.name}
        _write_json(folder / PLAN, {"format": FORMAT, "created": self.created, **facts})

    def difference(self, other: Work, *, times: bool = True, changed: frozenset[int] = frozenset()) -> str | None:
        """The first thing that would make other vectors in ``other``; None where there is nothing.

        Args:
            other: the work to compare with.
            times: whether files must be of the same time too.
            changed: numbers of items whose contents may differ.
        """
        for name in sorted(self.settings.keys() | other.settings.keys()):
            one, two = self.settings.get(name, "nothing"), other.settings.get(name, "nothing")
            if one != two:
                return f"{name} {one} there, {two} here"
        if self.tokens != other.tokens:
            return f"{len(self.tokens):,} items there, {len(other.tokens):,} here, or others"
        columns = slice(None) if times else slice(1)
        differ = (self.marks[:, columns] != other.marks[:, columns]).any(axis=1).nonzero()[0]  # [m]
        differ = differ[~np.isin(differ, list(changed))]
        if len(differ):
            more = f" and of {len(differ) - 1:,} more" if len(differ) > 1 else ""
            return f"the content of item {self.tokens[differ[0]]!r}{more} changed"
        same = self.plan.size == other.plan.size and np.array_equal(self.plan.order, other.plan.order)
        return None if same else "other items share a batch"


def write_array(path: Path, values: IntArray) -> None:
    """Write an array, whole or not at all."""
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, values)


def _write_json(path: Path, value: object) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(value), encoding="utf-8")
