"""Do the published numbers come out here? A card pins one claim: its runs, its controls, the data, what to expect.

    python benchmarks/cards.py                             # every full card: hours; goes on where it was stopped
    python benchmarks/cards.py prism-sasrec --seeds 1      # one card, one seed of each row, a wider tolerance
    python benchmarks/cards.py --toy                       # the small ones: bundled data, two epochs, a minute
    python benchmarks/cards.py ssr-lightgcn --data_path DIR

Cards are the files ``cards/NAME.yaml``. Each ends with a line: ``as expected``, ``off: got x, expected y ± t``, or
``cannot run:`` and why. The exit code is 0 where all are as expected, 1 where one is off, 2 where one cannot run.

``t`` is three times the deviation over seeds (pooled over the card's rows) of a difference of two means: that over the
seeds behind the expected value, and that over the seeds trained here. Another processor rounds otherwise, and after
some epochs a seed is another draw there; seeds are therefore treated as if they were others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import statistics
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CARDS = Path(__file__).parent / "cards"
DEVIATIONS = 3.0
Words = Annotated[str, Field(min_length=1)]


class Row(BaseModel):
    """One variant: what differs from the card's settings, and what its published number is."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    plugins: list[str] = []
    settings: dict[str, Any] = {}
    mean: float = Field(gt=0, lt=1)
    deviation: float | None = Field(default=None, ge=0)  # over seeds; None: one seed
    seeds: int = Field(ge=1)

    @model_validator(mode="after")
    def _spread(self) -> Row:
        if (self.deviation is None) != (self.seeds == 1):
            raise ValueError("deviation belongs to two seeds or more, and only there")
        return self


class Card(BaseModel):
    """One claim; ``rows`` begin with the module itself, and its controls follow."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Words
    about: Words
    module: Words
    size: Literal["full", "toy"]
    model: Words
    dataset: Words
    get: str | None = None  # the command that makes the data, where they are not bundled
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    metric: Words
    settings: dict[str, Any] = {}
    seeds: int = Field(ge=1)  # to train of each row, where it has as many
    source: Words  # the table that the numbers stand in
    command: Words  # what made them
    rows: Annotated[dict[str, Row], Field(min_length=2)]

    @model_validator(mode="after")
    def _judgeable(self) -> Card:
        if all(row.deviation is None for row in self.rows.values()):
            raise ValueError("no row has a deviation over seeds, so nothing can be judged")
        if self.module not in next(iter(self.rows.values())).plugins:
            raise ValueError(f"the first row is not {self.module}'s")
        return self

    def tolerance(self, row: Row, trained: int) -> float:
        """What the mean over ``trained`` seeds may differ from the row's."""
        spread = [(each.seeds - 1, each.deviation) for each in self.rows.values() if each.deviation is not None]
        pooled = math.sqrt(sum(free * sd**2 for free, sd in spread) / sum(free for free, _ in spread))
        return DEVIATIONS * pooled * math.sqrt(1 / row.seeds + 1 / trained)


class CannotRun(Exception):
    """What is missing, in a line."""


