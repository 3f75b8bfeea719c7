"""What else an epoch of RecBole's graph models spends time on: negatives, Adam, and one user an evaluation batch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from recbole.sampler.sampler import AbstractSampler, KGSampler, RepeatableSampler, Sampler
from torch import Tensor

USERS_A_BATCH = 256
MOST_SCORES = 2**25  # of one evaluation batch: 128 MiB


def use_fast_sampling(loader: Any) -> bool:
    """Let a loader's sampler test its draws all at once, not one after the other in Python.

    It draws from numpy's stream what the host draws, in the same order: the negatives are the host's own.

    Args:
        loader: a RecBole data loader.

    Returns:
        Whether its sampler was mended; one without a sampler, or with one of another kind, stays as it is.
    """
    sampler: Any = getattr(loader, "_sampler", None)
    if type(sampler) in (Sampler, KGSampler) and isinstance(sampler.used_ids, np.ndarray):  # else no phase was set
        sampler.sample_by_key_ids = _UnusedDraws(sampler)
    elif type(sampler) is RepeatableSampler:
        sampler.sample_by_user_ids = _OtherDraws(sampler)
    else:
        return False
    return True


class _UnusedDraws:
    """Values that a key has not been seen with; stands in for ``AbstractSampler.sample_by_key_ids``."""

    def __init__(self, sampler: AbstractSampler) -> None:
        self.sampler = sampler
        sizes = np.fromiter(map(len, sampler.used_ids), np.int64, len(sampler.used_ids))
        values = np.fromiter(chain.from_iterable(sampler.used_ids), np.int64, int(sizes.sum()))
        self.rows = np.arange(len(sizes), dtype=np.int64)
        self.span = int(values.max(initial=0)) + 1
        self.used = np.sort(np.repeat(self.rows, sizes) * self.span + values)  # [pairs]

    def __call__(self, key_ids: Any, num: int) -> Tensor:
        rows = np.tile(self.rows[np.asarray(key_ids)], num)  # an unknown key is an IndexError, as in the host
        values = np.zeros(len(rows), dtype=np.int64)
        open_ = np.arange(len(rows))
        while len(open_):
            drawn = values[open_] = self.sampler.sampling(len(open_))
            open_ = open_[self._is_used(rows[open_], drawn)]
        return torch.from_numpy(values)

    def _is_used(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        if not len(self.used):
            return np.zeros(len(rows), dtype=bool)
        pairs = rows * self.span + values
        place = np.minimum(np.searchsorted(self.used, pairs), len(self.used) - 1)
        found: np.ndarray = (self.used[place] == pairs) & (values < self.span)
        return found


class _OtherDraws:
    """Any item but the row's own; stands in for ``RepeatableSampler.sample_by_user_ids``."""

    def __init__(self, sampler: RepeatableSampler) -> None:
        self.sampler = sampler

    def __call__(self, user_ids: Any, item_ids: Any, num: int) -> Tensor:
        own = np.tile(np.asarray(item_ids), num)
        values = np.zeros(len(own), dtype=np.int64)
        open_ = np.arange(len(own))
        while len(open_):
            drawn = values[open_] = self.sampler.sampling(len(open_))
            open_ = open_[drawn == own[open_]]
        return torch.from_numpy(values)


def use_fused_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Let Adam and AdamW update a parameter in one pass over it; the same numbers to rounding.

    Call it after a checkpoint was loaded: loading brings the checkpoint's own choice back.

    Args:
        optimizer: the trainer's.

    Returns:
        Whether it is fused now; another optimiser, or one set up in a way that excludes it, stays as it is.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return False
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    if any(group["differentiable"] or group["foreach"] for group in groups) or not all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters
    ):
        return False
    for group in groups:
        group["fused"] = True
    for parameter, state in optimizer.state.items():
        if "step" in state:
            state["step"] = state["step"].to(parameter.device, torch.float32)
    return True


def eval_batch_size(n_items: int, given: int, model_class: type | None = None, mode: Any = "full") -> int:
    """RecBole's ``eval_batch_size`` for full ranking of a general model, at which a batch holds several users.

    RecBole divides it by the item count: its default of 4,096 makes batches of one user. The result is about 256
    users a batch, at most 2^25 scores, and never less than what was given. A user's metrics do not depend on who
    shares the batch. Sequential models' full ranking counts users already; do not ask for them.

    Args:
        n_items: items with the padding row.
        given: the configured value.
        model_class: the model; one that scores pairs instead of ranking all items at once builds a row of every
            embedding for each score, and keeps what was given.
        mode: of ``eval_args``, one or ``{"valid": ..., "test": ...}``; candidates that are sampled or listed are
            scored as pairs too.
    """
    modes = mode.values() if isinstance(mode, Mapping) else (mode,)
    if any(each != "full" for each in modes) or (model_class is not None and not _ranks_at_once(model_class)):
        return given
    users = max(1, min(USERS_A_BATCH, MOST_SCORES // n_items))
    return max(given, users * n_items)


def _ranks_at_once(model_class: type) -> bool:
    from recbole.model.abstract_recommender import AbstractRecommender

    own = model_class.full_sort_predict  # type: ignore[attr-defined]
    return own is not AbstractRecommender.full_sort_predict
