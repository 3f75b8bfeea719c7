import asyncio
import hashlib
import sys
import types

import pytest

from recplug.adapters.factors.llm import estimate as module
from recplug.adapters.factors.llm.assign import assign
from recplug.adapters.factors.llm.chat import Request, tokens_in
from recplug.adapters.factors.llm.content import Item, read_items
from recplug.adapters.factors.llm.estimate import Estimate, Part, estimate_assignment, estimate_induction
from recplug.adapters.factors.llm.induce import Sizes


def served(chat_server):
    """What the server counts by the estimate's own rule: tokens of requests and of answers, and how many."""
    asked = [tokens_in(tuple(seen.body["messages"])) for seen in chat_server.seen]
    answers = [chat_server.answer(seen) for seen in chat_server.seen]
    said = [tokens_in(({"content": text},)) for text in answers]
    return asked, said


@pytest.fixture
def real():
    """Real items: their texts are as long as they are."""
    return read_items("amazon-scientific", None)


@pytest.mark.parametrize("batch", [1, 7, 10])
def test_the_estimate_is_near_what_a_server_counts(chat_server, open_sender, schema, real, batch):
    items = [*real[: 60 * batch + 3], Item("empty"), Item("again", real[0].text)]
    expected = estimate_assignment(schema, items, batch=batch)

    async def work():
        async with open_sender(concurrency=4) as sender:
            await assign(schema, items, sender, batch=batch)

    asyncio.run(work())
    asked, said = served(chat_server)
    assert expected.calls == len(chat_server.seen)
    assert expected.input_tokens == pytest.approx(sum(asked), rel=0.1)
    assert expected.input_tokens + expected.output_tokens == pytest.approx(sum(asked) + sum(said), rel=0.1)
    # Which values will be answered nobody knows before.
    assert expected.output_tokens == pytest.approx(sum(said), rel=0.3)
    least, mean, most = expected.parts[0].input_tokens
    assert least <= mean <= most <= max(asked) * 1.1


def test_a_catalogue_smaller_than_a_request(schema):
    expected = estimate_assignment(schema, [Item("a", {"title": "chair"})], batch=10)
    assert expected.calls == 1
    assert estimate_assignment(schema, [Item("a")]).calls == 0


def test_nothing_connects_anywhere(schema, real, monkeypatch):
    monkeypatch.setattr("socket.socket", None)
    assert estimate_assignment(schema, real[:50]).calls == 5
    assert estimate_induction(real).calls > 50


def test_induction_counts_its_steps(real):
    found = estimate_induction(real, factors=4, sizes=Sizes(sample=100, extract=200, trial=50, batch=10))
    assert {part.name: part.calls for part in found.parts} == {
        "factors": 10, "same factors": 1, "reading": 20, "values": 4 + 2, "trial": 10 * 2
    }  # fmt: skip
    assert all(part.input_tokens[0] > 50 for part in found.parts)
    assert len(found.lines()) == 7


def test_cost_and_time_are_arithmetic():
    whole = Estimate((Part("a", 10, (1, 100, 200), (1, 20, 30)), Part("b", 2, (5, 5, 5), (0, 0, 0))), "rule")
    assert (whole.calls, whole.input_tokens, whole.output_tokens) == (12, 1010, 200)
    assert whole.cost(2.5, 10.0) == pytest.approx((1010 * 2.5 + 200 * 10) / 1e6)
    assert whole.seconds(rate_in=101, rate_out=50) == 14
    assert whole.minutes(605) == 2


def test_weighing_is_a_question_for_each_factor_of_each_item(schema, real):
    found = estimate_assignment(schema, real[:30], scored=True)
    assert found.calls == 90
    assert found.output_tokens == 0
    assert found.input_tokens > 90 * 100


def test_tiktoken_counts_where_it_has_its_vocabulary_and_is_not_made_to_fetch_it(schema, real, tmp_path, monkeypatch):
    fake = types.ModuleType("tiktoken")
    encoding = types.SimpleNamespace(encode=lambda text, disallowed_special: text.split())
    fake.get_encoding = lambda name: encoding
    monkeypatch.setitem(sys.modules, "tiktoken", fake)
    by_bytes = estimate_assignment(schema, real[:40])
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert estimate_assignment(schema, real[:40]) == by_bytes
    (tmp_path / hashlib.sha1(module._VOCABULARY.encode()).hexdigest()).touch()
    counted = estimate_assignment(schema, real[:40])
    assert "tiktoken" in counted.rule
    assert counted.input_tokens < by_bytes.input_tokens
    request = Request(
        ({"content": "one two three"}, {"content": [{"text": "four"}, {"type": "image_url"}]}), None, "x", 1
    )
    assert module._counter()[0](request) == 3 + 4 + 1 + 1000 + 4
