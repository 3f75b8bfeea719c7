"""Exact cosine search in blocks; :func:`recplug.plugins.nn.knn.kneighbours` is its public face."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

COLUMNS = 4096  # rows that a block is compared with at once
MARGIN = 16  # candidates beyond k that a single-precision search hands over for exact comparison
RESCORED = 2**24  # numbers gathered at once for it
LOW = 2**32 - 1
LOWEST = -(2**63)


def search(content: Tensor, k: int, *, block: int, include_self: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The nearest rows of every row, in blocks.

    Args:
        content: ``[m, d]``, finite, without rows of zeros.
        k: how many.
        block: rows at once.
        include_self: whether a row is its own first neighbour, with cosine infinity, or none, with minus infinity.

    Yields:
        Rows ``[b]``, and cosines and neighbours ``[b, min(k, m)]``, nearest first. Blocks come in any order.
    """
    everyone = torch.arange(len(content), device=content.device)
    with_faiss = content.device.type == "cpu" and len(content) > 0 and _has_faiss()
    for queries, keys in (_candidates if with_faiss else _exact)(content, everyone, k, block, include_self):
        yield queries, *_unpack(keys)


def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def _exact(content: Tensor, queries: Tensor, k: int, block: int, include_self: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Query rows and their best keys, ``[b]`` and ``[b, min(k, m)]``, from ``content [m, d]`` without zero rows."""
    for mine in queries.split(block):
        left = _unit(content[mine])  # [b, d]
        best = torch.empty(len(mine), 0, dtype=torch.int64, device=content.device)
        for start in range(0, len(content), COLUMNS):
            score = (left @ _unit(content[start : start + COLUMNS]).T).clamp_(-1.0, 1.0).float()  # [b, c]
            own = mine - start
            inside = ((own >= 0) & (own < score.shape[1])).nonzero().squeeze(1)
            score[inside, own[inside]] = math.inf if include_self else -math.inf
            keys = torch.cat([best, _shortlist(score, k, start)], dim=1)
            best = keys.topk(min(k, start + score.shape[1]), dim=1).values
        yield mine, best


def _shortlist(score: Tensor, k: int, start: int) -> Tensor:
    """Keys of each row's k best columns of ``score [b, c]`` and all that tie with the last, ``[b, >= min(k, c)]``.

    Where rows have different numbers of ties, the shorter ones are filled up with a key below all others.
    """
    last = score.topk(min(k, score.shape[1]), dim=1).values[:, -1:]
    row, column = (score >= last).nonzero(as_tuple=True)
    count = torch.bincount(row, minlength=len(score))  # [b]
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    keys = torch.full((len(score), int(count.max())), LOWEST, device=score.device)
    keys[row, place] = _keys(score[row, column], column + start)
    return keys


def _candidates(
    content: Tensor, queries: Tensor, k: int, block: int, include_self: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """As :func:`_exact`, from faiss's k + 16 best in single precision, where these certainly hold the k best."""
    import faiss

    m, d = content.shape
    wide = min(m, k + 1 + MARGIN)
    doubt = (d + 4) * 2.0**-23  # bounds the error of a single-precision dot product of unit vectors
    index: Any = faiss.IndexFlatIP(d)
    for part in content.split(COLUMNS):
        index.add(_unit(part).float().numpy())
    for mine in queries.split(max(1, min(block, RESCORED // max(wide * d, 1)))):
        left = _unit(content[mine])  # [b, d]
        rough, places = index.search(left.float().numpy(), wide)
        others = torch.from_numpy(places)  # [b, wide]
        right = _unit(content[others])  # [b, wide, d]
        score = (right @ left.unsqueeze(-1)).squeeze(-1).clamp_(-1.0, 1.0).float()  # [b, wide]
        score.masked_fill_(mine.unsqueeze(1) == others, math.inf if include_self else -math.inf)
        keys = _keys(score, others)
        best = keys.topk(min(k, wide), dim=1).values
        unsure = torch.from_numpy(rough[:, -1]) + doubt >= _unpack(best[:, -1])[0]
        if wide == m or not bool(unsure.any()):
            yield mine, best
            continue
        yield mine[~unsure], best[~unsure]
        yield from _exact(content, mine[unsure], k, block, include_self)


def _unit(content: Tensor) -> Tensor:
    """``[..., d]`` of unit length, in float64."""
    wide = content.double()
    return wide / torch.linalg.vector_norm(wide, dim=-1, keepdim=True)


def _keys(score: Tensor, place: Tensor) -> Tensor:
    """Integers in the order of the answer: cosine (float32) above, lower place below.

    A total order leaves topk no choice among equals, and blocks can be merged by topk again.
    """
    bits = (score + 0.0).view(torch.int32)  # + 0.0 makes -0.0 and 0.0 equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers in the order of the floats
    return ordered.long() * 2**32 + (LOW - place)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and places of keys."""
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32), LOW - (keys & LOW)
