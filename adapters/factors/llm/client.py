"""A language model behind an OpenAI-compatible server, asked within limits; every answer is logged before it is read.

The ``openai`` package retries and backs off. Here is what it leaves to its callers: room for thoughts and answer, what
a server does not take, and which errors end a run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, NoReturn, TypeVar, get_args
from urllib.parse import urlsplit

from recplug.adapters.factors.llm.limits import Limits
from recplug.adapters.factors.llm.log import AnswerLog, Call, Entry
from recplug.adapters.factors.llm.messages import Answer, Request, Stopped, Unanswered, digest, read_completion
from recplug.plugins.errors import RecplugError, did_you_mean

Mode = Literal["auto", "strict", "json_object", "prompt"]
WEAKER: dict[Mode, Mode] = {"strict": "json_object", "json_object": "prompt"}
OPENAI, OPENAI_KEY = "https://api.openai.com/v1", "OPENAI_API_KEY"
SECRET = 12  # characters; a shorter key ("none", "EMPTY") hides nothing, and may well stand in an answer
RETRIES = 12  # of the openai package: over a minute of back-off, or as long as the server asks to wait
THOUGHTS = 4_000  # tokens that an answer may take beyond what it says, to begin with
_TOO_LONG = re.compile(r"context|too large|too long|at most|max(?:imum)?[ _](?:completion_)?tokens")
T = TypeVar("T")
log = logging.getLogger(__name__)


class Client:
    """Asks one model. Use it as ``async with``.

    Only ``base_url`` is contacted: redirects are not followed. The key comes from the environment and appears in no
    error, log or file.

    Args:
        model: ``openai:MODEL``.
        log: where calls and answers are kept; its tokens count towards the budget.
        base_url: usually ends in ``/v1``; default is OpenAI's.
        key_env: the environment variable that holds the key; default ``OPENAI_API_KEY`` for OpenAI, and none for other
            servers, which are not to see OpenAI's key.
        timeout: seconds for one answer, retries included.
        mode: how an answer's form is asked for: ``strict`` by a JSON schema, ``json_object``, ``prompt`` by words
            alone; ``auto`` takes the first of these that the server accepts. Answers are checked here in any case.
        temperature, reasoning_effort: as the server knows them; one that refuses a temperature uses its own.
        max_answer_tokens: the most that one answer may take, thoughts included.
        concurrency: requests under way at once, for callers that use :func:`~.limits.for_each`.
        max_tokens_total: budget of input and output tokens over all runs with this log.

    Attributes:
        used: the log's entries that :meth:`read` went by.

    Raises:
        RecplugError: without the package, the key or a sound address, or for limits below one.
    """

    def __init__(
        self,
        model: str,
        log: AnswerLog,
        *,
        base_url: str | None = None,
        key_env: str | None = None,
        timeout: float = 600.0,
        mode: Mode = "auto",
        temperature: float = 0.0,
        reasoning_effort: str | None = None,
        max_answer_tokens: int = 32_000,
        concurrency: int = 8,
        max_tokens_total: int | None = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise RecplugError(f"mode {mode!r} is unknown; choose one of {', '.join(get_args(Mode))}")
        least = {
            "concurrency": concurrency,
            "max_answer_tokens": max_answer_tokens,
            "max_tokens_total": max_tokens_total,
        }
        for name, value in least.items():
            if value is not None and value < 1:
                raise RecplugError(f"{name}={value} is too little; give 1 or more")
        if timeout <= 0:
            raise RecplugError(f"timeout={timeout:g} is no time; give seconds")
        self.name, self.log, self.timeout, self.concurrency = _name(model), log, timeout, concurrency
        self.sampling = f"temperature={temperature:g}" + (f", effort={reasoning_effort}" if reasoning_effort else "")
        self.used: list[Entry] = []
        self.limits, self._most = Limits(log, max_tokens_total), max_answer_tokens
        self._mode: Mode = "strict" if mode == "auto" else mode
        self._fixed, self._thoughts, self._scale = mode != "auto", THOUGHTS, 1.0
        self._extra: dict[str, Any] = {"temperature": temperature}
        self._extra |= {"reasoning_effort": reasoning_effort} if reasoning_effort else {}
        self._connect(base_url or OPENAI, key_env)

    def _connect(self, address: str, key_env: str | None) -> None:
        try:
            import openai
        except ImportError:
            raise RecplugError('language models need the openai package; pip install "recplug[llm]"') from None
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise RecplugError("base_url must look like http://localhost:8000/v1, without a key or a query in it")
        self.place, theirs = parts.netloc, parts.hostname == "api.openai.com"
        key_env = key_env or (OPENAI_KEY if theirs else None)
        self._key = os.environ.get(key_env, "") if key_env else ""
        if not self._key and theirs:
            raise RecplugError(f"{self.place} needs a key; put it into the environment variable {key_env}")
        if not self._key:
            log.info("%s is asked without a key (%s)", self.place, f"{key_env} is not set" if key_env else "no key_env")
        # OpenAI's newer models refuse the old name; some other servers know only that one.
        self._length = "max_completion_tokens" if theirs else "max_tokens"
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=address,
            max_retries=RETRIES,
            timeout=None,  # a whole answer is waited for, not its next byte
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        if not theirs:
            # The package reads these from the environment, and would tell any server.
            self._client.organization = self._client.project = None

    def __repr__(self) -> str:
        return f"Client({self.name!r}, place={self.place!r}, mode={self._mode!r}, {self.sampling})"

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> Answer:
        """One answer. Where thoughts took all the room, this and later requests get twice as much.

        Raises:
            Unanswered: there was none that could be used, and the server answers other requests.
            Stopped: the budget is spent, the server is down or rejects us, or too many requests fail.
        """
        while True:
            limit = min(self._most, request.answer_tokens + self._thoughts)
            asked = round(request.tokens * self._scale)
            granted = await self.limits.reserve(asked, request.answer_tokens, limit)
            try:
                answer = await self._send(request, granted)
            finally:
                await self.limits.release(asked + granted)
            self._scale = max(self._scale, answer.input_tokens / request.tokens)
            if answer.text or answer.refusal or answer.finish != "length":
                return answer
            if granted < limit:
                self.limits.spent()
            self._thoughts = max(self._thoughts, 2 * limit)
            if limit >= self._most:
                told = f"thoughts took all of {limit:,} tokens; raise max_answer_tokens, or lower reasoning_effort"
                self.limits.failed(told, answered=True)
                raise Unanswered(told)

    async def read(self, make: Callable[[Sequence[str]], Request], read: Callable[[str], T]) -> T | None:
        """What ``read`` makes of a question's answer, which is kept in the log.

        Args:
            make: the request, given what was wrong with an earlier answer to it.
            read: raises :class:`RecplugError` for an answer that cannot be used.

        Returns:
            None, with a warning, where two answers in a row cannot be used, or there is none.

        Raises:
            Stopped: as :meth:`ask`.
        """
        problems: list[str] = []
        for _ in range(2):
            request = make(problems)
            key = digest("read", self.name, self.sampling, request.schema_name, request.messages, request.schema)
            entry = self.log.get(key)
            try:
                if entry is None:
                    answer = await self.ask(request)
                    status = "refused" if answer.refusal else answer.finish
                    entry = self.entry(answer.refusal or answer.text, status, answer.model)
                    self.log.put({key: entry})
                self.used.append(entry)
                if entry.status == "refused":
                    raise Unanswered(f"the model refused: {entry.text[:200]}")
                return read(entry.text)
            except Unanswered as error:
                log.warning("%s: no answer (%s)", request.schema_name, error)
                return None
            except Stopped:
                raise
            except RecplugError as error:
                problems = [str(error), *(["it was cut off; be shorter"] if entry and entry.status == "length" else [])]
        log.warning("%s: two answers could not be used (%s)", request.schema_name, problems[0])
        return None

    def entry(self, text: str, status: str, model: str) -> Entry:
        """A log entry for something that the model said today."""
        own = "" if "temperature" in self._extra else ", the server's own temperature"
        return Entry(text, status, model, self.place, self._mode + own, _now()[:10])

    # --- one request ---

    async def _send(self, request: Request, limit: int) -> Answer:
        mode, garbled = self._mode, False
        while True:
            error: Any
            try:
                response = await asyncio.wait_for(self._post(request, limit, mode), self.timeout)
                answer = read_completion(self._hide(response.http_response.text), request, self.name)
            except (self._openai.APIError, asyncio.TimeoutError, Unanswered) as caught:
                error = caught  # met below: what is raised in here would carry the server's words along
            else:
                self._mode = mode
                tokens = answer.input_tokens, answer.output_tokens
                attempts = response.retries_taken + 1
                self.limits.record(Call(answer.finish, answer.text, *tokens, attempts, answer.model, _now()))
                return answer
            if isinstance(error, self._openai.APIStatusError):
                change = self._change(error, request, limit, mode)
                if change is None:
                    await self._refused(error)
                limit, mode = change or (limit, mode)
            elif isinstance(error, asyncio.TimeoutError):
                self._lost(f"{self.place} did not answer within {self.timeout:g} s; raise timeout, or lower batch")
            elif isinstance(error, self._openai.APIError):
                await self._down(f"{self.place}: the connection failed ({type(error.__cause__).__name__})")
            elif garbled:
                self._lost(str(error))
            else:
                garbled = True

    def _post(self, request: Request, limit: int, mode: Mode) -> Any:
        body: dict[str, Any] = {"messages": list(request.messages), self._length: limit, **self._extra}
        if request.schema is not None and mode == "strict":
            form = {"name": request.schema_name, "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif request.schema is not None and mode == "json_object":
            body["response_format"] = {"type": "json_object"}
        # The body is read by us: the package turns HTML into a string and lets a cut JSON raise from deep inside.
        return self._client.chat.completions.with_raw_response.create(model=self.name, **body)

    def _change(self, error: Any, request: Request, limit: int, mode: Mode) -> tuple[int, Mode] | None:
        """Limit and mode to try instead, after a server refused part of the request; None where there is nothing."""
        if error.status_code not in (400, 422):
            return None
        told = f"{error.param or ''} {_words(error)}".lower()
        if "temperature" in told and self._extra.pop("temperature", None) is not None:
            return limit, mode
        if "max_completion_tokens" in told and "instead" in told and self._length == "max_tokens":
            self._length = "max_completion_tokens"
            return limit, mode
        if _TOO_LONG.search(told) and limit > request.answer_tokens:
            self._most = max(request.answer_tokens, limit // 2)
            return self._most, mode
        if self._fixed or mode == "prompt" or request.schema is None or "reasoning_effort" in told:
            return None
        return limit, WEAKER[mode]

    async def _refused(self, error: Any) -> NoReturn:
        """What an HTTP status other than 200 means, after all retries."""
        status, stop = error.status_code, self.limits.stop
        line = f"{self.place} answers {status}: {self._hide(_words(error))}"
        if status == 429:
            wait = error.response.headers.get("retry-after")
            line += f" (wait {wait} s)" if wait else ""
            lacks_credit = error.code == "insufficient_quota"
            stop(f"{line}; {'the account has no credit left' if lacks_credit else 'lower concurrency, and run again'}")
        if status in (401, 403):
            stop(f"{line}; check the key")
        if status == 404:
            stop(f"{line}; check the model's name, and that base_url ends in /v1")
        if status < 400:
            stop(f"{line}; it sends elsewhere, which is not followed: set base_url to the right address")
        if status >= 500 or status in (408, 409, 425):
            await self._down(line)
        self._lost(line)

    async def _down(self, line: str) -> NoReturn:
        """The request itself is at fault where the server still answers a simple one."""
        status = 200
        try:
            await self._client.with_options(max_retries=0, timeout=10.0).models.list()
        except self._openai.APIError as error:
            status = getattr(error, "status_code", 500)
        if status >= 500:
            self.limits.stop(f"{line}; check the server, and run again")
        self._lost(line)

    def _lost(self, line: str) -> NoReturn:
        self.limits.record(Call("unanswered", line, 0, 0, 1, self.name, _now()))
        self.limits.failed(line)
        raise Unanswered(line)

    def _hide(self, text: str) -> str:
        """A server's words without our key, which some servers repeat."""
        return text.replace(self._key, "***") if len(self._key) >= SECRET else text


def _name(spec: str) -> str:
    kind, _, model = spec.partition(":")
    if kind != "openai" or not model:
        hint = did_you_mean(kind, ("openai",)) or "; a model on this machine runs behind a server, with base_url"
        raise RecplugError(f"{spec!r} names no model; write openai:MODEL{hint}")
    return model


def _words(error: Any) -> str:
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("error") or body
    return " ".join(str(body or error.message).split())[:200]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
