"""RecBole's Config from a model, a dataset, files and overrides: literals instead of ``eval``, one-line errors."""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config
from recbole.utils import InputType, ModelType

from recplug.adapters.recbole.compat.patching import replaced
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.config.host_values import check_metrics, check_values
from recplug.adapters.recbole.config.keys import KEYS
from recplug.plugins.errors import RecplugError, did_you_mean

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_FAMILIES = ("general", "context_aware", "sequential", "knowledge_aware", "exlib")
_NEGATIVES = "train_neg_sample_args"
LONGEST, MOST = 2**20, 10_000  # characters and values of a configuration file


def literal(value: str) -> Any:
    """A configuration string as a value: a Python literal, a word like ``true`` or ``none``, or the string itself.

    Only literals are read (``ast.literal_eval``): an expression or a call stays a string and is never run.
    """
    word = value.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in a user's string is no matter of ours
            parsed = ast.literal_eval(word)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    return parsed if isinstance(parsed, (str, int, float, list, tuple, dict)) else value


def model_names() -> list[str]:
    """RecBole's models, as it writes their names; no model is imported for it."""
    import recbole

    folder = Path(recbole.__file__).parent / "properties" / "model"
    written = {"lightgbm": "LightGBM", "xgboost": "XGBoost"}  # the two whose file is not called like the class
    without_file = {"Random"}
    return sorted({written.get(file.stem, file.stem) for file in folder.glob("*.yaml")} | without_file)


def model_class(name: str) -> type:
    """RecBole's class of this name, in any letter case.

    Raises:
        RecplugError: if there is none, with the nearest name, or if it needs a package that is not installed.
    """
    known = {model.lower(): model for model in model_names()}
    if name.lower() not in known:
        hint = did_you_mean(name, known.values()) or "; see RecBole's model list"
        raise RecplugError(f"RecBole has no model '{name}'{hint}")
    for family in _FAMILIES:
        package = f"recbole.model.{family}_recommender"
        try:
            if family != "exlib" and importlib.util.find_spec(f"{package}.{name.lower()}") is None:
                continue
            module = importlib.import_module(f"{package}.{name.lower()}")
        except ModuleNotFoundError as error:
            raise RecplugError(f"model '{name}' needs the package '{error.name}'; pip install {error.name}") from error
        found: type = getattr(module, known[name.lower()])
        return found
    raise RecplugError(f"RecBole lists the model '{name}' but does not contain it; reinstall recbole==1.2.1")


class _Yaml(yaml.SafeLoader):
    """YAML with RecBole's numbers: 1e-3 is one. No tag makes anything but plain values."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``key: value`` lines of a configuration file.

    Raises:
        RecplugError: for a file that cannot be read or is not YAML, with the line.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        values = yaml.load(text, Loader=_Yaml) if len(text) <= LONGEST else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecplugError(f"cannot read the configuration file {file}: {reason}; check --config_files") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}, line {mark.line + 1}" if mark else str(file)
        problem = getattr(error, "problem", None) or "unreadable"
        raise RecplugError(f"{place}: not valid YAML ({problem}); correct the file") from error
    except RecursionError:
        raise RecplugError(f"{file}: its values are nested too deep; correct the file") from None
    if len(text) > LONGEST or _is_endless(values):
        raise RecplugError(f"{file} holds more than a configuration's values ({MOST:,}); correct the file")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecplugError(f"{file}, line 1: expected 'key: value' lines, found a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _is_endless(value: Any) -> bool:
    """Whether a value holds more than a configuration can mean: YAML's aliases multiply, and can hold themselves."""
    waiting, seen = [value], 0
    while waiting and seen <= MOST:
        found = waiting.pop()
        inside = [*found, *found.values()] if isinstance(found, dict) else found if isinstance(found, list) else []
        waiting += inside
        seen += 1 + len(inside)
    return seen > MOST


