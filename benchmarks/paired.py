"""What the quality benchmarks share: a grid of cells that fills one at a time, and tests paired over users.

A cell is one trained model; its ``.npz`` file appears when it is whole, so that a benchmark that was stopped goes on
where it ended. Every difference is paired: each user's metric, averaged over the seeds that both sides have. What
users measure is ``recplug compare``'s; the test here is the sign-flip test that the published tables were made with.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recplug.adapters.compare.statistics import over_seeds
from recplug.adapters.recbole import run
from recplug.plugins.errors import RecplugError

DRAWS, BLOCK = 10_000, 500  # in blocks: all draws times all users would be gigabytes
KEPT = ("epochs", "seconds_per_epoch", "best_valid_score", "parameters", "data_fingerprint", "peak_memory_bytes")
Variant = tuple[list[str], dict[str, Any]]  # plugins, settings
Measure = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # of a cell's arrays: one number a user, by user token


@dataclass(frozen=True)
class Filled:
    """One filled cell.

    Attributes:
        about: the metrics of the test set, and what the run says of itself.
        by_user: each user's value of each measure, in the order of user tokens.
        seed: from 0.
    """

    about: dict[str, Any]
    by_user: dict[str, np.ndarray]
    seed: int


@dataclass(frozen=True)
class Difference:
    """Ours less theirs: mean over users, half its 95 % interval, p of a two-sided sign-flip test, and theirs."""

    mean: float
    half: float
    p: float
    base: float

    def share(self) -> str:
        """The difference as a share of theirs."""
        return f"{100 * self.mean / self.base:+.1f} %"

    def interval(self) -> str:
        """The 95 % interval of that share, and p."""
        low, high = (100 * (self.mean + sign * self.half) / self.base for sign in (-1, 1))
        return f"{low:+.1f} ... {high:+.1f} %, p {self.p:.4f}"


# -- cells


def waves(parts: Sequence[tuple[Sequence[str], range]]) -> list[tuple[str, int]]:
    """(variant, seed) in order of importance: each part's seeds one after the other, all its variants on each."""
    return [(name, seed) for names, seeds in parts for seed in seeds for name in names]


def cell_path(output: Path, *names: str, seed: int) -> Path:
    """Where a cell lies."""
    return output / f"{'-'.join(names).replace(', ', '-').replace(' ', '_')}-{seed}.npz"


def fill(
    path: Path,
    title: str,
    model: str,
    dataset: str,
    variant: Variant,
    settings: Mapping[str, Any],
    *,
    seed: int,
    shown: str,
    arrays: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]] | None = None,
    data_path: Path | None = None,
) -> None:
    """Train one cell in a folder of its own, unless it is there.

    Args:
        path: from :func:`cell_path`.
        title: what to call it.
        model, dataset, data_path: as for ``run``.
        variant: its own settings win over ``settings``.
        settings: of all variants.
        seed: from 0; RecBole's is one more.
        shown: the metric to print.
        arrays: what to keep of all targets' users and ranks; default both as they are.
    """
    if path.exists():
        return
    plugins, own = variant
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    config = {**settings, **own, "seed": seed + 1, "show_progress": False}
    try:
        result = run(model, dataset, plugins, config, data_path=data_path, output_dir=folder)
    except RecplugError as error:
        print(f"{title}: left empty ({error})")
        return
    ranks = pq.read_table(folder / "ranks.parquet")
    user, rank = ranks["user"].to_numpy(zero_copy_only=False).astype(str), ranks["rank"].to_numpy()
    about = {**result.test_result, **{key: result.result[key] for key in KEPT}}
    partial = path.with_suffix(".part.npz")
    np.savez(partial, about=json.dumps(about), **(arrays(user, rank) if arrays else {"user": user, "rank": rank}))
    partial.rename(path)
    shutil.rmtree(folder)
    print(f"{title}, seed {seed}: {shown} {about[shown]:.4f} in {about['epochs']} epochs", flush=True)


def load(output: Path, *names: str, seeds: int, measures: Mapping[str, Measure]) -> list[Filled]:
    """Every filled cell of a variant."""
    found = []
    for seed in range(seeds):
        path = cell_path(output, *names, seed=seed)
        if path.exists():
            with np.load(path) as cell:
                by_user = {name: measure(cell) for name, measure in measures.items()}
                found.append(Filled(json.loads(str(cell["about"])), by_user, seed))
    return found


# -- the table


def paired(ours: Sequence[Filled], theirs: Sequence[Filled], measure: str) -> Difference | None:
    """Compare on the seeds that both have; None where there are none."""
    first, second = ({cell.seed: cell.by_user[measure] for cell in side} for side in (ours, theirs))
    common = first.keys() & second.keys()
    if not common:
        return None
    everyone = np.arange(len(next(iter(first.values()))))
    _, one, other = over_seeds([(everyone, first[seed], second[seed]) for seed in common])
    difference = one - other
    half = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
    rng, moved = np.random.default_rng(0), difference[difference != 0]
    flips = np.concatenate(
        [rng.choice([-1.0, 1.0], size=(BLOCK, len(moved))) @ moved / len(difference) for _ in range(DRAWS // BLOCK)]
    )
    p = (1 + np.sum(np.abs(flips) >= abs(difference.mean()))) / (DRAWS + 1)
    return Difference(float(difference.mean()), float(half), float(p), float(other.mean()))


def table(
    grids: Mapping[tuple[str, ...], Mapping[str, Sequence[Filled]]],
    header: Sequence[str],
    *,
    own: str,
    metrics: Sequence[str],
    measures: Sequence[str],
    epochs: bool = False,
    base: str = "bare",
) -> str:
    """Markdown: every variant's mean and spread, its difference to ``base``, and that of ``own`` to it.

    Args:
        grids: by leading cells (such as the backbone), every variant's filled cells.
        header: the titles of all columns.
        own: the variant that is tested against every other.
        metrics: keys of :attr:`Filled.about`, a column each.
        measures: paired; the first of them also against ``base``.
        epochs: whether the mean number of epochs is a column.
    """
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for lead, grid in grids.items():
        for name, cells in grid.items():
            row = [*lead, name, str(len(cells))]
            if not cells:
                lines.append(f"| {' | '.join(row)} |" + " |" * (len(header) - len(row)))
                continue
            for metric in metrics:
                values = np.array([cell.about[metric] for cell in cells])
                row.append(f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""))
            row += [f"{np.mean([cell.about['epochs'] for cell in cells]):.0f}"] * epochs
            gain = paired(cells, grid[base], measures[0])
            row.append(gain.share() if gain and name != base else "")
            for measure in measures:
                test = paired(grid[own], cells, measure)
                row.append(test.interval() if test and name != own else "")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
