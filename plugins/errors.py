"""The one exception a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecplugError(Exception):
    """Wrong input, told in one line: what is wrong, and what to do.

    The command line prints the line and exits with code 2; ``--debug`` shows the traceback.
    """


def one_line(error: Exception) -> str:
    """``"ImportError: what it says"``, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'lambda_synergy'?"``, or an empty string where nothing is near."""
    near = difflib.get_close_matches(word.lower(), {name.lower(): name for name in known}, n=1, cutoff=0.6)
    if not near:
        return ""
    original = next(name for name in known if name.lower() == near[0])
    return f"; did you mean '{original}'?"