def read(path: Path) -> Card:
    """One card.

    Raises:
        CannotRun: it is no card.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Card.model_validate({"name": path.stem, **content})
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise CannotRun(f"{path} is no card: {' '.join(str(error).split())}") from error


def every() -> dict[str, Card]:
    """All cards, full ones first, by name."""
    cards = [read(path) for path in sorted(CARDS.glob("*.yaml"))]
    return {card.name: card for card in sorted(cards, key=lambda card: (card.size == "toy", card.name))}


# -- running


def trained(card: Card, name: str, seed: int, output: Path, data_path: Path | None) -> dict[str, Any]:
    """The ``result.json`` of one run; trained unless it is there already.

    The folder's name holds a digest of all settings: a changed card does not take an older card's runs for its own.
    """
    from recplug.adapters.recbole import run

    row = card.rows[name]
    settings = {**card.settings, **row.settings, "seed": seed}
    asked = json.dumps([card.model, card.dataset, row.plugins, settings, str(data_path)], sort_keys=True)
    slug = name.replace(", ", "-").replace(" ", "_")
    folder = output / card.name / f"{slug}-{seed}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
    file = folder / "result.json"
    if not (file.is_file() and json.loads(file.read_text())["status"] == "finished"):
        shutil.rmtree(folder, ignore_errors=True)
        quiet = {"show_progress": False, "state": "ERROR"}
        run(card.model, card.dataset, row.plugins, {**settings, **quiet}, data_path=data_path, output_dir=folder)
    return json.loads(file.read_text())


def check(card: Card, output: Path, data_path: Path | None, seeds: int) -> list[str]:
    """Train what is missing; what is off, a line a row.

    Raises:
        CannotRun: something is missing, or the data are others.
    """
    from recplug.adapters.data import bundled
    from recplug.plugins.errors import RecplugError

    place = None if card.dataset in bundled() else data_path
    if card.get and (place is None or not (place / card.dataset).is_dir()):
        raise CannotRun(f"no {card.dataset}/ in --data_path {place}; make it with: {card.get}")
    off = []
    for name, row in card.rows.items():
        found = []
        for seed in range(1, min(seeds, row.seeds) + 1):
            try:
                result = trained(card, name, seed, output, place)
            except RecplugError as error:
                raise CannotRun(f"{name}: {error}") from error
            if result["data_fingerprint"] != card.fingerprint:
                theirs, ours = result["data_fingerprint"][:12], card.fingerprint[:12]
                raise CannotRun(f"{card.dataset} has fingerprint {theirs}, the card's data {ours}; fetch the data anew")
            found.append(result["test_result"][card.metric])
            print(f"  {card.name}, {name}, seed {seed}: {card.metric} {found[-1]:.4f}", flush=True)
        mean, tolerance = statistics.fmean(found), card.tolerance(row, len(found))
        # Means are printed with four decimals, so that half of the last one belongs to the tolerance.
        if abs(mean - row.mean) > tolerance + 5e-5:
            off.append(f"off: {name}: got {mean:.4f}, expected {row.mean:.4f} ± {tolerance:.4f}")
    return off


def chosen(names: list[str], toy: bool) -> list[Card]:
    """The cards that were asked for.

    Raises:
        CannotRun: there is no such card.
    """
    cards = every()
    for name in names:
        if name not in cards:
            raise CannotRun(f"no card {name}; choose of: {', '.join(cards)}")
    if names:
        return [cards[name] for name in names]
    return [card for card in cards.values() if (card.size == "toy") == toy]


def listed(card: Card) -> str:
    data = card.dataset if card.get is None else f"{card.dataset} (--data_path)"
    runs = sum(min(card.seeds, row.seeds) for row in card.rows.values())
    return f"{card.name:<24}{card.size:<6}{card.model} on {data}: {runs} runs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cards; none: every full one")
    parser.add_argument("--toy", action="store_true", help="without names: the small ones")
    parser.add_argument("--list", action="store_true", help="the cards' names; trains nothing")
    parser.add_argument("--data_path", type=Path, help="the folder that holds data which are not bundled")
    parser.add_argument("--output", type=Path, default=Path("runs/cards"), help="what has finished here counts")
    parser.add_argument("--seeds", type=int, help="seeds of each row, where the card has as many")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"--seeds {given.seeds} trains nothing; write 1 or more")
    try:
        cards = chosen(given.names, given.toy)
    except CannotRun as error:
        parser.error(str(error))
    if given.list:
        print("\n".join(map(listed, cards if given.names or given.toy else every().values())))
        return 0
    import torch

    torch.set_num_threads(given.threads)
    code = 0
    for card in cards:
        try:
            off = check(card, given.output, given.data_path, given.seeds or card.seeds)
        except CannotRun as error:
            print(f"{card.name}: cannot run: {error}", flush=True)
            code = 2
            continue
        for line in off or ["as expected"]:
            print(f"{card.name}: {line}", flush=True)
        code = max(code, 1 if off else 0)
    return code


if __name__ == "__main__":
    sys.exit(main())
