import asyncio
import json

import pytest

from recplug.adapters.factors.llm.chat import Answer, Broken, Busy, Rejected, Request, tokens_in
from recplug.adapters.factors.llm.log import AnswerLog, Entry
from recplug.adapters.factors.llm.sending import Sender, Stopped, for_each
from recplug.plugins.errors import RecplugError

QUESTION = Request(({"role": "user", "content": "x" * 297},), None, "", 100)  # 100 tokens in, at most 100 out


def answer(text="yes", tokens=(100, 20)):
    return Answer(text, "stop", None, *tokens, "m-1")


class Scripted:
    """A chat that does what it is told, one outcome a request; then it answers."""

    name, place, mode, sampling = "m", "here", "prompt", "temperature=0"

    def __init__(self, *outcomes, then=None):
        self.outcomes, self.then = list(outcomes), then or answer()
        self.asked_at, self.clock, self.under_way, self.most, self.closed = [], None, 0, 0, False

    async def ask(self, request):
        self.asked_at.append(self.clock() if self.clock else 0)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        for _ in range(3):
            await asyncio.sleep(0)
        self.under_way -= 1
        outcome = self.outcomes.pop(0) if self.outcomes else self.then
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self):
        self.closed = True


@pytest.fixture
def send(tmp_path, clock):
    """``send(chat, n)``: ask n questions through a new sender; what each got, answers or errors."""

    def run(chat, n=1, *, log="a.sqlite", use=None, **options):
        chat.clock = clock

        async def all_of_them():
            with AnswerLog(tmp_path / log) as kept:
                async with Sender(chat, kept, sleep=clock.sleep, clock=clock, **options) as sender:
                    asked = use or (lambda s: s.ask(QUESTION))
                    got = await asyncio.gather(*(asked(sender) for _ in range(n)), return_exceptions=True)
                    return got, kept.usage()

        return asyncio.run(all_of_them())

    return run


def test_an_answer_is_counted_and_the_chat_closed(send):
    chat = Scripted()
    got, usage = send(chat)
    assert got == [answer()]
    assert (usage.calls, usage.attempts, usage.input_tokens, usage.output_tokens) == (1, 1, 100, 20)
    assert chat.closed


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_the_limit_are_under_way_and_the_limit_is_used(send, limit):
    chat = Scripted()
    got, _ = send(chat, 12, concurrency=limit)
    assert got == [answer()] * 12
    assert chat.most == limit


def test_waits_double_up_to_a_minute_with_jitter(send, clock):
    chat = Scripted(*[Busy("no")] * 9)
    got, usage = send(chat, attempts=10)
    assert got == [answer()]
    assert (usage.calls, usage.attempts) == (1, 10)
    waits = [b - a for a, b in zip(chat.asked_at, chat.asked_at[1:], strict=False)]
    for wait, full in zip(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=True):
        assert full / 2 <= wait <= full
    assert len({wait / full for wait, full in zip(waits[6:], [60] * 3, strict=True)}) == 3


@pytest.mark.parametrize("limited", [True, False])
def test_what_the_server_asks_to_wait_is_waited(send, limited):
    chat = Scripted(Busy("no", retry_after=90, limited=limited))
    got, _ = send(chat)
    assert got == [answer()]
    assert 90 <= chat.asked_at[1] - chat.asked_at[0] <= 91


def test_nobody_asks_before_the_server_wants_it(send):
    chat = Scripted(Busy("no", retry_after=30, limited=True))
    got, usage = send(chat, 6, concurrency=2)
    assert got == [answer()] * 6
    assert usage.attempts == 7
    # Two were under way when the first was turned away.
    assert all(at - chat.asked_at[0] >= 30 for at in chat.asked_at[2:])


def test_a_server_that_asks_for_too_long_a_wait_stops_the_run(send):
    got, _ = send(Scripted(Busy("no", retry_after=3600, limited=True)), 3, concurrency=1)
    assert [type(error) for error in got] == [Stopped] * 3
    assert "3,600 s" in str(got[0])


def test_a_rejection_stops_everything_at_once(send):
    chat = Scripted(Rejected("wrong key"))
    got, usage = send(chat, 5, concurrency=1)
    assert [str(error) for error in got] == ["wrong key"] * 5
    assert len(chat.asked_at) == 1
    assert usage.calls == 0


def test_broken_is_told_and_paid_for_but_not_sent_again(send):
    chat = Scripted(Broken("html"))
    got, usage = send(chat, 2, concurrency=1)
    assert isinstance(got[0], Broken)
    assert got[1] == answer()
    assert (usage.calls, usage.input_tokens, usage.output_tokens) == (2, 200, 20)


