"""Where each user's target came in the full ranking: the numbers behind every metric, user by user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recplug.adapters.recbole.processes import gathered
from recplug.adapters.recbole.state.run_directory import write


@torch.no_grad()
def target_ranks(model: Any, data: Any) -> dict[str, list[Any]]:
    """Rank every test target among all items, as full-sort evaluation does.

    Args:
        model: an augmented model in evaluation mode.
        data: RecBole's full-sort loader.

    Returns:
        ``user`` and ``item`` tokens and ``rank`` (1 is best): one more than the number of items with a higher score.
        Where RecBole leaves a user's history out of the ranking, so do we.
    """
    dataset = data._dataset
    users = dataset.field2id_token[dataset.uid_field]
    items = dataset.field2id_token[dataset.iid_field]
    found: dict[str, list[Any]] = {"user": [], "item": [], "rank": []}
    for interaction, history, rows, targets in data:
        interaction = interaction.to(model.device)
        scores = model.full_sort_predict(interaction).view(-1, dataset.item_num)  # [B, n_items]
        scores[:, 0] = -torch.inf
        if history is not None:
            scores[tuple(index.to(scores.device) for index in history)] = -torch.inf
        rows, targets = rows.to(scores.device), targets.to(scores.device)
        own = scores[rows, targets].unsqueeze(-1)  # [n, 1]
        found["rank"] += ((scores[rows] > own).sum(dim=-1) + 1).tolist()
        found["user"] += [str(users[i]) for i in interaction[dataset.uid_field][rows].tolist()]
        found["item"] += [str(items[i]) for i in targets.tolist()]
    parts = gathered(found)  # a part of the users in each of several processes
    return {name: [value for part in parts for value in part[name]] for name in found}


def write_ranks(ranks: Mapping[str, list[Any]], path: Path) -> None:
    """``ranks.parquet``: user, item, rank, of :func:`target_ranks`."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(ranks)), sink)
    write(path, sink.getvalue().to_pybytes())
