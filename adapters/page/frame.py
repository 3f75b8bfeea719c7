"""The frame of every HTML page: one file, its style and script within, nothing fetched from anywhere.

Templates escape whatever they are given (jinja2's autoescape); what is HTML already is a ``Markup``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

ROOM = Path(__file__).parent


def page(title: str, body: str) -> str:
    """A whole page, light or dark as the reader's system or the switch at its top says.

    Style for a body: ``<div class="box" tabindex="0" role="region" aria-label="...">`` around a wide table scrolls
    within itself, ``class="num"`` aligns numbers, ``.card``, ``.tiles``, ``.muted``, ``.better`` and ``.worse`` do what
    they say, ``<input data-filter="ID">`` hides the rows of the table ``ID`` that lack the words typed, and a
    ``<button class="sort">`` in a column's head sorts by the ``data-number`` of its cells, or else by their words.

    Args:
        title: of the page; escaped here.
        body: HTML that goes into ``<main>``; begin with an ``<h1>``.
    """
    style, scripts = (Markup((ROOM / name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    return str(render("page.html", title=title, body=Markup(body), style=style, scripts=scripts))


def render(template: str, **values: Any) -> Markup:
    """One of the templates in this folder, filled in; every value that is no ``Markup`` is escaped."""
    return Markup(_environment().get_template(template).render(**values))


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(ROOM), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters["number"] = number
    return found


def number(value: Any) -> str:
    """A number as people read it: four significant digits, thousands separated; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e15 else f"{value:.4g}"


def size(count: float) -> str:
    """Bytes, in the unit that fits."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{1 if 0 < abs(share) < 0.1 else 0}f}".removesuffix(".0") + " %"
