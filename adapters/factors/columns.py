"""Factors without a language model: columns of a catalogue."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from recplug.adapters.factors.schema import ITEM, UNKNOWN, FactorSchema, FactorSpec, Value, folded
from recplug.adapters.factors.table import FactorTable
from recplug.adapters.factors.tsv import Names, StrPath, most_frequent, read_cells
from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.factors import FactorSource

Kind = Literal["token", "token_seq", "float", "path"]
STEP = " > "


@dataclass(frozen=True)
class ColumnSpec:
    """How one column becomes a factor.

    Attributes:
        column: its name in the file.
        kind: ``token``: the text is the value. ``token_seq``: several values. ``float``: a number, put into bins.
            ``path``: the way down a tree, such as a category; its value is that way down to ``level``, and each
            shorter way is its parent.
        separator: between several values or the steps of a path; default a blank (``token_seq``), ``>`` (``path``).
        top: keep this many of the most frequent values; the rest become ``other``. None: all.
        other: what the rest is called; None makes them unknown.
        bins: ``float``: so many quantiles of all items' numbers.
        width: ``float``: bins of this width instead, from 0: 10 makes decades of years.
        level: ``path``: how far down; None: all the way.
        source, description: for the schema.
    """

    column: str
    kind: Kind = "token"
    separator: str | None = None
    top: int | None = None
    other: str | None = "other"
    bins: int = 5
    width: float | None = None
    level: int | None = None
    source: FactorSource = "catalogue"
    description: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise RecplugError(
                f"column {self.column!r}: no kind is called {self.kind!r}{did_you_mean(self.kind, get_args(Kind))}"
            )
        for name, least in (("top", 1), ("bins", 2), ("level", 1)):
            given = getattr(self, name)
            if given is not None and given < least:
                raise RecplugError(f"column {self.column!r}: {name}={given} is too small; give {least} or more")
        if self.width is not None and not (math.isfinite(self.width) and self.width > 0):
            raise RecplugError(f"column {self.column!r}: width={self.width} is no width; give a number above 0")
        if self.separator == "":
            raise RecplugError(f"column {self.column!r}: the separator is empty; give a character")


def from_columns(
    rows: Mapping[str, Mapping[str, str]],
    columns: Mapping[str, ColumnSpec],
    *,
    metadata: Mapping[str, str] | None = None,
) -> FactorTable:
    """Factors from the columns of a catalogue. Bins and frequencies are fitted on all items, not on interactions.

    Spellings that differ in case or width are one value, called like the most frequent of them. An empty cell, or one
    that says ``unknown``, is no value.

    Args:
        rows: each item's cells by column; see :func:`read_item_file`.
        columns: how to read each factor.
        metadata: where the labels come from: licence, source, ...; for schema and labels.

    Raises:
        RecplugError: for a missing column, a number that is none, or a factor without any value.
    """
    specs, values = [], {}
    for name, column in columns.items():
        cells = [_cell(token, row, column) for token, row in rows.items()]
        spec, values[name] = _factor(name, column, cells, list(rows))
        specs.append(spec)
    origin = {"made_by": "recplug: catalogue columns", **(metadata or {})}
    schema = FactorSchema(factors=tuple(specs), provenance=origin)
    return FactorTable(schema, tuple(rows), values, ("ok",) * len(rows), origin)


def read_item_file(path: StrPath) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The rows of a RecBole ``.item`` file by item token, and the type of each column.

    The first column is the token, or the one called ``item_id``.

    Raises:
        RecplugError: for a file without the header of ``name:type`` columns, uneven rows, or a repeated token.
    """
    table = read_cells(path, quoting=csv.QUOTE_NONE)
    header = [name.rpartition(":")[::2] if ":" in name else (name, "") for name in table[0]]
    types = dict(header)
    if len(types) < len(header) or not all(types.values()):
        raise RecplugError(f"{path}: its header is not name:type, each name once; give a RecBole .item file")
    names = list(types)
    place = names.index(ITEM) if ITEM in names else 0
    rows: dict[str, dict[str, str]] = {}
    for cells in table[1:]:
        if cells[place] in rows:
            raise RecplugError(f"{path}: the item {cells[place]!r} occurs more than once; keep one row for each")
        rows[cells[place]] = dict(zip(names, cells, strict=True))
    return rows, types


def _cell(token: str, row: Mapping[str, str], column: ColumnSpec) -> str:
    if column.column not in row:
        hint = did_you_mean(column.column, row) or f"; it has: {', '.join(row)}"
        raise RecplugError(f"item {token!r} has no column {column.column!r}{hint}")
    return row[column.column]


