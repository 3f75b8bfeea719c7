"""Ctrl-C and SIGTERM end alike: once, in one line, with what is whole kept; exit code 130 or 143."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
KEPT = "what was written so far is kept"


class Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send before they kill."""


def exit_code(stopped: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


def told(stopped: KeyboardInterrupt) -> str:
    """``"interrupted"``, or ``"terminated"``."""
    return "terminated" if isinstance(stopped, Terminated) else "interrupted"


def reason(stopped: KeyboardInterrupt) -> str:
    """What ``result.json`` says of it."""
    return "terminated from outside" if isinstance(stopped, Terminated) else "interrupted by the user"


@contextmanager
def stopping() -> Iterator[None]:
    """Both signals raise in this block, the first alone: the next ones do not cut short what it leaves to be written.

    A signal that is ignored already, as in a shell's background job, stays so. A process that was forked meanwhile
    (a loader's worker) leaves Ctrl-C to its parent.
    """
    if threading.current_thread() is not threading.main_thread():  # there signals are somebody else's
        yield
        return
    owner = os.getpid()
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if seen:
            return
        seen.append(number)
        stopped = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        if _imports(frame):
            # Nothing is under way yet, and an exception between two halves of an import ends in whatever comes next.
            os.write(2, f"{told(stopped)}; {KEPT}\n".encode())
            os._exit(exit_code(stopped))
        raise stopped

    stop.is_ours = True  # type: ignore[attr-defined]
    before = {number: signal.getsignal(number) for number in SIGNALS}
    free = [n for n, handler in before.items() if handler is not signal.SIG_IGN and not hasattr(handler, "is_ours")]
    for number in free:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in free:
            # After one the process is ending, and a traceback of its last moments helps nobody.
            signal.signal(number, signal.SIG_IGN if seen else before[number])


@contextmanager
def started_without_interrupt() -> Iterator[None]:
    """Processes that are started in this block do not see Ctrl-C, which reaches a terminal's whole group."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
