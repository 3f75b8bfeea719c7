"""What a training may begin from: the tensors that plugins added to another run, and a checkpoint's backbone."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recplug.adapters.ownership import check_bytes, read_result, sha256
from recplug.adapters.recbole.compat.checkpoints import NOT_NUMBERS, read_checkpoint
from recplug.adapters.recbole.domains.source_domain import is_host_row, source_hosts
from recplug.adapters.recbole.state.run_directory import adapter_tensors, plain
from recplug.adapters.recbole.state.spec import plugin_versions
from recplug.plugins.errors import RecplugError, one_line

log = logging.getLogger("recplug")
OURS = "recplug."  # how the names of what plugins added begin in a model's state_dict


def load_adapter(model: Any, path: str | Path) -> dict[str, str]:
    """Put a trained adapter into an augmented model of the same plugins, settings and data.

    Nothing is unpickled. The model is changed once everything has been checked, or not at all.

    Args:
        model: an augmented model.
        path: ``adapter.safetensors`` beside its ``adapter.json``, or the run directory that holds both.

    Returns:
        The file and its SHA-256.

    Raises:
        RecplugError: for files that cannot be read, and another adapter than this model has: other plugins, versions,
            settings, users or items, or other tensors.
    """
    file = Path(path) / "adapter.safetensors" if Path(path).is_dir() else Path(path)
    stored, about = _read(file)
    names = list(model.recplug_names)
    if about.get("plugins") != names:
        has = " + ".join(about.get("plugins") or []) or "none"
        raise RecplugError(f"{file} is the adapter of {has}, and this model has {' + '.join(names) or 'none'}")
    for name, package in plugin_versions(names).items():
        was = (about.get("packages") or {}).get(name)
        if was != package:
            raise RecplugError(f"{file} was trained with {name} of {was}, and this is {package}; install that version")
    for name, settings in model.recplug_resolved.items():
        trained, now = (about.get("settings") or {}).get(name, {}), plain(settings.model_dump())
        for key in [key for key in now if trained.get(key) != now[key]]:
            was = trained.get(key)
            raise RecplugError(f"{file} was trained with {name}.{key}={was}, not {now[key]}; give it the same value")
    for side, ids in model.recplug_ids.items():
        was = about.get(side) or {}
        if was != ids:
            raise RecplugError(
                f"{file} was trained on other {side} ({was.get('count')}, here {ids['count']}), or in another order; "
                "use the same data set with the same filters"
            )
    _check_tensors(file, stored, adapter_tensors(model.recplug), "the adapter of this model")
    model.recplug.plugins.load_state_dict(stored, strict=False)
    log.info("adapter: %d tensors of %s from %s", len(stored), " + ".join(names), file)
    return {"file": str(file), "sha256": sha256(file)}


def warm_start(model: Any, path: str | Path, *, config: Any = None, trust: bool = False) -> dict[str, str]:
    """Put the backbone of a RecBole checkpoint into an augmented model of the same class and data.

    It may be that of a run, with or without plugins, whose own tensors are left out: nothing is unpickled. Plain
    RecBole's is a pickle, which can run code, and is read only where the caller trusts it. The optimiser begins anew.

    Args:
        model: an augmented model; one without plugins too.
        path: the file, or a run directory with ``checkpoint.pth``.
        config: this training's RecBole configuration; where it splits the data otherwise, that is said.
        trust: unpickle the file.

    Returns:
        The file and its SHA-256.

    Raises:
        RecplugError: for a file that cannot be read, or holds more than numbers and is not trusted; and a checkpoint
            of another model or of other data.
    """
    file = Path(path) / "checkpoint.pth" if Path(path).is_dir() else Path(path)
    try:
        _check_run(file)
        found = read_checkpoint(file, trust=trust)
    except pickle.UnpicklingError as error:
        if trust:
            raise RecplugError(f"cannot read the checkpoint {file} ({one_line(error)[:120]}); name another") from error
        raise RecplugError(f"cannot read the checkpoint {file}: {NOT_NUMBERS}") from error
    except (OSError, ValueError, EOFError, RuntimeError, AttributeError, ImportError) as error:
        raise RecplugError(f"cannot read the checkpoint {file} ({one_line(error)[:120]}); name another") from error
    stored, theirs = (found.get(key) if isinstance(found, dict) else None for key in ("state_dict", "config"))
    theirs = theirs.final_config_dict if isinstance(theirs, Config) else theirs
    if (
        not isinstance(theirs, Mapping)
        or "model" not in theirs
        or not isinstance(stored, Mapping)
        or not all(isinstance(key, str) for key in stored)
    ):
        raise RecplugError(f"{file} is no checkpoint of RecBole's trainer; name one that it has saved")
    if str(theirs["model"]) != model.recplug_host.name:
        raise RecplugError(f"{file} is a checkpoint of {theirs['model']}, not of {model.recplug_host.name}")
    chosen = _backbones(model, stored)
    ours = {key: value for key, value in stored.items() if chosen(key)}
    wanted = {key: value for key, value in model.state_dict().items() if chosen(key)}
    _check_tensors(file, ours, wanted, f"{model.recplug_host.name} here")
    model.load_state_dict(ours, strict=False)
    if config is not None and _split(theirs) != _split(config.final_config_dict):
        log.warning("%s was trained on another split of the data: it may know what is tested here", file)
    log.info("warm start: %d tensors of %s from %s", len(ours), model.recplug_host.name, file)
    return {"file": str(file), "sha256": sha256(file)}


def _backbones(model: Any, stored: Mapping[str, Any]) -> Callable[[str], bool]:
    """Which names are of a backbone: the model's own, and a second domain's, where model and checkpoint have one."""
    hosts, inside = source_hosts(model.recplug.plugins), f"{OURS}plugins."

    def of_source(key: str) -> bool:
        return key.startswith(inside) and is_host_row(key.removeprefix(inside), hosts)

    has_source = any(map(of_source, stored))
    if hosts and not has_source:
        log.warning("the checkpoint has no second domain: that of this run begins untrained")
    return lambda key: not key.startswith(OURS) or (has_source and of_source(key))


def _split(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides who is trained on and who is tested; the seed does where the order is at random."""
    arguments = config.get("eval_args") or {}
    by_chance = config.get("seed") if arguments.get("order") == "RO" else None
    names = ("split", "order", "group_by")
    whole = (config.get("dataset"), config.get("benchmark_filename"), by_chance)
    return (*whole, *(arguments.get(name) for name in names))


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        _check_run(file)
        about = json.loads(file.with_name("adapter.json").read_text(encoding="utf-8"))
        stored = load_file(file, device="cpu")
    except (OSError, ValueError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)[:120]
        raise RecplugError(
            f"cannot read the adapter {file} ({reason}); name a run directory, or a file with adapter.json beside it"
        ) from error
    if not isinstance(about, dict):
        raise RecplugError(f"{file.with_name('adapter.json')} describes no adapter; copy the run again")
    if about.get("sha256", found := sha256(file)) != found:
        raise RecplugError(f"{file} is not what adapter.json beside it describes; copy the run again")
    return stored, about


