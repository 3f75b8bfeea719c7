"""The tables of a comparison, as texts with the numbers behind them; Markdown, LaTeX and HTML show the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from recplug.adapters.compare.cells.plan import Variant, validation
from recplug.adapters.compare.controls import EXPLAINED
from recplug.adapters.compare.numbers import BARE, Numbers, Test
from recplug.adapters.compare.statistics import Paired


@dataclass(frozen=True)
class Value:
    """What a cell of a table shows, and the number it is sorted by."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: a word.
        title: a heading.
        note: what to see in it.
        columns: titles.
        rows: a value a column.
        lead: how many columns in front name the data set and the model.
    """

    name: str
    title: str
    note: str
    columns: Sequence[str]
    rows: list[list[Value]] = field(default_factory=list)
    lead: int = 2

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [any(row[at].number is not None for row in self.rows) for at in range(len(self.columns))]


def tables(comparison: Numbers) -> list[Table]:
    """Every table that has rows, without the columns that say the same in each: the only data set, the only model."""
    makers = (_results, _tests, _cost, _groups, _metrics, _validation, _failures)
    asked = comparison.asked
    first = [at for at, names in enumerate((asked.datasets, asked.models)) if len(names) > 1]
    made = [make(comparison) for make in makers]
    return [_without(table, first) for table in made if table.rows]


def _without(table: Table, first: Sequence[int]) -> Table:
    """With those of the two first columns that ``first`` numbers."""
    kept = [*first, *range(2, len(table.columns))]
    rows = [[row[at] for at in kept] for row in table.rows]
    return replace(table, columns=[table.columns[at] for at in kept], rows=rows, lead=len(first))


def notes(comparison: Numbers) -> list[str]:
    """How to read it: what was chosen how, and what the tests are tests of."""
    asked = comparison.asked
    found = [
        f"{comparison.metric} is the test set's, in the epoch that validation preferred; of settings that validation "
        "did not choose, no test result is shown. ± is the standard deviation over seeds.",
        "A user's metric is averaged over seeds first; then users are pairs, and p is a paired t test's over users. So "
        "p and the interval say whether other users of the same kind would agree about these trainings; whether other "
        "trainings would, the spread over seeds and the seeds won say.",
        "Holm's correction is over all tests of the table, so that the chance of a single false alarm among them stays "
        "below the level.",
    ]
    if asked.grid:
        several = ", ".join(f"{key} ({', '.join(values)})" for key, values in asked.grid.items())
        found.append(
            f"Settings were chosen by the mean validation score over seeds, for each data set, model and set of "
            f"plugins alone, of {several}. Controls have the settings of what they control."
        )
    found += [f"{name}: {EXPLAINED[name]}." for name in asked.controls]
    named = {name: changes for plugins in asked.plugins for name, changes in asked.named(plugins).items()}
    found += [f"{name}: {', '.join(f'{k}={v}' for k, v in changes.items())}." for name, changes in named.items()]
    return found


def gain_text(pairs: Paired) -> str:
    """The gain in per cent, or the difference where there is nothing to take a share of."""
    return f"{pairs.ours - pairs.theirs:+.4f}" if pairs.gain is None else f"{100 * pairs.gain:+.1f} %"


def interval_text(pairs: Paired) -> str:
    """The gain's 95 % interval; nothing where it has none."""
    if pairs.low is None or pairs.high is None:
        return ""
    return f"{100 * pairs.low:+.1f} … {100 * pairs.high:+.1f} %"


def label(variant: Variant) -> str:
    """The plugins, and which control of them."""
    name = "+".join(variant.plugins) or BARE
    return f"{name}, {variant.control}" if variant.control else name


def _results(comparison: Numbers) -> Table:
    first = ["data set", "model", "variant", "seeds", "validation", comparison.metric, "over bare"]
    chosen = [f"chosen: {key}" for key in comparison.asked.grid]
    table = Table(
        "results", "Results", "Test results of what validation chose; controls stand below what they control.",
        [*first, *chosen],
    )  # fmt: skip
    for variant in comparison.variants():
        results = comparison.results(variant)
        if not results and not variant.waits:
            continue  # told among the failures
        valid, tested = validation(variant, comparison.outcomes), comparison.values(variant, comparison.metric)
        row = [*_about(variant), Value(str(len(results)), len(results)) if results else Value(variant.waits)]
        row += [_spread(valid), _spread(tested), _over_bare(comparison, variant, tested)]
        table.rows.append([*row, *(Value(dict(variant.choice).get(key, "")) for key in comparison.asked.grid)])
    return table


def _tests(comparison: Numbers) -> Table:
    table = Table(
        "tests",
        "Are the gains real?",
        "Plugins against the bare backbone and against their controls, paired over users. A gain that a control shares "
        "is not the method's.",
        ["data set", "model", "plugins", "against", "users", "seeds won", "gain", "95 %", "p", "p (Holm)"],
    )
    for test in comparison.tests:
        table.rows.append([*_about(test.variant), Value(test.against), *_tested(test)])
    return table


def _tested(test: Test) -> list[Value]:
    pairs = test.pairs
    if pairs is None:
        return [Value(test.problem)] + [Value("")] * 5
    return [
        Value(f"{pairs.users:,}", pairs.users),
        Value(f"{test.won} of {test.seeds}", test.won),
        Value(gain_text(pairs), pairs.gain),
        Value(interval_text(pairs), pairs.low),
        p_value(pairs.p),
        p_value(test.holm),
    ]


