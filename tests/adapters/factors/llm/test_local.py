"""A tiny model of random weights: what it says is nonsense, what it computes can be checked."""

import asyncio
import json
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from recplug.adapters import optional_imports
from recplug.adapters.factors.llm import local
from recplug.adapters.factors.llm.assign import assign
from recplug.adapters.factors.llm.chat import Rejected, Request, open_chat
from recplug.adapters.factors.llm.content import Item
from recplug.adapters.factors.llm.local import LocalChat
from recplug.adapters.factors.llm.log import AnswerLog
from recplug.adapters.factors.llm.prompts import scoring_prompt
from recplug.adapters.factors.llm.sending import Sender
from recplug.plugins.errors import RecplugError

transformers = optional_imports.library("transformers")

TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
OPTIONS = ["red", "red wine", "blue", "a rather long value of many letters", "grün", "x", "unknown"]


@pytest.fixture(scope="module", params=["plain", "chat"])
def folder(request, tmp_path_factory):
    """A model in a folder; ``chat`` has a template and an end of its own."""
    place = tmp_path_factory.mktemp(request.param)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = bytes_, decoders.ByteLevel()
    special = ["<end>", "<user>", "<bot>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=bytes_.alphabet())
    tokenizer.train_from_iterator(["a red wooden chair, a blue bed; unknown"] * 3, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", additional_special_tokens=special[1:]
    )
    if request.param == "chat":
        fast.chat_template = TEMPLATE
    fast.save_pretrained(place)
    torch.manual_seed(0)
    sizes = {"n_positions": 1024, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    config = transformers.GPT2Config(vocab_size=len(fast), bos_token_id=0, eos_token_id=0, **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def chat(folder):
    return LocalChat(str(folder), device="cpu")


def slow(folder, prompt, option):
    """The same in one forward pass a token, without batch, padding or cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    templated = bool(tokenizer.chat_template)
    said = f"<user>{prompt}<end><bot>" if templated else f"{prompt}\n"
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    total = 0.0
    for token in tokenizer(option + ("<end>" if templated else ""), add_special_tokens=False)["input_ids"] + (
        [] if templated else tokenizer("\n", add_special_tokens=False)["input_ids"]
    ):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        total += float(logits[token] - logits.logsumexp(0))
        ids.append(token)
    return total


@pytest.mark.parametrize("prompt", ["a chair:", "x", "what colour is a " + "very " * 60 + "red bed?"], ids=len)
def test_weighing_equals_a_slow_direct_computation(chat, folder, prompt):
    expected = [slow(folder, prompt, option) for option in OPTIONS]
    assert chat.score(prompt, OPTIONS) == pytest.approx(expected, abs=2e-4)
    assert max(expected) - min(expected) > 1


def test_weighing_does_not_depend_on_company_or_on_the_cache(chat, monkeypatch):
    together = chat.score("a chair:", OPTIONS)
    assert chat.score("a chair:", OPTIONS) == together
    alone = [chat.score("a chair:", [option])[0] for option in OPTIONS]
    assert alone == pytest.approx(together, abs=1e-4)
    monkeypatch.setattr(local, "TOGETHER", 2)
    assert chat.score("a chair:", OPTIONS) == pytest.approx(together, abs=1e-4)
    assert chat.score("a chair:", []) == []
    cacheless = lambda cache, name: False if name == "batch_repeat_interleave" else hasattr(cache, name)  # noqa: E731
    monkeypatch.setattr(local, "hasattr", cacheless, raising=False)
    assert chat.score("a chair:", OPTIONS) == pytest.approx(together, abs=1e-4)


def test_the_weights_of_all_one_letter_answers_add_up_to_less_than_one(chat):
    shares = [math.exp(score) for score in chat.score("a chair:", list("abcdefghijklmnopqrstuvwxyz"))]
    assert 0 < sum(shares) < 1


def test_a_question_without_room_is_refused_and_an_answer_without_room_is_cut(chat):
    long = "a chair " * 1100
    with pytest.raises(RecplugError, match=r"reads 1024"):
        chat.score(long, OPTIONS)
    answer = asyncio.run(chat.ask(Request(({"role": "user", "content": long},), None, "q", 50)))
    assert (answer.text, answer.finish, answer.output_tokens) == ("", "length", 0)


def test_writing_is_greedy_and_ends_at_its_limit(chat, folder):
    request = Request(
        ({"role": "system", "content": "You write."}, {"role": "user", "content": "a chair"}), None, "q", 7
    )
    answer = asyncio.run(chat.ask(request))
    assert asyncio.run(chat.ask(request)) == answer
    assert answer.output_tokens <= 7
    assert answer.finish == ("length" if answer.output_tokens == 7 else "stop")
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModelForCausalLM.from_pretrained(folder).eval(),
    )
    said = "You write.\n\na chair"
    said = f"<user>{said}<end><bot>" if tokenizer.chat_template else f"{said}\n"
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert answer.input_tokens == len(ids)
    written = []
    while len(written) < 7 and (not written or written[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    assert answer.text == tokenizer.decode(written, skip_special_tokens=True).strip()


def test_pictures_are_refused(chat):
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,"}}]}
    with pytest.raises(Rejected, match="reads no pictures"):
        asyncio.run(chat.ask(Request((picture,), None, "q", 5)))


def test_items_are_labelled_by_their_likeliest_values(chat, schema, tmp_path):
    items = [Item(f"t{i}", {"title": text}) for i, text in enumerate(("a red chair", "a blue bed", "wood"))]

    async def work():
        with AnswerLog(tmp_path / "answers.sqlite") as log:
            sender = Sender(chat, log)
            return await assign(schema, items, sender), await assign(schema, items, sender)

    table, again = asyncio.run(work())
    assert table.values == again.values
    for place, item in enumerate(items):
        for spec in schema.factors:
            question, options = scoring_prompt(spec, item)
            scores = dict(zip(options, chat.score(question, options), strict=True))
            best = max(scores, key=scores.get)
            assert table.values[spec.name][place] == (() if best == "unknown" else (best,))
    assert table.status == ("ok",) * 3
    assert "label scoring" in json.dumps(table.metadata)


def test_a_model_that_cannot_be_had_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RecplugError, match="cannot read the model") as error:
        open_chat(f"transformers:{tmp_path / 'none'}")
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(RecplugError, match="cannot read the model"):
        open_chat(f"transformers:{tmp_path}")


def test_closing_lets_go(folder):
    chat = LocalChat(str(folder), device="cpu")
    asyncio.run(chat.close())
    assert not [value for value in vars(chat).values() if isinstance(value, torch.nn.Module)]
    assert str(folder) in repr(chat)
