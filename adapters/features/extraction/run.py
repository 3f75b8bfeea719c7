"""From items to vectors, batch by batch, and to a feature table."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from recplug.adapters.features.encoders.preprocessing import TextPrepare
from recplug.adapters.features.extraction import assemble
from recplug.adapters.features.extraction.batches import ImageJobs, Job, Loaded, TextJobs, default_workers, load
from recplug.adapters.features.extraction.download import image_cache
from recplug.adapters.features.extraction.identity import Work
from recplug.adapters.features.extraction.plan import Plan, Shard, plan
from recplug.adapters.features.extraction.progress import Progress
from recplug.adapters.features.extraction.sources import Items, Missing, is_address
from recplug.adapters.features.extraction.store import Store
from recplug.plugins.errors import RecplugError

if TYPE_CHECKING:
    from recplug.adapters.features.encoders import Encoder

BATCH = 64


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        output: the table; None where a shard ended, or nothing of the work is left to do for one.
        folder: the work's folder, where it is kept.
        items: how many were ours.
        encoded: how many of them have a vector.
        fresh: how many items this run went through.
        seconds: how long that took, from the first batch on.
        missing: who has no vector and why.
        truncated: texts that were cut.
    """

    output: Path | None
    folder: Path | None
    items: int
    encoded: int
    fresh: int
    seconds: float
    missing: tuple[Missing, ...]
    truncated: int


def extract(
    encoder: Encoder,
    items: Items,
    output: str | os.PathLike[str],
    *,
    dtype: Literal["float16", "float32"] = "float32",
    batch: int = BATCH,
    workers: int | None = None,
    shard: Shard | None = None,
    overwrite: bool = False,
    restart: bool = False,
    retry_broken: bool = False,
) -> Report:
    """Encode ``items`` and write a feature table, going on where an earlier run of the same work was stopped.

    Args:
        encoder: of the items' modality.
        items: what to encode.
        output: the table; work in progress is kept beside it, in a folder of the same name and ``.partial``.
        dtype: of the table.
        batch: items that are encoded together.
        workers: processes that read and prepare; default by cores for pictures, none for texts.
        shard: do only this part, and write no table: :func:`merge` does.
        overwrite: replace a table that exists.
        restart: throw earlier work away.
        retry_broken: try again what was broken, and replace the table.

    Raises:
        RecplugError: where the table exists, the folder holds other work, the disk is full, memory does not suffice,
            or a vector is not finite.
    """
    target, part = Path(output), shard or Shard()
    if part.count == 1:
        assemble.check_output(target, replace=overwrite or retry_broken)
    folder = assemble.folder_of(target, part)
    if retry_broken and not folder.exists():
        raise RecplugError(f"no {folder}, where what was broken is noted; leave --retry_broken out to begin anew")
    items, lengths = _readable(encoder, items)
    work = _work(encoder, items, lengths, part, batch, dtype)
    with Store(folder) as store:
        store.resume(work, restart=restart, retry_broken=retry_broken)
        begun = time.monotonic()
        fresh = _encode(store, encoder, items, workers)
        seconds = time.monotonic() - begun
        store.sync()
        result = assemble.result([store])
        if part.count > 1:
            return _report(None, store.folder, result, fresh, seconds)
        assemble.write(result, target)
        broken = any(done.broken for done in store.done.values())
        if not broken:
            store.remove()
        return _report(target, store.folder if broken else None, result, fresh, seconds)


def _report(output: Path | None, folder: Path | None, result: assemble.Result, fresh: int, seconds: float) -> Report:
    ours, encoded = result.items, len(result.numbers)
    return Report(output, folder, ours, encoded, fresh, seconds, result.missing, result.truncated)


def _readable(encoder: Encoder, items: Items) -> tuple[Items, list[int] | None]:
    """The items without texts of which the encoder knows no token, and the lengths of the others."""
    if items.modality != "text":
        return items, None
    lengths = encoder.lengths(list(items.contents))
    if not any(lengths):
        raise RecplugError(f"{encoder.name} knows no token of any text ({items.source}); choose another encoder")
    return items.where([length > 0 for length in lengths], "no token that the encoder knows"), [*filter(None, lengths)]


