"""Which forms of answer a server really enforces: some accept a JSON schema and ignore it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from recplug.adapters.factors.llm.chat import Answer, Broken, Chat, Mode, Request
from recplug.adapters.factors.llm.log import AnswerLog, Entry
from recplug.plugins.errors import RecplugError

# "zelvane" is no word and the second cup is neither red nor zelvane: only a server that holds the model to the schema
# gets an answer out of it that fits.
COLOURS = ("red", "zelvane")
_ROW = {
    "type": "object",
    "properties": {"index": {"type": "integer"}, "colour": {"type": "string", "enum": list(COLOURS)}},
    "required": ["index", "colour"],
    "additionalProperties": False,
}
PROBE = Request(
    messages=(
        {
            "role": "user",
            "content": "Give the colour of each item as JSON, like"
            ' {"items": [{"index": 1, "colour": "..."}, {"index": 2, "colour": "..."}]}.\n'
            "1: a red cup\n2: a blue cup",
        },
    ),
    schema={
        "type": "object",
        "properties": {"items": {"type": "array", "items": _ROW}},
        "required": ["items"],
        "additionalProperties": False,
    },
    schema_name="colours",
    max_tokens=500,
)


async def settle(chat: Chat, log: AnswerLog, send: Callable[[Request], Awaitable[Answer]]) -> None:
    """Set ``chat.mode`` to the strictest that its server enforces; found out once a log.

    A server that refuses our temperature is asked with its own from then on.

    Raises:
        RecplugError: where the server answers in no mode.
    """
    key = f"probe/{chat.place}/{chat.name}"
    known = log.get(key)
    if known is not None:
        found = json.loads(known.text)
        _keep(chat, found["mode"], found["temperature"])
        return
    temperature = getattr(chat, "temperature", None)
    modes: list[Mode] = ["strict", "json_object", "prompt"]
    trouble = ""
    while modes:
        _keep(chat, modes[0], temperature)
        try:
            answer = await send(PROBE)
        except Broken as error:
            trouble = str(error)
            if error.parameter == "temperature" and temperature is not None:
                temperature = None
                continue
        except BaseException:
            _keep(chat, "auto", temperature)
            raise
        else:
            if modes[0] == "prompt" or _kept(answer, strictly=modes[0] == "strict"):
                found = json.dumps({"mode": modes[0], "temperature": temperature})
                log.put({key: Entry(found, "probe", answer.model, chat.place, modes[0], "")})
                return
        del modes[0]
    _keep(chat, "auto", temperature)
    raise RecplugError(f"the model answers no question: {trouble}")


def _keep(chat: Chat, mode: Mode, temperature: float | None) -> None:
    chat.mode = mode
    if hasattr(chat, "temperature"):
        chat.temperature = temperature


def _kept(answer: Answer, *, strictly: bool) -> bool:
    """Whether the probe's answer is bare JSON and, strictly, of the vocabulary."""
    try:
        found: Any = json.loads(answer.text)
        colours = [row["colour"] for row in found["items"]] if strictly else []
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(found, dict) and (not strictly or (len(colours) == 2 and set(colours) <= set(COLOURS)))
