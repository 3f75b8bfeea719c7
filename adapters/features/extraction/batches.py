"""Batches on their way to the encoder: read, decoded and prepared, in worker processes where wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recplug.adapters.features.extraction.download import fetch_all
from recplug.adapters.features.extraction.images import BrokenImage, decode
from recplug.adapters.features.extraction.sources import is_address
from recplug.adapters.stopping import started_without_interrupt
from recplug.plugins.errors import RecplugError

PREFETCH = 2  # batches that each worker has ready


class Job(NamedTuple):
    """One batch by its number, with its contents."""

    batch: int
    contents: tuple[str, ...]


class Loaded(NamedTuple):
    """What the encoder is given.

    Attributes:
        batch: its number.
        inputs: what ``encode`` takes; None where nothing is left.
        ready: the places in the batch that ``inputs`` has, in its order.
        broken: the reasons by place.
        truncated: how many texts were cut.
        failed: what ends the run, in one line; an exception would come out of a worker as a page.
    """

    batch: int
    inputs: Any = None
    ready: tuple[int, ...] = ()
    broken: Mapping[int, str] = {}
    truncated: int = 0
    failed: str = ""


class ImageJobs(Dataset[Loaded]):
    """Pictures: decoded and prepared; a broken one is left out of its batch.

    Args:
        prepare: the encoder's, one RGB picture to a tensor ``[3, h, w]``.
        cache: where downloads are kept; needed where contents are addresses.
    """

    def __init__(self, prepare: Callable[[Any], Tensor], cache: Path | None) -> None:
        self.prepare = prepare
        self.cache = cache

    def __getitem__(self, job: Job) -> Loaded:
        addresses = {place: it for place, it in enumerate(job.contents) if is_address(it)}
        got: dict[int, Path | str] = {
            place: Path(it) for place, it in enumerate(job.contents) if place not in addresses
        }
        if addresses:
            assert self.cache is not None, "addresses need a cache"
            try:
                got |= fetch_all(addresses, self.cache)
            except RecplugError as error:
                return Loaded(job.batch, failed=str(error))
        files = {place: it for place, it in got.items() if isinstance(it, Path)}
        broken = {place: it for place, it in got.items() if isinstance(it, str)}
        tensors: dict[int, Tensor] = {}
        for place in sorted(files):
            try:
                tensors[place] = self._prepared(files[place])
            except BrokenImage as error:
                broken[place] = str(error)
        for place in addresses.keys() & broken.keys() & files.keys():  # so that another attempt downloads it anew
            files[place].unlink(missing_ok=True)
        inputs = torch.stack(list(tensors.values())) if tensors else None  # [b, 3, h, w]
        return Loaded(job.batch, inputs, tuple(tensors), broken)

    def _prepared(self, file: Path) -> Tensor:
        image = decode(file)
        try:
            return self.prepare(image)
        except Exception as error:  # libraries fail in many ways at a picture of one pixel
            reason = " ".join(str(error).split())
            raise BrokenImage(f"cannot be prepared, {type(error).__name__}: {reason}"[:200]) from None


class TextJobs(Dataset[Loaded]):
    """Texts: as tokens.

    Args:
        prepare: the encoder's, a list of texts to tokens, padded.
    """

    def __init__(self, prepare: Callable[[list[str]], Any]) -> None:
        self.prepare = prepare

    def __getitem__(self, job: Job) -> Loaded:
        prepared = self.prepare(list(job.contents))
        return Loaded(job.batch, prepared, tuple(range(len(job.contents))), truncated=sum(prepared.truncated))


def load(jobs: Iterable[Job], data: Dataset[Loaded], workers: int) -> Iterator[Loaded]:
    """The batches in the order of ``jobs``.

    Jobs carry their contents, so that a worker holds no list of all items: such lists grow in every forked process.

    Raises:
        RecplugError: where a worker dies, or a download cannot be kept.
    """
    if workers and isinstance(data, TextJobs):
        # Tokenizers that have counted lengths here warn in every worker otherwise.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader: DataLoader[Loaded] = DataLoader(
        data,
        batch_size=None,
        sampler=jobs,
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=partial(_begin, os.getpid()) if workers else None,
    )
    with started_without_interrupt():  # an interrupt is for the main process, which ends its workers itself
        batches = iter(loader)
    while True:
        try:
            loaded = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            told = str(error)
            died = "DataLoader worker" in told and "Caught" not in told
            if not died and "unable to write to file </torch_" not in told:
                raise
            raise RecplugError(
                "a worker process died, most likely for want of memory or, in a container, of /dev/shm; use fewer"
                " --workers, 0 for none, or a smaller --batch"
            ) from None
        if loaded.failed:
            raise RecplugError(loaded.failed)
        yield loaded


def default_workers(modality: str) -> int:
    """As many as there are cores to spare for pictures; texts need none."""
    if modality == "text":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores - 1))


def _unchanged(loaded: Any) -> Any:
    return loaded


def _begin(parent: int, _: int) -> None:
    """Set a worker up."""
    # Torch's workers end when their parent does, but take whoever is the parent now for it.
    if os.getppid() != parent:
        os._exit(1)
