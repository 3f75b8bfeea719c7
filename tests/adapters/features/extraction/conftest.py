"""Toy encoders whose vectors depend on the whole batch, so that a batch made of other items would show; a small data
set with pictures; and processes that are killed at exact moments."""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import recplug.adapters.features.extraction.store as store_module
from recplug.adapters.features.extraction import extract, image_items, text_items
from recplug.plugins.errors import RecplugError

ITEMS, WIDTH, CUT = 41, 5, 24


@dataclass
class Words:
    """Texts as bytes, padded."""

    inputs: dict
    truncated: list


class ToyEncoder:
    """Pictures or texts to ``[b, 5]``."""

    revision, pooling, normalised, device = "1", "mean", False, "cpu"
    width = WIDTH

    def __init__(self, modality, name="toy", precision="fp32"):
        self.modality, self.name, self.precision = modality, name, precision
        self.seen = []

    @property
    def prepare(self):
        return prepare_image if self.modality == "image" else prepare_texts

    def lengths(self, texts):
        return [len(text.encode()) for text in texts]

    def encode(self, batch):
        values = batch if self.modality == "image" else batch.inputs["bytes"]  # [b, 3, 4, 4] or [b, length]
        self.seen.append(len(values))
        flat = values.flatten(1).double()  # [b, n]
        waves = torch.cos(torch.arange(flat.shape[1] * WIDTH, dtype=torch.float64)).reshape(-1, WIDTH)
        own = flat @ waves  # [b, 5]
        return (own / 50 + flat.mean() + len(flat)).float()


def prepare_image(image):
    assert image.mode == "RGB"
    small = image.resize((4, 4), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255  # [3, 4, 4]


def prepare_texts(texts):
    data = [text.encode()[:CUT] for text in texts]
    padded = torch.zeros(len(data), max(map(len, data)))
    for row, one in zip(padded, data, strict=True):
        row[: len(one)] = torch.tensor(list(one))
    return Words({"bytes": padded}, [len(text.encode()) > CUT for text in texts])


@pytest.fixture
def toy():
    """``toy("image")`` or ``toy("text")``."""
    return ToyEncoder


@pytest.fixture(autouse=True)
def same_day(monkeypatch):
    """Midnight is no reason for two tables to differ."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture
def shop(tmp_path):
    """The folder of a data set ``shop``: texts of all lengths, some empty, and pictures, two absent, two broken."""
    folder = tmp_path / "shop"
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    rows = ["item_id:token\ttitle:token_seq\tbrand:token\tpicture:token"]
    draw = np.random.default_rng(0)
    for i in range(ITEMS):
        title = "" if i % 7 == 3 else f"thing {i} " + "long " * (i * 5 % 9)
        rows.append(f"t{i}\t{title}\t{'' if i % 2 else f'b{i % 5}'}\tpictures/t{i}.png")
        values = draw.integers(0, 256, (6 + i % 3, 7, 3), dtype=np.uint8)
        if i not in (4, 30):
            Image.fromarray(values).save(pictures / f"t{i}.png")
    for i in (9, 33):
        file = pictures / f"t{i}.png"
        file.write_bytes(file.read_bytes()[:60])
    (folder / "shop.item").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "shop.inter").write_text("user_id:token\titem_id:token\nu\tt0\nu\tt1\nv\tt0\n")
    return folder


@pytest.fixture
def items_of(shop):
    """``items_of("image")``."""
    return lambda modality: (
        image_items(shop, "shop", shop / "pictures") if modality == "image" else text_items(shop, "shop")
    )


@pytest.fixture
def run(items_of, toy):
    """``run(modality, output, **options)``: extract with the toy, four items a batch."""

    def extracted(modality, output, **options):
        options = {"batch": 4, "workers": 0} | options
        encoder = options.pop("encoder", None) or toy(modality)
        return extract(encoder, options.pop("items", None) or items_of(modality), output, **options)

    return extracted


@pytest.fixture
def told():
    """``told(action, *words)``: the one line of the error that ``action`` raises."""

    def line(action, *words):
        with pytest.raises(RecplugError) as caught:
            action()
        text = str(caught.value)
        assert "\n" not in text
        for word in words:
            assert word in text, text
        return text

    return line


@pytest.fixture
def in_process():
    """``in_process(action)``: run it in a process of its own; how that ended."""

    def run(action):
        process = multiprocessing.get_context("fork").Process(target=action)
        process.start()
        process.join(60)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode

    return run


@pytest.fixture
def killed_at(in_process):
    """``killed_at(action, name, call, moment)``: run it until the ``call``-th use of one of the functions below.

    The process is killed before that call, in the middle of it (half of what it writes is written), or after it.
    """

    def run(action, name, call, moment):
        def doomed():
            owner = {"_write": store_module, "replace": os, "rmdir": Path}[name]
            original, calls = getattr(owner, name), iter(range(call + 1))

            def tapped(*arguments):
                due = next(calls) == call
                if due and moment == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                if due and moment == "half":
                    file, data, place = arguments
                    original(file, data[: len(data) // 2], place)
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*arguments)
                if due:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            setattr(owner, name, tapped)
            action()

        return in_process(doomed)

    return run