def _factor(name: str, column: ColumnSpec, cells: list[str], tokens: list[str]) -> tuple[FactorSpec, tuple[Names, ...]]:
    held, order = _binned(column, cells, tokens) if column.kind == "float" else ([_words(column, c) for c in cells], [])
    spelled = most_frequent([_ways(column, words) for words in held])
    held = [tuple(dict.fromkeys(spelled[folded(word)] for word in words)) for words in held]
    counts = Counter(word for words in held for word in words)
    if not counts:
        raise RecplugError(f"factor {name!r}: not one item has a value in column {column.column!r}; leave it out")
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    other = None
    if column.top is not None and len(ranked) > column.top:
        kept = set(ranked[: column.top])
        if column.other is not None:
            other = spelled.get(folded(column.other), column.other)
        rest = () if other is None else (other,)
        held = [
            tuple(dict.fromkeys(w for word in words for w in ((word,) if word in kept else rest))) for words in held
        ]
        ranked = [word for word in ranked if word in kept and word != other]
    wider = {way: spelled[folded(way)] for word in ranked for way in _ways(column, (word,))}
    told = set(wider.values()) - {other}
    names = [word for word in order or (sorted(told) if column.kind == "path" else ranked) if word in told]
    parents = {
        word: spelled[folded(word.rpartition(STEP)[0])] for word in names if column.kind == "path" and STEP in word
    }
    spec = FactorSpec(
        name=name,
        description=column.description,
        source=column.source,
        multi=column.kind == "token_seq",
        other=other,
        values=tuple(Value(name=word, parent=parents.get(word)) for word in names + ([other] if other else [])),
    )
    return spec, tuple(held)


def _words(column: ColumnSpec, cell: str) -> Names:
    """The values that a cell names."""
    if column.kind == "token":
        parts = [cell]
    else:
        parts = cell.split(column.separator or (" " if column.kind == "token_seq" else ">"))
    words = tuple(filter(None, (" ".join(part.split()) for part in parts)))
    if column.kind == "path" and words:
        words = (STEP.join(words[: column.level]),)
    return tuple(word for word in words if folded(word) not in ("", UNKNOWN))


def _ways(column: ColumnSpec, words: Names) -> Names:
    """The words, and with each path all shorter ways."""
    if column.kind != "path":
        return words
    steps = [word.split(STEP) for word in words]
    return tuple(STEP.join(way[: depth + 1]) for way in steps for depth in range(len(way)))


def _binned(column: ColumnSpec, cells: list[str], tokens: list[str]) -> tuple[list[Names], list[str]]:
    """Each cell's bin, and the bins from low to high. A bin begins with its lower number and ends before its upper."""
    numbers = np.array([_number(column, cell, token) for cell, token in zip(cells, tokens, strict=True)])
    known = numbers[~np.isnan(numbers)]
    if column.width is not None:
        places = np.floor(numbers / column.width)
        edges = np.unique(places[~np.isnan(places)])
        ends = [[float(f"{end * column.width:.12g}") for end in (low, low + 1)] for low in edges]
        labels = [f"{_shown(low)} to {_shown(high)}" for low, high in ends]
        bins = np.searchsorted(edges, places)
    else:
        edges = _edges(known, column.bins)
        shown = [_shown(edge) for edge in edges]
        inner = [f"{low} to {high}" for low, high in pairwise(shown)]
        labels = [f"below {shown[0]}", *inner, f"{shown[-1]} and above"] if shown else [_shown(x) for x in known[:1]]
        bins = np.searchsorted(edges, numbers, side="right")
    held: list[Names] = [() if np.isnan(x) else (labels[at],) for x, at in zip(numbers, bins.tolist(), strict=True)]
    return held, labels


def _edges(known: np.ndarray[Any, np.dtype[np.float64]], bins: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Where bins of about equal size meet, with as few digits as keep every bin in use."""
    steps = np.unique(known)[1:]
    if not len(steps):
        return steps
    # Each edge is a number that occurs, above the lowest, so that no bin is empty.
    exact = np.unique(np.maximum(np.quantile(known, np.arange(1, bins) / bins, method="higher"), steps[0]))
    rounded = (np.unique([float(f"{edge:.{digits}g}") for edge in exact]) for digits in range(3, 17))
    whole = (known == np.floor(known)).all()
    used = (edges for edges in rounded if len(np.unique(np.searchsorted(edges, known, side="right"))) == len(exact) + 1)
    return exact if whole else next(used, exact)


def _number(column: ColumnSpec, cell: str, token: str) -> float:
    if folded(cell) in ("", UNKNOWN):
        return math.nan
    try:
        number = float(cell)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise RecplugError(
            f"item {token!r}: {cell!r} in column {column.column!r} is no number; mend it, or read it as a token"
        )
    return number


def _shown(number: float) -> str:
    return np.format_float_positional(number, trim="-")
