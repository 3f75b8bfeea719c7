"""What a finished run gives away as files: vectors of items and users, an index, the encoder, a plain checkpoint."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole.export.index import write_index
from recplug.adapters.recbole.export.plain import write_plain
from recplug.adapters.recbole.export.tower import write_tower
from recplug.adapters.recbole.infer.catalogue import KnownRun
from recplug.adapters.recbole.infer.histories import Askers
from recplug.adapters.recbole.infer.scores import at_work
from recplug.adapters.recbole.infer.top_k import check_place
from recplug.adapters.recbole.infer.vectors import Vectors, vectors_of
from recplug.plugins.errors import RecplugError

log = logging.getLogger("recplug")
SAMPLE = 16  # users on whom it is tried what a host scores by
BLOCK = 256  # users who are encoded at once


class ExportedRun(KnownRun):
    """A finished run that can be taken away.

    Every file is written whole or not at all, and none is written over unless ``overwrite`` says so. Rows are in the
    order of the run's own ids: row 0 of a file is the item, or user, with the id 1.
    """

    def export_items(self, path: str | Path, *, overwrite: bool = False) -> None:
        """The items as they are scored, plugins included: a feature table whose dot product with a user is the score.

        Args:
            path: a ``.safetensors`` file.
            overwrite: whether a file there may be replaced.

        Raises:
            RecplugError: where the scores are no dot products, or the file cannot be written.
        """
        target = check_target(path, ".safetensors", overwrite)
        with at_work(self.model):
            items = self._vectors().items[1:]
        self._table(items, self.item_tokens[1:].tolist(), "items").save(target)

    def export_users(self, path: str | Path, *, overwrite: bool = False) -> None:
        """The users as of now, in a file like that of the items; a user without a history may have no vector.

        Args:
            path: a ``.safetensors`` file, whose ``item_tokens`` are users.
            overwrite: whether a file there may be replaced.

        Raises:
            RecplugError: as :meth:`export_items`.
        """
        target = check_target(path, ".safetensors", overwrite)
        with at_work(self.model):
            askers = self._known(None, "now")
            users = _encoded(self._vectors(), askers)
        self._table(users, askers.names, "users").save(target)

    def export_index(self, path: str | Path, *, factory: str = "Flat", overwrite: bool = False) -> None:
        """A faiss index of the items by inner product, and ``PATH.tokens.json`` with the items' tokens by its ids.

        Args:
            path: a ``.faiss`` file.
            factory: faiss's own word for the kind of index: ``"Flat"`` is exact, others such as ``"HNSW32"`` are not,
                and the log says how far.
            overwrite: whether files there may be replaced.

        Raises:
            RecplugError: without faiss, for a word that it does not know, and as :meth:`export_items`.
        """
        target = check_target(path, ".faiss", overwrite)
        check_target(tokens_of(target), ".json", overwrite)
        with at_work(self.model):
            vectors = self._vectors()
            users = vectors.of(self._sample(BLOCK))
        shared = write_index(
            target,
            tokens_of(target),
            items=vectors.items[1:].cpu().float(),
            tokens=self.item_tokens[1:].tolist(),
            factory=factory,
            users=users.cpu().float(),
        )
        if factory != "Flat":
            log.info("%s: the first 20 share %.1f %% with the exact ones (%d users)", factory, 100 * shared, len(users))

    def export_tower(self, path: str | Path, *, overwrite: bool = False) -> None:
        """The encoder of histories as one program: ids ``[b, L]``, 0 behind them, and lengths ``[b]`` to ``[b, w]``.

        It is tried on histories after it is written, and needs PyTorch alone, or ONNX Runtime.

        Args:
            path: a ``.pt2`` file for ``torch.export``, or an ``.onnx`` file.
            overwrite: whether a file there may be replaced.

        Raises:
            RecplugError: for a backbone that does not encode histories alone, or cannot be traced; without ``onnx`` and
                ``onnxscript`` where they are needed; and as :meth:`export_items`.
        """
        target = check_target(path, (".pt2", ".onnx"), overwrite)
        with at_work(self.model):
            tower, name = self._vectors().tower, self.model.recplug_host.name
            if tower is None:
                raise RecplugError(f"{name} has no tower: it scores by a row of each user; export the users' vectors")
            if self.model.device.type != "cpu":
                raise RecplugError("a tower is bound to its device; load the run with use_gpu=False to export it")
            sequence, lengths = self._sample(BLOCK).past.padded(self.model.max_seq_length)
            write_tower(target, self.model, tower, sequence, lengths)

    def export_plain(self, path: str | Path, *, overwrite: bool = False) -> None:
        """A checkpoint of the backbone alone that scores the same: what the plugins add is merged into its tables.

        RecBole loads it without recplug.

        Args:
            path: a ``.pth`` file.
            overwrite: whether a file there may be replaced.

        Raises:
            RecplugError: where what the plugins add is not one vector an item, or user, whoever asks.
        """
        target = check_target(path, ".pth", overwrite)
        with at_work(self.model):
            write_plain(target, self.model, self.config, self.dataset, self._sample(SAMPLE))

    # -- whom and what

    def _vectors(self) -> Vectors:
        if "_new" in self.__dict__ and any(self._new.ids.values()):
            raise RecplugError("files hold the run's own users and items; export from a run that was not extended")
        return vectors_of(self.model, self._sample(SAMPLE), len(self.item_tokens))

    def _sample(self, n: int) -> Askers:
        """At most ``n`` of them, from the first to the last."""
        everyone = self._known(None, "now")
        return everyone.take(torch.linspace(0, len(everyone) - 1, min(n, len(everyone))).long())

    def _table(self, vectors: Tensor, tokens: Sequence[str], name: str) -> FeatureTable:
        """A file's rows; both files of a run name the same revision, that of its checkpoint."""
        model = "+".join([self.result["model"], *self.result["plugins"]])
        revision = hashlib.sha256((self.directory / "checkpoint.pth").read_bytes()).hexdigest()
        origin = {"encoder": model, "revision": revision, "dataset": self.result["dataset"]}
        return FeatureTable(vectors.detach().cpu().float().contiguous(), tuple(tokens), name, origin)


def check_target(path: str | Path, endings: str | tuple[str, ...], overwrite: bool) -> Path:
    """The path of a file to be written.

    Raises:
        RecplugError: for another ending, a place that cannot be written to, or a file that is there already.
    """
    target = Path(path)
    wanted = (endings,) if isinstance(endings, str) else endings
    if target.suffix not in wanted:
        raise RecplugError(f"cannot write {target}: let its name end with {' or '.join(wanted)}")
    check_place(target)
    if target.exists() and not overwrite:
        raise RecplugError(f"{target} is there already; choose another name, or write over it with overwrite")
    return target


def tokens_of(index: Path) -> Path:
    """Where the tokens of an index lie."""
    return index.with_name(f"{index.name}.tokens.json")


def _encoded(vectors: Vectors, askers: Askers) -> Tensor:
    """``[n, w]``, a block at a time."""
    blocks: list[Any] = [vectors.of(askers.take(rows)).cpu().float() for rows in torch.arange(len(askers)).split(BLOCK)]
    return torch.cat(blocks)
