"""Captions by a server that tells pictures apart by their colour."""

import asyncio
import base64
import io

import pytest
from PIL import Image

from recplug.adapters.factors.llm.caption import add_column, captions, item_rows
from recplug.adapters.factors.llm.content import Item
from recplug.plugins.errors import RecplugError

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def seen_colour(seen):
    content = seen.body["messages"][0]["content"]
    data = base64.b64decode(content[1]["image_url"]["url"].partition(",")[2])
    red, _, blue = Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))
    return "red" if red > blue else "blue"


@pytest.fixture
def shown(tmp_path, chat_server, open_client):
    """``shown()``: captions of a red, a blue and another red item, and of one without a picture."""
    chat_server.answer = lambda seen: f"A <b>{seen_colour(seen)}</b> cup.\n\tOf clay."
    items = [Item("none", {"title": "secret"})]
    for token, colour in (("a", "red"), ("b", "blue"), ("c", "red")):
        Image.new("RGB", (8, 8), COLOURS[colour]).save(tmp_path / f"{token}.png")
        items.append(Item(token, {"title": "secret"}, tmp_path / f"{token}.png"))

    def run(**options):
        async def work():
            async with open_client() as client:
                try:
                    return await captions(items, client, **options)
                finally:
                    client.log.__exit__()

        return asyncio.run(work())

    return run


def test_each_picture_is_shown_once_and_kept_by_its_digest(shown, chat_server):
    expected = {"a": "A red cup. Of clay.", "b": "A blue cup. Of clay.", "c": "A red cup. Of clay."}
    assert shown() == expected
    assert len(chat_server.seen) == 2
    assert "secret" not in str([seen.body for seen in chat_server.seen])
    assert shown() == expected
    assert len(chat_server.seen) == 2


def test_a_refused_picture_has_no_caption_and_is_shown_again_on_demand(shown, chat_server):
    chat_server.script("sorry")
    assert len(shown()) in (1, 2)
    calls = len(chat_server.seen)
    shown()
    assert len(chat_server.seen) == calls
    assert set(shown(retry_failed=True)) == {"a", "b", "c"}


def test_a_model_without_eyes_is_an_error(shown, chat_server):
    chat_server.plan = lambda seen: "400"
    with pytest.raises(RecplugError, match="does oracle-1 see pictures"):
        shown()


def test_a_column_is_added_or_replaced_and_the_rest_stays(tmp_path):
    file = tmp_path / "d.item"
    file.write_text('item_id:token\ttitle:token_seq\na\tA "cup"\nb\n', "utf-8")
    add_column(item_rows(file, "caption", overwrite=False), file, "caption", {"a": "grün"})
    assert file.read_text("utf-8") == 'item_id:token\ttitle:token_seq\tcaption:token_seq\na\tA "cup"\tgrün\nb\t\t\n'
    with pytest.raises(RecplugError, match="add --overwrite"):
        item_rows(file, "caption", overwrite=False)
    add_column(item_rows(file, "title", overwrite=True), file, "title", {"b": "new"})
    assert file.read_text("utf-8") == "item_id:token\ttitle:token_seq\tcaption:token_seq\na\t\tgrün\nb\tnew\t\n"
