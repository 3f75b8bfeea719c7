"""What PRISM, MARS and encoding without padding cost and save: seconds as ratios, side by side in one process.

    python benchmarks/step_overhead.py                  # both parts, about six minutes on two cores
    python benchmarks/step_overhead.py --part epoch

Part "step": SASRec with RecBole's defaults (batch 2048, L 50, d 64) over 12,101 items and two 512-d tables, the size
and history lengths of Amazon Beauty; ids, vectors and the values of ten factors are drawn at random, since only time is
measured. Variants alternate, and the median of each is divided by the bare model's. Part "epoch": all training batches
and one validation of `amazon-scientific` at L 50. "RecBole as it comes" includes the anomaly detection that importing
RecBole's SINE switches on for the whole process; all ratios are against the bare model without it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed

from recplug.adapters.data import bundled
from recplug.adapters.factors import FactorSchema, FactorSpec, FactorTable, Value
from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import augment
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.config.host_config import make_config, model_class

VARIANTS = {  # name: (plugins, trim_padding)
    "bare": ([], False),
    "bare, trimmed": ([], True),
    "PRISM": (["prism"], False),
    "PRISM, trimmed": (["prism"], True),
    "MARS": (["mars"], False),
    "MARS, trimmed": (["mars"], True),
}
ITEMS, USERS, WIDTH = 12_101, 22_363, 512
FACTORS, VALUES = 10, 20


def beauty_sized(folder: Path) -> str:
    """Random interactions and content in Beauty's numbers: users, items, and 5 + geometric items a user."""
    rng = np.random.default_rng(0)
    name = "beauty-sized"
    (folder / name).mkdir()
    with (folder / name / f"{name}.inter").open("w") as out:
        out.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(USERS):
            for place in range(min(5 + rng.geometric(1 / 3.9) - 1, 200)):
                out.write(f"u{user}\ti{rng.integers(ITEMS)}\t{place}\n")
        out.writelines(f"u0\ti{item}\t{1000 + item}\n" for item in range(ITEMS))  # every item occurs
    for modality in ("image", "text"):
        vectors = torch.randn(ITEMS, WIDTH, generator=torch.Generator().manual_seed(len(modality))).half()
        table = FeatureTable(vectors, tuple(f"i{item}" for item in range(ITEMS)), modality)
        table.save(folder / name / f"{name}.{modality}.safetensors")
    random_factors(rng, tuple(f"i{item}" for item in range(ITEMS))).save(folder / name / f"{name}.factors.json")
    return name


def random_factors(rng: np.random.Generator, tokens: tuple[str, ...]) -> FactorTable:
    """Ten factors of twenty values; one item in ten is unknown under each."""
    names = tuple(f"v{value}" for value in range(VALUES))
    specs = [FactorSpec(name=f"factor {k}", values=tuple(Value(name=name) for name in names)) for k in range(FACTORS)]
    drawn = rng.integers(VALUES, size=(FACTORS, len(tokens)))
    known = rng.random(drawn.shape) < 0.9
    columns = {
        spec.name: tuple((names[value],) if has else () for value, has in zip(values, there, strict=True))
        for spec, values, there in zip(specs, drawn, known, strict=True)
    }
    return FactorTable(FactorSchema(factors=tuple(specs)), tokens, columns, ("ok",) * len(tokens))


def prepare(dataset: str, data_path: Path, **overrides: object):
    config = make_config(
        "SASRec",
        dataset,
        [],
        {
            "data_path": str(data_path),
            "TIME_FIELD": "order" if dataset == "amazon-scientific" else "timestamp",
            "load_col": {"inter": ["user_id", "item_id", "order" if dataset == "amazon-scientific" else "timestamp"]},
            "show_progress": False,
            "loss_type": "CE",
            **overrides,
        },
    )
    init_seed(0, True)
    full = create_dataset(config)
    train, valid, _ = data_preparation(config, full)
    return config, train, valid


def build(config, train, plugins, trim):
    config["trim_padding"] = trim
    init_seed(0, True)
    return augment(model_class("SASRec"), plugins)(config, train._dataset)


def step(model, optimiser, batch):
    optimiser.zero_grad()
    loss = model.calculate_loss(batch)
    (sum(loss) if isinstance(loss, tuple) else loss).backward()
    optimiser.step()


