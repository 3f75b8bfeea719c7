"""Senders on the loopback server of ``tests/adapters/conftest.py``, without sleep and without a way out."""

import asyncio
import socket

import pytest

from recplug.adapters.factors.llm.log import AnswerLog
from recplug.adapters.factors.llm.sending import Sender
from recplug.adapters.factors.llm.server import OpenAIChat


class Clock:
    """A clock that only sleeping moves, and that notes how long each sleep was."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch):
    """Fails whatever connects elsewhere."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert address[0] in ("127.0.0.1", "::1"), f"a test connects to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_sender(chat_server, clock, tmp_path):
    """``async with open_sender(**options) as sender``: on the loopback server, with a log and without real sleep."""
    logs = []

    def make(*, mode="strict", timeout=10.0, log="answers.sqlite", concurrency=1, **options):
        chat = OpenAIChat("oracle-1", base_url=chat_server.url, timeout=timeout, mode=mode, key_env="OPENAI_API_KEY")
        logs.append(AnswerLog(tmp_path / log))
        return Sender(chat, logs[-1], concurrency=concurrency, sleep=clock.sleep, clock=clock, **options)

    yield make
    for log in logs:
        log.close()
