"""Does SSR help on a graph? LightGCN, a frozen content graph, SSR and its controls on Amazon Baby.

    recplug data get amazon-baby --from AMAZON2014/baby --to DIR
    python benchmarks/quality_graph.py --data_path DIR --seeds 3      # in order of importance; resumes
    python benchmarks/quality_graph.py --data_path DIR --table        # only prints what is there

The official split, full ranking without a user's history, selection and early stopping on validation recall@20, one
budget for every cell; the test set is read once a cell. "content graph" is what FREEDOM adds to LightGCN: the frozen
kNN graph's mean of the item table, here as SSR with a single band and nothing else. A cell that is missing stays empty.
Differences are paired over users (per-user recall@20, averaged over the seeds that both have): mean, 95 % interval and
p of a sign-flip permutation test.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from recplug.adapters.recbole import run
from recplug.plugins.errors import RecplugError

GRAPH_ALONE = {"ssr.bands": 1, "ssr.fusion": "sum", "ssr.content_blocks": False}
VARIANTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "bare": ([], {"fast_propagation": True}),
    "SSR": (["ssr"], {}),
    "content graph": (["ssr"], GRAPH_ALONE),
    "SSR, shuffled features": (["ssr"], {"shuffle_features": True}),
    "SSR, one band": (["ssr"], {"ssr.bands": 1}),
    "SSR, random bands": (["ssr"], {"ssr.engine": "random"}),
    "SSR, no masking": (["ssr"], {"ssr.lambda_mask": 0.0}),
    "SSR, no contrast": (["ssr"], {"ssr.lambda_contrast": 0.0}),
    "SSR, low-rank mixing": (["ssr"], {"ssr.fusion": "cp", "ssr.every": 1}),
    "SSR, column softmax": (["ssr"], {"ssr.fusion": "colsoftmax", "ssr.every": 1}),
    "SSR, score_kl": (["ssr"], {"ssr.consistency": "score_kl"}),
    "SSR, no content blocks": (["ssr"], {"ssr.content_blocks": False}),
    "SSR, legacy polynomials": (["ssr"], {"ssr.engine": "legacy_cheb"}),
}
FIRST = ("bare", "SSR", "content graph")
METRICS = ("best_valid_score", "recall@10", "recall@20", "ndcg@10", "ndcg@20")
K = 20


def cells(seeds: int) -> list[tuple[str, int]]:
    """Bare, SSR and the content graph on every seed first, then one seed of the rest, then the rest of those."""
    rest = [name for name in VARIANTS if name not in FIRST]
    waves = [(FIRST, range(seeds)), (rest, range(1)), (rest, range(1, seeds))]
    return [(name, seed) for names, wave in waves for seed in wave for name in names]


def cell_path(output: Path, variant: str, seed: int) -> Path:
    return output / f"{variant.replace(', ', '-').replace(' ', '_')}-{seed}.npz"


def fill(arguments: argparse.Namespace, variant: str, seed: int) -> None:
    """Train one cell in a folder of its own; the cell's file appears when it is whole."""
    path = cell_path(arguments.output, variant, seed)
    if path.exists():
        return
    plugins, settings = VARIANTS[variant]
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    budget = {"epochs": arguments.epochs, "eval_step": 2, "stopping_step": 10, "learning_rate": 1e-3}
    model = {"n_layers": 2, "embedding_size": 64, "reg_weight": 1e-4, "train_batch_size": 2048}
    try:
        result = run(
            "LightGCN",
            "amazon-baby",
            plugins,
            {**budget, **model, **settings, "seed": seed + 1, "show_progress": False},
            data_path=arguments.data_path,
            output_dir=folder,
        )
    except RecplugError as error:
        print(f"{variant}: left empty ({error})")
        return
    ranks = pq.read_table(folder / "ranks.parquet")
    user, recall = recall_by_user(ranks["user"].to_numpy(zero_copy_only=False).astype(str), ranks["rank"].to_numpy())
    keep = ("epochs", "seconds_per_epoch", "best_valid_score", "parameters", "data_fingerprint", "peak_memory_bytes")
    about = {**result.test_result, **{key: result.result[key] for key in keep}}
    partial = path.with_suffix(".part.npz")
    np.savez(partial, user=user, recall=recall, about=json.dumps(about))
    partial.rename(path)
    shutil.rmtree(folder)
    print(f"{variant}, seed {seed}: R@20 {about['recall@20']:.4f} in {about['epochs']} epochs", flush=True)


