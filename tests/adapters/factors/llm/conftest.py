"""Clients of the loopback server of ``tests/adapters/conftest.py``, without sleep and without a way out."""

import socket

import openai
import pytest

from recplug.adapters.factors.llm.client import Client
from recplug.adapters.factors.llm.log import AnswerLog


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch):
    """Fails whatever connects elsewhere."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert address[0] in ("127.0.0.1", "::1"), f"a test connects to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that the openai package would have waited before each retry."""
    waited = []
    right = openai.AsyncOpenAI._calculate_retry_timeout

    def counted(self, *arguments, **options):
        waited.append(right(self, *arguments, **options))
        return 0

    monkeypatch.setattr(openai.AsyncOpenAI, "_calculate_retry_timeout", counted)
    return waited


@pytest.fixture
def open_client(chat_server, tmp_path):
    """``async with open_client(**options) as client``: of the loopback server, with a log."""
    logs = []

    def make(*, log="answers.sqlite", **options):
        logs.append(AnswerLog(tmp_path / log))
        usual = {"base_url": chat_server.url, "key_env": "OPENAI_API_KEY", "concurrency": 1, "timeout": 30}
        return Client("openai:oracle-1", logs[-1], **(usual | options))

    yield make
    for log in logs:
        log.__exit__()
