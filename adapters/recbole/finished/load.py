"""``load(run_dir)``: a finished run's data and model again, to recommend from."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recplug.adapters.data import locate
from recplug.adapters.factors import FactorTable, find_factors
from recplug.adapters.features import FeatureTable, find_tables
from recplug.adapters.ownership import check_bytes, read_result
from recplug.adapters.recbole.augment import augment
from recplug.adapters.recbole.compat.checkpoints import read_checkpoint
from recplug.adapters.recbole.compat.patching import replaced, states_kept
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.config.host_config import make_config, model_class, model_names, read_yaml
from recplug.adapters.recbole.config.keys import KEYS
from recplug.adapters.recbole.data.fingerprint import fingerprint
from recplug.adapters.recbole.data.loaders import read_dataset, split_dataset
from recplug.adapters.recbole.finished.loaded_run import LoadedRun
from recplug.adapters.recbole.infer.histories import Past
from recplug.adapters.recbole.state.spec import chosen, content_of
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import available

log = logging.getLogger("recplug")
# What reading a checkpoint that is damaged, or something else, ends with.
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    AttributeError,
    ImportError,
    KeyError,
    TypeError,
)


def load(
    run_dir: str | Path,
    *,
    model: type | None = None,
    data_path: str | Path | None = None,
    use_gpu: bool | None = None,
    features: Mapping[str, str | Path] | None = None,
    table: str | None = None,
    users: str | None = None,
    trust_checkpoint: bool = False,
) -> LoadedRun:
    """The data and the model of a finished run, from its directory: same ids, best parameters, evaluation mode.

    Nothing in the directory is run: its checkpoint is read as weights only. Nothing is written, and random states are
    as they were before.

    Args:
        run_dir: what ``run_recbole`` or ``run()`` left.
        model: the class, for a model of your own.
        data_path: folder that holds ``DATASET/DATASET.inter``, where it is not at the run's place any more.
        use_gpu: whether to use one; None: as the run did, where there is one.
        features: feature tables that are not at the run's place any more, by modality.
        table, users: as they were given to ``run()``, for a model of your own.
        trust_checkpoint: unpickle the checkpoint, which can run code: for a plugin or a model of somebody else's that
            saves more than numbers.

    Raises:
        RecplugError: if this is no run, it has no checkpoint, a plugin is not installed, or the data have changed.
    """
    directory = Path(run_dir)
    values, result = _read(directory)
    host = _host(result, model)
    overrides: dict[str, Any] = {"checkpoint_dir": str(directory)}
    overrides |= {} if use_gpu is None else {"use_gpu": use_gpu}
    folder = _folder(values, data_path)
    names = list(result["plugins"])
    with recbole_compat(), states_kept(), replaced(log, disabled=True):
        if folder is not None:
            overrides["data_path"] = str(folder.parent)
        config = make_config(host, result["dataset"], [directory / "config.yaml"], overrides)
        if folder is not None:
            config["data_path"] = str(folder)
        for key, default in KEYS.items():
            if config[key] is None:
                config[key] = default
        moved = {name: str(Path(path).absolute()) for name, path in (features or {}).items()}
        config["features"] = {**(config["features"] or {}), **moved}
        for name in names:
            config[name] = chosen(name, values.get(name) or {})
        augmented: Any = augment(host, names, table=table, users=users)
        init_seed(config["seed"], config["reproducibility"])
        dataset = read_dataset(config, augmented.recplug_host.family)
        frame = dataset.inter_feat  # a data frame still; what follows replaces it
        loaders = split_dataset(config, dataset)
        if fingerprint(*loaders) != result["data_fingerprint"]:
            raise RecplugError(
                f"the data in {config['data_path']} are not those that {directory} was trained on; put the old files "
                "back, or name their folder with data_path"
            )
        parts = [loader._dataset for loader in loaders]
        changed = _changed_content(config, result)
        init_seed(config["seed"], config["reproducibility"])  # SimpleX draws the histories it reads
        built = augmented(config, parts[0]).to(config["device"])
        source, before = built.recplug_source, result.get("source")  # which only a run that went to its end has noted
        if source is not None and before and fingerprint(*source.loaders.values()) != before["data_fingerprint"]:
            raise RecplugError(f"the data of the second domain, {source.name}, are not those of the run; put them back")
        if source is not None and before and before.get("features", {}) != content_of(source)["features"]:
            changed.append(f"a feature table of {source.name}")
        _restore(built, directory, trust=trust_checkpoint)
    for name in changed:
        log.warning("%s has changed since the run: if it says other things of the run's items, scores differ", name)
    sequential = built.recplug_host.family == "sequential"
    past = Past.of(parts[0], frame, parts, sequential=sequential)
    return LoadedRun(directory=directory, result=result, config=config, model=built, loaders=loaders, past=past)


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.yaml`` and ``result.json``."""
    if not directory.is_dir():
        raise RecplugError(f"no run at {directory}; name a directory that run_recbole has left")
    try:
        result = read_result(directory)
        values = read_yaml(directory / "config.yaml") if (directory / "config.yaml").is_file() else {}
    except (OSError, ValueError) as error:
        raise RecplugError(f"{directory} is no run: its result.json cannot be read ({error}); name another") from error
    wanted = {"model", "dataset", "plugins"}
    if not wanted <= result.keys() or not values:
        raise RecplugError(f"{directory} is no run: config.yaml and result.json do not belong to one; name another")
    if "data_fingerprint" not in result or not (directory / "checkpoint.pth").is_file():
        why = f" (it ended with: {result['error']})" if result.get("error") else ""
        raise RecplugError(f"{directory} has no checkpoint{why}; name a run that was validated at least once")
    check_bytes(directory, result, "config.yaml", "checkpoint.pth")
    return values, result