def _check_run(file: Path) -> None:
    """Where a file lies in a run's directory, it is what the run has written.

    Raises:
        RecplugError: for another one.
        OSError, ValueError: where the run's result cannot be read.
    """
    if (file.parent / "result.json").is_file():
        check_bytes(file.parent, read_result(file.parent), file.name, "adapter.json")


def _check_tensors(file: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], whose: str) -> None:
    for name in [*wanted, *stored]:
        if name not in stored or name not in wanted:
            where = "lacks" if name in wanted else "has"
            raise RecplugError(f"{file} does not fit {whose}: it {where} {name}; train both with the same settings")
        there, here = (list(getattr(each, "shape", ())) for each in (stored[name], wanted[name]))
        if there != here:
            raise RecplugError(
                f"{file} does not fit {whose}: {name} is {there} there and {here} here, as of other data or sizes; "
                "use the same data, filters and settings"
            )
        # A state_dict may also hold what a module keeps besides tensors.
        if isinstance(wanted[name], Tensor) and not _is_sound(stored[name], wanted[name]):
            raise RecplugError(f"{file} is damaged: {name} holds no finite numbers of its kind; name another")


def _is_sound(stored: Any, wanted: Tensor) -> bool:
    if not isinstance(stored, Tensor) or stored.is_meta or stored.is_floating_point() != wanted.is_floating_point():
        return False
    # A model may hold what is not finite itself, such as a mask of -inf.
    return bool(torch.isfinite(stored).all()) or not bool(torch.isfinite(wanted).all())