def seconds(work, *arguments) -> float:
    begun = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begun


@torch.no_grad()
def evaluate(model, batches):
    model.eval()
    for batch in batches:
        model.full_sort_predict(batch[0])
    model.train()


def report(title: str, medians: dict[str, float], unit: str) -> dict:
    print(f"\n{title}")
    rows = {}
    for name, value in medians.items():
        rows[name] = {"seconds": value, "ratio": value / medians["bare"]}
        print(f"  {name:<42}{value:10.3f} {unit}{rows[name]['ratio']:9.3f} x bare")
    return rows


def part_step(repeats: int, only: str | None = None) -> dict:
    with tempfile.TemporaryDirectory() as folder, recbole_compat():
        name = beauty_sized(Path(folder))
        config, train, valid = prepare(name, Path(folder))
        torch.autograd.set_detect_anomaly(False)
        models = {key: build(config, train, *how) for key, how in VARIANTS.items() if only in (None, key)}
        optimisers = {key: torch.optim.Adam(model.parameters(), 1e-3) for key, model in models.items()}
        batches = [batch for batch, _ in zip(train, range(repeats + 1), strict=False)]
        tests = [next(iter(valid))] if only else list(valid)  # an evaluation fuses the table once, whatever its length
        times = {key: [] for key in models}
        evaluations = {key: [] for key in models}
        for batch in batches:
            for key, model in models.items():
                times[key].append(seconds(step, model.train(), optimisers[key], batch))
        for _ in range(3):
            for key, model in models.items():
                evaluations[key].append(seconds(evaluate, model, tests))
        if only:
            return {}
        return {
            "train step": report(
                f"train step, batch 2048, L 50, d 64, {ITEMS:,} items",
                {key: statistics.median(values[1:]) for key, values in times.items()},
                "s",
            ),
            "evaluation": report(
                f"full-sort evaluation of {sum(len(batch[0]) for batch in tests):,} users",
                {key: statistics.median(values) for key, values in evaluations.items()},
                "s",
            ),
        }


def part_epoch(repeats: int) -> dict:
    with recbole_compat():
        config, train, valid = prepare("amazon-scientific", bundled()["amazon-scientific"].directory.parent)
        torch.autograd.set_detect_anomaly(False)
        models = {key: build(config, train, *how) for key, how in VARIANTS.items()}
        optimisers = {key: torch.optim.Adam(model.parameters(), 1e-3) for key, model in models.items()}

        def epoch(key: str) -> None:
            for batch in train:
                step(models[key], optimisers[key], batch)
            evaluate(models[key], valid)

        times = {key: [] for key in models}
        for _ in range(repeats):
            for key in models:
                times[key].append(seconds(epoch, key))
        torch.autograd.set_detect_anomaly(True)
        as_it_comes = seconds(epoch, "bare")
        torch.autograd.set_detect_anomaly(False)
        medians = {key: statistics.median(values) for key, values in times.items()}
        medians["bare, RecBole as it comes"] = as_it_comes
        mean = train._dataset.inter_feat["item_length"].float().mean()
        title = f"amazon-scientific, one epoch (training and validation), batch 2048, L 50, mean length {mean:.1f}"
        return {"epoch": report(title, medians, "s")}


def part_memory() -> dict:
    """Peak resident memory of a process that does nothing but this variant's steps."""
    rows = {}
    for key in VARIANTS:
        command = [sys.executable, __file__, "--part", "step", "--repeats", "3", "--only", key]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[key] = int(run.stdout.split()[-1])
    print("\npeak resident memory, the step part alone")
    for key, value in rows.items():
        print(f"  {key:<42}{value / 2**20:10.0f} MiB{value / rows['bare']:9.3f} x bare")
    return {"memory": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["all", "step", "epoch", "memory"], default="all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=list(VARIANTS), help="one variant, and print its peak memory in bytes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        part_step(arguments.repeats, arguments.only)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    found: dict = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if arguments.part in ("all", "step"):
        found |= part_step(arguments.repeats)
    if arguments.part in ("all", "epoch"):
        found |= part_epoch(max(2, arguments.repeats // 2))
    if arguments.part in ("all", "memory"):
        found |= part_memory()
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
