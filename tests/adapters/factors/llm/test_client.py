import asyncio
import json
import sys
import time
import traceback

import pytest

from recplug.adapters.factors.llm.client import RETRIES, Client
from recplug.adapters.factors.llm.log import AnswerLog
from recplug.adapters.factors.llm.messages import Request, Stopped, Unanswered, read_completion
from recplug.plugins.errors import RecplugError

KEY = "sk-loopback-0123456789abcdef"
QUESTION = Request(({"role": "user", "content": "what is it?"},), {"type": "object"}, "thing", 77)


@pytest.fixture
def ask(chat_server, open_client):
    """``ask(fault)``: one answer of the server, which says "yes" if nothing goes wrong."""
    chat_server.answer = lambda seen: '{"items": [{"index": 0, "said": "yes"}]}'

    def once(*faults, request=QUESTION, **options):
        chat_server.script(*faults)

        async def run():
            async with open_client(**options) as client:
                try:
                    return await client.ask(request)
                finally:
                    client.log.__exit__()

        return asyncio.run(run())

    return once


@pytest.fixture
def client(tmp_path, chat_server):
    """``client(**options)``, which asks nobody."""
    with AnswerLog(tmp_path / "other.sqlite") as log:
        yield lambda model="openai:m", **options: Client(model, log, **options)


def refused(action, kind):
    """The one line of the error, which never holds the key."""
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    return caught.value


def test_an_answer_says_what_was_said_how_it_ended_what_it_cost_and_who_said_it(ask):
    answer = ask("ok")
    assert json.loads(answer.text)["items"] == [{"index": 0, "said": "yes"}]
    assert (answer.finish, answer.refusal, answer.model) == ("stop", None, "oracle-1-v7")
    assert (answer.input_tokens, answer.output_tokens) == (100, 50)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        (
            "strict",
            {"type": "json_schema", "json_schema": {"name": "thing", "schema": {"type": "object"}, "strict": True}},
        ),
        ("json_object", {"type": "json_object"}),
        ("prompt", None),
    ],
)
def test_a_request_asks_for_the_form_of_its_mode_and_for_nothing_random(ask, chat_server, mode, form):
    ask("ok", mode=mode)
    body = chat_server.seen[0].body
    assert body.get("response_format") == form
    assert {key: body[key] for key in ("model", "temperature", "messages")} == {
        "model": "oracle-1", "temperature": 0, "messages": list(QUESTION.messages),
    }  # fmt: skip
    assert not body.get("stream")
    assert chat_server.seen[0].limit == 77 + 4_000
    assert chat_server.seen[0].headers["authorization"] == f"Bearer {KEY}"


def test_free_text_is_asked_for_without_a_form(ask, chat_server):
    ask("ok", request=Request(QUESTION.messages, None, "", 5))
    assert "response_format" not in chat_server.seen[0].body


@pytest.mark.parametrize("fault", ["reasoning", "thinking"])
def test_an_answer_among_the_thoughts_is_found(ask, fault):
    assert ask(fault).text == '{"items": [{"index": 0, "said": "yes"}]}'


def test_a_refusal_is_an_answer_in_plain_words_too(ask):
    assert ask("sorry").refusal.startswith("I'm sorry")
    answer = ask("refusal")
    assert (answer.text, answer.refusal) == ("", "I cannot help with that.")


@pytest.mark.parametrize(("fault", "finish"), [("length", "length"), ("filtered", "content_filter")])
def test_an_answer_that_ended_early_says_so(ask, fault, finish):
    assert ask(fault).finish == finish


def test_tokens_are_estimated_where_the_server_does_not_count(ask):
    answer = ask("no usage")
    assert answer.input_tokens == QUESTION.tokens == len("what is it?") // 4 + 1
    assert 5 < answer.output_tokens < 40


