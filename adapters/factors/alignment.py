"""One factor of a table as training sees it: small groups rolled up, values numbered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recplug.adapters.factors.schema import FactorSpec
from recplug.plugins.factors import Factor

log = logging.getLogger("recplug")

LARGEST = 0.8
Names = tuple[str, ...]
Integers = np.ndarray[Any, np.dtype[np.int64]]


def rolled_up(spec: FactorSpec, counts: Mapping[tuple[str, ...], int], least: float) -> dict[str, str | None]:
    """What each value becomes: itself, an ancestor, ``other``, or None for unknown.

    From the narrowest values up: a value that fewer than ``least`` items have gives them to its parent, which is
    counted with what it was given; one without a parent gives them to ``other``, or to nobody. ``other`` itself stays,
    however few have it.

    Args:
        spec: the factor.
        counts: how many items have exactly these values.
        least: the size of the smallest group to keep.
    """
    becomes: dict[str, str | None] = {name: name for name in spec.names}
    for depth in sorted(set(spec.depths.values()), reverse=True):
        sizes = dict.fromkeys(spec.names, 0)
        for names, times in counts.items():
            for name in {becomes[name] for name in names}:
                if name is not None:
                    sizes[name] += times
        moved: dict[str, str | None] = {
            name: spec.parents[name] or spec.other_name
            for name in spec.names
            if spec.depths[name] == depth and sizes[name] < least and name != spec.other_name
        }
        becomes = {name: moved.get(now, now) if now is not None else None for name, now in becomes.items()}
    return becomes


def aligned(
    spec: FactorSpec, column: Sequence[Names], rows: Integers, least: float
) -> tuple[Factor, Integers, Integers]:
    """The factor as training sees it, and pairs (place in ``rows``, value)."""
    kinds, codes = _kinds(column)
    becomes = rolled_up(spec, dict(zip(kinds, np.bincount(codes).tolist(), strict=True)), least)
    seen = np.flatnonzero(np.bincount(codes[rows]))
    used = {becomes[name] for code in seen for name in kinds[code]} - {None}
    kept = tuple(name for name in spec.names if name in used or name == spec.other_name) if used else spec.names
    place = {name: number for number, name in enumerate(kept)}
    factor = Factor(spec.name, kept, spec.source, None if spec.other_name is None else place[spec.other_name])
    places = {name: place[now] for name, now in becomes.items() if now in place}
    item, value = _pairs(kinds, codes[rows], places)
    _warn_of_size(spec, kept, item, value)
    return factor, item, value


def aligned_with(
    spec: FactorSpec, column: Sequence[Names], rows: Integers, factor: Factor
) -> tuple[Integers, Integers]:
    """Pairs (place in ``rows``, value) under a factor as training saw it, whose values say what was rolled up.

    A value that the factor lacks becomes its nearest ancestor that is there, else the factor's ``other``, else nothing.
    """
    place: dict[str | None, int] = {}
    for at, value in enumerate(factor.values):
        place.setdefault(spec.resolve(value), at)  # a value that was merged since is found under its new name
    places = {}
    for name in spec.names:
        near: str | None = name
        while near is not None and near not in place:
            near = spec.parents[near]
        number = factor.other if near is None else place[near]
        if number is not None:
            places[name] = number
    kinds, codes = _kinds(column)
    return _pairs(kinds, codes[rows], places)


def _kinds(column: Sequence[Names]) -> tuple[list[Names], Integers]:
    """The different sets of values, far fewer than there are items, and which of them each item has."""
    kinds: dict[Names, int] = {}
    codes = np.array([kinds.setdefault(names, len(kinds)) for names in column], dtype=np.int64)
    return list(kinds), codes


def _pairs(kinds: Sequence[Names], codes: Integers, places: Mapping[str, int]) -> tuple[Integers, Integers]:
    """Pairs (place in ``codes``, value) of what has a place."""
    final = [{places[name] for name in names if name in places} for names in kinds]
    # One row a kind of profile, filled up with -1.
    several = np.full((len(kinds), max(map(len, final), default=0)), -1, dtype=np.int64)
    for row, found in zip(several, final, strict=True):
        row[: len(found)] = list(found)
    given = several[codes]  # [rows, most values of one item]
    item, slot = np.nonzero(given >= 0)
    return item, given[item, slot]


def _warn_of_size(spec: FactorSpec, kept: Names, item: Integers, value: Integers) -> None:
    if not len(item):
        log.warning(
            "factor %r is unknown for every item of the dataset, or all its values are too small; its vocabulary stays"
            " whole",
            spec.name,
        )
        return
    sizes, known = np.bincount(value), 1 + np.count_nonzero(np.diff(item))
    if sizes.max() > LARGEST * known:
        log.warning(
            "factor %r: %.0f %% of the items it is known for are %r, whose mean is nearly that of all items; split the"
            " value, or drop the factor",
            spec.name,
            100 * sizes.max() / known,
            kept[int(sizes.argmax())],
        )