def recall_by_user(user: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Users, sorted, and the share of their targets among the best K.

    A target's rank counts its user's other targets too, as full ranking does.
    """
    users, place = np.unique(user, return_inverse=True)
    return users, np.bincount(place, weights=rank <= K) / np.bincount(place)


def load(output: Path, variant: str, seeds: int) -> list[tuple[dict[str, Any], np.ndarray, int]]:
    """(metrics, recall by user, seed) of every filled cell."""
    found = []
    for seed in range(seeds):
        path = cell_path(output, variant, seed)
        if path.exists():
            with np.load(path) as cell:
                found.append((json.loads(str(cell["about"])), cell["recall"], seed))
    return found


def paired(ours: list[Any], theirs: list[Any]) -> dict[str, float] | None:
    """Mean difference over users with its 95 % interval, and p of a two-sided sign-flip test with 10,000 draws."""
    common = sorted({s for *_, s in ours} & {s for *_, s in theirs})
    if not common:
        return None
    mean = [np.mean([g for _, g, s in runs if s in common], axis=0) for runs in (ours, theirs)]
    difference = mean[0] - mean[1]
    error = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
    rng, moved = np.random.default_rng(0), difference[difference != 0]
    flips = np.concatenate(  # in blocks: 10,000 times all users would be gigabytes
        [rng.choice([-1.0, 1.0], size=(500, len(moved))) @ moved / len(difference) for _ in range(20)]
    )
    p = (1 + np.sum(np.abs(flips) >= abs(difference.mean()))) / 10_001
    return {"difference": difference.mean(), "interval": error, "p": p, "base": mean[1].mean()}


def table(output: Path, seeds: int) -> str:
    lines = [
        "| variant | seeds | valid R@20 | R@10 | R@20 | N@10 | N@20 | epochs | to bare | SSR against it (95 %), p |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ssr, bare = (load(output, name, seeds) for name in ("SSR", "bare"))
    for variant in VARIANTS:
        runs = load(output, variant, seeds)
        if not runs:
            lines.append(f"| {variant} | 0 | | | | | | | | |")
            continue
        values = [np.array([about[metric] for about, *_ in runs]) for metric in METRICS]
        spread = [f"{v.mean():.4f}" + (f" ± {v.std(ddof=1):.4f}" if len(v) > 1 else "") for v in values]
        epochs = f"{np.mean([about['epochs'] for about, *_ in runs]):.0f}"
        gain, test = paired(runs, bare), paired(ssr, runs)
        shown = f"{100 * gain['difference'] / gain['base']:+.1f} %" if gain and variant != "bare" else ""
        versus = ""
        if test and variant != "SSR":
            low, high = (100 * (test["difference"] + s * test["interval"]) / test["base"] for s in (-1, 1))
            versus = f"{low:+.1f} ... {high:+.1f} %, p {test['p']:.4f}"
        lines.append(f"| {variant} | {len(runs)} | {' | '.join(spread)} | {epochs} | {shown} | {versus} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="the folder that holds amazon-baby/")
    parser.add_argument("--output", type=Path, default=Path("runs/quality_graph"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="fill these variants alone: names, separated by ';'")
    parser.add_argument("--table", action="store_true", help="print the table and train nothing")
    arguments = parser.parse_args()
    if not (arguments.data_path / "amazon-baby").is_dir():
        parser.error(f"{arguments.data_path}/amazon-baby is missing; make it with: recplug data get amazon-baby --help")
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    chosen = arguments.only.split(";") if arguments.only else list(VARIANTS)
    if not arguments.table:
        for variant, seed in cells(arguments.seeds):
            if variant in chosen:
                fill(arguments, variant, seed)
    print(table(arguments.output, arguments.seeds))


if __name__ == "__main__":
    main()
