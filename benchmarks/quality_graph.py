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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Variant, cell_path, fill, load, table, waves

from recplug.adapters.compare.statistics import recall_by_user

GRAPH_ALONE: dict[str, Any] = {"ssr.bands": 1, "ssr.fusion": "sum", "ssr.content": "graph"}
VARIANTS: dict[str, Variant] = {
    "bare": ([], {"fast_propagation": True}),
    "SSR": (["ssr"], {}),
    "content graph": (["ssr"], GRAPH_ALONE),
    "SSR, shuffled features": (["ssr"], {"shuffle_features": True}),
    "SSR, one band": (["ssr"], {"ssr.bands": 1}),
    "SSR, masked view": (["ssr"], {"ssr.lambda_mask": 1e-3}),
    "SSR, random bands": (["ssr"], {"ssr.lambda_mask": 1e-3, "ssr.engine": "random"}),
    "SSR, no contrast": (["ssr"], {"ssr.lambda_contrast": 0.0}),
    "SSR, low-rank mixing": (["ssr"], {"ssr.fusion": "cp"}),
    "SSR, column softmax": (["ssr"], {"ssr.fusion": "colsoftmax"}),
    "SSR, score_kl": (["ssr"], {"ssr.lambda_mask": 1e-3, "ssr.consistency": "score_kl"}),
    "SSR, no content blocks": (["ssr"], {"ssr.content": "graph"}),
    "SSR, legacy polynomials": (["ssr"], {"ssr.lambda_mask": 1e-3, "ssr.engine": "legacy_cheb"}),
}
FIRST = ("bare", "SSR", "content graph")
METRICS = ("best_valid_score", "recall@10", "recall@20", "ndcg@10", "ndcg@20")
TITLES = ("valid R@20", "R@10", "R@20", "N@10", "N@20", "epochs", "to bare", "SSR against it (95 %), p")
SETTINGS = {
    "eval_step": 2,
    "stopping_step": 10,
    "learning_rate": 1e-3,
    "n_layers": 2,
    "embedding_size": 64,
    "reg_weight": 1e-4,
    "train_batch_size": 2048,
}
K = 20


def cells(seeds: int) -> list[tuple[str, int]]:
    """Bare, SSR and the content graph on every seed first, then one seed of the rest, then the rest of those."""
    rest = [name for name in VARIANTS if name not in FIRST]
    return waves([(FIRST, range(seeds)), (rest, range(1)), (rest, range(1, seeds))])


def kept(user: np.ndarray, rank: np.ndarray) -> dict[str, np.ndarray]:
    """What a cell's file holds."""
    users, recall = recall_by_user(user, rank, K)
    return {"user": users, "recall": recall}


def measure(cell: Mapping[str, np.ndarray]) -> np.ndarray:
    return cell["recall"]


def printed(output: Path, seeds: int) -> str:
    grid = {name: load(output, name, seeds=seeds, measures={"recall@20": measure}) for name in VARIANTS}
    header = ("variant", "seeds", *TITLES)
    return table({(): grid}, header, own="SSR", metrics=METRICS, measures=("recall@20",), epochs=True)


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
                fill(
                    cell_path(arguments.output, variant, seed=seed),
                    variant,
                    "LightGCN",
                    "amazon-baby",
                    VARIANTS[variant],
                    {**SETTINGS, "epochs": arguments.epochs},
                    seed=seed,
                    shown="recall@20",
                    arrays=kept,
                    data_path=arguments.data_path,
                )
    print(printed(arguments.output, arguments.seeds))


if __name__ == "__main__":
    main()
