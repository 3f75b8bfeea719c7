"""Encoding without padding: histories sorted by length, cut into a few groups, each trimmed to its longest.

RecBole pads every history to ``MAX_ITEM_LIST_LENGTH``; with the usual data nine tenths of an encoder's work is then
padding. The grouping happens around the encoder's ``forward`` alone, so the batch, its loss and its evaluation stay
what they were: exact, within float rounding, for every encoder whose output for one history depends neither on the
padding behind it nor on the other histories of the batch (``hosts.py`` says which; tests prove it model by model).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# The cost of one more group, in padded positions: about what a group's extra kernel launches cost on two CPU cores.
OVERHEAD = 400


def lengths_of(sequence: Tensor) -> Tensor:
    """``[B, L]`` to ``[B]``: one past the last item that is not padding, at least 1."""
    places = torch.arange(1, sequence.shape[1] + 1, device=sequence.device)
    return ((sequence != 0) * places).amax(dim=1).clamp(min=1)


def plan(counts: Sequence[int], overhead: float = OVERHEAD) -> list[int]:
    """Where to cut lengths into groups so that positions plus ``overhead`` a group are fewest (exact, by dynamic
    programming over lengths).

    Args:
        counts: ``counts[l]`` histories have length l, for l = 0 ... L.
        overhead: cost of a group, in positions.

    Returns:
        Ascending lengths; a group holds what is longer than the previous one and not longer than its own.
    """
    used = [length for length, count in enumerate(counts) if count]
    best: list[float] = [0.0]
    cut: list[int] = [0]
    for end in range(1, len(used) + 1):
        rows, choice = 0, (float("inf"), 0)
        for start in range(end - 1, -1, -1):
            rows += counts[used[start]]
            choice = min(choice, (best[start] + overhead + rows * used[end - 1], start))
        best.append(choice[0])
        cut.append(choice[1])
    bounds, end = [], len(used)
    while end:
        bounds.append(used[end - 1])
        end = cut[end]
    return bounds[::-1]


def encode_trimmed(encode: Callable[..., Any], args: tuple[Any, ...], max_length: int) -> Any:
    """Call an encoder on trimmed groups of its batch and put the rows back in order.

    Args:
        encode: the host's ``forward``; its first argument is the padded history ``[B, L]``.
        args: its arguments. Tensors with B rows are cut along; integer ones of ``max_length`` columns are trimmed too.
        max_length: L, to which outputs that have a position axis are padded back (with zeros).

    Returns:
        What ``encode`` returns for the whole batch: a tensor ``[B, d]`` or ``[B, L, d]``, or a tuple of them.
    """
    sequence: Tensor = args[0]
    lengths = lengths_of(sequence)
    # One small copy to the host a step; without it the groups' shapes are unknown.
    counts = torch.bincount(lengths, minlength=max_length + 1).tolist()
    bounds = plan(counts)
    if len(bounds) == 1 and bounds[0] >= max_length:
        return encode(*args)
    order = torch.argsort(lengths, stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    outputs, start, bound_before = [], 0, 0
    for bound in bounds:
        rows = order[start : start + sum(counts[bound_before + 1 : bound + 1])]
        start, bound_before = start + len(rows), bound
        outputs.append(encode(*(_cut(a, rows, len(sequence), max_length, bound) for a in args)))
    if isinstance(outputs[0], tuple):
        return tuple(_join(list(parts), back, max_length, bounds) for parts in zip(*outputs, strict=True))
    return _join(outputs, back, max_length, bounds)


def _cut(value: Any, rows: Tensor, batch: int, max_length: int, bound: int) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != batch:
        return value
    value = value[rows]
    padded = value.dim() >= 2 and value.shape[1] == max_length and not value.is_floating_point()
    return value[:, :bound] if padded else value


def _join(parts: list[Tensor], back: Tensor, max_length: int, bounds: Sequence[int]) -> Tensor:
    if parts[0].dim() >= 3 and all(p.shape[1] == b for p, b in zip(parts, bounds, strict=True)):
        parts = [
            torch.cat([p, p.new_zeros(len(p), max_length - p.shape[1], *p.shape[2:])], dim=1) for p in parts
        ]  # [n, L, d]
    return torch.cat(parts)[back]
