"""Requests on their way: how many at once, how fast, how often again, at what cost, and when to stop.

All that leaves for a model passes through one :class:`Sender`, which writes each call into the log before its answer is
read.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import datetime, timezone
from typing import TypeVar

from recplug.adapters.factors.llm.chat import Answer, Broken, Busy, Chat, Rejected, Request, tokens_in
from recplug.adapters.factors.llm.log import AnswerLog, Call, Entry, Usage
from recplug.adapters.factors.llm.probe import PROBE, settle
from recplug.plugins.errors import RecplugError

LONGEST_WAIT = 60.0  # seconds, of our own back-off
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more is asked again in another run
WATCHED = 200  # the last requests that the circuit breaker looks at
ENOUGH = 50  # requests before it judges
TOO_MANY = 0.2  # share of failures

T = TypeVar("T")


class Stopped(RecplugError):
    """The run ends here; what was answered is kept, and the same command goes on from there."""


class Sender:
    """Asks a chat, politely and within a budget. Use it as ``async with``; it closes the chat.

    The first request of a chat whose mode is ``auto`` is preceded by the probe of
    :mod:`recplug.adapters.factors.llm.probe`. Everything of one sender runs in one event loop.

    Args:
        chat: the model.
        log: where calls are written; its tokens count towards the budget.
        concurrency: requests under way at once.
        tokens_per_minute: a bucket of that size, filled evenly; None for no limit. A request takes its estimated input
            and its whole ``max_tokens``, and gives back what it did not use.
        max_tokens_total: budget of input and output tokens over all runs with this log. A request that might exceed it
            by the same reckoning is not sent, and the run stops.
        attempts: requests sent for one answer before it is given up.
        progress: called with the log's sums after every call.
        sleep, clock: for tests; seconds.
        seed: of the jitter.

    Raises:
        RecplugError: for limits below one.
    """

    def __init__(
        self,
        chat: Chat,
        log: AnswerLog,
        *,
        concurrency: int = 8,
        tokens_per_minute: int | None = None,
        max_tokens_total: int | None = None,
        attempts: int = 8,
        progress: Callable[[Usage], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ) -> None:
        limits = {"concurrency": concurrency, "attempts": attempts}
        limits |= {"tokens_per_minute": tokens_per_minute or 1, "max_tokens_total": max_tokens_total or 1}
        wrong = next((name for name, value in limits.items() if value < 1), None)
        if wrong or tokens_per_minute == 0 or max_tokens_total == 0:
            raise RecplugError(f"{wrong or 'a limit of tokens'} must be 1 or more")
        self.chat, self.log, self.concurrency = chat, log, concurrency
        self._rate, self._budget, self._attempts = tokens_per_minute, max_tokens_total, attempts
        self._progress, self._sleep, self._clock = progress, sleep, clock
        self._jitter = random.Random(seed)
        self._usage = log.usage()
        self._slots = asyncio.Semaphore(concurrency)
        self._turn, self._settling = asyncio.Lock(), asyncio.Lock()
        self._room = asyncio.Condition()
        self._reserved = 0
        self._bucket, self._filled_at = float(tokens_per_minute or 0), clock()
        self._not_before = clock()
        self._recent: deque[bool] = deque(maxlen=WATCHED)  # True is a failure
        self._stopped: RecplugError | None = None

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.chat.close()

    @property
    def usage(self) -> Usage:
        """What the log's calls cost so far."""
        return self._usage

    async def settle(self) -> None:
        """Find out how to ask for an answer's form, where that is open; from the log if it was found out before."""
        async with self._settling:
            if self.chat.mode == "auto":
                await settle(self.chat, self.log, self._send)

    async def ask(self, request: Request) -> Answer:
        """One answer, after as many attempts as it takes.

        Raises:
            Broken: there was none that could be used, and the server is not at fault: it answers other requests.
            Stopped: the budget is spent, or the server fails too often.
            Rejected: as the chat says; nothing more is sent after it.
        """
        await self.settle()
        return await self._send(request)

    async def once(self, key: str, request: Request) -> Answer:
        """The logged answer under ``key``, or :meth:`ask`'s, which is then logged. Refusals are kept as well."""
        await self.settle()
        kept = self.log.get(key)
        if kept is not None:
            refusal = kept.text if kept.status == "refused" else None
            return Answer("" if refusal else kept.text, kept.status, refusal, 0, 0, kept.model)
        answer = await self.ask(request)
        status = "refused" if answer.refusal else answer.finish
        self.log.put({key: self.entry(answer.refusal or answer.text, status, answer.model)})
        return answer

    def entry(self, text: str, status: str, model: str) -> Entry:
        """A log entry for something that this sender's chat said today."""
        return Entry(text, status, model, self.chat.place, self.chat.mode, self._now()[:10])

    def useless(self, reason: str) -> None:
        """Count an answer that held nothing valid towards the circuit breaker."""
        self._failed(reason)

    async def _send(self, request: Request) -> Answer:
        expected = tokens_in(request.messages)
        most = expected + request.max_tokens
        async with self._slots:
            await self._reserve(most)
            try:
                return await self._deliver(request, expected, most)
            finally:
                async with self._room:
                    self._reserved -= most
                    self._room.notify_all()

    async def _deliver(self, request: Request, expected: int, most: int) -> Answer:
        for attempt in range(1, self._attempts + 1):
            await self._pace(most)
            try:
                answer = await self.chat.ask(request)
            except Busy as error:
                if not error.limited:  # a server that limits us is well
                    self._failed(str(error))
                if attempt == self._attempts:
                    await self._blame(error)
                    self._record(Call("broken", str(error), 0, 0, attempt, self.chat.name, self._now()))
                    raise Broken(f"no answer after {attempt} attempts: {error}") from None
                await self._back_off(attempt, error)
            except Broken as error:
                self._record(Call("broken", str(error), expected, 0, attempt, self.chat.name, self._now()))
                self._failed(str(error))
                raise
            except Rejected as error:
                self._stopped = self._stopped or error
                raise
            else:
                tokens = answer.input_tokens, answer.output_tokens
                self._bucket += most - sum(tokens)
                self._recent.append(False)
                self._record(Call(answer.finish, answer.text, *tokens, attempt, answer.model, self._now()))
                return answer
        raise AssertionError("the last attempt returns or raises")

    def _record(self, call: Call) -> None:
        self.log.record(call)
        used = self._usage
        self._usage = Usage(
            used.calls + 1,
            used.attempts + call.attempts,
            used.input_tokens + call.input_tokens,
            used.output_tokens + call.output_tokens,
        )
        if self._progress is not None:
            self._progress(self._usage)

    # --- waiting ---

    async def _reserve(self, most: int) -> None:
        """Set ``most`` tokens of the budget aside; waits while requests under way may still give some back."""
        async with self._room:
            while self._budget is not None and self._usage.tokens + self._reserved + most > self._budget:
                if self._usage.tokens + most > self._budget:
                    self._stop(
                        f"the budget of {self._budget:,} tokens is used up ({self._usage.tokens:,} spent, the next"
                        f" request may take {most:,}); raise max_tokens_total and run again"
                    )
                self._check()
                await self._room.wait()
            self._check()
            self._reserved += most

    async def _pace(self, most: int) -> None:
        """Wait for this request's turn: after what the server asked for, and when the bucket holds enough."""
        async with self._turn:
            while True:
                self._check()
                now = self._clock()
                wait = self._not_before - now
                if self._rate is not None:
                    filled = self._bucket + (now - self._filled_at) * self._rate / 60
                    self._bucket, self._filled_at = min(float(self._rate), filled), now
                    # A request larger than the bucket goes when it is full, and leaves a debt.
                    wait = max(wait, (min(most, self._rate) - self._bucket) * 60 / self._rate)
                if wait <= 1e-6:
                    self._bucket -= most
                    return
                await self._sleep(min(wait, 1.0))

    async def _back_off(self, attempt: int, error: Busy) -> None:
        wait = min(LONGEST_WAIT, 2.0 ** (attempt - 1)) * (0.5 + self._jitter.random() / 2)
        if error.retry_after is not None:
            if error.retry_after > LONGEST_RETRY_AFTER:
                self._stop(f"{error}; it asks to wait {error.retry_after:,.0f} s: run again after that")
            wait = error.retry_after + self._jitter.random()
            # The limit is on all of us: nobody asks before.
            self._not_before = max(self._not_before, self._clock() + error.retry_after)
        until = self._clock() + wait
        while (left := until - self._clock()) > 1e-6:
            self._check()
            await self._sleep(min(left, 1.0))  # in pieces, so that a stop is noticed

    # --- stopping ---

    def _check(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    def _stop(self, reason: str) -> None:
        """Send nothing more; requests under way end and are kept."""
        if self._stopped is None:
            self._stopped = Stopped(f"{reason}; what was answered is kept in {self.log.path}")
        raise self._stopped

    def _failed(self, reason: str) -> None:
        self._recent.append(True)
        failures = sum(self._recent)
        if len(self._recent) >= ENOUGH and failures > TOO_MANY * len(self._recent):
            self._stop(f"{failures} of the last {len(self._recent)} requests failed (last: {reason}); run again later")

    async def _blame(self, error: Busy) -> None:
        """Return where the request itself seems at fault, since the server answers a simple one; else stop."""
        if error.limited:
            self._stop(f"{error}; lower concurrency or tokens_per_minute, and run again")
        try:
            alive = await self.chat.ask(PROBE)
        except (Busy, Broken):
            self._stop(f"{error}; check the server, or allow it more time, and run again")
        else:
            tokens = alive.input_tokens, alive.output_tokens
            self._record(Call(alive.finish, alive.text, *tokens, 1, alive.model, self._now()))

    def _now(self) -> str:
        return datetime.now(timezone.utc).isoformat(timespec="seconds")


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
