"""Curves as SVG within the page: axes, ticks, marks, and words for those who cannot see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 22, 40
PLOT = HEIGHT - TOP - BOTTOM
STYLES = 8  # colours and dashes in style.css
POINTS = 60  # up to which every value gets a dot with its number
Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: for the legend.
        x, y: its points; None or a number that is not finite in y is a gap.
        style: which of the page's colours and dashes.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: int = 0

    @property
    def points(self) -> list[tuple[float, float]]:
        """Those that can be drawn."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None and math.isfinite(y)]


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place on the horizontal axis.

    Attributes:
        x: where.
        word: what.
        style: the curve's that it belongs to; None: everyone's.
    """

    x: float
    word: str
    style: int | None = None


def plot(
    name: str,
    lines: Sequence[Line],
    *,
    title: str,
    xlabel: str,
    ylabel: str = "",
    marks: Sequence[Mark] = (),
    ticks: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
    dots: bool = True,
) -> Markup:
    """A drawing of some curves.

    Args:
        name: what its parts' ids begin with; no two drawings of a page may share it.
        lines: the curves.
        title: of the drawing, read aloud.
        xlabel, ylabel: the axes' names, with units.
        marks: drawn as dashed uprights.
        ticks: words for the places 0, 1, ... of the horizontal axis; none: it counts.
        limits: of the vertical axis, where it has natural ones.
        dots: whether values get dots that tell their number.
    """
    points = [point for line in lines for point in line.points]
    xs = [x for x, _ in points] + [mark.x for mark in marks]
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    y_low, y_high = limits or _roomy([y for _, y in points])
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = 0.5 if x_high == x_low else (x - x_low) / x_span
        inside = min(max((y - y_low) / y_span, 0.0), 1.0)
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - inside * PLOT, 1)

    parts = [
        _uprights(place, y_low, nice(x_low, x_high, 5, whole=all(x == int(x) for x in xs)), ticks),
        _levels(place, x_low, (y_low, y_high)),
    ]
    parts += [_mark(place, mark, row) for row, mark in enumerate(marks)]
    for line in lines:
        parts.append(_path(place, line, line.points if dots and len(line.y) <= POINTS else []))
    svg = Markup(
        '<svg class="plot" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{name}-t {name}-d">'
        '<title id="{name}-t">{title}</title><desc id="{name}-d">{desc}</desc>'
        '<text class="axis" x="{left}" y="12">{ylabel}</text>{parts}'
        '<text class="axis" x="{middle}" y="{bottom}" text-anchor="middle">{xlabel}</text></svg>'
    )
    return svg.format(
        w=WIDTH, h=HEIGHT, name=name, title=title, desc=told(lines, xlabel, marks), left=4, ylabel=ylabel,
        parts=Markup("").join(parts), middle=(LEFT + WIDTH - RIGHT) / 2, bottom=HEIGHT - 5, xlabel=xlabel,
    )  # fmt: skip


def legend(names: Sequence[tuple[str, int]], *, dots: bool = False) -> Markup:
    """Names beside a piece of their line, or one of their dots, for drawings that share them."""
    key = '<circle class="s{}" cx="28" cy="5" r="4"/>' if dots else '<path class="line s{}" d="M1 5H33"/>'
    entry = Markup(f'<li><svg class="key" viewBox="0 0 34 10" aria-hidden="true">{key}</svg> {{}}</li>')
    entries = Markup("").join(entry.format(style % STYLES, name) for name, style in names)
    return Markup('<ul class="legend">{}</ul>').format(entries)


def told(lines: Sequence[Line], xlabel: str, marks: Sequence[Mark]) -> str:
    """The curves in words."""
    found = []
    for line in lines:
        points = line.points
        if not points:
            found.append(f"{line.name}: no values.")
            continue
        low, high = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
        (x0, y0), (x1, y1) = points[0], points[-1]
        found.append(
            f"{line.name}: from {y0:.4g} at {xlabel} {x0:g} to {y1:.4g} at {x1:g}; "
            f"lowest {low[1]:.4g} at {low[0]:g}, highest {high[1]:.4g} at {high[0]:g}."
        )
    return " ".join([*found, *(f"Marked at {mark.x:g}: {mark.word}." for mark in marks)])


def nice(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``most`` of them; ``whole`` ones alone."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _roomy(values: Sequence[float]) -> tuple[float, float]:
    """Limits that leave some air around the values."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - air, high + air


def _words(values: Sequence[float]) -> list[str]:
    """Ticks' labels: as many decimals as tell them apart."""
    if not values:
        return []
    step = min((b - a for a, b in pairwise(values)), default=abs(values[0]) or 1.0)
    largest = max(map(abs, values))
    if largest >= 1e6 or (largest and step < 1e-5):
        return [f"{value:.2e}" for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if len(values) > 1 else 3
    return [f"{value:,.{decimals}f}" for value in values]


def _uprights(place: Place, y_low: float, values: Sequence[float], ticks: Sequence[str]) -> Markup:
    tick = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
    found = []
    for value, word in zip(values, _words(values), strict=True):
        if ticks and not (value == int(value) and 0 <= value < len(ticks)):
            continue
        x, y = place(value, y_low)
        found.append(tick.format(x, y + 15, ticks[int(value)] if ticks else word))
    return Markup("").join(found)


def _levels(place: Place, x_low: float, limits: tuple[float, float]) -> Markup:
    row = Markup('<path class="level" d="M{} {}H{}"/><text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    values = nice(*limits, 5)
    return Markup("").join(
        row.format(LEFT, y, WIDTH - RIGHT, LEFT - 5, y + 4, word)
        for y, word in ((place(x_low, value)[1], word) for value, word in zip(values, _words(values), strict=True))
    )


def _mark(place: Place, mark: Mark, row: int) -> Markup:
    x, _ = place(mark.x, 0.0)
    style = "" if mark.style is None else f" s{mark.style % STYLES}"
    left = x > WIDTH * 0.6
    return Markup(
        '<g class="mark{}"><path d="M{} {}V{}"/><text class="tick" x="{}" y="{}" text-anchor="{}">{}</text></g>'
    ).format(
        style, x, TOP, HEIGHT - BOTTOM, x - 4 if left else x + 4, TOP + 9 + 11 * row, "end" if left else "start",
        mark.word,
    )  # fmt: skip


def _path(place: Place, line: Line, dotted: Sequence[tuple[float, float]]) -> Markup:
    """The curve, broken where values are missing, and dots that tell their number."""
    drawn, pen = [], "M"
    for x, y in zip(line.x, line.y, strict=True):
        if y is None or not math.isfinite(y):
            pen = "M"
            continue
        drawn.append("{}{} {}".format(pen, *place(x, y)))
        pen = "L"
    style = line.style % STYLES
    dot = Markup('<circle class="dot s{}" cx="{}" cy="{}" r="2.6"><title>{}: {}</title></circle>')
    dots = Markup("").join(dot.format(style, *place(x, y), line.name, f"{y:.5g} at {x:g}") for x, y in dotted)
    return Markup('<path class="line s{}" d="{}"/>{}').format(style, "".join(drawn), dots)
