"""Every column of ``metrics.csv`` as a drawing, the runs' curves in one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from recplug.adapters.report.charts import Line, Mark, plot
from recplug.adapters.report.side_by_side import Column

GROUPS = (
    ("Validation", "valid/", "higher is better, but for errors"),
    ("Parts of the training loss", "loss/", "means over an epoch's steps, as they were added to the loss"),
    ("Second domain", "source/", "the backbone that a plugin trains beside this one"),
    ("Time", "", ""),
)
UNITS = {"train_seconds": "seconds", "valid_seconds": "seconds", "source/valid_seconds": "seconds"}


@dataclass(frozen=True)
class Group:
    """Drawings that belong together.

    Attributes:
        title, note: what they are.
        charts: (heading, drawing).
    """

    title: str
    note: str
    charts: Sequence[tuple[str, Markup]]


def groups(shown: Sequence[Column]) -> Iterator[Group]:
    """All columns of all runs, by kind."""
    names = dict.fromkeys(name for column in shown for name in column.run.epochs if name != "epoch")
    left = list(names)
    for title, prefix, note in GROUPS:
        own = [name for name in left if name.startswith(prefix)]
        left = [name for name in left if name not in own]
        charts = [(name.removeprefix(prefix), _chart(name, shown)) for name in own]
        if charts:
            yield Group(title, note, charts)


def _chart(name: str, shown: Sequence[Column]) -> Markup:
    having = [column for column in shown if name in column.run.epochs]
    lines = [Line(column.name, numbered(column), column.run.epochs[name], column.style) for column in having]
    return plot(
        "curve-" + "".join(letter if letter.isalnum() else "-" for letter in name),
        lines,
        title=name,
        xlabel="epoch",
        ylabel=UNITS.get(name, ""),
        marks=[mark for column in having for mark in marks(column, many=len(shown) > 1)],
    )


def numbered(column: Column) -> list[float]:
    """The epochs' numbers; their places where they have none."""
    run = column.run
    count = len(next(iter(run.epochs.values()), ()))
    given = run.epochs.get("epoch", [None] * count)
    return [float(place if n is None or not math.isfinite(n) else n) for place, n in enumerate(given)]


def marks(column: Column, *, many: bool) -> list[Mark]:
    """The best epoch, and what plugins say has happened in one.

    Args:
        column: the run.
        many: whether others stand beside it, so that a mark has to be a run's own.
    """
    run, style = column.run, column.style if many else None
    found = []
    if run.best_epoch is not None:
        found.append(Mark(numbered(column)[run.best_epoch], "best" if many else "best epoch", style))
    return found + [Mark(float(epoch), word, style) for epoch, word in run.events]
