"""What training on two domains costs, beside their two bare backbones: whole steps, with loading and negatives.

    python benchmarks/pair_epoch.py --data_path DIR            # DIR holds food/ and kitchen/
    python benchmarks/pair_epoch.py --cut                      # the bundled cut of both
    python benchmarks/pair_epoch.py --part neighbours          # exact content neighbours of a catalogue

A step of the pair is a batch of the target, a batch of the source and, with MICRec, the contrast of their common users.
An epoch has as many as the target has batches. The two bare backbones take as many steps each: RecBole's own, and
again with what recplug does for their speed (``fast``). All take turns in one process; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from graph_epoch import seconds, step
from recbole.utils import get_trainer, init_seed

from recplug.adapters.data import locate
from recplug.adapters.recbole import augment
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.config.host_config import make_config, model_class
from recplug.adapters.recbole.data.loaders import make_loaders
from recplug.adapters.recbole.data.sampling import use_fast_sampling, use_fused_adam
from recplug.plugins.contract import Modality
from recplug.plugins.micrec import content_vectors, nearest

SIZES = {
    "LightGCN": {"n_layers": 3, "embedding_size": 64},
    "BPR": {"embedding_size": 64},
    "SASRec": {"hidden_size": 64, "MAX_ITEM_LIST_LENGTH": 20, "train_neg_sample_args": None},
    "GRU4Rec": {"embedding_size": 64, "MAX_ITEM_LIST_LENGTH": 20, "train_neg_sample_args": None},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "the source beside it": {"templates": False, "neighbours": 0, "isolated": "keep", "gamma": 0.0, "lambda_self": 0.0},
    "and the contrast": {"templates": False, "neighbours": 0, "isolated": "keep", "lambda_self": 0.0},
    "MICRec": {},
}


@dataclass
class Bench:
    """A model in training: its trainer and its batches, without end."""

    trainer: Any
    batches: Iterator[Any]

    def work(self, steps: int) -> None:
        for _ in range(steps):
            step(self.trainer, next(self.batches))


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def bench(host: str, dataset: str, place: Path | None, plugins: list[str], settings: dict, *, fast: bool) -> Bench:
    folder = locate(dataset, place)
    file = folder / f"{dataset}.yaml"
    overrides = {
        **SIZES[host],
        "data_path": str(folder.parent),
        "show_progress": False,
        "use_gpu": False,
        "state": "ERROR",
        "train_batch_size": 2048,
        "fast_propagation": fast,
        "trim_padding": fast if host in ("SASRec", "GRU4Rec") else None,
    }
    config = make_config(model_class(host), dataset, [file], overrides)
    init_seed(0, True)
    model = augment(model_class(host), plugins, settings)
    family = model.recplug_host.family
    train = make_loaders(config, model_class(host), family, keep_batch=False)[0]
    if fast:
        use_fast_sampling(train)
    built = model(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, built)
    if fast:
        use_fused_adam(trainer.optimizer)
    built.train()
    return Bench(trainer, endless(train))


def measure(host: str, target: str, source: str, place: Path | None, rounds: int, steps: int) -> dict[str, list[float]]:
    with recbole_compat():
        bare = {
            fast: [bench(host, name, place, [], {}, fast=fast) for name in (target, source)] for fast in (False, True)
        }
        path = {} if place is None else {"source_path": str(place)}
        pairs = {
            name: bench(host, target, place, ["micrec"], {"micrec": {"source": source, **path, **own}}, fast=True)
            for name, own in VARIANTS.items()
        }
        torch.autograd.set_detect_anomaly(False)  # one of RecBole's models switches it on when it is imported
        times: dict[str, list[float]] = {"two bare": [], "two bare, fast": [], **{name: [] for name in pairs}}
        for _ in range(rounds + 1):
            for fast, name in ((False, "two bare"), (True, "two bare, fast")):
                times[name].append(sum(seconds(each.work, steps) for each in bare[fast]))
            for name, each in pairs.items():
                times[name].append(seconds(each.work, steps))
    return {name: [value / steps for value in values[1:]] for name, values in times.items()}


def report(title: str, times: dict[str, list[float]]) -> None:
    print(f"\n{title}: seconds a step; times RecBole's two; times the same two, fast")
    for name, values in times.items():
        ratios = [
            statistics.median(a / b for a, b in zip(values, times[base], strict=True))
            for base in ("two bare", "two bare, fast")
        ]
        print(f"  {name:<24}{statistics.median(values):8.4f}{ratios[0]:8.2f}{ratios[1]:8.2f}", flush=True)


def neighbours(n: int, width: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n, width, generator=generator)
    present = torch.ones(n, dtype=torch.bool)
    present[0] = False
    content = content_vectors([Modality("text", values, present)], {"text": 1.0}, n)
    begun, used = time.perf_counter(), time.process_time()
    nearest(content.values, content.values, k, exclude=torch.arange(n))
    print(
        f"\n{k} exact neighbours of {n:,} vectors of width {width}: {time.perf_counter() - begun:.1f} s "
        f"({time.process_time() - used:.1f} s of processors), {torch.get_num_threads()} threads"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, help="the folder that holds food/ and kitchen/")
    parser.add_argument("--cut", action="store_true", help="the bundled cut instead")
    parser.add_argument("--part", choices=["steps", "neighbours"], help="default: both")
    parser.add_argument("--models", default=",".join(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.part != "neighbours":
        names = ("food-small", "kitchen-small") if arguments.cut else ("food", "kitchen")
        if not arguments.cut and not (arguments.data_path and (arguments.data_path / "food").is_dir()):
            parser.error("--data_path must name a folder with food/ and kitchen/: recplug data get food --from DIR")
        place = None if arguments.cut else arguments.data_path
        for host in arguments.models.split(","):
            report(host, measure(host, *names, place, arguments.rounds, arguments.steps))
    if arguments.part != "steps":
        neighbours(36_298, 384, 3)


if __name__ == "__main__":
    main()
