"""Runs side by side: results, costs, settings that differ, and who is served better by which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recplug.adapters.page.frame import number, size
from recplug.adapters.report.run_contents import Run, lower_is_better, numbers

SHOWN = 3  # users with the largest changes, each way
SAME = ("dataset", "data_fingerprint", "mask_history")  # what has to be equal for numbers to be comparable
SAME_WORDS = {"dataset": "data set", "data_fingerprint": "data (fingerprint)", "mask_history": "masking of histories"}


@dataclass(frozen=True)
class Column:
    """A run among those of a page.

    Attributes:
        run: itself.
        name: short, and its own on this page.
        style: of its curves.
        given: whether it was asked for, or stands beside such a one as its baseline.
    """

    run: Run
    name: str
    style: int
    given: bool


@dataclass(frozen=True)
class Cell:
    """One number in a table of results.

    Attributes:
        shown: the number.
        change: relative to the first column's, with its sign.
        good: whether that is better, worse (False), or neither (None).
    """

    shown: str
    change: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Duel:
    """Every test target in two runs' rankings.

    Attributes:
        name, against: the runs.
        targets: how many both have ranked.
        better, worse: how many rank higher, and lower, in ``name``.
        entered, left: how many of them cross into, and out of, the first k.
        chance: the two-sided sign test's p value over better and worse.
        most: (user, item, rank in ``against``, rank in ``name``) of the largest steps up, then down, by ratio.
    """

    name: str
    against: str
    targets: int
    better: int
    worse: int
    entered: int
    left: int
    chance: float
    most: Sequence[tuple[str, str, int, int]]


def columns(runs: Sequence[Run]) -> list[Column]:
    """The runs, each after its baseline, under names that tell them apart."""
    shown: list[tuple[Run, bool]] = []
    for run in runs:
        shown += [(run.baseline, False)] if run.baseline is not None else []
        shown.append((run, True))
    words = Counter(run.what for run, _ in shown)
    names = [run.what if words[run.what] == 1 else f"{run.what} ({_place(run)})" for run, _ in shown]
    again = Counter(names)
    names = [name if again[name] == 1 else f"{name} #{at + 1}" for at, name in enumerate(names)]
    return [Column(run, name, at, given) for at, ((run, given), name) in enumerate(zip(shown, names, strict=True))]


def _place(run: Run) -> str:
    path = run.path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name == "baseline" else path.name


def results(shown: Sequence[Column], part: str) -> list[tuple[str, list[Cell]]]:
    """Metrics by run, and how far each is from the first run's.

    Args:
        shown: the runs.
        part: ``test`` or ``valid``.
    """
    found: list[Mapping[str, float]] = [getattr(column.run, part) for column in shown]
    rows = []
    for metric in dict.fromkeys(key for scores in found for key in scores):
        first = found[0].get(metric)
        rows.append((metric, [_cell(metric, scores.get(metric), first, not at) for at, scores in enumerate(found)]))
    return rows


def _cell(metric: str, value: float | None, first: float | None, is_first: bool) -> Cell:
    if value is None:
        return Cell("–")
    if first is None or is_first or not first:
        return Cell(f"{value:.4f}")
    change = (value - first) / abs(first)
    good = None if value == first else (change < 0) == lower_is_better(metric)
    return Cell(f"{value:.4f}", f"{100 * change:+.1f} %", good)


def verdict(shown: Sequence[Column]) -> list[str]:
    """What came out, in a sentence for each run that was asked for."""
    first, told = shown[0], []
    for column in (each for each in shown if each.given):
        run, metric = column.run, column.run.metric
        value = run.test.get(metric or "")
        if value is None:
            told.append(f"{column.name} has no test result: its status is {run.status}.")
            continue
        words = f"{column.name} reaches {metric} {value:.4f} on the test part of {run.result['dataset']}"
        base = first.run.test.get(metric or "")
        if column is first or not base:
            told.append(f"{words}.")
            continue
        change = (value - base) / abs(base)
        sense = "above" if change > 0 else "below"
        apart = "as much as" if value == base else f"{100 * abs(change):.1f} % {sense}"
        told.append(f"{words}, {apart} {first.name} ({base:.4f}).")
    if len(shown) == 1 and first.run.test:
        told.append("No other run stands beside it: --baseline true trains the bare backbone with the same budget.")
    return told


def warnings(shown: Sequence[Column]) -> list[str]:
    """Why some of the runs cannot be compared with the first, if they cannot."""
    first, told = shown[0], []
    for column in shown[1:]:
        for key in SAME:
            one, other = first.run.result.get(key), column.run.result.get(key)
            if one is not None and other is not None and one != other:
                told.append(f"{column.name} and {first.name} differ in their {SAME_WORDS[key]}: do not compare them.")
                break
    return told


def costs(shown: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """What each run took, and what it was made with."""

    def row(name: str, tell: Any) -> tuple[str, list[str]]:
        return name, [tell(column.run) for column in shown]

    def of(key: str, tell: Any = number) -> Any:
        return lambda run: "–" if run.result.get(key) is None else tell(run.result[key])

    def parameters(run: Run) -> str:
        counts = run.result.get("parameters") or {}
        plugins = counts.get("plugins")
        parts = {"backbone": counts.get("backbone"), **(plugins if isinstance(plugins, Mapping) else {})}
        parts |= {"second backbone": counts["source"]} if counts.get("source") else {}
        return ", ".join(f"{name} {number(count)}" for name, count in parts.items() if count is not None) or "–"

    def best(run: Run) -> str:
        epochs = run.epochs.get("epoch", ())
        number = epochs[run.best_epoch] if epochs and run.best_epoch is not None else None
        return "–" if number is None else f"{number:g}"

    resumed = [row("Taken up again", of("resumed"))] if any(c.run.result.get("resumed") for c in shown) else []
    return [
        row("Status", lambda run: run.status),
        *resumed,
        row("Epochs", lambda run: number(len(next(iter(run.epochs.values()), ()))) if run.epochs else "–"),
        row("Best epoch, from 0", best),
        row("Seconds an epoch of training", of("seconds_per_epoch")),
        row("Peak memory of the process by its end", of("peak_memory_bytes", size)),
        row("Trained numbers", parameters),
        row("Seed", of("seed", str)),
        row("History masked in evaluation", of("mask_history", lambda yes: "yes" if yes else "no")),
    ]


def about(run: Run) -> Iterator[tuple[str, str, bool]]:
    """Where a run lies and what it was made from: name, words, and whether these are for machines."""
    result = run.result
    yield "Run directory", str(run.path), True
    yield "Data set", str(result.get("dataset")), False
    if result.get("data_fingerprint"):
        yield "Fingerprint of the split data (SHA-256)", str(result["data_fingerprint"]), True
    tables = dict(result.get("features") or {})
    for name, table in ({**tables, "factors": result["factors"]} if result.get("factors") else tables).items():
        if isinstance(table, Mapping):
            yield f"{name}, SHA-256", f"{table.get('file')} {table.get('sha256')}", True
    for line in run.coverage:
        yield "Coverage", line, False
    if source := result.get("source"):
        people = f"{source.get('links')} people in both, {source.get('links_held_out')} of them held out of the loss"
        scores = ", ".join(f"{name} {value:.4f}" for name, value in numbers(source.get("test_result")).items())
        yield "Second domain", f"{source.get('dataset')}; {people}; its own test: {scores}", False
    if versions := result.get("versions"):
        yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items()), False


def differing(shown: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs; defaults of a plugin that some of them lack say nothing."""
    by_run = [{setting.key: setting for setting in column.run.settings} for column in shown]
    keys = dict.fromkeys(key for settings in by_run for key in settings)
    rows = []
    for key in keys:
        having = [settings[key] for settings in by_run if key in settings]
        differs = len({setting.text for setting in having}) > 1
        if differs or (len(having) < len(by_run) and any(setting.chosen for setting in having)):
            rows.append((key, [settings[key].text if key in settings else "–" for settings in by_run]))
    return rows


