"""Plain text out of catalogue cells, which often hold pieces of web pages."""

from __future__ import annotations

import html
import re

# What a browser does not show, with the last thing that may close it: looking for that behind every opening of a cell
# with thousands of them would take minutes.
_HIDDEN = [
    (re.compile(opening + ".*?" + closing, re.DOTALL | re.IGNORECASE), re.compile(closing, re.IGNORECASE))
    for opening, closing in (
        ("<!--", "-->"),
        (r"<script\b[^<>]*>", r"</script\s*>"),
        (r"<style\b[^<>]*>", r"</style\s*>"),
    )
]
_TAG = re.compile(r"</?[a-z!][^<>]*>", re.IGNORECASE)
_ROUNDS = 20  # of markup within markup
_MISSING = {"nan", "none", "null", "n/a", "na", "<na>"}


def plain(text: str) -> str:
    """``text`` on one line, without HTML, control or zero-width characters.

    Applied twice it changes nothing more, so a tag that was escaped twice does not come back.
    """
    for _ in range(_ROUNDS):
        before, text = text, _unwrapped(text)
        if text == before:
            return text
    # Nobody writes so deep; without these three letters nothing is markup any more.
    return _unwrapped(re.sub("[<>&]", " ", text))


def _unwrapped(text: str) -> str:
    text = html.unescape(text)
    for hidden, closing in _HIDDEN:
        end = max((found.end() for found in closing.finditer(text)), default=0)
        text = hidden.sub(" ", text[:end]) + text[end:]
    text = _TAG.sub(" ", text)
    text = "".join(c if c.isprintable() else " " * c.isspace() for c in text)
    return " ".join(text.split())


def is_missing(text: str) -> bool:
    """Whether a cell is empty, or says so: ``nan``, ``None``, ``N/A``, ..."""
    return not text or text.lower() in _MISSING
