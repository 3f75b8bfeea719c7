"""Does MAGNET help? LightGCN with pairs or items routed on Amazon Baby, SASRec with items routed on Amazon Scientific.

    python benchmarks/quality_magnet.py --data baby --data_path DIR --seeds 3     # in order of importance; resumes
    python benchmarks/quality_magnet.py --data scientific --seeds 3               # bundled
    python benchmarks/quality_magnet.py --data baby --data_path DIR --table       # only prints what is there

Full ranking without a user's history, exact in validation and test, one budget for all cells of a data set, early
stopping on validation; the test set is read once a cell. Baby has the official split and the settings of
``quality_graph.py``, but for one thing: a pair router scores every user with every item, so every tenth epoch is
validated, by all cells, and the third validation in a row without a gain ends training (30 epochs, there 22).
Scientific leaves one out, with the data set's own budget. A cell that is missing stays empty. Differences are paired
over users, averaged over the seeds that both have: mean, 95 % interval and p of a sign-flip permutation test.

Baby's vectors were fitted to its nearest-neighbour graphs, which come with them; k is their nine or ten neighbours.
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

BARE: Variant = ([], {"fast_propagation": True, "trim_padding": True})
MLP: Variant = (["mlp"], {"mlp.parameters": 100_000})  # about nine experts with hidden layers
SHUFFLED = {"shuffle_features": True}


def pairs(**own: Any) -> Variant:
    """MAGNET on Baby's pairs with settings of its own."""
    named = {f"magnet.{name}": value for name, value in own.items()}
    return ["magnet"], {"magnet.mode": "pair", **named}


BABY: dict[str, Variant] = {
    "bare": BARE,
    "MAGNET": pairs(),
    "MAGNET, node mode": (["magnet"], {"magnet.mode": "node"}),
    "no MoE": pairs(structure="single"),
    "single view": pairs(induced=0),
    "MAGNET, shuffled features": (["magnet"], {**pairs()[1], **SHUFFLED}),
    "free mixes": pairs(structure="free"),
    "confidence only": pairs(trigger="fixed@0"),
    "fixed switch": pairs(trigger="fixed@20"),
    "no routing losses": pairs(lambda_route=0.0),
    "equal-capacity MLP": MLP,
    "profiles with the positive": pairs(leave_one_out=False),
    "added to the backbone": pairs(base="backbone"),
    "view contrast as printed": pairs(lambda_view=0.01),
    "experts as MLPs": pairs(expert_input="concat", gamma=0.01),
    "no view contrast": pairs(lambda_view=0.0),
    "MAGNET, paper preset": pairs(preset="paper", neighbours=10),
}
SCIENTIFIC: dict[str, Variant] = {
    "bare": BARE,
    "MAGNET": (["magnet"], {}),
    "MAGNET, shuffled features": (["magnet"], SHUFFLED),
    "equal-capacity MLP": MLP,
    "free mixes": (["magnet"], {"magnet.structure": "free"}),
    "no routing losses": (["magnet"], {"magnet.lambda_route": 0.0}),
}
METRICS = ("best_valid_score", "recall@10", "recall@20", "ndcg@10", "ndcg@20")


@dataclass(frozen=True)
class Grid:
    """One data set: its backbone with its settings, its variants, those that come first, and what is paired."""

    dataset: str
    host: str
    settings: Mapping[str, Any]
    variants: Mapping[str, Variant]
    first: tuple[str, ...]
    measure: str  # of validation, and of the tests
    advice: str = ""

    def cells(self, seeds: int) -> list[tuple[str, int]]:
        """The first variants on every seed, then one seed of the rest, then the rest of those."""
        rest = [name for name in self.variants if name not in self.first]
        return waves([(self.first, range(seeds)), (rest, range(1)), (rest, range(1, seeds))])


GRIDS = {
    "baby": Grid(
        "amazon-baby",
        "LightGCN",
        {**GRAPH, "eval_step": 10, "stopping_step": 2, "epochs": 120},
        BABY,
        ("bare", "MAGNET", "MAGNET, node mode", "no MoE"),
        "recall@20",
        "recplug data get amazon-baby --from DIR",
    ),
    "scientific": Grid(
        "amazon-scientific",
        "SASRec",
        {},  # the data set's own budget
        SCIENTIFIC,
        ("bare", "MAGNET", "MAGNET, shuffled features", "equal-capacity MLP"),
        "ndcg@10",
    ),
}


def by_user(measure: str, cell: Mapping[str, np.ndarray]) -> np.ndarray:
    kind, k = measure.split("@")
    return {"recall": recall_by_user, "ndcg": ndcg_by_user}[kind](cell["user"], cell["rank"], int(k))[1]


def short(metric: str) -> str:
    return f"{metric[0].upper()}{metric[metric.index('@') :]}"


def printed(output: Path, grid: Grid, seeds: int) -> str:
    measures: dict[str, Measure] = {grid.measure: partial(by_user, grid.measure)}
    found = {
        name: load(output, grid.dataset, grid.host, name, seeds=seeds, measures=measures) for name in grid.variants
    }
    tested = short(grid.measure)
    titles = [f"valid {tested}", *map(short, METRICS[1:]), "epochs", f"{tested} to bare"]
    header = ["backbone", "variant", "seeds", *titles, f"{tested}: MAGNET against it (95 %), p"]
    return table({(grid.host,): found}, header, own="MAGNET", metrics=METRICS, measures=(grid.measure,), epochs=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(GRIDS), required=True)
    parser.add_argument("--data_path", type=Path, help="the folder that holds amazon-baby/; scientific: none")
    parser.add_argument("--output", type=Path, default=Path("runs/quality_magnet"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="another budget; the output folder should then be another too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="fill these variants alone: names, separated by ';'")
    parser.add_argument("--table", action="store_true", help="print the table and train nothing")
    arguments = parser.parse_args()
    grid = GRIDS[arguments.data]
    if grid.advice and not (arguments.data_path and (arguments.data_path / grid.dataset).is_dir()):
        parser.error(f"--data_path must name a folder that holds {grid.dataset}/; make it with: {grid.advice}")
    chosen = arguments.only.split(";") if arguments.only else list(grid.variants)
    for name in chosen:
        if name not in grid.variants:
            parser.error(f"no {name}; choose of: {'; '.join(grid.variants)}")
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    budget = {"epochs": arguments.epochs} if arguments.epochs else {}
    for variant, seed in () if arguments.table else grid.cells(arguments.seeds):
        if variant in chosen:
            fill(
                cell_path(arguments.output, grid.dataset, grid.host, variant, seed=seed),
                f"{grid.host}, {variant}",
                grid.host,
                grid.dataset,
                grid.variants[variant],
                {**grid.settings, **budget},
                seed=seed,
                shown=grid.measure,
                data_path=arguments.data_path,
            )
    print(printed(arguments.output, grid, arguments.seeds))


if __name__ == "__main__":
    main()
