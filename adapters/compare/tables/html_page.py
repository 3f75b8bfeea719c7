"""The tables as one page: no network, light and dark, readable on a phone and by keyboard."""

from __future__ import annotations

from typing import Any

from recplug.adapters.compare.numbers import Numbers, Test
from recplug.adapters.compare.tables.content import gain_text, interval_text, label, notes, tables
from recplug.adapters.compare.tables.formats import title
from recplug.adapters.page import frame

LEVEL = 0.05


def page(comparison: Numbers) -> str:
    """The whole page."""
    name = title(comparison)
    body = frame.render(
        "comparison.html",
        title=name,
        metric=comparison.metric,
        level=LEVEL,
        tables=tables(comparison),
        notes=notes(comparison),
        **_forest(comparison),
    )
    return frame.page(f"{name}: comparison", body)


def _forest(comparison: Numbers) -> dict[str, Any]:
    """A dot and an interval for each test, on one axis; places are shares of its width."""
    drawn = [(test, *span) for test in comparison.tests if (span := _span(test)) is not None]
    if not drawn:
        return {"marks": [], "ticks": [], "zero": ""}
    low, high = min(0.0, *(low for _, _, low, _ in drawn)), max(0.0, *(high for *_, high in drawn))
    margin = 0.05 * ((high - low) or 1.0)
    low, high = low - margin, high + margin

    def place(gain: float) -> str:
        return f"{100 * (gain - low) / (high - low):.2f}%"

    ticks = [
        {"place": place(at), "anchor": anchor, "word": f"{100 * at:+.0f} %" if at else "0"}
        for at, anchor in ((low, "start"), (0.0, "middle"), (high, "end"))
        if at == 0 or abs(at) > 0.15 * (high - low)
    ]
    asked = comparison.asked
    several = len(asked.datasets) > 1, len(asked.models) > 1
    marks = [
        {
            "name": _name(test, *several),
            "kind": _kind(test),
            "gain": gain_text(test.pairs),
            "interval": interval_text(test.pairs),
            **dict(zip(("place", "low", "high"), map(place, span), strict=True)),
        }
        for test, *span in drawn
        if test.pairs is not None
    ]
    return {"marks": marks, "ticks": ticks, "zero": place(0.0)}


def _span(test: Test) -> tuple[float, float, float] | None:
    """The gain, and its interval's ends, where there are all three."""
    pairs = test.pairs
    if pairs is None or pairs.gain is None or pairs.low is None or pairs.high is None:
        return None
    return pairs.gain, pairs.low, pairs.high


def _name(test: Test, datasets: bool, models: bool) -> str:
    """What a line is about, without what is the same for all."""
    place = [test.variant.dataset] * datasets + [test.variant.model] * models
    return f"{', '.join(place)}{': ' if place else ''}{label(test.variant)} against {test.against}"


def _kind(test: Test) -> str:
    """The colour: none of the two where the difference may be chance."""
    if test.pairs is None or test.holm is None or test.holm >= LEVEL:
        return "unsure"
    return "better" if test.pairs.ours > test.pairs.theirs else "worse"
