"""One question to a language model and its answer: what every model speaks here.

Retries, budgets and the log are :mod:`recplug.adapters.factors.llm.sending`'s; a chat asks once and says what happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from recplug.plugins.errors import RecplugError, did_you_mean

Mode = Literal["auto", "strict", "json_object", "prompt"]


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        messages: in the chat-completions form, images as base64 data URLs.
        schema: the JSON schema of the answer; None asks for free text.
        schema_name: letters, digits and ``_``.
        max_tokens: the longest answer wanted.
    """

    messages: tuple[dict[str, Any], ...]
    schema: dict[str, Any] | None
    schema_name: str
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """What came back, not yet checked against anything.

    Attributes:
        text: possibly empty, where the model refused or ran out of room.
        finish: ``"stop"``, ``"length"`` (cut off at ``max_tokens``), ``"content_filter"``, ...
        refusal: the model's words where it declined.
        input_tokens, output_tokens: the server's count, or :func:`tokens_in` where it gives none.
        model: the version that the server reports.
    """

    text: str
    finish: str
    refusal: str | None
    input_tokens: int
    output_tokens: int
    model: str


class Chat(Protocol):
    """A model to ask.

    One that runs in this process may also have ``score(prompt, options) -> list[float]``, the log-likelihood of each
    option; items are then labelled by the best option instead of by text.

    Attributes:
        name: the model as it was asked for.
        place: host and port of its server, or ``"this machine"``.
        mode: how an answer's form is asked for; ``"auto"`` until the probe has chosen.
        sampling: sampling parameters in words, such as ``"temperature=0"``.
    """

    name: str
    place: str
    mode: Mode

    @property
    def sampling(self) -> str:
        """See above."""
        ...

    async def ask(self, request: Request) -> Answer:
        """One attempt. Raises :class:`Busy`, :class:`Rejected` or :class:`Broken`, never anything else."""
        ...

    async def close(self) -> None:
        """Let go of connections or memory."""
        ...


class Busy(RecplugError):
    """No answer this time; the same request may well be answered later.

    Attributes:
        retry_after: seconds the server asked to wait, or None.
        limited: the server is well, and limits how fast we ask (429).
    """

    def __init__(self, message: str, *, retry_after: float | None = None, limited: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.limited = limited


class Rejected(RecplugError):
    """The server will not answer whatever we send: wrong key, model or address."""


class Broken(RecplugError):
    """The server answered, with nothing that could be used.

    Attributes:
        parameter: the request's parameter that the server complains of, where it names one.
    """

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


def tokens_in(messages: tuple[dict[str, Any], ...]) -> int:
    """An estimate of a request's tokens without a tokenizer: three bytes each, and 1,000 for an image."""
    total = 0
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            total += 1000 if part["type"] == "image_url" else len(part["text"].encode()) // 3 + 1
    return total


def open_chat(
    spec: str,
    *,
    base_url: str | None = None,
    key_env: str | None = None,
    timeout: float = 60.0,
    mode: Mode = "auto",
    revision: str | None = None,
    device: str | None = None,
) -> Chat:
    """The model that ``spec`` names.

    Args:
        spec: ``openai:MODEL``, on any server that speaks OpenAI's protocol, or ``transformers:FOLDER_OR_ID``, here.
        base_url, key_env, timeout, mode: for servers, see :class:`~recplug.adapters.factors.llm.server.OpenAIChat`.
        revision, device: for ``transformers``.

    Raises:
        RecplugError: for another spec, or where what it needs is missing.
    """
    kind, _, model = spec.partition(":")
    if kind not in ("openai", "transformers") or not model:
        hint = did_you_mean(kind, ("openai", "transformers"))
        raise RecplugError(f"{spec!r} names no model; write openai:MODEL or transformers:FOLDER_OR_ID{hint}")
    if kind == "openai":
        from recplug.adapters.factors.llm.server import OpenAIChat

        return OpenAIChat(model, base_url=base_url, key_env=key_env, timeout=timeout, mode=mode)
    if base_url is not None:
        raise RecplugError("base_url belongs to openai:MODEL; a transformers model runs on this machine")
    from recplug.adapters.factors.llm.local import LocalChat

    return LocalChat(model, revision=revision, device=device)