@pytest.mark.parametrize("fault", ["empty choices", "empty", "html"])
def test_what_cannot_be_used_twice_is_unanswered(ask, chat_server, fault):
    assert ask(fault).text
    refused(lambda: ask(fault, fault), Unanswered)
    assert len(chat_server.seen) == 4


def test_a_storm_of_limits_and_errors_is_waited_out(ask, chat_server, waits):
    faults = ("429", "429 after 7", "500", "reset", "short body", "429 after 100", "429")
    assert ask(*faults).text
    assert len(chat_server.seen) == len(faults) + 1
    assert waits[1] == 7
    assert waits[5] == 100
    assert waits[0] < 1 < waits[6] <= 8


@pytest.mark.parametrize(("fault", "word"), [("429", "lower concurrency"), ("quota", "credit"), ("500", "500")])
def test_a_storm_without_end_stops_the_run(ask, chat_server, fault, word):
    chat_server.plan = lambda seen: fault
    chat_server.down_after = 0 if fault == "500" else None
    assert word in str(refused(lambda: ask(), Stopped))
    assert len(chat_server.seen) == 1 + RETRIES


def test_an_answer_that_takes_too_long_is_unanswered_and_may_be_allowed_more(ask, chat_server):
    error = refused(lambda: ask("stall", timeout=0.5), Unanswered)
    assert "within 0.5 s; raise timeout" in str(error)
    assert len(chat_server.seen) == 1


@pytest.mark.slow
def test_an_answer_may_take_63_seconds(ask, chat_server):
    """Of a server without a GPU, as it was reported."""
    said = chat_server.answer
    chat_server.answer = lambda seen: time.sleep(63) or said(seen)
    assert ask("ok", timeout=600.0).text


@pytest.mark.parametrize(("fault", "word"), [("401", "key"), ("404", "base_url"), ("redirect", "base_url")])
def test_what_never_gets_better_stops_the_run_and_redirects_are_not_followed(ask, chat_server, fault, word):
    assert word in str(refused(lambda: ask(fault), Stopped))
    assert len(chat_server.seen) == 1


# --- servers as they answer ---


def test_a_temperature_that_is_not_taken_is_left_out(ask, chat_server):
    chat_server.refuses = ("temperature",)
    assert ask("ok").text
    assert "temperature" in chat_server.seen[0].body
    assert "temperature" not in chat_server.seen[1].body


def test_the_newer_name_of_the_limit_is_taken_where_the_server_asks_for_it(ask, chat_server, monkeypatch):
    chat_server.refuses = ("max_tokens",)
    chat_server.why = "use max_completion_tokens instead"
    assert ask("ok").text
    assert "max_completion_tokens" in chat_server.seen[1].body


@pytest.mark.parametrize("most", [4_000, 1_000, 100])
def test_a_limit_beyond_the_server_s_context_is_lowered(ask, chat_server, most):
    chat_server.most = most
    assert ask("ok").text
    assert 77 <= chat_server.seen[-1].limit <= most


def test_what_a_server_says_against_the_request_itself_is_unanswered(ask, chat_server):
    chat_server.plan = lambda seen: "400"
    refused(lambda: ask(), Unanswered)
    assert [seen.body.get("response_format", {}).get("type") for seen in chat_server.seen] == [
        "json_schema", "json_object", None,
    ]  # fmt: skip


def test_effort_is_passed_on_and_a_part_of_what_the_answer_is_kept_under(ask, client, chat_server):
    ask("ok", reasoning_effort="low")
    assert chat_server.seen[0].body["reasoning_effort"] == "low"
    assert client(base_url=chat_server.url, reasoning_effort="low").sampling == "temperature=0, effort=low"


