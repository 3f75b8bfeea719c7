"""Where a training stands: everything that its next epoch depends on, in one file, after every epoch.

``resume.pth`` holds tensors and Python's own plain types, so that reading it runs nothing. It is the state after the
latest whole epoch, and names the best epoch's checkpoint with its SHA-256. A checkpoint that RecBole writes waits under
another name until the state that names it is written: stopped at any moment, the two belong together.
"""

from __future__ import annotations

import logging
import os
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.trainer.trainer import NCLTrainer
from torch import nn

from recplug.adapters.files import replacing
from recplug.adapters.ownership import sha256
from recplug.adapters.recbole.compat.plain_values import packed, unpacked
from recplug.adapters.recbole.graft.plain_state import Carried
from recplug.adapters.recbole.state.run_directory import RunDirectory, write
from recplug.plugins.errors import RecplugError, one_line

log = logging.getLogger("recplug")
FORMAT = 1
ADVICE = "copy the run again, or start it anew"


def can_be_kept(trainer: Any) -> bool:
    """Whether a trainer works epoch by epoch, in one process; one that pretrains, or fits trees, has its own course."""
    return type(trainer).fit in (Trainer.fit, NCLTrainer.fit) and bool(trainer.config["single_spec"])


class Progress:
    """Writes a training's state after every epoch, and brings another process to where one stood.

    Args:
        directory: where ``resume.pth`` and ``checkpoint.pth`` lie.
        trainer: RecBole's; two of its methods are wrapped on this instance.
        model: the augmented model.
        loaders: of the training, validation and test parts.
        about: what a state belongs to: configuration, data, content, versions.
    """

    def __init__(
        self,
        directory: RunDirectory,
        trainer: Any,
        model: Any,
        loaders: tuple[Any, ...],
        *,
        about: Mapping[str, Any],
    ) -> None:
        self._directory, self._trainer, self._model, self._loaders = directory, trainer, model, loaders
        self._about, self._keep = dict(about), True
        self._carried = Carried(model, trainer=trainer)
        self._stored: Mapping[str, Any] | None = None  # what an earlier process has left, until the first epoch begins
        self._waiting: Path | None = None  # a checkpoint that no state names yet
        self._checkpoint: dict[str, Any] | None = None
        self._tried = False
        self.settled = -1  # the epoch whose state is written
        train, save = trainer._train_epoch, trainer._save_checkpoint

        def train_epoch(data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
            if self._stored is not None:
                # Once more: NCL clusters its nodes before an epoch, which has been done, and draws, when this was kept.
                self._restore_model(self._stored)
                _set_random_states(self._stored["random"], trainer.device)
                self._stored = None
            elif epoch > 0:
                self.settle(epoch - 1)
            return train(data, epoch, *args, **kwargs)

        def save_checkpoint(epoch: int, verbose: bool = True, **kwargs: Any) -> None:
            if trainer.saved_model_file != str(directory.checkpoint):
                save(epoch, verbose=verbose, **kwargs)
                return
            self._waiting = directory.waiting(epoch)
            save(epoch, verbose=False, saved_model_file=str(self._waiting))
            if verbose:
                trainer.logger.info("Saving current: %s", directory.checkpoint)

        trainer._train_epoch, trainer._save_checkpoint = train_epoch, save_checkpoint

    @property
    def ended(self) -> bool:
        """Whether no epoch is left: all are done, or validation has not improved for too long."""
        return self._trainer.start_epoch >= self._trainer.epochs or self._stopped()

    def settle(self, epoch: int) -> None:
        """Write the state after ``epoch``, then give its checkpoint, if it has one, its name."""
        if epoch <= self.settled:
            return
        if self._waiting is not None:
            self._checkpoint = {"name": self._waiting.name, "sha256": sha256(self._waiting)}
        if self._keep:
            self._write(self._state(epoch))
            self._try()
        if self._waiting is not None:
            os.replace(self._waiting, self._directory.checkpoint)
            self._waiting = None
        self.settled = epoch

    def _write(self, state: Mapping[str, Any]) -> None:
        with replacing(self._directory.state) as partial:
            with partial.open("wb") as file:
                torch.save(state, file)
            # Both the old state and the new one are whole: a kill may leave either.
            digests = [sha256(partial), *_digests(self._directory)[:1]]
            write(self._directory.digests, "".join(f"{digest}\n" for digest in digests))

    def replace_checkpoint(self, content: Mapping[str, Any]) -> None:
        """Write the best epoch's checkpoint anew, after training, and let the state name it."""
        self._waiting = self._directory.waiting(self.settled)
        torch.save(dict(content), self._waiting)
        if self._keep:
            state = read_state(self._directory)
            state["checkpoint"] = {"name": self._waiting.name, "sha256": sha256(self._waiting)}
            self._write(state)
        os.replace(self._waiting, self._directory.checkpoint)
        self._waiting = None

    def drop(self) -> None:
        """Remove a checkpoint that is of no whole epoch."""
        if self._waiting is not None:
            self._waiting.unlink(missing_ok=True)
            self._waiting = None

    def _state(self, epoch: int) -> dict[str, Any]:
        source = self._model.recplug_source
        return {
            "format": FORMAT,
            "about": self._about,
            "epoch": epoch,
            "stopped": self._stopped(),
            "rows": self._directory.rows,
            "checkpoint": self._checkpoint,
            "model": self._model.state_dict(),
            "carried": self._carried.read(),
            "optimizers": {name: each.state_dict() for name, each in self._stateful().items()},
            "random": _random_states(self._trainer.device),
            "shuffles": [loader.generator.get_state() for loader in self._loaders],
            "source": None if source is None else source.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where another process stood; random streams follow when the first epoch begins."""
        trainer, directory = self._trainer, self._directory
        try:
            self._restore_model(state)
            for name, each in self._stateful().items():
                each.load_state_dict(state["optimizers"][name])
        except (RuntimeError, KeyError, ValueError) as error:
            raise RecplugError(
                f"the state in {directory.path} does not fit the model that its config.yaml describes "
                f"({one_line(error)[:200]}); put the files of the run back"
            ) from error
        for loader, shuffles in zip(self._loaders, state["shuffles"], strict=True):
            loader.generator.set_state(shuffles)
        if self._model.recplug_source is not None:
            self._model.recplug_source.restore(state["source"])
        trainer.start_epoch = state["epoch"] + 1
        self._stored, self._checkpoint, self.settled = state, state["checkpoint"], state["epoch"]
        self._tried = True
        directory.set_rows(state["rows"])

    def _restore_model(self, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        self._carried.write(state["carried"])

    def _stopped(self) -> bool:
        return bool(self._trainer.cur_step > self._trainer.stopping_step)

    def _stateful(self) -> dict[str, Any]:
        """Optimisers, and what else of the trainer's has a state: schedulers, a gradient scaler."""
        return {
            name: value
            for name, value in vars(self._trainer).items()
            if hasattr(value, "load_state_dict") and not isinstance(value, nn.Module)
        }

    def _try(self) -> None:
        """Read the first state once: a plugin of somebody else's may hold what cannot be read back."""
        if self._tried:
            return
        self._tried = True
        try:
            torch.load(self._directory.state, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            self._keep = False
            self._directory.state.unlink()
            self._directory.digests.unlink()
            log.warning("this run cannot be resumed: something in it keeps more than numbers (%s)", _reason(error))


def read_state(directory: RunDirectory, *, whole: bool = True) -> dict[str, Any]:
    """The state that a run left.

    Args:
        directory: the run's.
        whole: whether tensors are read at once; else only when they are looked at.

    Raises:
        RecplugError: for a file that cannot be read.
    """
    where = "cpu" if not (whole and torch.cuda.is_available()) else None
    try:
        if (known := _digests(directory)) and sha256(directory.state) not in known:
            raise ValueError("it is not what the run has written")
        found = torch.load(directory.state, map_location=where, weights_only=True, mmap=not whole)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise RecplugError(f"cannot read {directory.state} ({_reason(error)}); {ADVICE}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RecplugError(f"{directory.state} is no state of a run that this version can read; {ADVICE}")
    return found


def _digests(directory: RunDirectory) -> list[str]:
    """Of the latest state, and of the one before it."""
    return directory.digests.read_text(encoding="ascii").split() if directory.digests.is_file() else []


def settle_checkpoint(directory: RunDirectory, wanted: Mapping[str, str] | None) -> None:
    """Put the checkpoint that a state names into its place, if a kill left it waiting.

    Raises:
        RecplugError: where the one in its place is another, or damaged.
    """
    if wanted is None:
        return
    waiting = directory.path / Path(wanted["name"]).name
    if waiting.is_file() and sha256(waiting) == wanted["sha256"]:
        os.replace(waiting, directory.checkpoint)
    if not directory.checkpoint.is_file() or sha256(directory.checkpoint) != wanted["sha256"]:
        raise RecplugError(f"{directory.checkpoint} is not the checkpoint that the run's state names; {ADVICE}")


def _reason(error: Exception) -> str:
    """What torch says, without its advice to trust the file."""
    text = one_line(error)
    return (text.partition("WeightsUnpickler error: ")[2] or text)[:120]


def _random_states(device: torch.device) -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": packed(np.random.get_state(legacy=False)),
        "python": random.getstate(),
    }


def _set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    np.random.set_state(unpacked(states["numpy"]))
    random.setstate(states["python"])
