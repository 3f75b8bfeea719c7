"""What a LightGCN epoch costs: as RecBole has it, with fast products, with the rest mended, with a plugin on top.

    python benchmarks/graph_epoch.py --data_path DIR                        # all parts
    python benchmarks/graph_epoch.py --data_path DIR --part step --threads 1

DIR holds Amazon Baby as MMRec splits it: `baby/baby.inter[.gz]` (or `baby.inter[.gz]`), tab-separated: user, item, ...,
and a last column that says 0 (train), 1 (validation) or 2 (test). Everything runs in one process, variants take turns,
and medians are divided by those of RecBole's own LightGCN (d 64, 3 layers, batch 2048). Content vectors and the values
of ten factors are drawn at random, since only time is measured. Part "growth" repeats the graph 4 and 16 times, keeping
users' degrees, and items' on average, each case in a process of its own (Linux), and draws the fastest step and peak
memory beside `--out`.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_trainer, init_seed
from step_overhead import random_factors

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import augment
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.config.host_config import make_config, model_class
from recplug.adapters.recbole.data.sampling import eval_batch_size, use_fast_sampling, use_fused_adam
from recplug.adapters.recbole.graft.fast_products import fast_adjacency_building, fast_forward, use_fast_products
from recplug.plugins import available

HOST, NAME, BATCH, WIDTH = "LightGCN", "baby", 2048, 128


@dataclass(frozen=True)
class Variant:
    """What is on: fast products; mended negatives, Adam and evaluation batches; a plugin with settings."""

    fast: bool = False
    mended: bool = False
    plugin: str = ""
    settings: dict = field(default_factory=dict)


VARIANTS = {
    "bare": Variant(),
    "fast products": Variant(fast=True),
    "fast products, the rest mended": Variant(fast=True, mended=True),
    "SSR": Variant(True, True, "ssr"),  # the defaults
    "SSR, masked view": Variant(True, True, "ssr", {"lambda_mask": 1e-3}),
    "SSR, masked view, mixing": Variant(True, True, "ssr", {"lambda_mask": 1e-3, "fusion": "cp"}),
    "SSR, content graph alone": Variant(True, True, "ssr", {"content": "graph"}),
    "MARS": Variant(True, True, "mars"),
    "MARS, factors alone": Variant(True, True, "mars", {"structure": "none"}),
    "MARS, content in X": Variant(True, True, "mars", {"x": "ids_content"}),
    "MAGNET, nodes": Variant(True, True, "magnet", {"mode": "node"}),
    "MAGNET, pairs, one view": Variant(True, True, "magnet", {"mode": "pair", "induced": 0}),
    "MAGNET, pairs, r=10": Variant(True, True, "magnet", {"mode": "pair", "induced": 10}),  # the defaults
    "MAGNET, pairs, r=150": Variant(True, True, "magnet", {"mode": "pair", "induced": 150}),
}


# -- data


def read_split(data_path: Path) -> np.ndarray:
    """``[n, 3]``: user, item, split."""
    places = [data_path / folder / f"{NAME}.inter{end}" for folder in (NAME, "") for end in (".gz", "")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        sys.exit(
            f"no {NAME}.inter or {NAME}.inter.gz in {data_path} or {data_path / NAME}; give --data_path its folder"
        )
    with (gzip.open if found.suffix == ".gz" else open)(found, "rt") as lines:
        columns = len(next(lines).split("\t"))
        return np.loadtxt(lines, dtype=np.int64, delimiter="\t", usecols=(0, 1, columns - 1))


def grown(split: np.ndarray, times: int) -> np.ndarray:
    """The training graph ``times`` over: every copy of a user keeps its edges, each to a random copy of its item."""
    train = split[split[:, 2] == 0]
    items = split[:, 1].max() + 1
    users = split[:, 0].max() + 1
    rng = np.random.default_rng(0)
    copies = [
        np.stack([train[:, 0] + k * users, train[:, 1] + rng.integers(times, size=len(train)) * items, train[:, 2]], 1)
        for k in range(times)
    ]
    held_out = np.repeat(copies[0][:100], 2, axis=0)  # RecBole wants files for validation and test
    held_out[:, 2] = np.tile([1, 2], 100)
    return np.concatenate([*copies, held_out])


def write_dataset(split: np.ndarray, root: Path) -> None:
    """RecBole's three files, two feature tables and factor profiles."""
    folder = root / NAME
    folder.mkdir()
    for value, part in enumerate(("train", "valid", "test")):
        rows = split[split[:, 2] == value, :2]
        np.savetxt(
            folder / f"{NAME}.{part}.inter", rows, "%d", "\t", header="user_id:token\titem_id:token", comments=""
        )
    tokens = tuple(str(item) for item in np.unique(split[:, 1]))
    for seed, modality in enumerate(("image", "text")):
        vectors = torch.randn(len(tokens), WIDTH, generator=torch.Generator().manual_seed(seed)).half()
        FeatureTable(vectors, tokens, modality, {}).save(folder / f"{NAME}.{modality}.safetensors")
    random_factors(np.random.default_rng(0), tokens).save(folder / f"{NAME}.factors.json")


