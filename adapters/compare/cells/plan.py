"""Cells of the grid: what each trains, in which order, and which settings validation chose."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recplug.adapters.compare.cells.status import Outcome
from recplug.adapters.compare.controls import CONTROLS, OF_THEIR_OWN, applies, overrides
from recplug.adapters.compare.spec import Asked, written
from recplug.adapters.report.run_contents import lower_is_better
from recplug.plugins.registry import parse_names

NOTHING_TO_MATCH = "the plugins have no parameters of their own"  # why there is no control mlp
Choice = tuple[tuple[str, str], ...]  # (key, value) of the grid, sorted by key


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        dataset, model, seed: as they are named.
        plugins: whose cell it is; empty for the bare backbone.
        choice: of the grid.
        control: one of the controls or named variants of these plugins, or empty.
        parameters: for the control ``mlp``, how many it has to have.
    """

    dataset: str
    model: str
    plugins: tuple[str, ...]
    choice: Choice
    seed: int
    control: str = ""
    parameters: int | None = None

    @property
    def key(self) -> str:
        """Its folder's name, the same in every comparison that has this cell."""
        words = (self.model, "+".join(self.plugins) or "bare", self.control, self.dataset, str(self.seed))
        readable = "-".join(re.sub(r"[^\w.+-]+", "_", word) for word in words if word)
        exact = json.dumps([*words, self.choice, self.parameters])
        return f"{readable}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"

    def title(self) -> str:
        """For people."""
        plugins = "+".join(self.plugins) or "bare"
        chosen = "".join(f", {key}={value}" for key, value in self.choice)
        return f"{self.dataset}, {self.model}, {plugins}{f' ({self.control})' if self.control else ''}{chosen}"

    def arguments(self) -> list[str]:
        """Of ``run_recbole``, but for folders and what all cells have in common."""
        trained = ("mlp",) if self.control == "mlp" else self.plugins
        own = dict(self.choice)
        if self.control in CONTROLS:
            own |= overrides(self.control, self.plugins, self.parameters)
        if "plugin" in own:  # of a named variant
            trained = tuple(parse_names(own.pop("plugin")))
        words = [f"--model={self.model}", f"--dataset={self.dataset}", f"--seed={self.seed}"]
        words += [f"--plugin={','.join(trained)}"] if trained else []
        return [*words, *(f"--{key}={value}" for key, value in own.items())]


Outcomes = Mapping[str, Outcome]  # by key of the cell


@dataclass(frozen=True)
class Variant:
    """All seeds of one row of the table.

    Attributes:
        dataset, model, plugins, control, choice: as in :class:`Cell`.
        cells: by seed; for a control that still waits for what it controls, none.
        waits: why there are none.
    """

    dataset: str
    model: str
    plugins: tuple[str, ...]
    control: str
    choice: Choice
    cells: tuple[Cell, ...]
    waits: str = ""


def choices(asked: Asked, plugins: tuple[str, ...]) -> list[Choice]:
    """Every combination of the grid's values that these plugins, and the backbone, read."""
    keys = [key for key in asked.grid if "." not in key or key.partition(".")[0] in (*plugins, "features")]
    return [tuple(zip(keys, values, strict=True)) for values in itertools.product(*(asked.grid[key] for key in keys))]


def candidates(asked: Asked, dataset: str, model: str, plugins: tuple[str, ...]) -> list[Variant]:
    """The variants of which validation chooses one."""
    return [
        Variant(
            dataset,
            model,
            plugins,
            "",
            choice,
            tuple(Cell(dataset, model, plugins, choice, seed) for seed in range(1, asked.seeds + 1)),
        )
        for choice in choices(asked, plugins)
    ]


def validation(variant: Variant, outcomes: Outcomes) -> list[float]:
    """The best validation score of each finished seed."""
    found = [outcomes[cell.key].result for cell in variant.cells if cell.key in outcomes]
    return [float(result["best_valid_score"]) for result in found if result is not None]


def chosen(variants: list[Variant], outcomes: Outcomes) -> Variant | None:
    """The one with the best mean validation score over seeds; the test set is not looked at.

    Settings of which seeds failed only count where none has more. None while a cell of several settings is still to
    come, and where none of them has finished; of a single one there is nothing to choose.
    """
    if len(variants) == 1:
        return variants[0]
    if any(cell.key not in outcomes for variant in variants for cell in variant.cells):
        return None
    scores = [validation(variant, outcomes) for variant in variants]
    most = max(map(len, scores))
    if not most:
        return None
    sign = -1 if smaller_is_better(outcomes) else 1
    complete = [place for place in range(len(variants)) if len(scores[place]) == most]
    return variants[max(complete, key=lambda place: sign * sum(scores[place]))]