def p_value(p: float | None) -> Value:
    """Three decimals, or that it is below 0.001."""
    return Value("", None) if p is None else Value("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def _cost(comparison: Numbers) -> Table:
    table = Table(
        "cost",
        "What it costs",
        "Means over seeds, and how many times the bare backbone's. Seconds compare only where one cell ran at a time.",
        ["data set", "model", "variant", "epochs", "seconds an epoch", "x bare", "peak memory, MB", "x bare",
         "parameters: backbone", "plugins"],
    )  # fmt: skip
    for variant in comparison.variants():
        results = list(comparison.results(variant).values())
        bare = comparison.bare(variant)
        bares = list(comparison.results(bare).values()) if bare else []
        if not results:
            continue
        row = [*_about(variant), _mean(results, "epochs", "{:.0f}")]
        for key, form, scale in (("seconds_per_epoch", "{:.2f}", 1.0), ("peak_memory_bytes", "{:,.0f}", 1e-6)):
            row += [_mean(results, key, form, scale), _ratio(results, bares, key)]
        sizes = results[0].get("parameters") or {}
        counts = [sizes.get("backbone", 0), sum((sizes.get("plugins") or {}).values())]
        table.rows.append([*row, *(Value(f"{count:,}", count) for count in counts)])
    return table


def _groups(comparison: Numbers) -> Table:
    table = Table(
        "groups",
        "For whom",
        "Chosen plugins against the bare backbone, by users' training interactions, and by whether training has seen "
        "the target (warm) or not (cold). Intervals are each group's own, not corrected for their number.",
        ["data set", "model", "plugins", "group", "users", "targets", BARE, "with plugins", "gain", "95 %"],
    )
    for group in comparison.groups:
        name = f"{group.name} interactions" if group.kind == "activity" else f"{group.name} targets"
        pairs = group.pairs
        row = [*_about(group.variant), Value(name)]
        row += [Value(f"{count:,}", count) for count in (pairs.users, group.targets)]
        row += [Value(f"{mean:.4f}", mean) for mean in (pairs.theirs, pairs.ours)]
        table.rows.append([*row, Value(gain_text(pairs), pairs.gain), Value(interval_text(pairs), pairs.low)])
    return table


def _metrics(comparison: Numbers) -> Table:
    found = [name for v in comparison.variants() for r in comparison.results(v).values() for name in r["test_result"]]
    names = list(dict.fromkeys(found))
    table = Table("metrics", "All test metrics", "Means over seeds.", ["data set", "model", "variant", *names])
    for variant in comparison.variants():
        if comparison.results(variant):
            means = [comparison.values(variant, name) for name in names]
            shown = [Value(f"{np.mean(v):.4f}", float(np.mean(v))) if v else Value("") for v in means]
            table.rows.append([*_about(variant), *shown])
    return table


def _validation(comparison: Numbers) -> Table:
    keys = list(comparison.asked.grid)
    table = Table(
        "validation",
        "What validation chose from",
        "Mean validation scores over seeds; the test results of what was not chosen are not shown.",
        ["data set", "model", "variant", *keys, "seeds", "validation", "chosen"],
    )
    for variants, best in comparison.candidates() if keys else ():
        for variant in variants:
            scores = validation(variant, comparison.outcomes)
            about = _about(variant) + [Value(dict(variant.choice).get(key, "")) for key in keys]
            table.rows.append(
                [*about, Value(str(len(scores)), len(scores)), _spread(scores), Value("yes" if variant is best else "")]
            )
    return table


def _failures(comparison: Numbers) -> Table:
    table = Table(
        "failures", "Cells that failed", "`recplug compare --output DIR --retry` tries them again; logs lie in logs/.",
        ["data set", "model", "variant", "seed", "why"],
    )  # fmt: skip
    seen = set()
    for variants, _, controls in comparison.blocks:
        for variant in (*variants, *controls):
            for cell in variant.cells:
                ended = comparison.outcomes.get(cell.key)
                if ended is not None and ended.result is None and cell.key not in seen:
                    seen.add(cell.key)
                    about = [*_about(variant), Value(str(cell.seed), cell.seed)]
                    table.rows.append([*about, Value(ended.error)])
    return table


# -- values


def _about(variant: Variant) -> list[Value]:
    """Data set, model, and the plugins with their control."""
    return [Value(variant.dataset), Value(variant.model), Value(label(variant))]


def _spread(values: Sequence[float]) -> Value:
    if not values:
        return Value("")
    mean = float(np.mean(values))
    return Value(f"{mean:.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""), mean)


def _over_bare(comparison: Numbers, variant: Variant, tested: Sequence[float]) -> Value:
    bare = comparison.bare(variant)
    base = comparison.values(bare, comparison.metric) if bare is not None else []
    if not tested or not base or not variant.plugins or not np.mean(base):
        return Value("")
    share = float(np.mean(tested) / np.mean(base)) - 1
    return Value(f"{100 * share:+.1f} %", share)


def _numbers(results: Sequence[dict[str, Any]], key: str) -> Iterator[float]:
    return (float(result[key]) for result in results if result.get(key) is not None)


def _mean(results: Sequence[dict[str, Any]], key: str, form: str, scale: float = 1.0) -> Value:
    found = list(_numbers(results, key))
    return Value(form.format(scale * np.mean(found)), scale * float(np.mean(found))) if found else Value("")


def _ratio(ours: Sequence[dict[str, Any]], bares: Sequence[dict[str, Any]], key: str) -> Value:
    one, other = list(_numbers(ours, key)), list(_numbers(bares, key))
    if not one or not other or not np.mean(other):
        return Value("")
    ratio = float(np.mean(one) / np.mean(other))
    return Value(f"{ratio:.2f}", ratio)
