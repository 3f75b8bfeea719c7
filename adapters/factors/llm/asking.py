"""Questions of the schema's making: each answered once, read, and asked once more where it could not be read."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from recplug.adapters.factors.llm.chat import Broken, Request
from recplug.adapters.factors.llm.sending import Sender
from recplug.plugins.errors import RecplugError

T = TypeVar("T")
log = logging.getLogger(__name__)


class Asker:
    """Asks a sender and remembers who answered.

    Args:
        sender: how to ask, and the log that keeps every answer.

    Attributes:
        models, places, modes, days: of all answers, as the log has them: the same in a run that asks nothing anew.
    """

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.models: set[str] = set()
        self.places: set[str] = set()
        self.modes: set[str] = set()
        self.days: set[str] = set()

    async def ask(self, make: Callable[[Sequence[str]], Request], read: Callable[[str], T]) -> T | None:
        """What ``read`` makes of the answer.

        Args:
            make: the request, given what was wrong with an earlier answer to it.
            read: raises :class:`RecplugError` for an answer that cannot be used.

        Returns:
            None where two answers in a row cannot be used, or there is none.

        Raises:
            Stopped, Rejected: as :meth:`Sender.ask`.
        """
        problems: list[str] = []
        # The probe may find that the server takes no temperature, which is a part of the key.
        await self.sender.settle()
        for _ in range(2):
            request = make(problems)
            key = self._key(request)
            known = self.sender.log.get(key) is not None
            try:
                answer = await self.sender.once(key, request)
            except Broken as error:
                log.warning("%s: no answer (%s)", request.schema_name, error)
                return None
            self._note(key)
            if answer.refusal is not None:
                log.warning("%s: the model refused (%s)", request.schema_name, answer.refusal[:200])
                return None
            try:
                return read(answer.text)
            except RecplugError as error:
                problems = [str(error), *(["it was cut off; be shorter"] if answer.finish == "length" else [])]
                if not known:
                    self.sender.useless(f"the model's answer cannot be used: {error}")
        log.warning("%s: two answers could not be used (%s)", request.schema_name, problems[0])
        return None

    def provenance(self) -> dict[str, str]:
        """Who answered, and when."""
        days = sorted(self.days)
        return {
            "model": self.sender.chat.name,
            "model_reported": ", ".join(sorted(self.models)) or "unknown",
            "server": ", ".join(sorted(self.places)) or "unknown",
            "mode": ", ".join(sorted(self.modes)) or "unknown",
            "sampling": self.sender.chat.sampling,
            "created": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "unknown",
        }

    def _key(self, request: Request) -> str:
        chat = self.sender.chat
        parts = ["induce", chat.name, chat.sampling, request.schema_name, request.messages, request.schema]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _note(self, key: str) -> None:
        entry = self.sender.log.get(key)
        if entry is not None:
            self.models.add(entry.model)
            self.places.add(entry.place)
            self.modes.add(entry.mode)
            self.days.add(entry.day)
