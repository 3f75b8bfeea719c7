"""Diagnostics as parts of the page: tables, bars and drawings in the page's own colours, or the picture as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from recplug.adapters.page.frame import number, render
from recplug.adapters.report.charts import STYLES, Line, Mark, legend, plot
from recplug.adapters.report.diagnostics import Picture

DIMENSIONS = {"heatmap": 2, "bars": 1, "histogram": 2, "curves": 2, "scatter": 3}
BINS = 40
# Numbers above which a drawing of them would be no help, or too large for a page: then the picture is shown.
MOST = {"heatmap": 2_000, "bars": 200, "histogram": 10_000_000, "curves": 20_000, "scatter": 15_000}
LOW, MIDDLE, HIGH = (178, 74, 10), (247, 247, 247), (11, 84, 150)  # of values on both sides of 0
PALE, DEEP = (243, 246, 250), (8, 62, 115)
Matrix = np.ndarray[Any, Any]


def figure(picture: Picture, name: str) -> Markup:
    """A diagnostic as HTML, without its title and caption.

    Args:
        picture: with its words and numbers, or with its pixels alone.
        name: what its parts' ids begin with.
    """
    if not is_complete(picture):
        return render("picture.html", picture=picture)
    values = np.asarray(picture.values, dtype=np.float64)
    labels = picture.labels
    kinds = {"heatmap": _heatmap, "bars": _bars, "histogram": _histogram, "curves": _curves, "scatter": _scatter}
    return kinds[labels["kind"]](picture.title, values, labels, name)


def is_complete(picture: Picture) -> bool:
    """Whether a picture's numbers and words are there and belong together, so that it can be drawn anew."""
    labels, values = picture.labels, picture.values
    kind = labels.get("kind")
    if values is None or kind not in DIMENSIONS or values.ndim != DIMENSIONS[kind] or not 0 < values.size <= MOST[kind]:
        return False
    rows, columns = labels.get("rows") or [], labels.get("columns") or []
    if kind == "scatter":
        return values.shape[2] == 3 and len(columns) in (0, len(values)) and bool(np.isfinite(values).all())
    fits = len(rows) in (0, len(values))
    return fits if kind in ("bars", "histogram") else fits and len(columns) in (0, values.shape[1])


def _rows(labels: Any, count: int) -> list[str]:
    return [str(word) for word in labels["rows"]] if labels.get("rows") else [str(i) for i in range(count)]


# -- tables and bars


def _heatmap(title: str, values: Matrix, labels: Any, name: str) -> Markup:
    finite = values[np.isfinite(values)]
    low, high = labels.get("limits") or ((finite.min(), finite.max()) if finite.size else (0.0, 1.0))
    cells = [[(_shown(value), colours(value, low, high)) for value in row.tolist()] for row in values]
    return render(
        "heatmap.html",
        title=title,
        columns=[str(word) for word in labels.get("columns") or []],
        rows=list(zip(_rows(labels, len(values)), cells, strict=True)),
        xlabel=labels.get("xlabel"),
        ylabel=labels.get("ylabel"),
    )


def _shown(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else number(value)


def colours(value: float, low: float, high: float) -> tuple[str, str]:
    """A cell's ground and ink: the ink is the better to read of black and white, at 4.5 : 1 or more."""
    if not np.isfinite(value):
        return "#d9d9d9", "#000000"
    if low < 0 < high:
        share = float(np.clip(value / max(-low, high), -1, 1))
        ground = _between(MIDDLE, HIGH if share > 0 else LOW, abs(share))
    else:
        ground = _between(PALE, DEEP, float(np.clip((value - low) / max(high - low, 1e-12), 0, 1)))
    light = luminance(ground)
    ink = "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"
    return "#{:02x}{:02x}{:02x}".format(*ground), ink


def luminance(colour: Sequence[int]) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _between(one: Sequence[int], other: Sequence[int], share: float) -> tuple[int, ...]:
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))