def smaller_is_better(outcomes: Outcomes) -> bool:
    """Whether less is better of what the runs were validated by."""
    validated = next((str(o.result["valid_metric"]) for o in outcomes.values() if o.result is not None), "")
    return lower_is_better(validated)


def rows(asked: Asked, outcomes: Outcomes) -> Iterator[tuple[list[Variant], Variant | None, list[Variant]]]:
    """For each data set, model and set of plugins: the candidates, the chosen one, and its controls."""
    for dataset, model, plugins in itertools.product(asked.datasets, asked.models, asked.plugins):
        variants = candidates(asked, dataset, model, plugins)
        best = chosen(variants, outcomes)
        names = [name for name in asked.controls if applies(name, plugins, model)]
        others = [_control(asked, name, variants[0], best, outcomes) for name in names]
        others += [_named(asked, name, each, variants[0], best) for name, each in asked.named(plugins).items()]
        yield variants, best, others


def _control(asked: Asked, name: str, first: Variant, best: Variant | None, outcomes: Outcomes) -> Variant:
    about = (first.dataset, first.model, first.plugins, name)
    if (
        best is not None and name in OF_THEIR_OWN
    ):  # the row of this plugin itself, trained once for all that it controls
        choice = (*_of_backbone(best.choice), *OF_THEIR_OWN[name].items())
        own = [Cell(first.dataset, first.model, (name,), choice, seed) for seed in range(1, asked.seeds + 1)]
        return Variant(*about, choice, tuple(own))
    results = [outcomes[cell.key].result for cell in best.cells if cell.key in outcomes] if best else []
    finished = [result for result in results if result is not None]
    if best is None or not finished:
        return Variant(*about, (), (), "waits until what it controls has finished")
    parameters, choice = None, best.choice
    if name == "mlp":
        parameters = sum(finished[0]["parameters"]["plugins"].values())
        choice = _of_backbone(choice)
        if not parameters:
            return Variant(*about, (), (), NOTHING_TO_MATCH)
    cells = tuple(Cell(*about[:3], choice, seed, name, parameters) for seed in range(1, asked.seeds + 1))
    return Variant(*about, choice, cells)


def _of_backbone(choice: Choice) -> Choice:
    """The backbone's settings and the content, but not those of plugins."""
    return tuple((key, value) for key, value in choice if "." not in key or key.startswith("features."))


def _named(asked: Asked, name: str, changes: Mapping[str, Any], first: Variant, best: Variant | None) -> Variant:
    """A named variant: what validation chose, with some of it changed."""
    about = (first.dataset, first.model, first.plugins, name)
    if best is None:
        return Variant(*about, (), (), "waits until what it is a variant of has been chosen")
    choice = tuple(sorted({**dict(best.choice), **{key: written(value) for key, value in changes.items()}}.items()))
    cells = tuple(Cell(*about[:3], choice, seed, name) for seed in range(1, asked.seeds + 1))
    return Variant(*about, choice, cells)


def ready(asked: Asked, outcomes: Outcomes) -> list[Cell]:
    """The cells that can be trained now and are neither finished nor failed, seed by seed, controls last."""
    first: list[Cell] = []
    later: list[Cell] = []
    for variants, _, controls in rows(asked, outcomes):
        first += [cell for variant in variants for cell in variant.cells]
        later += [cell for variant in controls for cell in variant.cells]
    waiting = [sorted(cells, key=lambda cell: cell.seed) for cells in (first, later)]
    once = {cell.key: cell for cells in waiting for cell in cells}  # a control may stand under several plugins
    return [cell for key, cell in once.items() if key not in outcomes]


def total(asked: Asked, outcomes: Outcomes) -> int:
    """How many cells there are in the end, where every control that waits finds what it controls."""
    known: set[str] = set()
    waiting = 0
    for variants, _, controls in rows(asked, outcomes):
        known |= {cell.key for variant in (*variants, *controls) for cell in variant.cells}
        waiting += sum(not each.cells and each.waits != NOTHING_TO_MATCH for each in controls)
    return len(known) + asked.seeds * waiting