@pytest.mark.parametrize("count", [{"total_tokens": 8_150}, {"completion_tokens": 8_050, "total_tokens": 8_150}])
def test_thoughts_are_counted_as_the_server_reports_them(count):
    """In ``completion_tokens`` (OpenAI, vLLM, llama.cpp, Ollama), or by some in the total alone."""
    usage = {"prompt_tokens": 100, "completion_tokens": 50} | count
    body = json.dumps({"choices": [{"message": {"content": "{}"}}], "usage": usage})
    assert read_completion(body, QUESTION, "m").output_tokens == 8_050


@pytest.mark.parametrize(
    "body", ["[" * 100_000, "null", "[]", '{"choices": [{"message": null}]}', '{"choices": 3}', '{"choices": [{"mess']
)
def test_no_body_crashes_it(body):
    refused(lambda: read_completion(body, QUESTION, "m"), Unanswered)


def test_parts_of_content_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = json.dumps({"choices": [{"message": {"content": parts}}], "usage": None})
    assert read_completion(body, QUESTION, "m").text == "ab"


def test_a_server_that_repeats_the_key_does_not_get_it_into_the_answer(ask, chat_server):
    chat_server.answer = lambda seen: f"your key is {KEY}"
    assert ask("ok").text == "your key is ***"


def test_openais_key_goes_to_openai_alone_unless_it_is_named(ask, chat_server):
    ask("ok", key_env=None)
    assert KEY not in str(dict(chat_server.seen[0].headers))


def test_openai_needs_a_key_and_other_servers_are_told_to_go_without(monkeypatch, chat_server, client, ask, caplog):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY" in str(refused(lambda: client("openai:gpt"), RecplugError))
    with caplog.at_level("INFO"):
        ask("ok")
    assert "without a key" in caplog.text
    assert "sk-" not in json.dumps(chat_server.seen[0].headers)


def test_the_key_comes_from_the_variable_that_was_named(monkeypatch, chat_server, ask):
    monkeypatch.setenv("OTHER_KEY", "another-0123456789")
    ask("ok", key_env="OTHER_KEY")
    assert chat_server.seen[0].headers["authorization"] == "Bearer another-0123456789"


def test_openai_itself_is_asked_with_the_newer_name_of_the_length(client):
    chat = client("openai:gpt")
    assert (chat._length, chat.place) == ("max_completion_tokens", "api.openai.com")
    assert KEY not in repr(chat)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://user:pass@host/v1", "http://host/v1?key=1", ""]
)
def test_a_wrong_address_is_refused(url, client):
    if url:
        refused(lambda: client(base_url=url), RecplugError)
    else:
        assert client(base_url=url).place == "api.openai.com"


@pytest.mark.parametrize("spec", ["gpt-4o", "openai:", "opnai:gpt", ":x", "transformers:x"])
def test_a_wrong_name_is_refused(spec, client):
    assert "openai:MODEL" in str(refused(lambda: client(spec), RecplugError))


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"timeout": 0}, {"max_tokens_total": 0}, {"max_answer_tokens": 0}, {"mode": "strikt"}]
)
def test_a_wrong_limit_is_refused(wrong, client, chat_server):
    assert next(iter(wrong)) in str(refused(lambda: client(base_url=chat_server.url, **wrong), RecplugError))


def test_the_package_is_asked_for_where_it_is_missing(monkeypatch, client):
    monkeypatch.setitem(sys.modules, "openai", None)
    error = refused(lambda: client(base_url="http://127.0.0.1:1/v1"), RecplugError)
    assert 'pip install "recplug[llm]"' in str(error)


def test_other_servers_do_not_hear_of_the_account_with_openai(ask, chat_server, monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "mine alone")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://example.com/v1")
    ask("ok")
    assert "mine alone" not in str(chat_server.seen[0].headers)


def test_images_cost_a_round_number_of_tokens_and_not_their_bytes():
    url = "data:image/jpeg;base64," + "A" * 100_000
    content = [{"type": "text", "text": "abcdef"}, {"type": "image_url", "image_url": {"url": url}}]
    assert Request(({"role": "user", "content": content},), None, "", 1).tokens == 1002
