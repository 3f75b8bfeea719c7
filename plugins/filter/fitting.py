"""Fitting the filter's few numbers by the validation score, which is all that it is told of the validation data."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from recplug.plugins.nn.closed_form import ClosedForm, Exponents
from recplug.plugins.protocols import Validate

if TYPE_CHECKING:
    from recplug.plugins.filter.module import ContentFilter

log = logging.getLogger("recplug")
LARGEST = 64.0  # weight; beyond it the backbone has no say
USERS = 2048  # on whom the exponents are searched before all are asked
ROUNDS = 2
GRID = {
    "popularity": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "users": (0.0, 0.15, 0.3, 0.45, 0.6),
    "items": (0.2, 0.3, 0.4, 0.5, 0.6),
    "history": (0.0, 0.1, 0.2, 0.3, 0.5),
    "heat": (0.3, 0.5, 0.7, 0.9, 1.2),
    "recency": (0.4, 0.5, 0.6, 0.7, 0.8, 1.0),
}  # what is cheapest to change comes first


def fit_weight(module: ContentFilter, validate: Validate) -> float:
    """The best weight of 0, 0.25, 0.5, 1, 2, ...: doubled until the score falls."""
    curve: list[tuple[float, float]] = []
    weight = 0.0
    while weight <= LARGEST:
        module.weight.fill_(weight)
        curve.append((weight, validate()))
        if weight > 1 and curve[-1][1] < curve[-2][1]:
            break
        weight = 2 * weight or 0.25
    best = max(curve, key=lambda pair: (pair[1], -pair[0]))[0]
    module.weight.fill_(best)
    module.curves["weight"] = curve
    log.info("filter: weight %g by validation (%s)", best, shown(curve))
    return best


def fit_numbers(module: ContentFilter, validate: Validate) -> dict[str, float]:
    """Heat, exponents and recency, one after another, on a sample of users; the defaults stay if all prefer them.

    What was found is kept under the digest of data and settings, where there is a folder for it.
    """
    file = _file(module, validate)
    if file is not None and file.is_file() and (known := _read(file)) is not None:
        module.set_numbers(known["numbers"])
        module.curves.update({name: [tuple(pair) for pair in curve] for name, curve in known["curves"].items()})
        log.info("filter: exponents from %s", file)
        return module.get_numbers()
    names = [name for name in GRID if _acts(module, name)]
    start = module.get_numbers()
    module.kept = Kept()
    try:
        best = dict(start)
        score = _asked(module, validate, best, USERS)
        for _ in range(ROUNDS):
            before = dict(best)
            for name in names:
                best, score = _along(module, validate, name, best, score)
            if best == before:
                break
    finally:
        module.kept = None
    if best != start and _asked(module, validate, start, None) >= _asked(module, validate, best, None):
        best = start
    module.set_numbers(best)
    log.info("filter: %s by validation", ", ".join(f"{name} {best[name]:g}" for name in names))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"numbers": best, "curves": module.curves}), encoding="utf-8")
    return module.get_numbers()


class Kept:
    """The closed form, computed again from where a search has changed a number; one block's products at a time.

    The blocks of a sample come in the same order at every call.
    """

    def __init__(self) -> None:
        self._known: dict[int, dict[str, tuple[Any, Tensor]]] = {}

    def __call__(
        self, form: ClosedForm, history: Tensor, exponents: Exponents, about: tuple[float, int, Tensor]
    ) -> Tensor:
        """Scores of ``history [n_items, u]``."""
        recency, at, users = about
        key = int(users[0]) * 65_536 + at if len(users) else 0
        known = self._known.setdefault(key, {})

        def part(name: str, key: Any, make: Callable[[], Tensor]) -> Tensor:
            if name not in known or known[name][0] != key:
                known[name] = key, make()
            return known[name][1]

        e = exponents
        begun = (recency, e.history, e.heat)
        first = part("first", begun, lambda: form.first(history, e))
        across = part("across", (begun, e.users, e.items), lambda: form.across(first, e))
        return form.last(across, e)


def _along(
    module: ContentFilter, validate: Validate, name: str, best: dict[str, float], score: float
) -> tuple[dict[str, float], float]:
    """The best value of one number, all others as they are."""
    tried = {value: {**best, name: value} for value in sorted({*GRID[name], best[name]})}
    curve = [(v, score if v == best[name] else _asked(module, validate, each, USERS)) for v, each in tried.items()]
    module.curves[name] = curve
    value, found = max(curve, key=lambda pair: (pair[1], pair[0] == best[name]))
    return tried[value], found


def _asked(module: ContentFilter, validate: Validate, numbers: dict[str, float], users: int | None) -> float:
    module.set_numbers(numbers)
    return validate(users)


def _acts(module: ContentFilter, name: str) -> bool:
    if name == "heat":
        return module.form.content is not None
    return name != "recency" or module.sequential


def shown(curve: list[tuple[float, float]]) -> str:
    """A curve for the log."""
    return ", ".join(f"{value:g}: {score:.4f}" for value, score in curve)


def _file(module: ContentFilter, validate: Validate) -> Path | None:
    if module.cache is None:
        return None
    chosen = module.settings.model_dump(exclude={"alone", "weight", "fit"})
    about = json.dumps([GRID, USERS, ROUNDS, chosen, module.sequential, module.form.digest(), validate.key])
    return module.cache / f"filter-{hashlib.sha256(about.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> dict[str, Any] | None:
    """What a file holds; None where it is damaged, and is written anew."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if {"numbers", "curves"} <= found.keys() else None
