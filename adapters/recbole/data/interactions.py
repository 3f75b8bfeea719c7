"""The interactions that training sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def interactions(dataset: Any) -> tuple[Tensor, Tensor]:
    """The data set's interactions, each once, sorted by user: ``users [n]``, ``items [n]``."""
    feat, n_items = dataset.inter_feat, dataset.item_num
    users, targets = feat[dataset.uid_field], feat[dataset.iid_field]
    pairs = [torch.unique(users * n_items + targets)]
    # A user's first item is never a target: it stands in the histories alone.
    histories = f"{dataset.iid_field}{dataset.config['LIST_SUFFIX']}"
    for column in feat[histories].unbind(dim=1) if histories in feat else ():
        real = column != 0
        pairs.append(torch.unique(users[real] * n_items + column[real]))
    found = torch.unique(torch.cat(pairs))
    return found // n_items, found % n_items