def prepare(root: Path, mended: bool):
    overrides = {
        "data_path": str(root),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "train_batch_size": BATCH,
        "embedding_size": 64,
        "n_layers": 3,
        "show_progress": False,
        "use_gpu": False,
        "state": "ERROR",
        "checkpoint_dir": str(root),
    }
    config = make_config(HOST, NAME, [], overrides)
    init_seed(0, True)
    dataset = create_dataset(config)
    if mended:
        config["eval_batch_size"] = eval_batch_size(dataset.item_num, config["eval_batch_size"])
    train, valid, _ = data_preparation(config, dataset)
    if mended:
        use_fast_sampling(train)
    return config, train, valid


# -- models


def build(variant: Variant, config, dataset):
    """The model of a variant, from the same seed."""
    init_seed(0, True)
    host = model_class(HOST)
    if variant.plugin:
        config["fast_propagation"] = variant.fast
        return augment(host, [variant.plugin], {variant.plugin: variant.settings})(config, dataset)
    if not variant.fast:
        return host(config, dataset)
    forward = fast_forward(host)
    with fast_adjacency_building():
        model = type(HOST, (host,), {"forward": lambda self: forward(self)})(config, dataset)
    use_fast_products(model)
    return model


def runnable() -> dict[str, Variant]:
    """The variants whose plugin is installed; the others are named."""
    missing = [name for name, variant in VARIANTS.items() if variant.plugin and variant.plugin not in available()]
    if missing:
        print(f"left out, their plugin is not installed: {'; '.join(missing)}")
    return {name: variant for name, variant in VARIANTS.items() if name not in missing}


def trainer_of(variant: Variant, config, model):
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    if variant.mended:
        use_fused_adam(trainer.optimizer)
    return trainer


def step(trainer, batch) -> None:
    trainer.optimizer.zero_grad()
    loss = trainer.model.calculate_loss(batch)
    (sum(loss) if isinstance(loss, tuple) else loss).backward()
    trainer.optimizer.step()


def seconds(work: Callable, *arguments) -> float:
    begun = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begun


# -- parts


def report(title: str, times: dict[str, list[float]]) -> dict:
    """Print and return medians; a repeat's ratio is to the bare model's in the same repeat."""
    print(f"\n{title}")
    rows = {}
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, times["bare"], strict=True))
        rows[name] = {"seconds": statistics.median(values), "ratio": ratio}
        print(f"  {name:<34}{rows[name]['seconds']:10.4f} s{ratio:9.3f} x bare")
    return rows


def report_induced(models: dict) -> dict[str, float]:
    """Print and return how many content-induced edges MAGNET adds to each observed one."""
    found = {}
    for name, model in models.items():
        magnet = model.recplug.plugins["magnet"] if VARIANTS[name].plugin == "magnet" else None
        graph = getattr(magnet, "induced", None)  # None for nodes, and for one view
        if graph is not None:
            found[name] = graph.nnz / (2 * magnet.edges.shape[1]) - 1
            print(f"  {name}: {found[name]:.2f} content-induced edges for each observed one")
    return found


def measure(split: np.ndarray, parts: set[str], repeats: int) -> dict:
    """Steps, epochs and evaluations of all variants, taking turns."""
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder, recbole_compat():
        write_dataset(split, Path(folder))
        loaders = {mended: prepare(Path(folder), mended) for mended in (False, True)}
        torch.autograd.set_detect_anomaly(False)
        variants = runnable()
        model_class(HOST)  # imports all of RecBole's models
        trainers, built = {}, {}
        for name, variant in variants.items():
            config, train, _ = loaders[variant.mended]
            begun = time.perf_counter()
            model = build(variant, config, train._dataset)
            built[name] = [time.perf_counter() - begun]
            trainers[name] = trainer_of(variant, config, model)
            trainers[name].eval_collector.data_collect(train)
        found["build"] = report("building the model (once)", built)
        found["induced edges"] = report_induced({name: trainer.model for name, trainer in trainers.items()})
        if "step" in parts:
            times: dict[str, list[float]] = {name: [] for name in variants}
            for batch, _ in zip(loaders[False][1], range(5 * repeats + 2), strict=False):
                for name, trainer in trainers.items():
                    # A second `train()` would begin another epoch, in whose first step SSR looks at its bands' edges.
                    if not trainer.model.training:
                        trainer.model.train()
                    times[name].append(seconds(step, trainer, batch))
            found["step"] = report(
                f"training step, batch {BATCH}, without loading", {k: v[2:] for k, v in times.items()}
            )
        if "epoch" in parts:
            epochs: dict[str, list[float]] = {name: [] for name in variants}
            evaluations: dict[str, list[float]] = {name: [] for name in variants}
            for repeat in range(repeats):
                for name, variant in variants.items():
                    _, train, valid = loaders[variant.mended]
                    epochs[name].append(seconds(trainers[name]._train_epoch, train, repeat))
                    evaluations[name].append(seconds(trainers[name].evaluate, valid, False))
            found["epoch"] = report("training epoch, with loading and negatives", epochs)
            found["evaluation"] = report("full ranking of the validation users", evaluations)
            both = {name: [a + b for a, b in zip(epochs[name], evaluations[name], strict=True)] for name in variants}
            found["epoch and evaluation"] = report("epoch and evaluation", both)
    return found