def _work(encoder: Encoder, items: Items, lengths: list[int] | None, shard: Shard, batch: int, dtype: str) -> Work:
    order: Plan = plan(len(items.tokens), batch, shard, lengths)
    known = "\n".join((*items.tokens, "", *(item.token for item in items.missing)))
    facts = {
        "modality": items.modality,
        "encoder": encoder.name,
        "revision": encoder.revision,
        "pooling": encoder.pooling,
        "normalised": str(encoder.normalised).lower(),
        "precision": encoder.precision,
        "source": items.source,
        "device": torch.device(encoder.device).type,
        "items": f"{len(items.tokens)} of {len(items.tokens) + len(items.missing)}"
        f" ({hashlib.sha256(known.encode()).hexdigest()[:12]})",
        "batch": str(batch),
        "dtype": dtype,
    }
    if isinstance(encoder.prepare, TextPrepare):
        facts |= {"max_length": str(encoder.prepare.max_length), "prefix": repr(encoder.prepare.prefix)}
    return Work.of(items, order, facts, encoder.width, dtype, _today())


def _today() -> str:
    """The date for the header; ``SOURCE_DATE_EPOCH`` sets it, for tables that are equal on different days."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        return datetime.now(timezone.utc).date().isoformat()
    if not given.isdigit():
        raise RecplugError(f"SOURCE_DATE_EPOCH is {given!r}, not a number of seconds; unset it")
    return datetime.fromtimestamp(int(given), timezone.utc).date().isoformat()


def _encode(store: Store, encoder: Encoder, items: Items, workers: int | None) -> int:
    """Do all batches that are left; how many items that were."""
    assert store.work is not None
    order, left = store.work.plan, store.left
    if not left:
        return 0

    def jobs() -> Iterator[Job]:
        for batch in left:
            yield Job(batch, tuple(items.contents[number] for number in order.items(batch)))

    data = _data(encoder, items)
    count = default_workers(items.modality) if workers is None else workers
    sizes = {batch: len(order.items(batch)) for batch in order.batches}
    fresh = sum(sizes[batch] for batch in left)
    progress = Progress(sum(sizes.values()), sum(sizes.values()) - fresh)
    try:
        for loaded in load(jobs(), data, min(count, len(left))):
            numbers = [int(number) for number in order.items(loaded.batch)]
            broken = dict(loaded.broken)
            rows = _rows(encoder, store.work, items, numbers, loaded, broken)  # [b, d]
            told = {place: _missing(items, numbers[place], reason) for place, reason in sorted(broken.items())}
            store.put(loaded.batch, rows, truncated=loaded.truncated, broken=told)
            progress.advance(len(numbers), len(told))
    finally:
        progress.close()
    return fresh


def _data(encoder: Encoder, items: Items) -> ImageJobs | TextJobs:
    if items.modality == "text":
        return TextJobs(encoder.prepare)
    return ImageJobs(encoder.prepare, image_cache() if any(map(is_address, items.contents)) else None)


def _missing(items: Items, number: int, reason: str) -> Missing:
    return Missing(items.tokens[number], items.contents[number] if items.modality == "image" else "", reason)


def _rows(
    encoder: Encoder, work: Work, items: Items, numbers: list[int], loaded: Loaded, broken: dict[int, str]
) -> np.ndarray[Any, np.dtype[Any]]:
    """The rows ``[b, d]`` of one batch in the table's dtype; a place without a vector is added to ``broken``."""
    rows = np.zeros((len(numbers), work.width), dtype=work.dtype)
    if loaded.inputs is None:
        return rows
    vectors = _encoded(encoder, loaded.inputs, len(numbers)).numpy()  # [r, d]
    due = (len(loaded.ready), work.width)
    if vectors.shape != due:
        raise RecplugError(f"{encoder.name} gives vectors {vectors.shape} where {due} is due; choose another encoder")
    with np.errstate(over="ignore"):
        cast = vectors.astype(work.dtype)
    for place, exact, kept in zip(loaded.ready, vectors, cast, strict=True):
        token = items.tokens[numbers[place]]
        if np.isfinite(kept).all():
            rows[place] = kept
        elif np.isfinite(exact).all():
            raise RecplugError(f"item {token!r}: its vector is too large for float16; use --dtype float32 --restart")
        elif work.settings["precision"] != "fp32":
            raise RecplugError(f"item {token!r}: its vector holds NaN or infinity; use --precision fp32 --restart")
        else:
            broken[place] = "the encoder gives NaN or infinity"
    return rows


def _encoded(encoder: Encoder, inputs: Any, size: int) -> Tensor:
    try:
        return encoder.encode(inputs)
    except (RuntimeError, MemoryError) as error:
        out = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
        if not out:
            raise
        raise RecplugError(
            f"memory does not suffice for {size} items at once; use --batch {max(size // 2, 1)}"
        ) from None
