"""Runs to report on: directories written by hand, and real ones of a second each; a browser where there is one."""

import functools
import json
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from recplug.adapters.features import FeatureTable
from recplug.adapters.panels import draw
from recplug.adapters.recbole import run
from recplug.adapters.recbole.state.run_directory import RunDirectory, plain
from recplug.plugins.contract import Panel

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
USERS, ITEMS = 40, 30
HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</script><!-- --><style>*{display:none}</style>",
    "كرة قدم للأطفال (٣ قطع)",
    "🧪 beaker 🧫 & “quotes” 'single'",
    "{{ 7 * 7 }} {% raise %}",
    "long " * 2_000,
]
PANELS = {
    "shares": Panel(torch.tensor([[0.1, 0.9], [-0.4, 0.6]]), "heatmap", "shares", "See.", ("a", "b"), ("x", "y")),
    "sizes": Panel(torch.tensor([3.0, -1.0]), "bars", "sizes", "Near 0 is bad.", ("a", "b"), ylabel="length"),
    "spread": Panel(torch.linspace(0, 1, 40).reshape(2, 20), "histogram", "spread", "Wide.", ("a", "b"), xlabel="w"),
    "entropy": Panel(
        torch.rand(2, 5), "curves", "entropy", "Falls.", ("one", "two"), tuple("01234"), xlabel="epoch",
        marks=((2.0, "switch"),),
    ),
    "map": Panel(
        torch.cat([torch.randn(2, 9, 2), (torch.arange(18) % 2).float().reshape(2, 9, 1)], dim=2), "scatter", "map",
        "Apart.", ("red", "blue"), ("before", "after"),
    ),
}  # fmt: skip


@functools.cache
def drawn(name, panel):
    """A panel's picture."""
    with tempfile.TemporaryDirectory() as folder:
        draw(panel, Path(folder) / "a.png")
        return (Path(folder) / "a.png").read_bytes()


