"""Training interactions of each user and item of a run, repeated ones once; a program, since it needs RecBole.

python -m recplug.adapters.compare.cells.interaction_counts RUN FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recplug.adapters.files import replacing
from recplug.adapters.recbole import load
from recplug.adapters.recbole.data.interactions import interactions


def count(run: Path, file: Path) -> None:
    """Write ``side`` (user or item), ``token`` and ``interactions`` of everyone, also of those who have none."""
    train = load(run, use_gpu=False).loaders[0]._dataset
    sides, tokens, counts = [], [], []
    for side, field, ids, n in zip(
        ("user", "item"),
        (train.uid_field, train.iid_field),
        interactions(train),
        (train.user_num, train.item_num),
        strict=True,
    ):
        found = torch.bincount(ids, minlength=n)[1:]  # without padding
        sides += [side] * len(found)
        tokens += [str(token) for token in train.field2id_token[field][1:n]]
        counts += found.tolist()
    with replacing(file) as partial:
        pq.write_table(pa.table({"side": sides, "token": tokens, "interactions": counts}), partial)


if __name__ == "__main__":
    count(Path(sys.argv[1]), Path(sys.argv[2]))
