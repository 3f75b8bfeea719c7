"""What do frozen graphs and a closed form give? LightGCN with ``itemgraph``, part by part, and ``filter``, on Baby.

    recplug data get amazon-baby --from AMAZON2014/baby --to DIR
    python benchmarks/quality_itemgraph.py --data_path DIR --seeds 5      # in order of importance; resumes
    python benchmarks/quality_itemgraph.py --data_path DIR --table        # only prints what is there

Split, ranking, selection and tests are those of ``quality_graph.py``; validated every fourth epoch, stopped after 20
without gain. The bare backbone, and the item graph alone ("content graph"), stand in that benchmark's table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from paired import Variant, cell_path, fill, load, table, waves
from quality_graph import METRICS, SETTINGS, TITLES, kept, measure

BUDGET = {**SETTINGS, "eval_step": 4, "stopping_step": 5, "epochs": 120}
VARIANTS: dict[str, Variant] = {
    "itemgraph + filter": (["itemgraph", "filter"], {}),
    "itemgraph": (["itemgraph"], {}),
    "itemgraph, no user graph": (["itemgraph"], {"itemgraph.user_weight": 0.0}),
    "itemgraph, no edge dropout": (["itemgraph"], {"itemgraph.edge_dropout": 0.0}),
    "itemgraph, item graph alone": (["itemgraph"], {"itemgraph.edge_dropout": 0.0, "itemgraph.user_weight": 0.0}),
    "itemgraph, shuffled features": (["itemgraph"], {"shuffle_features": True}),
    "filter": (["filter"], {}),
    "bare": ([], {"fast_propagation": True}),
}
OWN = "itemgraph + filter"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="the folder that holds amazon-baby/")
    parser.add_argument("--output", type=Path, default=Path("runs/quality_itemgraph"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="fill these variants alone: names, separated by ';'")
    parser.add_argument("--table", action="store_true", help="print the table and train nothing")
    arguments = parser.parse_args()
    if not (arguments.data_path / "amazon-baby").is_dir():
        parser.error(f"{arguments.data_path}/amazon-baby is missing; make it with: recplug data get amazon-baby --help")
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    chosen = arguments.only.split(";") if arguments.only else list(VARIANTS)
    for variant, seed in waves([(chosen, range(arguments.seeds))]):
        if not arguments.table:
            fill(
                cell_path(arguments.output, variant, seed=seed),
                variant,
                "LightGCN",
                "amazon-baby",
                VARIANTS[variant],
                BUDGET,
                seed=seed,
                shown="recall@20",
                arrays=kept,
                data_path=arguments.data_path,
            )
    seeds, measures = arguments.seeds, {"recall@20": measure}
    grid = {name: load(arguments.output, name, seeds=seeds, measures=measures) for name in VARIANTS}
    titles = [title.replace("SSR", OWN) for title in TITLES]
    print(
        table({(): grid}, ("variant", "seeds", *titles), own=OWN, metrics=METRICS, measures=("recall@20",), epochs=True)
    )


if __name__ == "__main__":
    main()
