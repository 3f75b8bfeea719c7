"""From finished work, of one run or of all shards, to a feature table and a list of who is not in it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recplug.adapters.features.exchange.writing import check_free
from recplug.adapters.features.extraction.identity import Work
from recplug.adapters.features.extraction.plan import Shard
from recplug.adapters.features.extraction.sources import IntArray, Missing
from recplug.adapters.features.extraction.store import Store
from recplug.adapters.features.table import SUFFIX, FeatureTable
from recplug.adapters.files import replacing
from recplug.plugins.errors import RecplugError

NAMED = 8  # shards that a message names


@dataclass(frozen=True, eq=False)
class Result:
    """What finished work comes to.

    Attributes:
        stores: where the rows are.
        numbers: ``[k]``, who has a vector, in the data set's order.
        items: how many items were to be encoded.
        missing: who has none.
        truncated: texts that were cut.
        created: the day on which the first of the work began.
    """

    stores: Sequence[Store]
    work: Work
    numbers: IntArray
    items: int
    missing: tuple[Missing, ...]
    truncated: int
    created: str


def folder_of(output: Path, shard: Shard) -> Path:
    """Where work in progress is kept: beside the table."""
    return output.with_name(f"{output.name.removesuffix(SUFFIX)}.{shard.name}")


def missing_file(output: Path) -> Path:
    """The list of who has no vector: beside the table."""
    return output.with_name(f"{output.name.removesuffix(SUFFIX)}.missing.tsv")


def check_output(output: Path, *, replace: bool) -> None:
    """Refuse a table that could not be written in the end.

    Raises:
        RecplugError: where it exists and is not to be replaced, or a folder stands in its place or its list's.
    """
    check_free(replace, output)
    check_free(True, missing_file(output))


def merge(output: str | os.PathLike[str], *, overwrite: bool = False) -> Result:
    """Make one table of all shards that lie beside it; equal to the byte to that of a run without shards.

    Raises:
        RecplugError: where one is missing, unfinished or of other work, or the table exists.
    """
    target = Path(output)
    check_output(target, replace=overwrite)
    folders = _shards(target)
    with ExitStack() as opened:
        stores = [opened.enter_context(Store(folder)) for folder in folders]
        first, *others = (store.read() for store in stores)
        for store, folder in zip(stores, folders, strict=True):
            assert store.work is not None
            left = sum(len(store.work.plan.items(batch)) for batch in store.left)
            if left:
                raise RecplugError(f"{folder} is not finished, {left:,} items are left; run its command again")
        for work, folder in zip(others, folders[1:], strict=True):
            difference = first.difference(work, times=False)
            if difference is not None:
                here = f"{folders[0].name} there, {folder.name} here"
                raise RecplugError(f"shards of different work ({here}): {difference}; make them by one command")
        made = result(stores)
        write(made, target)
        return made


def result(stores: Sequence[Store]) -> Result:
    """What finished stores of one work come to.

    Raises:
        RecplugError: where it is whole, and not one item has a vector.
    """
    works = [store.work for store in stores if store.work is not None]
    work = works[0]
    present = np.zeros(len(work.tokens), dtype=bool)
    ours, truncated, broken = 0, 0, dict[int, Missing]()
    for store in stores:
        for batch, done in store.done.items():
            numbers = work.plan.items(batch)
            ours, truncated = ours + len(numbers), truncated + done.truncated
            present[numbers] = True
            broken |= {int(numbers[place]): item for place, item in done.broken.items()}
    present[list(broken)] = False
    if len(stores) == work.plan.shard.count and not present.any():
        first = broken[min(broken)]
        raise RecplugError(
            f"not one of {ours:,} items could be encoded (first: {first.token!r}, {first.file}: {first.reason});"
            " mend them, and run again with --retry_broken"
        )
    missing = (*(broken[number] for number in sorted(broken)), *work.missing)
    created = min(work.created for work in works)
    return Result(stores, work, present.nonzero()[0], ours, missing, truncated, created)


def write(made: Result, output: Path) -> None:
    """Write the table, and before it the list of who is not in it.

    Raises:
        RecplugError: where they cannot be written.
    """
    work = made.work
    place = np.full(len(work.tokens), -1)  # an item's row in the table
    place[made.numbers] = np.arange(len(made.numbers))
    features = np.empty((len(made.numbers), work.width), dtype=work.dtype)  # [k, d]
    for store in made.stores:
        for batch in store.done:
            rows = place[work.plan.items(batch)]
            features[rows[rows >= 0]] = store.rows(batch)[rows >= 0]
    tokens = tuple(work.tokens[number] for number in made.numbers)
    table = FeatureTable(torch.from_numpy(features), tokens, work.settings["modality"], _header(made))
    _write_missing(made.missing, missing_file(output))
    table.save(output)


def _header(made: Result) -> dict[str, str]:
    hidden = ("modality", "items", "dtype")  # which the table says itself
    header = {key: value for key, value in made.work.settings.items() if key not in hidden}
    header["created"] = made.created
    if made.missing:
        header["left_out"] = f"{len(made.missing):,} items that nothing could be read of"
    if made.work.settings["modality"] == "text":
        header["truncated"] = f"{made.truncated:,} texts"
    return header


def _write_missing(missing: Sequence[Missing], path: Path) -> None:
    try:
        if not missing:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[tuple[Any, ...]] = [("token", "file", "reason"), *((it.token, it.file, it.reason) for it in missing)]
        with replacing(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
            for row in rows:
                file.write("\t".join(re.sub(r"[\t\r\n]", " ", cell) for cell in row) + "\n")
    except OSError as error:
        raise RecplugError(f"cannot write {path}: {error.strerror}; make room, or choose another --output") from None


def _shards(output: Path) -> list[Path]:
    """The folders of all shards, in order."""
    stem = output.name.removesuffix(SUFFIX)
    found: dict[int, set[int]] = {}
    for folder in output.parent.glob(f"{glob.escape(stem)}.shard-*-of-*"):
        name = re.fullmatch(rf"{re.escape(stem)}\.shard-(\d+)-of-(\d+)", folder.name)
        if name and folder.is_dir():
            found.setdefault(int(name[2]), set()).add(int(name[1]))
    if not found:
        raise RecplugError(f"no folders {stem}.shard-1-of-N in {output.parent}; make them with --shard 1/N, ...")
    if len(found) > 1:
        counts = " and ".join(str(count) for count in sorted(found))
        raise RecplugError(f"{output.parent} holds shards of {counts}; delete or move away those that do not belong")
    ((count, there),) = found.items()
    absent = sorted(set(range(1, count + 1)) - there)
    if absent:
        named = ", ".join(f"{index}/{count}" for index in absent[:NAMED])
        named += f" and {len(absent) - NAMED:,} more" if len(absent) > NAMED else ""
        raise RecplugError(f"shards {named} of {stem} are missing in {output.parent}; run them, or copy them there")
    return [folder_of(output, Shard(index, count)) for index in sorted(there)]