def make_config(
    model: str | type | None,
    dataset: str | None,
    files: Sequence[str | os.PathLike[str]],
    overrides: Mapping[str, Any],
) -> Config:
    """RecBole's Config, a plain one, from YAML files and overrides (which win).

    The caller's ``sys.argv`` is not read. Strings in ``overrides`` become values by ``literal``, never by ``eval``.
    Where the loss type decides it and the user did not, ``train_neg_sample_args`` is set as RecBole demands.

    Args:
        model: RecBole's name in any letter case, a class, or None where a file or override names it.
        dataset: the dataset's name, or None where a file or override names it.
        files: YAML files, later ones win.
        overrides: values by RecBole's keys.

    Raises:
        RecplugError: for a file, model or value that is wrong, in one line.
    """
    resolvers = copy.deepcopy(yaml.FullLoader.yaml_implicit_resolvers)
    with recbole_compat(), replaced(yaml.FullLoader, yaml_implicit_resolvers=resolvers):
        try:
            config = _LiteralConfig(model, dataset, [os.fspath(file) for file in files], copy.deepcopy(dict(overrides)))
        except (ValueError, NotImplementedError, TypeError, KeyError, RuntimeError) as error:
            text = " ".join(str(error.args[0] if error.args else error).split())
            raise RecplugError(f"RecBole refuses the configuration: {text}") from error
    # A checkpoint pickles its Config by class: as RecBole's own, it opens where recplug is not installed.
    config.__class__ = Config
    return config


class _LiteralConfig(Config):
    """RecBole's Config while it is built."""

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return {key: literal(value) if isinstance(value, str) else value for key, value in config_dict.items()}

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _load_config_files(self, file_list: list[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for file in file_list:
            values.update(read_yaml(file))
        return values

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        given = self.external_config_dict
        model = model if model is not None else given.get("model")
        dataset = dataset if dataset is not None else given.get("dataset")
        if model is None:
            raise RecplugError("no model is named; give --model, or 'model:' in a configuration file")
        if dataset is None:
            raise RecplugError("no dataset is named; give --dataset, or 'dataset:' in a configuration file")
        if Path(str(dataset)).name != str(dataset):
            raise RecplugError(f"dataset {dataset!r} is no name but a path; give its folder with --data_path")
        found = model if isinstance(model, type) else model_class(str(model))
        return found.__name__, found, str(dataset)

    def _set_default_parameters(self) -> None:
        check_values(self.external_config_dict, self.internal_config_dict)
        check_metrics(self.final_config_dict)
        self._set_negatives_by_loss()
        super()._set_default_parameters()

    def _set_negatives_by_loss(self) -> None:
        """A cross-entropy loss has no negatives and a pairwise one needs them; RecBole's defaults fit only one."""
        final, given = self.final_config_dict, self.external_config_dict
        if final.get(_NEGATIVES) in ("None", "none"):  # YAML's None is a word
            final[_NEGATIVES] = None
        by_loss = not hasattr(self.model_class, "input_type")
        loss = final.get("loss_type")
        if by_loss and loss == "CE" and final["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            if _NEGATIVES not in given:
                final[_NEGATIVES] = None
            elif final[_NEGATIVES] is not None:
                raise RecplugError(
                    f"loss_type CE takes no negative samples; leave {_NEGATIVES} out or set loss_type to BPR"
                )
        pairwise = loss == "BPR" if by_loss else self.model_class.input_type == InputType.PAIRWISE
        if pairwise and final.get(_NEGATIVES) is None:
            raise RecplugError(f"{self.model} trains on negative samples; leave {_NEGATIVES} out, or give it a value")

    def _init_device(self) -> None:
        final = self.final_config_dict
        if "local_rank" in final:
            nproc = final["nproc"]
            if "gpu_id" not in self.external_config_dict:  # RecBole's default is one GPU; a cluster names its own
                visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
                final["gpu_id"] = ",".join(visible if len(visible) >= nproc else map(str, range(nproc)))
            final["gpu_id"] = gpu_list(final["gpu_id"])
            entries = len(final["gpu_id"].split(","))
            if entries < nproc:
                raise RecplugError(f"nproc {nproc} needs as many entries in gpu_id, which has {entries}")
        super()._init_device()
        if not torch.cuda.is_available():
            final["device"] = torch.device("cpu")


def gpu_list(value: Any) -> str:
    """RecBole's ``gpu_id``, a number, several, or a string, as CUDA reads it: ``"2,3"``."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def known_keys(model: str) -> set[str]:
    """Every key that RecBole documents for ``model``, and the adapter's own."""
    import recbole
    from recbole.utils.argument_list import dataset_arguments, evaluation_arguments, general_arguments
    from recbole.utils.argument_list import training_arguments as training

    folder = Path(recbole.__file__).parent / "properties"
    keys = {*KEYS, *general_arguments, *training, *evaluation_arguments, *dataset_arguments}
    for file in (folder / "overall.yaml", folder / "dataset" / "sample.yaml", folder / "model" / f"{model}.yaml"):
        if file.is_file():
            keys |= set(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    return keys
