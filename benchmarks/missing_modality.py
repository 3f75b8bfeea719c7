"""What is left of a module when content is missing? Bundled data; random removal, and a set that lacks most of it.

    python benchmarks/missing_modality.py --seeds 3              # fills the cells in order of importance; resumes
    python benchmarks/missing_modality.py --table                # only prints and draws what is there
    python benchmarks/missing_modality.py --together             # items lose image and text at once; other cells

*Removal*: a share of the items that have a vector loses it (``drop_features``), in training and in evaluation, each
modality on its own. Who loses it at one share has none at a larger one; each seed draws other items. SASRec on
``amazon-scientific``, LightGCN on ``amazon-baby-small``. The control "shuffled" keeps every vector and deals them out
to other items: what a module still gains there is not content's doing. Factor profiles stay whole, so a part of MARS
has nothing to lose.

*Natural*: ``amazon-scientific-full``, where 1,585 of 4,385 items have vectors; users whose target has one, and whose
target has none, apart.

Full ranking without a user's history, the data set's own budget and early stopping on validation for every cell; the
test set is read once a cell. A cell that is missing stays empty. Differences to bare are paired over users, averaged
over the seeds that both have: mean, 95 % interval and p of a sign-flip permutation test.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paired import Filled, Measure, Variant, cell_path, fill, load, paired, waves

from recplug.adapters.compare.statistics import ndcg_by_user, recall_by_user
from recplug.adapters.data import locate
from recplug.adapters.features import FeatureTable
from recplug.adapters.panels import COLOURS

RATES = (0.0, 0.3, 0.6, 0.9)
BARE: Variant = ([], {"fast_propagation": True, "trim_padding": True})
MODULES = {"PRISM": "prism", "SSR": "ssr", "MARS": "mars", "MAGNET": "magnet", "MICRec": "micrec"}
GRAPH = {"learning_rate": 1e-3, "n_layers": 2, "embedding_size": 64, "reg_weight": 1e-4}


@dataclass(frozen=True)
class Study:
    """One backbone on one data set, and the metric that is compared."""

    dataset: str
    host: str
    modules: tuple[str, ...]
    metric: str
    settings: dict[str, Any]


REMOVAL = (
    Study("amazon-scientific", "SASRec", ("PRISM", "SSR", "MARS"), "ndcg@10", {}),
    Study("amazon-baby-small", "LightGCN", ("SSR", "MAGNET", "MICRec"), "recall@20", GRAPH),
)
NATURAL = Study("amazon-scientific-full", "SASRec", ("PRISM", "SSR", "MARS"), "ndcg@10", {})


# -- cells


def removal_variants(study: Study, together: bool) -> dict[str, Variant]:
    """Bare, each module at each rate, and its control."""
    found = {"bare": BARE}
    for module in study.modules:
        for rate in RATES:
            dropped = {"drop_features": rate, "drop_features_together": together} if rate else {}
            found[named(module, rate)] = ([MODULES[module]], dropped)
        found[f"{module}, shuffled"] = ([MODULES[module]], {"shuffle_features": True})
    return found


def natural_variants(study: Study) -> dict[str, Variant]:
    return {"bare": BARE} | {module: ([MODULES[module]], {}) for module in study.modules}


def named(module: str, rate: float) -> str:
    return f"{module} {rate:g}"


def folder_of(study: Study, together: bool) -> tuple[str, str]:
    return study.dataset, f"{study.host}{' together' if together else ''}"


def fill_study(
    study: Study, variants: Mapping[str, Variant], *, seeds: int, output: Path, together: bool, more: dict[str, Any]
) -> None:
    """Every module at every rate on the first seed, then on the next; the controls last."""
    controls = [name for name in variants if name.endswith("shuffled")]
    first = [name for name in variants if name not in controls]
    for name, seed in waves([(first, range(seeds)), (controls, range(seeds))]):
        fill(
            cell_path(output, *folder_of(study, together), name, seed=seed),
            f"{study.host} on {study.dataset}, {name}",
            study.host,
            study.dataset,
            variants[name],
            {**study.settings, **more, "drop_seed": seed},
            seed=seed,
            shown=study.metric,
        )


def by_user(metric: str, cell: Mapping[str, np.ndarray]) -> np.ndarray:
    kind, k = metric.split("@")
    return {"recall": recall_by_user, "ndcg": ndcg_by_user}[kind](cell["user"], cell["rank"], int(k))[1]


# -- whose target has a vector


def last_items(folder: Path, dataset: str) -> dict[str, str]:
    """The last item of every user, which is the target of the test."""
    lines = (folder / f"{dataset}.inter").read_text().splitlines()
    fields = [cell.partition(":")[0] for cell in lines[0].split("\t")]
    user, item, order = (fields.index(name) for name in ("user_id", "item_id", "order"))
    last: dict[str, tuple[float, str]] = {}
    for line in lines[1:]:
        cells = line.split("\t")
        last[cells[user]] = max(last.get(cells[user], (-1.0, "")), (float(cells[order]), cells[item]))
    return {name: item for name, (_, item) in last.items()}


def groups(study: Study) -> dict[str, Measure]:
    """The metric of all users, and of those alone whose target has a vector, or has none."""
    folder = locate(study.dataset, None)
    assert folder is not None
    table = FeatureTable.load(folder.parent / "amazon-scientific" / "amazon-scientific.image.safetensors")
    has, last = set(table.tokens), last_items(folder, study.dataset)

    def measure(wanted: bool | None) -> Measure:
        def of(cell: Mapping[str, np.ndarray]) -> np.ndarray:
            values = by_user(study.metric, cell)
            if wanted is None:
                return values
            inside = np.array([(last[user] in has) == wanted for user in np.unique(cell["user"]).tolist()])
            return values[inside]

        return of

    return {"all users": measure(None), "target with a vector": measure(True), "target without": measure(False)}


# -- what is printed and drawn


def spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else "")


def short(metric: str) -> str:
    return f"{metric[0].upper()}{metric[metric.index('@') :]}"


def against(cells: list[Filled], bare: list[Filled], measure: str) -> list[str]:
    found = paired(cells, bare, measure)
    return [found.share(), found.interval()] if found else ["", ""]


def removal_table(study: Study, grid: Mapping[str, list[Filled]]) -> str:
    metric = short(study.metric)
    lines = [
        f"{study.host} on `{study.dataset}`",
        "",
        f"| module | content dropped | seeds | {metric} | epochs | to bare | 95 %, p |",
        "|---" * 7 + "|",
    ]
    for name, cells in grid.items():
        module, _, rate = name.replace(",", "").partition(" ")
        dropped = (
            {"": "", "shuffled": "none, but shuffled"}.get(rate) if rate in ("", "shuffled") else f"{float(rate):.0%}"
        )
        if not cells:
            lines.append(f"| {module} | {dropped} | 0 | | | | |")
            continue
        values = np.array([cell.about[study.metric] for cell in cells])
        epochs = np.mean([cell.about["epochs"] for cell in cells])
        share, interval = ["", ""] if name == "bare" else against(cells, grid["bare"], study.metric)
        lines.append(
            f"| {module} | {dropped} | {len(cells)} | {spread(values)} | {epochs:.0f} | {share} | {interval} |"
        )
    return "\n".join(lines)


def natural_table(study: Study, measures: Mapping[str, Measure], grid: Mapping[str, list[Filled]]) -> str:
    lines = [
        f"{study.host} on `{study.dataset}`: {short(study.metric)}",
        "",
        "| users | module | seeds | users | mean | to bare | 95 %, p |",
        "|---" * 7 + "|",
    ]
    for measure in measures:
        for name, cells in grid.items():
            if not cells:
                lines.append(f"| {measure} | {name} | 0 | | | | |")
                continue
            values = np.array([cell.by_user[measure].mean() for cell in cells])
            share, interval = ["", ""] if name == "bare" else against(cells, grid["bare"], measure)
            count = len(cells[0].by_user[measure])
            lines.append(f"| {measure} | {name} | {len(cells)} | {count:,} | {spread(values)} | {share} | {interval} |")
    return "\n".join(lines)


def draw(grids: list[tuple[Study, Mapping[str, list[Filled]]]], path: Path) -> None:
    """One panel a backbone: every module's curve with its spread over seeds, bare as a band, shuffled at the end."""
    figure = Figure(figsize=(5.2 * len(grids), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (study, grid) in zip(figure.subplots(1, len(grids), squeeze=False)[0], grids, strict=True):
        metric = study.metric
        bare = np.array([cell.about[metric] for cell in grid["bare"]])
        if len(bare):
            axes.axhline(bare.mean(), color="black", linewidth=1, label="bare")
            axes.axhspan(bare.min(), bare.max(), color="black", alpha=0.08, linewidth=0)
        for place, module in enumerate(study.modules):
            colour = COLOURS[list(MODULES).index(module)]
            points = [(rate, [c.about[metric] for c in grid[named(module, rate)]]) for rate in RATES]
            points = [(rate, values) for rate, values in points if values]
            if points:
                rates, means = [rate for rate, _ in points], [np.mean(values) for _, values in points]
                low, high = ([pick(values) for _, values in points] for pick in (min, max))
                axes.plot(rates, means, color=colour, marker="o", markersize=4, label=module)
                axes.fill_between(rates, low, high, color=colour, alpha=0.18, linewidth=0)
            control = [cell.about[metric] for cell in grid[f"{module}, shuffled"]]
            if control:
                axes.plot([1.05 + 0.03 * place], [np.mean(control)], color=colour, marker="x", linestyle="none")
        ticks = [*RATES, 1.08]
        axes.set_xticks(ticks, [*(f"{rate:.0%}" for rate in RATES), "shuffled"])
        axes.set_xlim(-0.05, 1.2)
        axes.set_xlabel("items that lost their content")
        axes.set_ylabel(f"{short(metric)} (test)")
        axes.set_title(f"{study.host}, {study.dataset}", loc="left", fontsize=10, fontweight="bold")
        if len(axes.get_legend_handles_labels()[0]):
            axes.legend(fontsize=8, frameon=False)
    figure.supxlabel("lines: mean over seeds; bands: from the worst seed to the best", fontsize=8, color="#444444")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/missing_modality"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="another budget; the output folder should then be another too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["scientific", "baby", "natural"], help="this part alone")
    parser.add_argument("--modules", help="these alone, separated by commas: " + ", ".join(MODULES))
    parser.add_argument("--together", action="store_true", help="items lose all their modalities at once")
    parser.add_argument("--table", action="store_true", help="print and draw what is there, train nothing")
    arguments = parser.parse_args()
    wanted = arguments.modules.split(",") if arguments.modules else list(MODULES)
    for module in wanted:
        if module not in MODULES:
            parser.error(f"no module {module}; choose of: {', '.join(MODULES)}")
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    more = {"epochs": arguments.epochs} if arguments.epochs else {}
    chosen = [replace(study, modules=tuple(m for m in study.modules if m in wanted)) for study in (*REMOVAL, NATURAL)]
    parts = dict(zip(("scientific", "baby", "natural"), chosen, strict=True))
    drawn = []
    for part, study in parts.items():
        if arguments.only not in (None, part) or not study.modules:
            continue
        natural = part == "natural"
        together = arguments.together and not natural
        variants = natural_variants(study) if natural else removal_variants(study, together)
        if not arguments.table:
            fill_study(study, variants, seeds=arguments.seeds, output=arguments.output, together=together, more=more)
        measures = groups(study) if natural else {study.metric: lambda cell, m=study.metric: by_user(m, cell)}
        grid = {
            name: load(arguments.output, *folder_of(study, together), name, seeds=arguments.seeds, measures=measures)
            for name in variants
        }
        print(natural_table(study, measures, grid) if natural else removal_table(study, grid), end="\n\n")
        if not natural:
            drawn.append((study, grid))
    if drawn:
        picture = arguments.output / f"missing_modality{'_together' if arguments.together else ''}.png"
        draw(drawn, picture)
        print(picture)


if __name__ == "__main__":
    main()
