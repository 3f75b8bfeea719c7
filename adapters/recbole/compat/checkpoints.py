"""Checkpoints that hold numbers alone: whoever reads a run's files runs nothing that is in them.

RecBole's trainer saves its ``Config`` object beside the parameters, and reads the file back as a pickle, which runs
whatever code it holds. Here the configuration is stored as a mapping of plain values, and every file is read with
``weights_only=True``; only a file that the caller vouches for is unpickled.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recplug.adapters.files import replacing
from recplug.adapters.recbole.compat.patching import replaced
from recplug.adapters.recbole.compat.plain_values import SIMPLE, NotPlain, packed, unpacked
from recplug.plugins.errors import RecplugError

NOT_NUMBERS = (
    "it holds more than numbers, and reading that runs what is in it; where you trust whoever made it, add "
    "--trust_checkpoint true"
)
# Keys by which a model of RecBole's reads a file itself.
PRETRAINED = ("pre_model_path", "pretrain_path", "mf_pretrain_path", "mlp_pretrain_path", "warm_up")


def without_objects(content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of RecBole's trainer with its configuration, and what a host keeps beside its parameters, as plain.

    A host that saves one of its modules beside the parameters (FDSA, DIN) has it in its ``state_dict`` already. What
    is of no plain kind stays as it is, and such a file is unpickled by none of our commands.
    """
    found = {key: value if "state" in key or key == "optimizer" else _plain(value) for key, value in content.items()}
    if (final := getattr(content.get("config"), "final_config_dict", None)) is not None:
        settings = ((key, _plain(value)) for key, value in final.items())
        found["config"] = {key: value for key, value in settings if _is_plain(value)}
    if isinstance(beside := content.get("other_parameter"), Mapping):
        found["other_parameter"] = {k: _plain(value) for k, value in beside.items() if not isinstance(value, nn.Module)}
    return found


def read_checkpoint(file: str | os.PathLike[str], map_location: Any = "cpu", *, trust: bool = False) -> dict[str, Any]:
    """What a checkpoint holds, as RecBole's trainer saved it, with ``config`` as a mapping.

    Args:
        file: the checkpoint.
        map_location: where its tensors go.
        trust: unpickle it: it may run code. RecBole's own checkpoints need it; those of runs do not.

    Raises:
        pickle.UnpicklingError: where it holds more than numbers, and is not trusted; other errors of ``torch.load``.
    """
    with trusted(file) if trust else nullcontext():
        found: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=None if trust else True)
    return _opened(found)


@contextmanager
def own_checkpoints() -> Iterator[None]:
    """Files that ``torch.save`` writes in this block hold plain values, and are written whole (RecBole#2212, #2215).

    RecBole's trainer reads its checkpoint back without saying ``weights_only``, and writes over the last good one.
    A file that was written in this block is read as it was written; any other one as weights only.
    """
    save, written = torch.save, set[Path]()
    if getattr(save, "keeps_note", False):  # an outer block does it
        yield
        return

    @functools.wraps(save)
    def save_and_note(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(f, (str, os.PathLike)):
            save(obj, f, *args, **kwargs)
            return
        if isinstance(obj, Mapping) and "state_dict" in obj:
            obj = without_objects(obj)
            kwargs.pop("pickle_protocol", None)  # the default is what weights-only reading knows best
        with replacing(f) as partial, partial.open("wb") as file:  # through a file, or a full disk is told as another
            save(obj, file, *args, **kwargs)
        written.add(Path(f).resolve())

    save_and_note.keeps_note = True  # type: ignore[attr-defined]
    with _trusting(written.__contains__), replaced(torch, save=save_and_note):
        yield


@contextmanager
def trusted(file: str | os.PathLike[str]) -> Iterator[None]:
    """Unpickle this one file, for which the user vouches; a call that says ``weights_only`` itself is left alone."""
    wanted = Path(file).resolve()
    with _trusting(lambda found: found == wanted):
        yield


@contextmanager
def pretrained(config: Any, *, trust: bool) -> Iterator[None]:
    """While a model is built that begins from a file of the host's own (``pre_model_path`` of S3Rec, and others).

    Raises:
        RecplugError: where such a file holds more than numbers, and is not trusted.
    """
    files = {key: str(config[key]) for key in PRETRAINED if config[key]}
    try:
        with ExitStack() as stack:
            for file in files.values() if trust else ():
                stack.enter_context(trusted(file))
            yield
    except pickle.UnpicklingError as error:
        if not files:
            raise
        named = " and ".join(f"{key} {file}" for key, file in files.items())
        raise RecplugError(f"{named}: {NOT_NUMBERS}") from error


@contextmanager
def arrays_without_objects() -> Iterator[None]:
    """``numpy.load`` reads numbers alone: RecBole's LDiffRec asks it to unpickle ``emb_path`` (no thread yet)."""
    load = np.load

    @functools.wraps(load)
    def load_numbers(file: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["allow_pickle"] = False
        return load(file, *args[:1], **kwargs)

    with replaced(np, load=load_numbers):
        yield


@contextmanager
def _trusting(is_trusted: Callable[[Path], bool]) -> Iterator[None]:
    """``torch.load`` unpickles a file that ``is_trusted`` accepts, and reads every other one as weights only."""
    load = torch.load

    @functools.wraps(load)
    def load_trusted(f: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("weights_only") is not None:
            return load(f, *args, **kwargs)
        known = isinstance(f, (str, os.PathLike)) and is_trusted(Path(f).resolve())
        # An outer block may trust it: what it decides counts.
        kwargs["weights_only"] = False if known else None if getattr(load, "decides", False) else True
        return _opened(load(f, *args, **kwargs))

    load_trusted.decides = True  # type: ignore[attr-defined]
    with replaced(torch, load=load_trusted):
        yield


def _opened(found: Any) -> Any:
    """A checkpoint with what a host keeps beside its parameters as it was, for its ``load_other_parameter``."""
    if isinstance(found, dict) and isinstance(found.get("other_parameter"), dict):
        found["other_parameter"] = unpacked(found["other_parameter"])
    return found


def _plain(value: Any) -> Any:
    """The value packed, or the same object where it is of no plain kind."""
    try:
        return packed(value)
    except NotPlain:
        return value


def _is_plain(value: Any) -> bool:
    return type(value) in (*SIMPLE, list, tuple, dict)
