"""From a configuration to RecBole's loaders, with one line for what is wrong with the data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recbole.data import create_dataset, data_preparation

from recplug.adapters.recbole.data.sampling import eval_batch_size
from recplug.adapters.recbole.processes import share_data
from recplug.plugins.contract import Family
from recplug.plugins.errors import RecplugError


def read_dataset(config: Any, family: Family) -> Any:
    """The data set that ``config`` names, not yet split.

    Raises:
        RecplugError: for files that are missing or that RecBole cannot read, and for a ready-made split without
            histories where a sequential host reads them.
    """
    name = config["dataset"]
    try:
        with _without_pickles(config):
            return create_dataset(config)
    except AttributeError as error:
        if family != "sequential" or not config["benchmark_filename"]:
            raise
        raise RecplugError(
            f"{name} is a ready-made split of single interactions, and {config['model']} reads histories; use a graph "
            "model such as LightGCN, or one file with times instead of benchmark_filename"
        ) from error
    except (KeyError, IndexError, ValueError, OSError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecplugError(
            f"{name} cannot be read ({reason}); see what is wrong with: recplug data check {config['data_path']}"
        ) from error


def split_dataset(config: Any, dataset: Any) -> tuple[Any, Any, Any]:
    """Loaders of the training, validation and test parts."""
    with _without_pickles(config):
        train, valid, test = data_preparation(config, dataset)
    return train, valid, test


@contextmanager
def _without_pickles(config: Any) -> Iterator[None]:
    """RecBole looks for pickled data in its checkpoint folder, and unpickles it unasked: here it finds none.

    A file may lie there that somebody has passed on. Keys that name others are refused (``config/host_values.py``).
    """
    before = config["checkpoint_dir"]
    config["checkpoint_dir"] = os.devnull  # no folder, so nothing is in it
    try:
        yield
    finally:
        config["checkpoint_dir"] = before


def make_loaders(config: Any, host: type, family: Family, *, keep_batch: bool) -> tuple[Any, Any, Any]:
    """Read the data set that ``config`` names, split it, and make loaders of its parts.

    Args:
        config: RecBole's; its ``eval_batch_size`` is raised to one at which a batch holds several users.
        host: the model's class.
        family: its family.
        keep_batch: whether ``eval_batch_size`` stays as it is, because the user chose it.

    Returns:
        Loaders of the training, validation and test parts.

    Raises:
        RecplugError: for a sequential host's data without time, data that cannot be split and sampled, and fewer users
            than processes.
    """
    name, dataset = config["dataset"], read_dataset(config, family)
    if family == "sequential" and dataset.time_field not in dataset.inter_feat and not config["benchmark_filename"]:
        raise RecplugError(
            f"histories are in the order of TIME_FIELD '{dataset.time_field}', a column that {name}.inter "
            f"lacks or load_col does not name; set TIME_FIELD, and in YAML load_col: {{inter: "
            f"[{dataset.uid_field}, {dataset.iid_field}, {dataset.time_field}]}}"
        )
    if family != "sequential" and not keep_batch:
        given, mode = config["eval_batch_size"], config["eval_args"]["mode"]
        config["eval_batch_size"] = eval_batch_size(dataset.item_num, given, host, mode)
    try:
        train, valid, test = split_dataset(config, dataset)
    except ValueError as error:  # nothing is left to train on, or a user has every item
        raise RecplugError(f"{name} cannot be split and sampled: {' '.join(str(error).split())}") from error
    share_data(config["seed"], train, valid, test)
    return train, valid, test