def test_a_server_that_is_down_stops_the_run_and_blames_no_request(send):
    got, _ = send(Scripted(then=Busy("no connection")), 2, concurrency=2, attempts=4)
    assert [type(error) for error in got] == [Stopped] * 2
    assert "no connection" in str(got[0])
    assert "a.sqlite" in str(got[0])


def test_a_limit_that_never_ends_stops_the_run_even_where_others_are_answered(send, clock):
    class Unfair(Scripted):
        async def ask(self, request):
            if request.max_tokens == 1:
                raise Busy("429", limited=True)
            return await super().ask(request)

    poor = Request(QUESTION.messages, None, "", 1)
    turns = iter([poor] + [QUESTION] * 8)

    async def paced(sender):
        request = next(turns)
        if request is QUESTION:
            await clock.sleep(0)
        return await sender.ask(request)

    got, _ = send(Unfair(), 9, concurrency=2, attempts=3, use=paced)
    assert isinstance(got[0], Stopped)
    assert "concurrency" in str(got[0])


@pytest.mark.parametrize("others", [0, 30])
def test_one_request_that_is_never_answered_is_broken_where_a_simple_one_is(send, others):
    class Poison(Scripted):
        async def ask(self, request):
            if request.max_tokens == 1:
                raise Busy("500")
            return await super().ask(request)

    poison = Request(QUESTION.messages, None, "", 1)
    turns = iter([poison] + [QUESTION] * others)
    got, usage = send(Poison(), 1 + others, concurrency=2, attempts=3, use=lambda sender: sender.ask(next(turns)))
    assert isinstance(got[0], Broken)
    assert "3 attempts" in str(got[0])
    assert got[1:] == [answer()] * others
    assert (usage.calls, usage.attempts) == (2 + others, 3 + 1 + others)


def test_more_failures_than_a_fifth_open_the_breaker(send):
    # Every fourth request is broken: 12 of the first 49 are, and there is no judgement before 50.
    outcomes = ([answer()] * 3 + [Broken("html")]) * 50
    chat = Scripted(*outcomes)
    got, _ = send(chat, 200, concurrency=1)
    assert len(chat.asked_at) == 52
    assert [type(error) for error in got[52:]] == [Stopped] * 148
    assert "13 of the last 52" in str(got[60])
    assert "html" in str(got[60])


def test_failures_up_to_a_fifth_and_limits_do_not(send):
    got, _ = send(Scripted(*([*[answer()] * 4, Broken("html")] * 60)), 300, concurrency=1)
    assert sum(isinstance(one, Answer) for one in got) == 240
    got, _ = send(Scripted(*([Busy("429", limited=True), answer()] * 60)), 60, log="b.sqlite", concurrency=1)
    assert got == [answer()] * 60


def test_only_the_last_two_hundred_requests_count(send):
    outcomes = [answer()] * 1000 + [Broken("html")] * 60
    chat = Scripted(*outcomes)
    send(chat, 1060, concurrency=1)
    assert len(chat.asked_at) == 1000 + 41


def test_useless_answers_count_as_failures(send):
    async def useless(sender):
        await sender.ask(QUESTION)
        sender.useless("prose")

    got, _ = send(Scripted(), 100, concurrency=1, use=useless)
    assert isinstance(got[-1], Stopped)
    assert "prose" in str(got[-1])


def test_the_bucket_holds_the_rate(send):
    # 200 tokens a request, of which 80 come back: 120 each. 600 at once, then 600 a minute.
    chat = Scripted()
    send(chat, 40, concurrency=4, tokens_per_minute=600)
    start = chat.asked_at[0]
    for number, at in enumerate(chat.asked_at):
        assert 120 * number <= 600 + (at - start) * 10 + 1e-6
    assert chat.asked_at[-1] - start == pytest.approx((40 * 120 + 80 * 1 - 600) / 10, rel=0.1)


def test_a_request_larger_than_the_bucket_still_goes(send):
    chat = Scripted()
    got, _ = send(chat, 3, concurrency=1, tokens_per_minute=50)
    assert got == [answer()] * 3
    assert chat.asked_at[1] - chat.asked_at[0] == pytest.approx(120 / 50 * 60, rel=0.05)


@pytest.mark.parametrize("concurrency", [1, 7])
def test_the_budget_is_never_exceeded_and_nearly_used(send, concurrency):
    chat = Scripted()
    got, usage = send(chat, 50, concurrency=concurrency, max_tokens_total=1000)
    answered = [one for one in got if isinstance(one, Answer)]
    # Each takes 120, and none is sent that might take 200 with less than that left.
    assert len(answered) == 7
    assert usage.tokens == 840 <= 1000
    stopped = next(one for one in got if isinstance(one, Stopped))
    assert "1,000" in str(stopped)
    assert "840" in str(stopped)


def test_the_budget_counts_earlier_runs(send):
    send(Scripted(), 5)
    chat = Scripted()
    _, usage = send(chat, 50, max_tokens_total=1000)
    assert len(chat.asked_at) == 2
    assert usage.tokens == 840


