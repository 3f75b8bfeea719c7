"""What is sent to a language model and what comes back, in the chat-completions form."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recplug.plugins.errors import RecplugError

_DECLINED = re.compile(
    r"\W*(?:i.?m (?:sorry|unable|not able)|sorry|i (?:can.?t|cannot|won.?t|must decline|am (?:sorry|unable|not able))"
    r"|unfortunately|as an ai)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        messages: in the chat-completions form, images as base64 data URLs.
        schema: the JSON schema of the answer; None asks for free text.
        schema_name: letters, digits and ``_``.
        answer_tokens: enough for the answer itself, without the thoughts ahead of it.
    """

    messages: tuple[dict[str, Any], ...]
    schema: dict[str, Any] | None
    schema_name: str
    answer_tokens: int

    @property
    def tokens(self) -> int:
        """An estimate of what is read, without a tokenizer: four bytes a token, and 1,000 for an image."""
        total = 0
        for message in self.messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            total += sum(1000 if part["type"] == "image_url" else len(part["text"].encode()) // 4 + 1 for part in parts)
        return total


@dataclass(frozen=True)
class Answer:
    """What came back, not yet checked against anything.

    Attributes:
        text: what was said, without thoughts.
        finish: ``"stop"``, ``"length"`` (cut off), ``"content_filter"``, ...
        refusal: the model's words where it declined.
        input_tokens, output_tokens: the server's count, thoughts included; an estimate where it gives none.
        model: the version that the server reports.
    """

    text: str
    finish: str
    refusal: str | None
    input_tokens: int
    output_tokens: int
    model: str


class Stopped(RecplugError):
    """The run ends here; what was answered is kept, and the same command goes on from there."""


class Unanswered(RecplugError):
    """This request got no answer that could be used; others may."""


def read_completion(body: str, request: Request, model: str) -> Answer:
    """The answer in a body of status 200, whatever is in it.

    Raises:
        Unanswered: where that is no chat completion, or an empty one.
    """
    try:
        data = json.loads(body)
        choice = data["choices"][0]
        message, finish = choice["message"], str(choice.get("finish_reason") or "stop")
        text, refusal = _text(message, finish), message.get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        start = " ".join(body[:80].split())
        raise Unanswered(f"the server answers 200 without a chat completion, but {start!r}; check base_url") from None
    if not text and not refusal and finish not in ("length", "content_filter"):
        raise Unanswered(f"the server sent an empty answer (finish reason {finish!r})")
    if not refusal and "{" not in text and _DECLINED.match(text):
        refusal, text = text, ""
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    read, written, both = (_count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion", "total"))
    return Answer(
        text=text,
        finish=finish,
        refusal=str(refusal) if refusal else None,
        input_tokens=read or request.tokens,
        output_tokens=max(written, both - read) or len(text.encode()) // 4,  # some count thoughts in the total alone
        model=str(data.get("model") or model),
    )


def digest(*parts: Any) -> str:
    """The SHA-256 of what can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _text(message: Mapping[str, Any], finish: str) -> str:
    """The answer without thoughts: some servers leave these in the text, and some put the whole answer among them."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content)
    content = (content or "").lstrip()
    _, end, after = content.rpartition("</think>")
    spoken = after if end else "" if content.startswith("<think>") else content
    if not spoken.strip() and finish == "stop":
        spoken = str(message.get("reasoning_content") or message.get("reasoning") or "")
    return spoken.strip()


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
