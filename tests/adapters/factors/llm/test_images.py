import base64
import io
import logging

import pytest
from PIL import Image

from recplug.adapters.factors.llm import content
from recplug.adapters.factors.llm.content import SIDE, Item, data_url, find_images
from recplug.adapters.factors.llm.prompts import assignment_request
from recplug.plugins.errors import RecplugError


def opened(url):
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_are_found_by_item_token(tmp_path):
    for name in ("a.jpg", "b.PNG", "c.d.webp", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert {token: file.name for token, file in find_images(tmp_path).items()} == {
        "a": "a.jpg", "b": "b.PNG", "c.d": "c.d.webp"
    }  # fmt: skip
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(RecplugError, match=r"a\.jpg and a\.png"):
        find_images(tmp_path)


def test_no_pictures_is_an_error(tmp_path):
    with pytest.raises(RecplugError, match="holds no picture"):
        find_images(tmp_path)
    with pytest.raises(RecplugError, match="no folder"):
        find_images(tmp_path / "none")


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")])
def test_a_picture_becomes_a_small_one_without_its_metadata(tmp_path, kind, mode):
    file = tmp_path / f"a.{kind.lower()}"
    exif = Image.Exif()
    exif[0x010E] = "taken at home by Bob"
    options = {} if mode == "P" else {"exif": exif}
    Image.new("RGB", (2000, 1000), "red").convert(mode).save(file, kind, **options)
    url = data_url(file)
    small = opened(url)
    assert small.size == (SIDE, SIDE // 2)
    assert not small.getexif()
    assert b"Bob" not in base64.b64decode(url.partition(",")[2])
    red, green, blue = small.getpixel((10, 10))
    assert red > 240
    assert green < 15
    assert blue < 15


def test_see_through_is_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert min(opened(data_url(tmp_path / "a.png")).getpixel((4, 4))) > 250


def test_what_is_no_picture_is_left_out_with_a_warning(tmp_path, caplog, monkeypatch):
    broken, big, gif = tmp_path / "a.jpg", tmp_path / "b.png", tmp_path / "c.jpg"
    broken.write_bytes(b"not a picture")
    Image.new("RGB", (30, 30)).save(big)
    Image.new("RGB", (30, 30)).save(gif, "GIF")
    monkeypatch.setattr(content, "MAX_PIXELS", 100)
    with caplog.at_level(logging.WARNING):
        assert [data_url(file) for file in (broken, big, gif, tmp_path / "d.jpg")] == [None] * 4
    assert len(caplog.records) == 4


def test_a_request_carries_pictures_under_their_items_numbers(tmp_path, schema):
    Image.new("RGB", (30, 20), "blue").save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"broken")
    items = [
        Item("a", {"title": "x"}),
        Item("b", {}, tmp_path / "b.jpg"),
        Item("c", {"title": "z"}, tmp_path / "c.jpg"),
    ]
    parts = assignment_request(schema, items).messages[-1]["content"]
    assert [part["type"] for part in parts] == ["text", "text", "image_url"]
    assert "12" in parts[1]["text"]
    assert opened(parts[2]["image_url"]["url"]).size == (30, 20)
    assert isinstance(assignment_request(schema, items[:1]).messages[-1]["content"], str)
