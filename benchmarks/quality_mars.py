"""Does MARS help? Backbones, MARS and its controls on Amazon Baby, MovieLens or Amazon Scientific.

    python benchmarks/quality_mars.py --data scientific --seeds 3                    # bundled; SASRec and LightGCN
    python benchmarks/quality_mars.py --data baby --data_path DIR --factors FILE     # LightGCN
    python benchmarks/quality_mars.py --data movielens --data_path DIR               # LightGCN
    python benchmarks/quality_mars.py --data baby --data_path DIR --table            # only prints what is there

Cells are filled in order of importance, one at a time, and a run that was stopped goes on. Full ranking without a
user's history, early stopping on validation, one budget for all cells of a backbone; the test set is read once a cell.
Baby has the official split and the budget of ``quality_graph.py``, MovieLens a random one (8:1:1) and the same budget,
Scientific leaves one out, also for LightGCN. A cell that is missing stays empty. Differences are paired over users,
averaged over the seeds that both have: mean, 95 % interval and p of a sign-flip permutation test.

Baby has no text that could be read, so its factors are clusters of its feature tables: ``recplug factors import``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Measure, Variant, cell_path, fill, load, table, waves
from quality_graph import SETTINGS as GRAPH

from recplug.adapters.compare.statistics import ndcg_by_user, recall_by_user

VARIANTS: dict[str, Variant] = {
    "bare": ([], {"fast_propagation": True, "trim_padding": True}),
    "MARS": (["mars"], {}),
    "MARS, structure alone": (["mars"], {"mars.pool": "none"}),
    "MARS, free vectors": (["mars"], {"mars.pool": "free"}),
    "MARS, shuffled profiles": (["mars"], {"factor_control": "shuffled"}),
    "MARS, random groups": (["mars"], {"factor_control": "random"}),
    "factors alone": (["mars"], {"mars.structure": "none"}),
    "factors alone, free vectors": (["mars"], {"mars.structure": "none", "mars.pool": "free"}),
    "factors alone, shuffled profiles": (["mars"], {"mars.structure": "none", "factor_control": "shuffled"}),
    "MARS, mmrec": (["mars"], {"mars.preset": "mmrec"}),
    "MARS, paper": (["mars"], {"mars.preset": "paper"}),
    "semantic head alone": (["mars"], {"mars.pool": "none", "mars.structure": "none", "mars.lambda_semantic": 1e-2}),
    "MARS, no semantic loss": (["mars"], {"mars.lambda_semantic": 0.0}),
    "MARS, content in X": (["mars"], {"mars.x": "ids_content", "mars.views": "auto"}),
    "MARS, content in X, no views": (["mars"], {"mars.x": "ids_content"}),
}
FIRST = ("bare", "MARS")
CONTROLS = ("MARS, structure alone", "MARS, free vectors", "MARS, shuffled profiles", "MARS, random groups")
ALONE = ("factors alone", "factors alone, free vectors", "factors alone, shuffled profiles")
METRICS = ("best_valid_score", "recall@10", "recall@20", "ndcg@10", "ndcg@20")
ONE_OUT = {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"}


@dataclass(frozen=True)
class Grid:
    """One data set: its backbones with their settings, the metric of validation, and what is paired."""

    dataset: str
    hosts: dict[str, dict[str, Any]]
    valid: str
    measures: tuple[str, ...]
    advice: str = ""


GRIDS = {
    "baby": Grid(
        "amazon-baby",
        {"LightGCN": {**GRAPH, "epochs": 120}},
        "recall@20",
        ("recall@20",),
        "recplug data get amazon-baby --from DIR",
    ),
    "movielens": Grid(
        "movielens-small",
        {"LightGCN": {**GRAPH, "epochs": 120}},
        "recall@20",
        ("recall@20",),
        "recplug data get movielens-small --from DIR",
    ),
    "scientific": Grid(
        "amazon-scientific",
        {
            "SASRec": {},  # the data set's own budget
            "LightGCN": {
                **GRAPH,
                "train_batch_size": 512,
                "epochs": 120,
                "eval_args": ONE_OUT,
                "eval_batch_size": 400_000,
            },
        },
        "ndcg@10",
        ("recall@20", "ndcg@10"),
    ),
}


def by_user(measure: str, cell: Mapping[str, np.ndarray]) -> np.ndarray:
    kind, k = measure.split("@")
    return {"recall": recall_by_user, "ndcg": ndcg_by_user}[kind](cell["user"], cell["rank"], int(k))[1]


def cells(seeds: int) -> list[tuple[str, int]]:
    """Bare and MARS on every seed first, then the controls, then what is without content, then the rest."""
    rest = [name for name in VARIANTS if name not in (*FIRST, *CONTROLS, *ALONE)]
    every = range(seeds)
    return waves([(FIRST, every), (CONTROLS, every), (ALONE, every), (rest, range(1)), (rest, range(1, seeds))])


def short(metric: str) -> str:
    return f"{metric[0].upper()}{metric[metric.index('@') :]}"


def printed(output: Path, grid: Grid, seeds: int) -> str:
    measures: dict[str, Measure] = {name: partial(by_user, name) for name in grid.measures}
    filled = {
        (host,): {name: load(output, grid.dataset, host, name, seeds=seeds, measures=measures) for name in VARIANTS}
        for host in grid.hosts
    }
    tests = [f"{short(measure)}: MARS against it (95 %), p" for measure in grid.measures]
    gain = f"{short(grid.measures[0])} to bare"
    header = ["backbone", "variant", "seeds", f"valid {short(grid.valid)}", *map(short, METRICS[1:]), "epochs", gain]
    return table(filled, [*header, *tests], own="MARS", metrics=METRICS, measures=grid.measures, epochs=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(GRIDS), required=True)
    parser.add_argument("--data_path", type=Path, help="the folder that holds the data set's own; scientific: none")
    parser.add_argument("--factors", type=Path, help="a .factors.json, where it is not beside the data")
    parser.add_argument("--output", type=Path, default=Path("runs/quality_mars"))
    parser.add_argument("--backbones", help="these alone, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="another budget; the output folder should then be another too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="fill these variants alone: names, separated by ';'")
    parser.add_argument("--table", action="store_true", help="print the table and train nothing")
    arguments = parser.parse_args()
    grid = GRIDS[arguments.data]
    if grid.advice and not (arguments.data_path and (arguments.data_path / grid.dataset).is_dir()):
        parser.error(f"--data_path must name a folder that holds {grid.dataset}/; make it with: {grid.advice}")
    if arguments.factors and not arguments.factors.is_file():
        parser.error(f"no {arguments.factors}; make one with: recplug factors import")
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    hosts = arguments.backbones.split(",") if arguments.backbones else list(grid.hosts)
    chosen = arguments.only.split(";") if arguments.only else list(VARIANTS)
    for name, known in (*((host, grid.hosts) for host in hosts), *((variant, VARIANTS) for variant in chosen)):
        if name not in known:
            parser.error(f"no {name}; choose of: {'; '.join(known)}")
    grid = Grid(grid.dataset, {host: grid.hosts[host] for host in hosts}, grid.valid, grid.measures)
    more: dict[str, Any] = {"epochs": arguments.epochs} if arguments.epochs else {}
    if arguments.factors:
        more["factors"] = str(arguments.factors.resolve())
    for variant, seed in () if arguments.table else cells(arguments.seeds):
        for host in grid.hosts if variant in chosen else ():
            fill(
                cell_path(arguments.output, grid.dataset, host, variant, seed=seed),
                f"{host}, {variant}",
                host,
                grid.dataset,
                VARIANTS[variant],
                {**grid.hosts[host], **more},
                seed=seed,
                shown=grid.measures[0],
                data_path=arguments.data_path,
            )
    print(printed(arguments.output, grid, arguments.seeds))


if __name__ == "__main__":
    main()