def _host(result: Mapping[str, Any], model: type | None) -> type:
    name = result["model"]
    if missing := [plugin for plugin in result["plugins"] if plugin not in available()]:
        raise RecplugError(f"the run uses the plugin '{missing[0]}', which is not installed here; install its package")
    if model is not None:
        if model.__name__ != name:
            raise RecplugError(f"the run's model is {name}, not {model.__name__}; give its own class")
        return model
    if name not in model_names():
        raise RecplugError(f"{name} is a model of your own; pass its class, load(run_dir, model={name})")
    return model_class(name)


def _folder(values: Mapping[str, Any], data_path: str | Path | None) -> Path | None:
    """Where the data lie: where they are said to, where they were, or where they would be found today."""
    name, before = str(values["dataset"]), Path(str(values.get("data_path", "")))
    if data_path is None and before.is_dir():
        return before
    folder = locate(name, data_path)
    if data_path is not None and folder not in (Path(data_path) / name, Path(data_path), None):
        raise RecplugError(f"no {name} in {data_path}; name the folder that holds {name}/{name}.inter")
    return folder


def _changed_content(config: Any, result: Mapping[str, Any]) -> list[str]:
    """Feature tables and factors that are not those of the run; new items may have been added to them.

    Raises:
        RecplugError: for one that is gone: some plugins would do without, and score otherwise.
    """
    changed: list[str] = []
    if before := result.get("features"):
        tables = find_tables(config["data_path"], result["dataset"], config["features"])
        if missing := sorted(set(before) - set(tables)):
            raise RecplugError(
                f"the feature table {missing[0]} that the run was trained with is not in {config['data_path']} any "
                "more; put it back"
            )
        now = {name: FeatureTable.load(path).sha256 for name, path in tables.items()}
        changed += [f"the feature table {name}" for name in now if before.get(name, {}).get("sha256") != now[name]]
    if before := result.get("factors"):
        path = find_factors(config["data_path"], result["dataset"], config["factors"])
        if path is None:
            raise RecplugError(
                f"the factors that the run was trained with are not in {config['data_path']} any more; put them back"
            )
        if FactorTable.load(path).sha256 != before["sha256"]:
            changed.append(f"the factor table {path.name}")
    return changed


def _restore(model: Any, directory: Path, *, trust: bool) -> None:
    """The best epoch's parameters, and what the host saves beside them."""
    try:
        stored = read_checkpoint(directory / "checkpoint.pth", model.device, trust=trust)
        parameters, beside = stored["state_dict"], stored.get("other_parameter")
    except pickle.UnpicklingError as error:
        raise RecplugError(
            f"the checkpoint in {directory} holds more than numbers, and reading that runs what is in it; where you "
            "trust whoever made it: load(run_dir, trust_checkpoint=True)"
        ) from error
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise RecplugError(f"cannot read the checkpoint in {directory} ({reason}); copy the run again") from error
    try:
        model.load_state_dict(parameters)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RecplugError(
            f"the checkpoint in {directory} does not fit this version of {model.recplug_host.name} or its plugins "
            f"({reason}); install the versions in result.json"
        ) from error
    model.load_other_parameter(beside)
    model.eval()