def write_run(path, *, plugins=("toy",), shift=0.0, ranks=None, panels=PANELS, epochs=4, **changed):
    """A run directory as ``run_recbole`` would leave it, without a checkpoint."""
    directory = RunDirectory.create(path)
    values = {"model": "SASRec", "dataset": "tiny", "plugin": list(plugins), "learning_rate": 0.001, "topk": [10],
              "valid_metric": "NDCG@10", "field_separator": "\t"}  # fmt: skip
    origins = {"model": "the run", "dataset": "the run", "plugin": "the run", "topk": "tiny.yaml"}
    if plugins:
        values[plugins[0]] = {"scale": 0.5, "mode": "soft"}
        origins |= {f"{plugins[0]}.scale": "given", f"{plugins[0]}.mode": "default"}
    directory.write_config(values, origins)
    for epoch in range(epochs):
        row = {"epoch": epoch, "train_seconds": 1.5, "loss/backbone": 5 - epoch + shift, "valid_seconds": 0.1}
        row |= {f"loss/{plugins[0]}.part": 0.1 * epoch} if plugins else {}
        directory.add_epoch({**row, "valid/ndcg@10": [0.1, 0.3, 0.2, 0.25][epoch % 4] + shift})
    (path / "run.log").write_text(
        "2026-01-01 10:00:00,000 INFO text: 28 of 30 items have a vector (93.3 %); 4-d made up, tiny.text.safetensors\n"
        "2026-01-01 10:00:01,000 INFO magnet: stage 2 since step 12 of epoch 2 (trigger armed)\n"
    )
    result = {"status": "finished", "model": "SASRec", "dataset": "tiny", "plugins": list(plugins), "seed": 2020,
              "valid_metric": "NDCG@10", "best_valid_score": 0.3 + shift, "best_valid_result": {"ndcg@10": 0.3 + shift},
              "test_result": {"ndcg@10": 0.25 + shift, "recall@10": 0.4}, "seconds_per_epoch": 1.5,
              "peak_memory_bytes": 700_000_000, "parameters": {"backbone": 1000, "plugins": dict.fromkeys(plugins, 20)},
              "data_fingerprint": "f" * 64, "mask_history": True, "versions": {"torch": "2.13"}}  # fmt: skip
    told = json.dumps(plain({**result, **changed}))  # without digests, as these runs are made to be broken
    (directory.path / "result.json").write_text(told)
    if plugins and panels:
        folder = path / "diagnostics"
        folder.mkdir()
        np.savez(folder / f"{plugins[0]}.npz", **{k: v.values.numpy() for k, v in panels.items()}, gamma=np.ones(()))
        for name, panel in panels.items():
            (folder / f"{plugins[0]}.{name}.png").write_bytes(drawn(name, panel))
    if ranks is not None:
        columns = {"user": [u for u, _, _ in ranks], "item": [i for _, i, _ in ranks], "rank": [r for *_, r in ranks]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path / "ranks.parquet")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The folder that holds ``tiny``: interactions, hostile titles, pictures of some items, two feature tables."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    (folder / "pictures").mkdir(parents=True)
    order = random.Random(3)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(USERS):
        item = order.randrange(ITEMS)
        for time in range(4 + user % 4):
            rows.append(f"u{user}\ti{item}\t{time}")
            item = (item + order.choice((1, 2, 3))) % ITEMS
    (folder / "tiny.inter").write_text("\n".join(rows) + "\n")
    items = ["item_id:token\tbrand:token\ttitle:token_seq\tpicture:token"]
    for at in range(ITEMS):
        picture = "https://example.org/x.png" if at == 5 else f"pictures/i{at}.png"
        items.append(f"i{at}\tb{at % 3}\t{HOSTILE[at % len(HOSTILE)]} {at}\t{picture}")
    (folder / "tiny.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    for at in range(0, ITEMS, 2):
        Image.new("RGB", (400, 300), (8 * at, 100, 50)).save(folder / "pictures" / f"i{at}.png")
    (folder / "pictures" / "i4.png").write_bytes(b"no picture")
    (folder / "tiny.yaml").write_text(
        "load_col:\n  inter: [user_id, item_id, timestamp]\ntopk: [5, 10]\nmetrics: [Recall, NDCG]\n"
        "valid_metric: NDCG@10\nuse_gpu: false\n"
    )
    generator = torch.Generator().manual_seed(1)
    for modality, width in (("image", 6), ("text", 4)):
        vectors = torch.randn(ITEMS - 2, width, generator=generator)
        table = FeatureTable(vectors, tuple(f"i{i}" for i in range(ITEMS - 2)), modality)
        table.save(folder / f"tiny.{modality}.safetensors")
    return folder.parent


SMALL = {"epochs": 1, "train_batch_size": 256, "MAX_ITEM_LIST_LENGTH": 6, "hidden_size": 8, "inner_size": 8,
         "n_layers": 1, "n_heads": 1, "show_progress": False}  # fmt: skip


@pytest.fixture(scope="session")
def prism(data, tmp_path_factory):
    """A real run of SASRec with PRISM, its baseline beside it."""
    path = tmp_path_factory.mktemp("runs") / "prism"
    run("SASRec", "tiny", ["prism"], SMALL, data_path=data, output_dir=path, baseline=True)
    return path


@pytest.fixture(scope="session")
def magnet(data, tmp_path_factory):
    """A real run of BPR with MAGNET, several items of most users held out."""
    path = tmp_path_factory.mktemp("runs") / "magnet"
    values = {"epochs": 1, "embedding_size": 8, "train_batch_size": 256, "show_progress": False,
              "eval_args": {"split": {"RS": [0.5, 0.1, 0.4]}, "order": "RO", "group_by": "user"}}  # fmt: skip
    run("BPR", "tiny", ["magnet"], values, data_path=data, output_dir=path)
    return path


# For one file: while it is open, its thread has a running event loop, in which others' asyncio.run() would fail.
@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as player:
        opened = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser):
    """``opened(path, width=1200, colours="light")``: a page, whose requests and complaints are noted in lists."""
    contexts = []

    def see(path, *, width=1200, height=900, colours="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours)
        contexts.append(context)
        page = context.new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(path.resolve().as_uri())
        return page

    yield see
    for context in contexts:
        context.close()


@pytest.fixture
def make_run(tmp_path):
    """``make_run(name, **changed)``: see :func:`write_run`."""
    return lambda name="run", **changed: write_run(tmp_path / name, **changed)


@pytest.fixture
def panels():
    """One of every kind, by name."""
    return PANELS
