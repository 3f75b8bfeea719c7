"""What plugins fit after training, by the validation score of the model as it stands."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from typing import Any

import torch
from recbole.utils import calculate_valid_score
from torch.utils.data import BatchSampler

from recplug.adapters.recbole.state.run_directory import RunDirectory
from recplug.adapters.recbole.state.run_state import Progress
from recplug.plugins.contract import Augmentation

log = logging.getLogger("recplug")


class Validation:
    """Asks RecBole's trainer for the validation score; see :class:`recplug.plugins.contract.Validate`.

    Args:
        trainer: RecBole's.
        data: its validation loader.
        fingerprint: of the data.
    """

    def __init__(self, trainer: Any, data: Any, fingerprint: str) -> None:
        self._trainer, self._data = trainer, data
        config = trainer.config
        about = [fingerprint, config["valid_metric"], str(config["eval_args"]), bool(config["mask_history"])]
        self.key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        self.result: dict[str, float] = {}  # of the latest question

    def __call__(self, users: int | None = None) -> float:
        """The score of everyone, or of about ``users`` of them; greater is better."""
        data = self._data if users is None else sample(self._data, users)
        self.result = self._trainer.evaluate(data, load_best_model=False)
        score = calculate_valid_score(self.result, self._trainer.valid_metric)
        return float(score if self._trainer.valid_metric_bigger else -score)


def sample(data: Any, users: int) -> Any:
    """RecBole's evaluation loader with about ``users`` of its rows, from the first to the last.

    In several processes each has its part of them.
    """
    rows = list(data.sampler)
    step = max(1, round(data.sample_size / users))
    if step == 1:
        return data
    some = copy.copy(data)
    # Past DataLoader.__setattr__, which allows no other sampler.
    some.__dict__["batch_sampler"] = BatchSampler(rows[::step], data.step, drop_last=False)
    return some


def fits(model: Any) -> dict[str, Augmentation]:
    """The plugins that fit something after training, or take its place."""
    every = model.recplug.augmentations()
    after = Augmentation.after_training
    return {name: each for name, each in every.items() if type(each).after_training is not after or each.untrained}


def untrained(model: Any) -> bool:
    """Whether a plugin says that no epoch is to be run."""
    return any(each.untrained for each in model.recplug.augmentations().values())


def fit_after_training(
    trainer: Any, model: Any, validation: Validation, directory: RunDirectory, progress: Progress | None
) -> tuple[dict[str, Any], float] | None:
    """Let plugins fit their constants to the best checkpoint, and write it again with them.

    Args:
        trainer: RecBole's, after training.
        model: the augmented model; has the best parameters and the fitted constants then.
        validation: how the model does.
        directory: of the run.
        progress: what keeps the checkpoint and the state of the training together, where something does.

    Returns:
        What was fitted, by plugin, and the validation score with it; None where nothing was.
    """
    if not (fitting := fits(model)):
        return None
    checkpoint = torch.load(directory.checkpoint, map_location=trainer.device)  # as numbers alone (recbole_compat)
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint.get("other_parameter"))
    model.eval()
    found = {name: values for name, each in fitting.items() if (values := each.after_training(validation))}
    if not found and not untrained(model):
        return None
    score = validation()
    checkpoint |= {"state_dict": model.state_dict(), "best_valid_score": score}
    if progress is None:
        torch.save(checkpoint, directory.checkpoint)
    else:
        progress.replace_checkpoint(checkpoint)
    for name, values in found.items():
        log.info("%s: fitted %s", name, json.dumps(values))
    return found, score
