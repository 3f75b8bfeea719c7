"""Does PRISM help? Backbones, PRISM and its controls on `amazon-scientific`: seeds, spread, paired tests.

    python benchmarks/quality_prism.py --seeds 3                 # fills the grid in order of importance; resumes
    python benchmarks/quality_prism.py --table                   # only prints what is there

Leave-one-out, full ranking, history masked, the data set's own budget and early stopping on validation NDCG@10 for
every cell; the test set is read once per cell, and defaults were chosen by the validation column. A cell that is
missing stays empty in the table. Differences are paired over users (per-user NDCG@10, averaged over the seeds that both
have): mean, 95 % interval and p of a sign-flip permutation test.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Variant, cell_path, fill, load, table, waves

from recplug.adapters.compare.statistics import ndcg_by_user

MLP: dict[str, Any] = {"prism.block": "mlp", "prism.loss_level": "none"}
VARIANTS: dict[str, Variant] = {  # name: (plugins, settings), in the order in which cells are filled
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
TITLES = ("valid N@10", "N@10", "R@10", "R@20", "against bare", "PRISM against it (95 %), p")


def cells(backbones: list[str], seeds: int) -> list[tuple[str, str, int]]:
    """Bare and PRISM on every seed first, then shuffled and MLP, then one seed of the rest, then the rest of those."""
    rest = [name for name in VARIANTS if name not in (*FIRST, *SECOND)]
    order = waves([(FIRST, range(seeds)), (SECOND, range(seeds)), (rest, range(1)), (rest, range(1, seeds))])
    return [(backbone, name, seed) for name, seed in order for backbone in backbones]


def measure(cell: Mapping[str, np.ndarray]) -> np.ndarray:
    return ndcg_by_user(cell["user"], cell["rank"], 10)[1]


def printed(output: Path, backbones: list[str], seeds: int) -> str:
    measures = {"ndcg@10": measure}
    grids = {
        (host,): {name: load(output, host, name, seeds=seeds, measures=measures) for name in VARIANTS}
        for host in backbones
    }
    header = ("backbone", "variant", "seeds", *TITLES)
    return table(grids, header, own="PRISM", metrics=METRICS, measures=("ndcg@10",))


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
        for backbone, variant, seed in cells(backbones, arguments.seeds):
            fill(
                cell_path(arguments.output, backbone, variant, seed=seed),
                f"{backbone}, {variant}",
                backbone,
                arguments.dataset,
                VARIANTS[variant],
                {},
                seed=seed,
                shown="ndcg@10",
            )
    print(printed(arguments.output, backbones, arguments.seeds))


if __name__ == "__main__":
    main()
