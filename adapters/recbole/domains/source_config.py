"""A second domain's configuration: its own file, and what it shares with the target's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recplug.adapters.recbole.config.dataset_file import dataset_files
from recplug.adapters.recbole.config.host_config import make_config, read_yaml
from recplug.plugins.registry import available

# What a configuration says of one data set alone, or of this run's outputs.
NOT_SHARED = ("dataset", "given", "data_path", "features", "factors", "adapter", "warm_start", "trust_checkpoint",
              "log_wandb")  # fmt: skip
# What the adapter, or the caller, may have set in the target's configuration itself.
ALIKE = ("shuffle_features", "drop_features", "drop_features_together", "drop_seed", "factor_min_group",
         "factor_control", "trim_padding", "fast_propagation", "mask_history", "score_block", "device", "seed",
         "reproducibility")  # fmt: skip


def shared_values(config: Any) -> dict[str, Any]:
    """What the target's configuration was given, but for what is said of the target's data alone.

    A run's ``config.yaml`` holds every value; its key ``given`` says which of them these are.
    """
    file = Path(config["data_path"]) / f"{config['dataset']}.yaml"
    of_target = read_yaml(file) if file.is_file() else {}
    given = {*config.variable_config_dict, *config.cmd_config_dict, *(config["given"] or ())}
    plugins = available()

    def is_shared(key: str, value: Any) -> bool:
        if key in NOT_SHARED or key.partition(".")[0] in plugins:
            return False
        return key in given or (config["given"] is None and (key not in of_target or value != of_target[key]))

    return {key: value for key, value in config.external_config_dict.items() if is_shared(key, value)}


def configure(
    config: Any,
    host: type,
    name: str,
    folder: Path | None,
    shared: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
) -> Any:
    """The source's configuration: its own file, and over it what the target shares."""
    within = {} if folder is None else {"data_path": str(folder.parent)}
    found = make_config(host, name, dataset_files(folder, name), {**shared, **within})
    if folder is not None:
        found["data_path"] = str(folder)  # the folder need not be called like the data set
    for key in ALIKE:
        found[key] = config[key]
    for plugin in available():
        found[plugin] = dict(settings.get(plugin, {}))
    return found
