"""Values of RecBole's own keys, checked before RecBole meets them somewhere inside a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from recbole.evaluator.metrics import LossMetric
from recbole.evaluator.register import metrics_dict

from recplug.plugins.errors import RecplugError, did_you_mean

# What RecBole takes for a number of things to do, and fails on somewhere below this.
LEAST: Mapping[str, float] = {
    "epochs": 1,
    "train_batch_size": 1,
    "eval_batch_size": 1,
    "MAX_ITEM_LIST_LENGTH": 1,
    "embedding_size": 1,
    "hidden_size": 1,
    "inner_size": 1,
    "n_layers": 1,
    "num_layers": 1,
    "n_heads": 1,
    "eval_step": 1,
    "stopping_step": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "worker": 0,
    "seed": 0,
    "metric_decimal_place": 0,
}
# The adapter's own keys that are either on or off.
SWITCHES: Mapping[str, bool] = dict.fromkeys(
    (
        "shuffle_features",
        "drop_features_together",
        "trim_padding",
        "fast_propagation",
        "mask_history",
        "resumable",
        "trust_checkpoint",
    ),
    False,
)
BY_MODEL = ("trim_padding", "fast_propagation")  # whose default, None, is decided by model and plugins
MOST_WORKERS = 256
PICKLES = ("dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders")
TEACHERS = ("CrossNet", "CIN")  # KD_DAGFM evaluates the name
_METRICS = {name: kind.__name__ for name, kind in metrics_dict.items()}  # as RecBole looks them up: as they are written


def check_values(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Compare given values with the types of RecBole's defaults, where these are numbers or switches.

    Args:
        given: what files, overrides and the command line say.
        defaults: RecBole's values.

    Raises:
        RecplugError: for a value of another type, or one that is too small.
    """
    _refuse_code(given)
    for key, value in given.items():
        default = {**SWITCHES, **defaults}.get(key)
        if key in BY_MODEL and value is None:
            continue
        wanted = _wanted(key, value, default)
        if wanted:
            known = f"RecBole's default is {default}" if key in defaults else "leave it out for its default"
            raise RecplugError(f"{key}={_shown(value)} is not {wanted}; {known}")
        if key == "worker" and value > MOST_WORKERS:
            raise RecplugError(
                f"worker={value} processes read the data; {MOST_WORKERS} are more than any machine needs"
            )
        if key in LEAST and isinstance(default, (int, float)) and value < LEAST[key]:
            raise RecplugError(
                f"{key}={_shown(value)} is below its least value {LEAST[key]}; RecBole's default is {default}"
            )
    share, seed = given.get("drop_features"), given.get("drop_seed")
    if share is not None and (isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1):
        raise RecplugError(f"drop_features={_shown(share)} is no share; give a number of at least 0 and below 1")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise RecplugError(f"drop_seed={_shown(seed)} is not a whole number; leave it out for its default")
    features = given.get("features")
    if features is not None and not (isinstance(features, Mapping) and all(isinstance(f, str) for f in features)):
        raise RecplugError(
            f"features={_shown(features)} is no mapping from modality to file; write --features.NAME FILE"
        )


def _refuse_code(given: Mapping[str, Any]) -> None:
    """Keys by which RecBole unpickles data, or evaluates a word as an expression."""
    for key in PICKLES:
        if given.get(key):
            raise RecplugError(
                f"{key}={_shown(given[key])}: RecBole keeps data as pickles, which run what is in them when they are "
                "read; here data are read from their files, so leave it out"
            )
    if "teacher" in given and given["teacher"] not in TEACHERS:
        raise RecplugError(f"teacher={_shown(given['teacher'])} is none of KD_DAGFM's: {' or '.join(TEACHERS)}")


def check_metrics(values: Mapping[str, Any]) -> None:
    """Check ``metrics`` and ``topk``.

    Raises:
        RecplugError: for an unknown metric, or a cutoff that is no positive number.
    """
    metrics = [values["metrics"]] if isinstance(values["metrics"], str) else values["metrics"]
    if not isinstance(metrics, list) or not metrics:
        raise RecplugError(f"metrics={_shown(metrics)} is no list of names; there are: {', '.join(_METRICS.values())}")
    for metric in metrics:
        if str(metric).lower() not in _METRICS:
            hint = did_you_mean(str(metric), _METRICS.values()) or f"; there are: {', '.join(_METRICS.values())}"
            raise RecplugError(f"RecBole has no metric {_shown(metric)}{hint}")
    topk = values["topk"] if isinstance(values["topk"], list) else [values["topk"]]
    if not topk or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in topk):
        raise RecplugError(f"topk={_shown(values['topk'])} is no positive whole number or list of them, like [10, 20]")


def check_valid_metric(metrics: list[str], topk: list[int], valid_metric: Any) -> None:
    """Check that training can be validated by ``valid_metric``; RecBole looks it up after the first epoch.

    Raises:
        RecplugError: where nothing computes it.
    """
    computed = [name for metric in metrics for name in _columns(metric.lower(), topk)]
    if str(valid_metric).lower() not in {name.lower() for name in computed}:
        hint = did_you_mean(str(valid_metric), computed)
        raise RecplugError(
            f"valid_metric {valid_metric} is not computed{hint or ';'} metrics and topk give {', '.join(computed)}"
        )


def _columns(metric: str, topk: list[int]) -> list[str]:
    """What RecBole computes of one metric: a value for each cutoff, or one."""
    name = _METRICS[metric]
    return [name] if metric == "gauc" or issubclass(metrics_dict[metric], LossMetric) else [f"{name}@{k}" for k in topk]


def _wanted(key: str, value: Any, default: Any) -> str:
    """What ``value`` should have been, going by the default's type; empty where it is fine."""
    if isinstance(default, bool):
        return "" if value in (True, False) else "true or false"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, int):
        # Some of RecBole's rates have 0 or 1 as their default; what must be whole has a least value above.
        rate = default in (0, 1) and key not in LEAST
        return "" if number and (isinstance(value, int) or rate) else "a whole number"
    if isinstance(default, float):
        return "" if number and math.isfinite(value) else "a number"
    return ""


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)