def test_a_request_larger_than_the_whole_budget_is_not_sent(send):
    chat = Scripted()
    got, _ = send(chat, max_tokens_total=199)
    assert isinstance(got[0], Stopped)
    assert chat.asked_at == []
    assert tokens_in(QUESTION.messages) == 100


def test_progress_is_told_after_every_call(send):
    told = []
    send(Scripted(Broken("html")), 3, concurrency=1, progress=told.append)
    assert [(usage.calls, usage.tokens) for usage in told] == [(1, 100), (2, 220), (3, 340)]


def test_once_asks_once(send):
    chat = Scripted(answer("first"), Answer("", "stop", "I would rather not", 5, 5, "m-1"))
    send(chat, use=lambda sender: sender.once("k", QUESTION))
    refused, _ = send(chat, use=lambda sender: sender.once("r", QUESTION))
    again, _ = send(chat, use=lambda sender: sender.once("k", QUESTION))
    refused_again, _ = send(chat, use=lambda sender: sender.once("r", QUESTION))
    assert len(chat.asked_at) == 2
    assert (again[0].text, again[0].finish, again[0].model) == ("first", "stop", "m-1")
    assert refused[0].refusal == refused_again[0].refusal == "I would rather not"


@pytest.mark.parametrize("name", ["concurrency", "attempts", "tokens_per_minute", "max_tokens_total"])
@pytest.mark.parametrize("value", [0, -3])
def test_limits_below_one_are_refused(send, name, value):
    with pytest.raises(RecplugError, match="1 or more"):
        send(Scripted(), **{name: value})


def test_for_each_does_all_with_as_many_workers():
    done, under_way, most = [], 0, 0

    async def do(piece):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        done.append(piece)

    asyncio.run(for_each(range(20), do, workers=4))
    assert sorted(done) == list(range(20))
    assert most == 4


def test_for_each_ends_what_it_began_and_raises_the_defect():
    begun, ended = [], []

    async def do(piece):
        begun.append(piece)
        await asyncio.sleep(0)
        if piece == 3:
            raise Stopped("enough")
        if piece == 4:
            raise KeyError("defect")
        await asyncio.sleep(0)
        ended.append(piece)

    with pytest.raises(KeyError):
        asyncio.run(for_each(range(20), do, workers=3))
    assert set(begun) - set(ended) == {3, 4}
    assert len(begun) < 8


# --- the probe, against the real server ---


@pytest.mark.parametrize(("enforces", "requests"), [("strict", 1), ("json_object", 2), ("prompt", 3)])
def test_the_probe_finds_what_a_server_really_enforces_and_asks_once(chat_server, open_sender, enforces, requests):
    chat_server.enforces = enforces

    async def settled(**options):
        async with open_sender(mode="auto", **options) as sender:
            await asyncio.gather(sender.settle(), sender.settle())
            sender.log.close()
            return sender.chat.mode

    assert asyncio.run(settled()) == enforces
    assert len(chat_server.seen) == requests
    assert asyncio.run(settled()) == enforces
    assert len(chat_server.seen) == requests


def test_the_probe_drops_what_the_server_refuses(chat_server, open_sender):
    chat_server.refuses = ("temperature",)

    async def settled():
        async with open_sender(mode="auto") as sender:
            await sender.settle()
            sender.log.close()
            return sender.chat

    for _ in range(2):
        chat = asyncio.run(settled())
        assert (chat.mode, chat.sampling) == ("strict", "temperature=default")
        assert len(chat_server.seen) == 2
    assert "temperature" not in chat_server.seen[-1].body


def test_a_server_that_refuses_forms_is_asked_without(chat_server, open_sender):
    chat_server.refuses = ("response_format",)

    async def settled():
        async with open_sender(mode="auto") as sender:
            await sender.settle()
            return sender.chat.mode

    assert asyncio.run(settled()) == "prompt"


def test_a_server_that_answers_nothing_is_told_and_probed_again_next_time(chat_server, open_sender):
    chat_server.refuses = ("messages",)

    async def settle():
        async with open_sender(mode="auto") as sender:
            with pytest.raises(RecplugError, match="messages is not supported"):
                await sender.settle()
            assert sender.chat.mode == "auto"
            assert sender.log.statuses() == {}

    asyncio.run(settle())


def test_the_probe_s_result_is_one_readable_entry(chat_server, open_sender):
    async def settle():
        async with open_sender(mode="auto") as sender:
            await sender.settle()
            entry = sender.log.get(f"probe/{sender.chat.place}/oracle-1")
            assert isinstance(entry, Entry)
            return json.loads(entry.text)

    assert asyncio.run(settle()) == {"mode": "strict", "temperature": 0.0}
