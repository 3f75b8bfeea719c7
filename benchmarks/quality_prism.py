"""Does PRISM help? Backbones, PRISM and its controls on `amazon-scientific`: seeds, spread, paired tests.

    python benchmarks/quality_prism.py --seeds 3                 # fills the grid in order of importance; resumes
    python benchmarks/quality_prism.py --table                   # only prints what is there

Leave-one-out, full ranking, history masked, the data set's own budget and early stopping on validation NDCG@10 for
every cell; the test set is read once per cell, and defaults were chosen by the validation column. A cell that is
missing stays empty in the table. Differences are paired over users (per-user NDCG@10, averaged over the seeds that both
have): mean, 95 % interval and p of a sign-flip permutation test.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from recplug.adapters.recbole import run
from recplug.plugins.errors import RecplugError

MLP = {"prism.block": "mlp", "prism.loss_level": "none"}
VARIANTS = {  # name: (plugins, settings), in the order in which cells are filled
    "bare": ([], {"trim_padding": True}),
    "PRISM": (["prism"], {}),
    "PRISM, shuffled features": (["prism"], {"shuffle_features": True}),
    "equal-capacity MLP": (["prism"], MLP),
    "PRISM, all lambda 0": (["prism"], {"prism.loss_level": "none"}),
    "plain sum": (["prism"], {"prism.block": "sum"}),
    "PRISM, weights by item": (["prism"], {"prism.fusion": "item"}),
    "PRISM, id candidates": (["prism"], {"prism.candidates": "id"}),
    "PRISM, prediction level": (["prism"], {"prism.loss_level": "prediction"}),
    "PRISM, scale 0.1": (["prism"], {"prism.scale": 0.1}),
    "PRISM, scale 3": (["prism"], {"prism.scale": 3.0}),
    "PRISM, residual": (["prism"], {"prism.residual": True}),
}
FIRST, SECOND = ("bare", "PRISM"), ("PRISM, shuffled features", "equal-capacity MLP")
METRICS = ("best_valid_score", "ndcg@10", "recall@10", "recall@20")


def cells(backbones: list[str], seeds: int) -> list[tuple[str, str, int]]:
    """Bare and PRISM on every seed first, then shuffled and MLP, then one seed of the rest, then the rest of those."""
    rest = [name for name in VARIANTS if name not in (*FIRST, *SECOND)]
    waves = [(FIRST, range(seeds)), (SECOND, range(seeds)), (rest, range(1)), (rest, range(1, seeds))]
    return [(b, name, s) for names, wave in waves for s in wave for name in names for b in backbones]


def cell_path(output: Path, backbone: str, variant: str, seed: int) -> Path:
    return output / f"{backbone}-{variant.replace(', ', '-').replace(' ', '_')}-{seed}.npz"


def fill(output: Path, dataset: str, backbone: str, variant: str, seed: int) -> None:
    """Train one cell in a folder of its own; the cell's file appears when it is whole."""
    path = cell_path(output, backbone, variant, seed)
    if path.exists():
        return
    plugins, settings = VARIANTS[variant]
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        result = run(
            backbone,
            dataset,
            plugins,
            {**settings, "seed": seed + 1, "show_progress": False},
            output_dir=folder,
        )
    except RecplugError as error:
        print(f"{backbone}, {variant}: left empty ({error})")
        return
    ranks = pq.read_table(folder / "ranks.parquet")
    partial = path.with_suffix(".part.npz")
    keep = ("epochs", "seconds_per_epoch", "best_valid_score", "parameters", "data_fingerprint")
    about = {**result.test_result, **{key: result.result[key] for key in keep}}
    user, rank = ranks["user"].to_numpy(zero_copy_only=False).astype(str), ranks["rank"].to_numpy()
    np.savez(partial, user=user, rank=rank, about=json.dumps(about))
    partial.rename(path)
    shutil.rmtree(folder)
    print(f"{backbone}, {variant}, seed {seed}: {about['ndcg@10']:.4f} in {about['epochs']} epochs", flush=True)


def load(output: Path, backbone: str, variant: str, seeds: int) -> list[tuple[dict, np.ndarray]]:
    """(metrics, per-user NDCG@10 in the order of user tokens) of every filled cell, None-free."""
    found = []
    for seed in range(seeds):
        path = cell_path(output, backbone, variant, seed)
        if path.exists():
            with np.load(path) as cell:
                gains = np.where(cell["rank"] <= 10, 1 / np.log2(cell["rank"] + 1.0), 0.0)
                found.append((json.loads(str(cell["about"])), gains[np.argsort(cell["user"])], seed))
    return found


def paired(ours: list, theirs: list) -> dict[str, float] | None:
    """Mean difference over users with its 95 % interval, and p of a two-sided sign-flip test with 10,000 draws."""
    common = sorted({s for *_, s in ours} & {s for *_, s in theirs})
    if not common:
        return None
    mean = [np.mean([g for _, g, s in runs if s in common], axis=0) for runs in (ours, theirs)]
    difference = mean[0] - mean[1]
    error = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
    rng, moved = np.random.default_rng(0), difference[difference != 0]
    flips = rng.choice([-1.0, 1.0], size=(10_000, len(moved))) @ moved / len(difference)
    p = (1 + np.sum(np.abs(flips) >= abs(difference.mean()))) / 10_001
    return {"difference": difference.mean(), "interval": error, "p": p, "seeds": len(common), "base": mean[1].mean()}


def table(output: Path, backbones: list[str], seeds: int) -> str:
    lines = [
        "| backbone | variant | seeds | valid N@10 | N@10 | R@10 | R@20 | against bare | PRISM against it (95 %), p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for backbone in backbones:
        prism, bare = (load(output, backbone, name, seeds) for name in ("PRISM", "bare"))
        for variant in VARIANTS:
            runs = load(output, backbone, variant, seeds)
            if not runs:
                lines.append(f"| {backbone} | {variant} | 0 | | | | | | |")
                continue
            values = [np.array([about[metric] for about, *_ in runs]) for metric in METRICS]
            spread = [f"{v.mean():.4f}" + (f" ± {v.std(ddof=1):.4f}" if len(v) > 1 else "") for v in values]
            gain, test = paired(runs, bare), paired(prism, runs)
            shown = f"{100 * gain['difference'] / gain['base']:+.1f} %" if gain and variant != "bare" else ""
            versus = ""
            if test and variant != "PRISM":
                low, high = (100 * (test["difference"] + s * test["interval"]) / test["base"] for s in (-1, 1))
                versus = f"{low:+.1f} ... {high:+.1f} %, p {test['p']:.4f}"
            lines.append(f"| {backbone} | {variant} | {len(runs)} | {' | '.join(spread)} | {shown} | {versus} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/quality_prism"))
    parser.add_argument("--dataset", default="amazon-scientific")
    parser.add_argument("--backbones", default="SASRec,GRU4Rec")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table and train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    backbones = arguments.backbones.split(",")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for cell in cells(backbones, arguments.seeds):
            fill(arguments.output, arguments.dataset, *cell)
    print(table(arguments.output, backbones, arguments.seeds))


if __name__ == "__main__":
    main()
