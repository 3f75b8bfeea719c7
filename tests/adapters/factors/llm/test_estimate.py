import asyncio

import pytest

from recplug.adapters.factors.llm.assign import assign
from recplug.adapters.factors.llm.content import Item, read_items
from recplug.adapters.factors.llm.estimate import estimate_assignment, estimate_induction
from recplug.adapters.factors.llm.induce import Sizes
from recplug.adapters.factors.llm.log import AnswerLog, Usage
from recplug.adapters.factors.llm.messages import Request


@pytest.fixture
def real():
    """Real items: their texts are as long as they are."""
    return read_items("amazon-scientific", None)


@pytest.mark.parametrize("batch", [1, 10])
def test_the_estimate_is_near_what_a_server_counts(chat_server, open_client, schema, real, tmp_path, batch):
    items = [*real[: 30 * batch + 3], Item("empty"), Item("again", real[0].text)]
    expected = estimate_assignment(schema, items, batch=batch)

    async def work():
        async with open_client(concurrency=4) as client:
            await assign(schema, items, client, batch=batch)
            client.log.__exit__()

    asyncio.run(work())
    assert expected.calls == len(chat_server.seen)
    asked = [Request(tuple(seen.body["messages"]), None, "", 1).tokens for seen in chat_server.seen]
    assert expected.input_tokens == pytest.approx(sum(asked), rel=0.1)
    said = sum(len(chat_server.answer(seen).encode()) / 4 for seen in chat_server.seen)
    assert expected.output_tokens == pytest.approx(said, rel=0.3)
    # What was measured stands for what comes: 50 tokens an answer, as the server counts.
    with AnswerLog(tmp_path / "answers.sqlite") as log:
        again = estimate_assignment(schema, items, batch=batch, usage=log.usage())
    assert again.output_tokens == 50 * again.calls
    assert f"in the {again.calls} calls so far" in again.lines()[-1]


def test_thoughts_count_once_they_were_measured(schema, real):
    thinking = estimate_assignment(schema, real[:100], usage=Usage(5, 5, 10_000, 5 * 8_060))
    assert thinking.output_tokens == 10 * 8_060
    assert "without thoughts" in estimate_assignment(schema, real[:100], usage=Usage(0, 0, 0, 0)).lines()[-1]


def test_a_catalogue_smaller_than_a_request(schema):
    assert estimate_assignment(schema, [Item("a", {"title": "chair"})], batch=10).calls == 1
    assert estimate_assignment(schema, [Item("a")]).calls == 0


def test_nothing_connects_anywhere(schema, real, monkeypatch):
    monkeypatch.setattr("socket.socket", None)
    assert estimate_assignment(schema, real[:50]).calls == 5
    assert estimate_induction(real).calls == 15 + 1 + 25 + 10


def test_the_cost_is_the_sum_of_both_prices(schema, real):
    found = estimate_assignment(schema, real[:50])
    assert found.cost(2.0, 10.0) == pytest.approx((found.input_tokens * 2 + found.output_tokens * 10) / 1e6)
    assert estimate_induction(real[:40], sizes=Sizes(20, 20, 5), factors=3).calls == 4 + 1 + 4 + 3