def duels(shown: Sequence[Column], k: int) -> Iterator[Duel]:
    """Each run against the first, target by target, where both have ranked them."""
    first = shown[0]
    for column in shown[1:]:
        if first.run.result.get("data_fingerprint") != column.run.result.get("data_fingerprint"):
            continue
        pairs = [
            (user, item, before, column.run.ranks[user, item])
            for (user, item), before in first.run.ranks.items()
            if (user, item) in column.run.ranks
        ]
        if pairs:
            yield _duel(column.name, first.name, pairs, k)


def _duel(name: str, against: str, pairs: Sequence[tuple[str, str, int, int]], k: int) -> Duel:
    from scipy.stats import binomtest

    better = sum(now < before for _, _, before, now in pairs)
    worse = sum(now > before for _, _, before, now in pairs)
    steps = sorted(pairs, key=lambda pair: (pair[3] / pair[2], pair[0]))  # a step from 100 to 10 counts as 10 to 1 does
    up = [pair for pair in steps[:SHOWN] if pair[3] < pair[2]]
    down = [pair for pair in steps[: -SHOWN - 1 : -1] if pair[3] > pair[2]]
    return Duel(
        name,
        against,
        len(pairs),
        better,
        worse,
        sum(now <= k < before for _, _, before, now in pairs),
        sum(before <= k < now for _, _, before, now in pairs),
        float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        [*up, *down],
    )