def peak_memory(*, reset: bool = False) -> int:
    """The process's peak resident bytes since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def grow_one(split: np.ndarray, times: int, name: str, steps: int) -> dict:
    """One variant on one graph: seconds to build, seconds a step, and what both add to the process's memory."""
    with tempfile.TemporaryDirectory() as folder, recbole_compat():
        write_dataset(grown(split, times), Path(folder))
        variant = VARIANTS[name]
        config, train, _ = prepare(Path(folder), variant.mended)
        model_class(HOST)  # imports all of RecBole's models
        torch.autograd.set_detect_anomaly(False)
        before = peak_memory(reset=True)
        begun = time.perf_counter()
        model = build(variant, config, train._dataset)
        built = time.perf_counter() - begun
        trainer = trainer_of(variant, config, model)
        taken = [
            seconds(step, trainer, batch)
            for batch, _ in zip(train, range(steps * max(1, 16 // times) + 1), strict=False)
        ]
        return {
            "edges": len(train._dataset),
            "build": built,
            "step": min(taken[1:]),  # processes do not take turns, so another's load must not count
            "memory": peak_memory() - before,
        }


def measure_growth(data_path: Path, scales: list[int], steps: int, picture: Path) -> dict:
    rows: dict[str, list[dict]] = {}
    print("\ngrowth: edges, seconds to build, seconds of the fastest step, MiB that the model and its steps add")
    for name in runnable():
        for times in scales:
            command = [sys.executable, __file__, "--data_path", str(data_path), "--only", name, "--scale", str(times)]
            command += ["--repeats", str(steps), "--threads", str(torch.get_num_threads())]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                sys.exit(f"{name} at {times} x ended with: {run.stderr.strip().splitlines()[-1]}")
            row = json.loads(run.stdout.splitlines()[-1])
            rows.setdefault(name, []).append(row)
            print(
                f"  {name:<34}{row['edges']:>10,}{row['build']:9.2f} s{row['step']:9.3f} s"
                f"{row['memory'] / 2**20:9.0f} MiB",
                flush=True,
            )
    draw(rows, picture)
    return {"growth": rows}


def draw(rows: dict[str, list[dict]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, key, label, unit in zip(
        axes,
        ("build", "step", "memory"),
        ("building, s", "fastest step, s", "peak memory added, MiB"),
        (1, 1, 2**20),
        strict=True,
    ):
        for name, points in rows.items():
            axis.loglog([p["edges"] for p in points], [p[key] / unit for p in points], marker="o", label=name)
        edges = sorted({p["edges"] for points in rows.values() for p in points})
        axis.set_xticks(edges, [f"{count:,}" for count in edges])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("training interactions")
        axis.set_title(label)
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    print(f"drawn: {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="where Amazon Baby is")
    parser.add_argument("--part", choices=["all", "step", "epoch", "growth"], default="all")
    parser.add_argument("--repeats", type=int, default=5, help="epochs; a fifth of the steps; steps at 16 x")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--out", type=Path, help="write the numbers as JSON, and the picture beside it")
    parser.add_argument("--only", choices=list(VARIANTS), help="one variant of 'growth' in this process")
    parser.add_argument("--scale", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    split = read_split(arguments.data_path)
    if arguments.only:
        print(json.dumps(grow_one(split, arguments.scale, arguments.only, arguments.repeats)))
        return
    parts = {"step", "epoch", "growth"} if arguments.part == "all" else {arguments.part}
    found: dict = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if parts & {"step", "epoch"}:
        found |= measure(split, parts, arguments.repeats)
    if "growth" in parts:
        picture = (arguments.out or Path("graph_epoch.json")).with_suffix(".png")
        found |= measure_growth(arguments.data_path, arguments.scales, arguments.repeats, picture)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
