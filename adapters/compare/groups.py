"""Groups of users, by how much they train with, and of targets, by whether training has seen the item."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("recplug")
FOLDER = "groups"


@dataclass(frozen=True)
class Counts:
    """Training interactions by token."""

    users: Mapping[str, int]
    items: Mapping[str, int]


def counts(output: Path, fingerprint: str, run: Path) -> Counts | None:
    """Of the data of this fingerprint, made once from a finished run; None, with a line, where that fails."""
    import pyarrow.parquet as pq

    file = output / FOLDER / f"{fingerprint[:16]}.parquet"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        words = [sys.executable, "-m", "recplug.adapters.compare.cells.interaction_counts", str(run), str(file)]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        if ended.returncode:
            told = [line for line in ended.stderr.splitlines() if line.strip()]
            log.warning("no user groups: %s cannot be loaded (%s)", run, told[-1] if told else ended.returncode)
            return None
    table = pq.read_table(file).to_pydict()
    sides: dict[str, dict[str, int]] = {"user": {}, "item": {}}
    for side, token, number in zip(table["side"], table["token"], table["interactions"], strict=True):
        sides[side][token] = number
    return Counts(sides["user"], sides["item"])


def cuts_of(numbers: NDArray[Any]) -> tuple[int, ...]:
    """Where groups begin that are as near to thirds as whole numbers of interactions allow; fewer where many tie."""
    values, below = np.unique(np.sort(numbers), return_index=True)  # below: how many have less
    if len(values) == 1:
        return ()
    nearest = [1 + int(np.abs(below[1:] / len(numbers) - share).argmin()) for share in (1 / 3, 2 / 3)]
    return tuple(sorted({int(values[place]) for place in nearest}))


def activity_names(cuts: Sequence[int]) -> list[str]:
    """``(5, 10)`` to "under 5", "5 to 9", "10 and more" training interactions."""
    if not cuts:
        return ["all"]
    middle = [f"{low} to {high - 1}" if high - 1 > low else f"{low}" for low, high in pairwise(cuts)]
    return [f"under {cuts[0]}", *middle, f"{cuts[-1]} and more"]


def activity(users: NDArray[Any], known: Counts, cuts: Sequence[int]) -> NDArray[Any]:
    """``[n]``: the number of each user's group, 0 for the least active."""
    numbers = np.array([known.users.get(user, 0) for user in users.tolist()])
    return np.searchsorted(np.asarray(cuts), numbers, side="right")


def cold(items: NDArray[Any], known: Counts) -> NDArray[Any]:
    """``[n]`` bool: whether training has never seen the item."""
    return np.array([known.items.get(item, 0) == 0 for item in items.tolist()], dtype=bool)
