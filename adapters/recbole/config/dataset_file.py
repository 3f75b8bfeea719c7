"""A data set's own YAML, which is read unasked: it says how its data are read and judged, and names no other files.

Data sets are passed around. What a file of theirs may say is listed here; the rest is for ``--config_files`` and the
command line, which the user writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole.utils.argument_list import dataset_arguments, evaluation_arguments, training_arguments

from recplug.adapters.recbole.config.host_config import read_yaml
from recplug.adapters.recbole.config.keys import KEYS
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import available

TRAINING = {*dataset_arguments, *evaluation_arguments, *training_arguments, "loss_type"}
OURS = set(KEYS) - {"adapter", "warm_start", "trust_checkpoint", "resumable"}
# Numbers and switches run nothing, whatever they are of; these decide what a run reads, sends or starts.
NEVER = {"log_wandb", "save_dataset", "save_dataloaders", "trust_checkpoint", "resumable", "baseline", "nproc"}


def dataset_files(folder: Path | None, dataset: str) -> list[Path]:
    """The data set's own file, in a list; none where it has none.

    Raises:
        RecplugError: where it says what is not its own to say, naming the key.
    """
    if folder is None or not (file := folder / f"{dataset}.yaml").is_file():
        return []
    plugins = available()
    for key, value in read_yaml(file).items():
        listed = key in TRAINING or key in OURS or key.partition(".")[0] in {*plugins, "features"}
        if not listed and (key in NEVER or not _is_number(value)):
            raise RecplugError(
                f"{file}: '{key}' is not for a data set's own file, which is read unasked; if you want it, write it in "
                "a file of yours and name that with --config_files"
            )
    return [file]


def _is_number(value: Any) -> bool:
    """Whether a value is a number, a switch, or a list of these."""
    return all(isinstance(each, (bool, int, float)) for each in (value if isinstance(value, list) else [value]))
