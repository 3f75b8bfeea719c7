"""What a run may spend, how much at once, and when it had better end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import NoReturn, TypeVar

from recplug.adapters.factors.llm.log import AnswerLog, Call, Usage
from recplug.adapters.factors.llm.messages import Stopped
from recplug.plugins.errors import RecplugError

WATCHED, TOO_MANY = 24, 0.5  # requests that are looked at, and the share of failures among them that ends a run
T = TypeVar("T")


class Limits:
    """The tokens and failures of all runs with one log.

    Args:
        log: where calls are kept; its tokens count towards the budget.
        budget: input and output tokens; None for no limit.
    """

    def __init__(self, log: AnswerLog, budget: int | None) -> None:
        self.log, self.budget, self.usage = log, budget, log.usage()
        self._room, self._reserved = asyncio.Condition(), 0
        self._recent: deque[bool] = deque(maxlen=WATCHED)  # True is a failure
        self._stopped: Stopped | None = None

    async def reserve(self, asked: int, needed: int, wanted: int) -> int:
        """Set tokens aside for one request, and say how many its answer may have.

        Waits while requests under way may give some back.

        Args:
            asked: of the question.
            needed, wanted: of the answer, at least and at most.

        Raises:
            Stopped: where the run has ended, or what is left is too little.
        """
        async with self._room:
            while self._stopped is None and self.budget is not None:
                left = self.budget - self.usage.tokens - self._reserved - asked
                if left >= wanted:
                    break
                if not self._reserved:
                    if left < needed:
                        self.spent()
                    wanted = left
                    break
                await self._room.wait()
            if self._stopped is not None:
                raise self._stopped
            self._reserved += asked + wanted
        return wanted

    async def release(self, tokens: int) -> None:
        """Give back what :meth:`reserve` set aside, once the call is recorded."""
        async with self._room:
            self._reserved -= tokens
            self._room.notify_all()

    def record(self, call: Call) -> None:
        """Log a call; one that was answered counts as a success."""
        self.log.record(call)
        if call.status != "unanswered":
            self._recent.append(False)
        used = self.usage
        self.usage = Usage(
            used.calls + 1,
            used.attempts + call.attempts,
            used.input_tokens + call.input_tokens,
            used.output_tokens + call.output_tokens,
        )

    def failed(self, reason: str, *, answered: bool = False) -> None:
        """Count an answer that is missing, or holds nothing valid though it was recorded as ``answered``.

        Raises:
            Stopped: where more than half of the last requests failed.
        """
        if answered and False in self._recent:
            self._recent.remove(False)
        self._recent.append(True)
        failures = sum(self._recent)
        if len(self._recent) == WATCHED and failures > TOO_MANY * WATCHED:
            self.stop(f"{failures} of the last {WATCHED} requests failed (last: {reason}); mend that, and run again")

    def spent(self) -> NoReturn:
        """End the run for lack of tokens."""
        left = (self.budget or 0) - self.usage.tokens
        self.stop(
            f"the budget of {self.budget:,} tokens is used up: {max(0, left):,} left are too few for the next request;"
            " raise max_tokens_total and run again"
        )

    def stop(self, reason: str) -> NoReturn:
        """Send nothing more; requests under way end and are kept."""
        self._stopped = self._stopped or Stopped(f"{reason}; what was answered is kept in {self.log.path}")
        raise self._stopped


async def for_each(work: Iterable[T], do: Callable[[T], Coroutine[None, None, None]], *, workers: int) -> None:
    """``do`` every piece of ``work``, up to ``workers`` at once.

    After an error the pieces under way are finished, no other is begun, and the error is raised.
    """
    queue = iter(work)
    errors: list[Exception] = []

    async def worker() -> None:
        for piece in queue:
            if errors:
                return
            try:
                await do(piece)
            except Exception as error:
                errors.append(error)

    await asyncio.gather(*(worker() for _ in range(workers)))
    if errors:
        # A defect says more than the stop that it led to.
        raise next((error for error in errors if not isinstance(error, RecplugError)), errors[0])
