"""A faiss index of a run's items."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from recplug.adapters.files import replacing
from recplug.adapters.recbole.infer.top_k import cannot_write
from recplug.plugins.errors import RecplugError

TOP = 20


def write_index(
    path: Path, tokens_path: Path, *, items: Tensor, tokens: Sequence[str], factory: str, users: Tensor
) -> float:
    """Write an index by inner product, and the tokens of its ids.

    Args:
        path, tokens_path: where.
        items: ``[n, w]`` float32.
        tokens: of the items.
        factory: faiss's word for the kind of index.
        users: ``[u, w]`` float32, for whom it is tried.

    Returns:
        How much of the users' exact first 20 the index finds.

    Raises:
        RecplugError: without faiss, for a word that it refuses, or where a file cannot be written.
    """
    faiss = _faiss()
    rows = np.ascontiguousarray(items.numpy())
    try:
        index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(rows)
        index.add(rows)
    except RuntimeError as error:
        reason = re.sub(r"^Error in .*\.cpp:\d+: ", "", str(error).strip().splitlines()[-1])  # faiss's own place in C++
        raise RecplugError(
            f"faiss makes no index '{factory}' of {len(rows):,} items of width {rows.shape[1]} ({reason}); try Flat or "
            "HNSW32"
        ) from error
    try:
        with replacing(path) as partial, replacing(tokens_path) as partial_tokens:  # both or none
            partial.write_bytes(faiss.serialize_index(index).data)
            partial_tokens.write_text(json.dumps(list(tokens), ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    return shared(index, items, users)


def shared(index: Any, items: Tensor, users: Tensor, k: int = TOP) -> float:
    """The mean share of the ``k`` best by dot product, of ``users [u, w]`` with ``items [n, w]``, that is found."""
    k = min(k, len(items))
    _, found = index.search(np.ascontiguousarray(users.numpy()), k)  # [u, k]
    best = (users @ items.T).topk(k, dim=1).indices.numpy()
    return float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(found, best, strict=True)]))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise RecplugError("an index needs faiss, which is not installed; pip install faiss-cpu") from error
    return faiss
