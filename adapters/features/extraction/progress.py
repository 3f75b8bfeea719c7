"""How far a long run is: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

EVERY = 30.0  # seconds between two plain lines


class Progress:
    """Of ``total`` items, of which ``done`` are from earlier runs and do not count for the rate."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._before, self._done = total, done, done
        self._broken = 0
        self._began = self._told = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit="item", disable=not self._terminal)

    def advance(self, items: int, broken: int) -> None:
        """Some items more, of which so many were broken."""
        self._done += items
        self._broken += broken
        if self._broken:
            self._bar.set_postfix(broken=self._broken, refresh=False)
        self._bar.update(items)
        if not self._terminal and time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """``"1,200 of 9,000 items (13 %), 310 a second, 0:25 left, 3 broken"``."""
        rate = (self._done - self._before) / max(time.monotonic() - self._began, 1e-9)
        left = f", {tqdm.format_interval(int((self._total - self._done) / rate))} left" if rate else ""
        broken = f", {self._broken:,} broken" if self._broken else ""
        share = 100 * self._done // self._total
        return f"{self._done:,} of {self._total:,} items ({share} %), {rate:,.0f} a second{left}{broken}"

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
