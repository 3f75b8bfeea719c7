"""Models behind an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from typing import Any, get_args
from urllib.parse import urlsplit

from recplug.adapters.factors.llm.chat import Answer, Broken, Busy, Mode, Rejected, Request, tokens_in
from recplug.plugins.errors import RecplugError

log = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
SECRET = 12  # characters; what is shorter ("none", "EMPTY") hides nothing, and may well stand in an answer
OPENAI_KEY = "OPENAI_API_KEY"


class OpenAIChat:
    """A model behind ``/chat/completions``, asked through the ``openai`` package; its retries are off, ours count.

    Only ``base_url`` is contacted: redirects are not followed. The key comes from the environment and appears in no
    error, log or file.

    Args:
        model: the server's name for it.
        base_url: usually ends in ``/v1``; default is OpenAI's.
        key_env: the environment variable that holds the key; default ``OPENAI_API_KEY`` for OpenAI, and none for other
            servers, which are not to see OpenAI's key. Those are asked without one where it is not set.
        timeout: seconds for one attempt, from sending to the last byte.
        mode: ``strict`` asks for a JSON schema, ``json_object`` for JSON, ``prompt`` for nothing; ``auto`` leaves the
            choice to :mod:`recplug.adapters.factors.llm.probe`.

    Raises:
        RecplugError: without the package, the key or a sound address.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_env: str | None = None,
        timeout: float = 60.0,
        mode: Mode = "auto",
    ) -> None:
        if mode not in get_args(Mode):
            raise RecplugError(f"mode {mode!r} is unknown; choose one of {', '.join(get_args(Mode))}")
        try:
            import openai
        except ImportError:
            raise RecplugError('models behind a server need the openai package; pip install "recplug[llm]"') from None
        address = base_url or OPENAI
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise RecplugError("base_url must look like http://localhost:8000/v1, without a key or a query in it")
        self.name, self.mode, self.timeout = model, mode, timeout
        self.place = parts.netloc
        self.temperature: float | None = 0.0
        key_env = key_env or (OPENAI_KEY if parts.hostname == "api.openai.com" else None)
        self._key = os.environ.get(key_env, "") if key_env else ""
        if not self._key and parts.hostname == "api.openai.com":
            raise RecplugError(f"{self.place} needs a key; put it into the environment variable {key_env}")
        if not self._key:
            why = f"{key_env} is not set" if key_env else "no --key_env"
            log.info("%s: %s is asked without a key", why, self.place)
        # OpenAI's newer models refuse the old name; most other servers know only that one.
        self._length = "max_completion_tokens" if parts.hostname == "api.openai.com" else "max_tokens"
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=address,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        if parts.hostname != "api.openai.com":
            # The package reads these from the environment, and would tell any server.
            self._client.organization = self._client.project = None

    def __repr__(self) -> str:
        return f"OpenAIChat({self.name!r}, place={self.place!r}, mode={self.mode!r}, {self.sampling})"

    @property
    def sampling(self) -> str:
        """The temperature that is asked for."""
        return "temperature=default" if self.temperature is None else f"temperature={self.temperature:g}"

    async def ask(self, request: Request) -> Answer:
        """One attempt; see :class:`Chat`."""
        body: dict[str, Any] = {"messages": list(request.messages), self._length: request.max_tokens}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if request.schema is not None and self.mode == "strict":
            form = {"name": request.schema_name, "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif request.schema is not None and self.mode == "json_object":
            body["response_format"] = {"type": "json_object"}
        # The body is read by us: the package turns HTML into a string and lets a cut JSON raise from deep inside.
        call = self._client.chat.completions.with_raw_response.create(model=self.name, **body)
        try:
            response = await asyncio.wait_for(call, self.timeout)
        except (asyncio.TimeoutError, self._openai.APITimeoutError):
            raise Busy(f"{self.place} did not answer within {self.timeout:g} s") from None
        except self._openai.APIStatusError as error:
            raise self._refused(error) from None
        except self._openai.APIConnectionError as error:
            raise Busy(f"{self.place}: the connection failed ({type(error.__cause__).__name__})") from None
        return self._answer(response.http_response.text, request)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _refused(self, error: Any) -> RecplugError:
        """What an HTTP status other than 200 means."""
        status, words = error.status_code, self._quote(_words(error))
        line = f"{self.place} answers {status}: {words}"
        if status == 429 and error.code == "insufficient_quota":
            return Rejected(f"{line}; the account has no credit left")
        if status in (408, 409, 425, 429) or status >= 500:
            return Busy(line, retry_after=_seconds(error.response.headers), limited=status == 429)
        if status in (401, 403):
            return Rejected(f"{line}; check the key")
        if status == 404:
            return Rejected(f"{line}; check the model's name, and that base_url ends in /v1")
        if status < 400:
            return Rejected(f"{line}; it sends elsewhere, which is not followed: set base_url to the right address")
        return Broken(line, parameter=error.param if isinstance(error.param, str) else None)

    def _answer(self, body: str, request: Request) -> Answer:
        """Read a body of status 200, whatever is in it."""
        try:
            data = json.loads(body)
            choice = data["choices"][0]
            message = choice["message"]
            text = _text(message)
            refusal, finish = message.get("refusal"), str(choice.get("finish_reason") or "stop")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            start = self._quote(body[:80])
            raise Broken(f"{self.place} answers 200 without a chat completion, but {start!r}; check base_url") from None
        if not text and not refusal and finish not in ("length", "content_filter"):
            raise Broken(f"{self.place} sent an empty answer (finish reason {finish!r})")
        usage = data.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Answer(
            text=self._quote(text, keep=True),
            finish=finish,
            refusal=str(refusal) if refusal else None,
            input_tokens=_count(usage.get("prompt_tokens")) or tokens_in(request.messages),
            output_tokens=_count(usage.get("completion_tokens")) or len(text.encode()) // 3,
            model=str(data.get("model") or self.name),
        )

    def _quote(self, text: str, *, keep: bool = False) -> str:
        """A server's words without our key, which some servers repeat; in one line unless kept as they are."""
        text = text.replace(self._key, "***") if len(self._key) >= SECRET else text
        return text if keep else " ".join(text.split())[:200]


def _text(message: Mapping[str, Any]) -> str:
    """The answer's text, wherever the server put it."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content)
    # Thinking models: some servers leave the thoughts in the text, some put the answer among the thoughts.
    spoken = (content or "").rpartition("</think>")[2].strip()
    return spoken or str(message.get("reasoning_content") or message.get("reasoning") or "").strip()


def _words(error: Any) -> str:
    body = error.body
    if isinstance(body, dict):
        return str(body.get("message") or body.get("error") or body)
    return str(body or error.message)


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds; its other form, a date, needs the server's clock to be ours and is not read."""
    try:
        wait = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return wait if 0 <= wait < float("inf") else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
