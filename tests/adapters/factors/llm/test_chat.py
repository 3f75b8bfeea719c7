import asyncio
import json
import sys
import traceback

import pytest

from recplug.adapters.factors.llm.chat import Broken, Busy, Rejected, Request, open_chat, tokens_in
from recplug.adapters.factors.llm.server import OpenAIChat
from recplug.plugins.errors import RecplugError

KEY = "sk-loopback-0123456789abcdef"
QUESTION = Request(({"role": "user", "content": "what is it?"},), {"type": "object"}, "thing", 77)


@pytest.fixture
def ask(chat_server):
    """``ask(fault)``: one attempt at the server, which says "yes" if nothing goes wrong."""
    chat_server.answer = lambda seen: '{"items": [{"index": 0, "said": "yes"}]}'

    def once(*faults, request=QUESTION, **options):
        chat_server.script(*faults)

        async def run():
            chat = OpenAIChat(
                "oracle-1",
                base_url=chat_server.url,
                **({"mode": "strict", "timeout": 5, "key_env": "OPENAI_API_KEY"} | options),
            )
            try:
                return await chat.ask(request)
            finally:
                await chat.close()

        return asyncio.run(run())

    return once


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
    assert {key: body[key] for key in ("model", "temperature", "max_tokens", "messages")} == {
        "model": "oracle-1", "temperature": 0, "max_tokens": 77, "messages": list(QUESTION.messages),
    }  # fmt: skip
    assert chat_server.seen[0].headers["authorization"] == f"Bearer {KEY}"


def test_free_text_is_asked_for_without_a_form(ask, chat_server):
    ask("ok", request=Request(QUESTION.messages, None, "", 5))
    assert "response_format" not in chat_server.seen[0].body


@pytest.mark.parametrize("fault", ["reasoning", "thinking"])
def test_an_answer_among_the_thoughts_is_found(ask, fault):
    assert ask(fault).text == '{"items": [{"index": 0, "said": "yes"}]}'


def test_a_refusal_is_an_answer(ask):
    answer = ask("refusal")
    assert (answer.text, answer.refusal) == ("", "I cannot help with that.")


@pytest.mark.parametrize(("fault", "finish"), [("length", "length"), ("filtered", "content_filter")])
def test_an_answer_that_ended_early_says_so(ask, fault, finish):
    assert ask(fault).finish == finish


def test_tokens_are_estimated_where_the_server_does_not_count(ask):
    answer = ask("no usage")
    assert answer.input_tokens == tokens_in(QUESTION.messages) == len("what is it?") // 3 + 1
    assert 5 < answer.output_tokens < 40


@pytest.mark.parametrize("fault", ["empty choices", "empty", "html", "400"])
def test_what_cannot_be_used_is_broken(ask, fault):
    refused(lambda: ask(fault), Broken)


@pytest.mark.parametrize("fault", ["500", "reset", "short body", "stall"])
def test_what_may_go_better_next_time_is_busy(ask, fault):
    error = refused(lambda: ask(fault, timeout=0.15 if fault == "stall" else 5), Busy)
    assert not error.limited
    assert error.retry_after is None


@pytest.mark.parametrize(("fault", "after"), [("429", None), ("429 after 7", 7.0)])
def test_a_limit_says_how_long_to_wait(ask, fault, after):
    error = refused(lambda: ask(fault), Busy)
    assert error.limited
    assert error.retry_after == after


@pytest.mark.parametrize(
    ("fault", "word"), [("401", "key"), ("404", "base_url"), ("quota", "credit"), ("redirect", "base_url")]
)
def test_what_never_gets_better_is_rejected_and_redirects_are_not_followed(ask, chat_server, fault, word):
    assert word in str(refused(lambda: ask(fault), Rejected))
    assert len(chat_server.seen) == 1


@pytest.mark.parametrize(
    "body", ["[" * 100_000, "null", "[]", '{"choices": [{"message": null}]}', '{"choices": 3}', '{"choices": [{"mess']
)
def test_no_body_crashes_it(ask, monkeypatch, chat_server, body):
    chat = OpenAIChat("oracle-1", base_url=chat_server.url)
    refused(lambda: chat._answer(body, QUESTION), Broken)


def test_parts_of_content_are_joined(chat_server):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = json.dumps({"choices": [{"message": {"content": parts}}], "usage": None})
    assert OpenAIChat("oracle-1", base_url=chat_server.url)._answer(body, QUESTION).text == "ab"


def test_a_server_that_repeats_the_key_does_not_get_it_into_the_answer(chat_server):
    body = json.dumps({"choices": [{"message": {"content": f"your key is {KEY}"}}]})
    chat = OpenAIChat("oracle-1", base_url=chat_server.url, key_env="OPENAI_API_KEY")
    assert chat._answer(body, QUESTION).text == "your key is ***"


def test_openais_key_goes_to_openai_alone_unless_it_is_named(ask, chat_server):
    ask("ok", key_env=None)
    assert KEY not in str(dict(chat_server.seen[0].headers))


def test_openai_needs_a_key_and_other_servers_are_told_to_go_without(monkeypatch, chat_server, ask, caplog):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY" in str(refused(lambda: OpenAIChat("gpt"), RecplugError))
    with caplog.at_level("INFO"):
        ask("ok")
    assert "without a key" in caplog.text
    assert "sk-" not in json.dumps(chat_server.seen[0].headers)


def test_the_key_comes_from_the_variable_that_was_named(monkeypatch, chat_server, ask):
    monkeypatch.setenv("OTHER_KEY", "another-0123456789")
    ask("ok", key_env="OTHER_KEY")
    assert chat_server.seen[0].headers["authorization"] == "Bearer another-0123456789"


def test_openai_itself_is_asked_with_the_newer_name_of_the_length(chat_server):
    chat = OpenAIChat("gpt")
    assert (chat._length, chat.place) == ("max_completion_tokens", "api.openai.com")
    assert KEY not in repr(chat)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://user:pass@host/v1", "http://host/v1?key=1", ""]
)
def test_a_wrong_address_is_refused(url, monkeypatch, chat_server):
    if url:
        refused(lambda: OpenAIChat("m", base_url=url), RecplugError)
    else:
        assert OpenAIChat("m", base_url=url).place == "api.openai.com"


@pytest.mark.parametrize("spec", ["gpt-4o", "openai:", "opnai:gpt", ":x"])
def test_a_wrong_name_is_refused(spec):
    assert "openai:MODEL" in str(refused(lambda: open_chat(spec), RecplugError))


def test_open_chat_passes_everything_on(chat_server):
    chat = open_chat("openai:org/model:latest", base_url=chat_server.url, timeout=7, mode="prompt")
    assert (chat.name, chat.mode, chat.timeout) == ("org/model:latest", "prompt", 7)
    assert chat.place in chat_server.url
    with pytest.raises(RecplugError, match="base_url"):
        open_chat("transformers:x", base_url=chat_server.url)
    with pytest.raises(RecplugError, match="mode"):
        open_chat("openai:x", mode="strikt")


def test_the_package_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    error = refused(lambda: open_chat("openai:m", base_url="http://127.0.0.1:1/v1"), RecplugError)
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
    assert tokens_in(({"role": "user", "content": content},)) == 1003
