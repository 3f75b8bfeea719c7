"""The sheet is read back as a picture: which colours stand where."""

import functools
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from recplug.adapters.features import FeatureTable
from recplug.adapters.features.sheet import draw_sheet
from recplug.plugins.errors import RecplugError

COLOURS = {"a": (220, 30, 30), "b": (30, 160, 30), "c": (30, 30, 220), "d": (230, 160, 0), "e": (150, 0, 150)}
# Each is nearest to the next one in the alphabet, then to the one after it.
TABLE = FeatureTable(
    torch.tensor([[np.cos(angle), np.sin(angle)] for angle in (0.0, 0.4, 0.7, 0.9, 1.0)], dtype=torch.float32),
    tuple("abcde"),
    "image",
    {"encoder": "a $net$ of_mine"},
)


@pytest.fixture
def pictures(tmp_path):
    found = {}
    for place, (token, colour) in enumerate(COLOURS.items()):
        found[token] = str(tmp_path / f"{token}.png")
        Image.new("RGB", (300, 200) if place % 2 else (40, 90), colour).save(found[token])
    return found


def rows_of_colours(path, queries):
    """The planted colours in each row of the sheet, from left to right."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height = len(pixels) // queries
    rows = []
    for line in range(queries):
        part = pixels[line * height : (line + 1) * height]
        places = {}
        for token, colour in COLOURS.items():
            hits = (np.abs(part - colour).sum(axis=2) < 12).nonzero()[1]
            if len(hits) > 200:
                places[token] = hits.mean()
        rows.append("".join(sorted(places, key=places.get)))
    return rows


def test_each_row_is_an_item_and_its_nearest(pictures, tmp_path):
    path = tmp_path / "new" / "sheet.png"
    assert draw_sheet(TABLE, pictures, {}, path, queries=2, neighbours=2) == (2, 0)
    assert rows_of_colours(path, 2) == ["abc", "edc"]
    again = tmp_path / "again.png"
    draw_sheet(TABLE, pictures, {}, again, queries=2, neighbours=2)
    assert again.read_bytes() == path.read_bytes()


def test_what_cannot_be_shown_is_told_and_the_rest_drawn(pictures, tmp_path):
    (tmp_path / "b.png").write_bytes(b"not a picture")
    del pictures["c"]
    assert draw_sheet(TABLE, pictures, {}, tmp_path / "s.png", queries=1, neighbours=4) == (1, 2)
    assert rows_of_colours(tmp_path / "s.png", 1) == ["ade"]


def test_pictures_on_the_web_are_fetched(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("RECPLUG_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            web = {token: f"{base}/{token}.png" for token in pictures} | {"c": f"{base}/none.png"}
            assert draw_sheet(TABLE, web, {}, tmp_path / "s.png", queries=1, neighbours=4) == (1, 1)
        finally:
            server.shutdown()
            thread.join()
    assert rows_of_colours(tmp_path / "s.png", 1) == ["abde"]


def test_any_title_can_be_drawn(pictures, tmp_path):
    titles = {"a": r"costs $5 or $\frac{", "b": "日本語の長い題名" * 9, "c": "x" * 500, "d": "🎈 \t tab", "e": "a\nb"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_sheet(TABLE, pictures, titles, tmp_path / "s.png", queries=5)
    width, height = Image.open(tmp_path / "s.png").size
    assert width < 1_200
    assert height < 1_800


def test_a_sheet_of_nothing_is_refused(pictures, tmp_path):
    with pytest.raises(RecplugError, match="not one item has both"):
        draw_sheet(TABLE, {"z": pictures["a"]}, {}, tmp_path / "s.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecplugError, match="cannot write"):
        draw_sheet(TABLE, pictures, {}, tmp_path / "file" / "s.png")


def test_an_item_alone_has_no_neighbours(pictures, tmp_path):
    alone = FeatureTable(torch.ones(1, 2), ("a",), "image")
    assert draw_sheet(alone, pictures, {}, tmp_path / "s.png") == (1, 0)
