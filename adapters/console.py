"""What every command does alike: where lines go, and how errors end.

Nothing here imports torch until an error needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import functools
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from recplug.adapters.stopping import KEPT, exit_code, stopping, told

# What the user has to mend: a full or read-only disk, or a folder of somebody else's.
OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class UsageError(Exception):
    """A command line that cannot be understood, told in one line."""


def say(text: str) -> None:
    """One message for the user, on standard output."""
    print(text, flush=True)


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def show_log() -> None:
    """Show our own log lines, and warnings of RecBole's, on the console; the rest stays in the run's log file."""
    log = logging.getLogger("recplug")
    if not any(isinstance(handler, _Console) for handler in log.handlers):
        log.addHandler(_Console())
        warned = _Console(logging.WARNING)
        # Our own lines are shown already, and a traceback belongs into the log file.
        warned.addFilter(lambda record: not record.name.startswith("recplug") and not record.exc_info)
        logging.getLogger().addHandler(warned)
    log.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module="recbole")


def command(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str] | None], None]:
    """Run a command so that no error ends with a traceback, unless ``--debug`` asks for it.

    Wrong input is one line on standard error and exit code 2; whatever else goes wrong is one line and code 1.
    """

    @functools.wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> None:
        arguments = sys.argv[1:] if arguments is None else arguments
        show_log()
        with stopping():
            try:
                main(arguments)
            except KeyboardInterrupt as stopped:
                print(f"{told(stopped)}; {KEPT}", file=sys.stderr)
                sys.exit(exit_code(stopped))
            except Exception as error:
                if "--debug" in arguments or "--debug=true" in arguments:
                    traceback.print_exc()
                line, code = _ending(error)
                print(f"error: {line}", file=sys.stderr)
                sys.exit(code)

    return wrapped


def _ending(error: Exception) -> tuple[str, int]:
    """The one line, and the exit code."""
    text = " ".join(str(error).split())
    if isinstance(error, UsageError):
        return text, 2
    from recplug.plugins.errors import RecplugError

    if isinstance(error, RecplugError):
        return text, 2
    if isinstance(error, OSError) and error.errno in OUTSIDE:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; mend that, and give the command again", 2
    log = getattr(error, "run_log", None)
    return f"{type(error).__name__}: {text}; run with --debug for the traceback" + (f"; see {log}" if log else ""), 1
