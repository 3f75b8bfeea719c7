"""What every command does alike: where lines go, and how errors end."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Sequence

from recplug.plugins.errors import RecplugError


def say(text: str) -> None:
    """One message for the user, on standard output."""
    print(text, flush=True)


def show_log() -> None:
    """Show our own log lines on the console; RecBole's stay in the run's log file."""
    log = logging.getLogger("recplug")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module="recbole")


def command(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str] | None], None]:
    """Run a command: wrong input ends with one line on standard error and code 2, ``--debug`` with its traceback."""

    @functools.wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> None:
        arguments = sys.argv[1:] if arguments is None else arguments
        show_log()
        try:
            main(arguments)
        except RecplugError as error:
            if "--debug" in arguments:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; what was written so far is kept", file=sys.stderr)
            sys.exit(130)

    return wrapped
