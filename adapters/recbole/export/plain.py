"""A checkpoint of the backbone alone, with what the plugins add merged into its tables."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed
from torch import Tensor

from recplug.adapters.recbole.compat.patching import states_kept
from recplug.adapters.recbole.config.keys import KEYS
from recplug.adapters.recbole.infer.histories import Askers
from recplug.adapters.recbole.infer.scores import at_work, host_scores
from recplug.adapters.recbole.infer.top_k import put
from recplug.adapters.recbole.infer.vectors import alike
from recplug.plugins.errors import RecplugError

BOTH = {"input", "candidate"}


def write_plain(path: Path, model: Any, config: Any, dataset: Any, sample: Askers) -> None:
    """Write what RecBole loads as a checkpoint of the model's own class, after scoring with it.

    Args:
        path: a ``.pth`` file.
        model: augmented, at work.
        config: RecBole's, of the run.
        dataset: RecBole's, of the training part.
        sample: users on whom it is tried.

    Raises:
        RecplugError: where the plugins are no pure tables, naming the reason, or the file cannot be written.
    """
    check_pure(model)
    bare = merged(model, config, dataset)
    with at_work(bare):
        same = alike(host_scores(bare, sample, dataset.item_num), host_scores(model, sample, dataset.item_num))
    if not same:
        name = model.recplug_host.name
        raise RecplugError(f"no plain {name}: merged tables do not give its scores; load the run with recplug")
    settings = copy.deepcopy(config)
    for key in [*KEYS, "plugin", *model.recplug_names]:
        settings.final_config_dict.pop(key, None)
    content = {
        "config": settings,
        "epoch": 0,
        "cur_step": 0,
        "best_valid_score": None,
        "state_dict": bare.state_dict(),
        "other_parameter": bare.other_parameter(),
    }
    stored = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.save(content, stored)
    put(path, stored.getbuffer())


def check_pure(model: Any) -> None:
    """Look for plugins that do more than RecBole's model has a table for.

    Raises:
        RecplugError: naming them.
    """
    chain, host = model.recplug, model.recplug_host
    otherwise = "load the run with recplug, or export its items and users"
    if found := chain.acting("score"):
        why, otherwise = "changes scores, for which RecBole's model has no place", "load the run with recplug"
    elif found := chain.acting("propagated"):
        why = "changes nodes after the host has propagated them, and RecBole's model propagates anew"
    elif host.family == "sequential" and not chain.has_one_table():
        found = {name: a for name, a in chain.acting("items").items() if not a.roles == a.by_item == BOTH}
        why = "gives an item another row in a history than as a candidate, and RecBole's model has one row an item"
    if found:
        raise RecplugError(f"no plain {host.name}: {', '.join(found)} {why}; {otherwise}")


def merged(model: Any, config: Any, dataset: Any) -> Any:
    """The backbone without plugins, its tables those that the plugins make of them."""
    with states_kept():
        init_seed(config["seed"], config["reproducibility"])  # as RecBole does before: some hosts draw what they read
        bare = type(model).recplug_beside([], {})(config, dataset).to(model.device).eval()
    own: dict[str, Tensor] = {key: value for key, value in model.state_dict().items() if key in bare.state_dict()}
    with model.recplug.asking() as step:
        chain = model.recplug
        weights = {"items": chain.item_weight, "users": chain.user_weight}
        for side, table in chain.tables().items():
            name = next(key for key, value in model.named_modules() if value is table)
            own[f"{name}.weight"] = weights[side](step).detach().clone()
    bare.load_state_dict(own)
    bare.load_other_parameter(model.other_parameter())
    return bare
