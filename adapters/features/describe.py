"""What a feature table looks like: vectors that items share, dimensions that say nothing, nearest items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

NEAR_CONSTANT = 1e-2  # of the typical spread of a dimension
_BLOCK = 65_536  # rows that are float32 at once


def shared_vectors(features: Tensor) -> list[list[int]]:
    """The rows of ``features [n, d]`` that are exactly equal, group by group, the largest first; none of one row."""
    groups: dict[bytes, list[int]] = {}
    for row, vector in enumerate(features.numpy()):
        groups.setdefault(vector.tobytes(), []).append(row)
    return sorted((rows for rows in groups.values() if len(rows) > 1), key=len, reverse=True)


def near_constant(features: Tensor) -> list[int]:
    """The dimensions of ``features [n, d]`` that hardly differ between items: below 1 % of the median spread.

    Of one item alone nothing can be said: none.
    """
    if len(features) < 2:
        return []
    total, squares = torch.zeros(2, features.shape[1], dtype=torch.float64, device="cpu")
    shift = features[0].double()  # near the values, so that the squares of their differences do not cancel
    for block in _blocks(features):
        total += (block - shift).sum(dim=0)
        squares += (block - shift).square().sum(dim=0)
    spread = (squares / len(features) - (total / len(features)).square()).clamp(min=0).sqrt()  # [d]
    varying = spread[spread > 0]
    least = NEAR_CONSTANT * float(varying.median()) if len(varying) else 0.0
    return (spread <= least).nonzero().squeeze(1).tolist()


def lengths(features: Tensor) -> Tensor:
    """``[n]``: the length of every vector of ``features [n, d]``."""
    return torch.cat([block.norm(dim=1) for block in _blocks(features)]).float()


def nearest(features: Tensor, queries: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """The rows of largest cosine to some rows, without these themselves, nearest first.

    Args:
        features: ``[n, d]``.
        queries: q rows of it.
        k: how many; fewer where there are no more rows.

    Returns:
        Rows ``[q, k]`` and cosines ``[q, k]``; among equal ones the lower row comes first.
    """
    rows = torch.as_tensor(list(queries), device="cpu")
    wanted = torch.nn.functional.normalize(features[rows].double(), dim=1)  # [q, d]
    parts = [wanted @ torch.nn.functional.normalize(block, dim=1).T for block in _blocks(features)]
    cosines = torch.cat(parts, dim=1)  # [q, n]
    cosines[torch.arange(len(rows), device="cpu"), rows] = -2.0
    order = cosines.float().sort(dim=1, descending=True, stable=True)
    kept = min(k, len(features) - 1)
    return order.indices[:, :kept], order.values[:, :kept]


def spread(n: int, count: int) -> list[int]:
    """Up to ``count`` of n rows, from the first to the last."""
    return sorted({round(i * (n - 1) / max(count - 1, 1)) for i in range(count)}) if n else []


def _blocks(features: Tensor) -> Iterator[Tensor]:
    """Float64, a block of rows at a time."""
    for block in features.split(_BLOCK):
        yield block.double()