def _bars(title: str, values: Matrix, labels: Any, name: str) -> Markup:
    finite = np.where(np.isfinite(values), values, 0.0)
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    span = (high - low) or 1.0
    rows = []
    for word, value, size in zip(_rows(labels, len(values)), values.tolist(), finite.tolist(), strict=True):
        start = (min(size, 0.0) - low) / span
        rows.append((word, f"{value:.3g}", round(100 * start, 2), round(100 * abs(size) / span, 2)))
    return render("bars.html", title=title, rows=rows, ylabel=labels.get("ylabel") or "value")


# -- drawings


def _histogram(title: str, values: Matrix, labels: Any, name: str) -> Markup:
    samples = [row[np.isfinite(row)] for row in values]
    every = np.concatenate(samples)
    low, high = labels.get("limits") or ((every.min(), every.max()) if every.size else (0.0, 1.0))
    edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1)
    if every.size and (every == every.round()).all() and high - low < BINS:  # counts: one bin each
        edges = np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    names = _rows(labels, len(values))
    lines, summary = [], []
    for style, (word, sample) in enumerate(zip(names, samples, strict=True)):
        counts = np.histogram(sample, bins=edges)[0]
        x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]])
        lines.append(Line(word, x.tolist(), y.tolist(), style))
        spread = np.quantile(sample, (0.05, 0.5, 0.95)).tolist() if sample.size else [float("nan")] * 3
        summary.append((word, [str(sample.size), *(f"{value:.3g}" for value in spread)]))
    drawn = plot(
        name, lines, title=title, xlabel=labels.get("xlabel") or "value", ylabel=labels.get("ylabel") or "count",
        dots=False,
    )  # fmt: skip
    head = ("number", "5 % are below", "half are below", "95 % are below")
    return _with_numbers(drawn, names if labels.get("rows") else [], "How they are spread", head, summary)


def _curves(title: str, values: Matrix, labels: Any, name: str) -> Markup:
    names = _rows(labels, len(values))
    places = list(range(values.shape[1]))
    lines = [Line(word, places, row.tolist(), i) for i, (word, row) in enumerate(zip(names, values, strict=True))]
    ticks = [str(word) for word in labels.get("columns") or []]
    drawn = plot(
        name,
        lines,
        title=title,
        xlabel=labels.get("xlabel") or "place",
        ylabel=labels.get("ylabel") or "",
        marks=[Mark(float(x), str(word)) for x, word in labels.get("marks") or []],
        ticks=ticks,
        limits=tuple(labels["limits"]) if labels.get("limits") else None,
    )
    every = np.unique(np.linspace(0, len(places) - 1, 24).round().astype(int)).tolist()
    head = [ticks[place] if ticks else str(place) for place in every]
    rows = [(word, [f"{row[place]:.4g}" for place in every]) for word, row in zip(names, values, strict=True)]
    return _with_numbers(drawn, names, f"The numbers, by {labels.get('xlabel') or 'place'}", head, rows)


def _with_numbers(
    drawn: Markup, names: Sequence[str], what: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]
) -> Markup:
    keys = legend([(name, style) for style, name in enumerate(names)]) if names else Markup("")
    return render("drawn.html", drawn=drawn, legend=keys, what=what, head=head, rows=rows)


def _scatter(title: str, values: Matrix, labels: Any, name: str) -> Markup:
    pictures = []
    titles = [str(word) for word in labels.get("columns") or [""] * len(values)]
    for points, word in zip(values, titles, strict=True):
        xy = points[:, :2]
        span = float(np.ptp(xy, axis=0).max()) or 1.0
        places = ((xy - xy.min(axis=0)) / span * 186 + 7).round(1)
        pictures.append(
            (word, [(x, y, int(label) % STYLES) for (x, y), label in zip(places, points[:, 2], strict=True)])
        )
    names = [str(word) for word in labels.get("rows") or []]
    keys = legend([(word, style) for style, word in enumerate(names)], dots=True) if names else Markup("")
    return render("scatter.html", title=title, pictures=pictures, legend=keys)
