"""The values of induced factors: words read off products, condensed to a closed vocabulary, tried and improved."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from pydantic import BaseModel

from recplug.adapters.factors.llm.answers import Reading, read_object, read_words
from recplug.adapters.factors.llm.asking import Asker
from recplug.adapters.factors.llm.assign import assign
from recplug.adapters.factors.llm.content import Item, clean
from recplug.adapters.factors.llm.prompts import condensing_request, extraction_request, first_index
from recplug.adapters.factors.llm.sending import for_each
from recplug.adapters.factors.llm.trial import OTHER, Limits, Trial
from recplug.adapters.factors.schema import UNKNOWN, FactorSchema, FactorSpec, Value, folded
from recplug.adapters.factors.table import FactorTable
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorSource

WAVE = 100  # products between two looks at how many words are new
FEW_NEW = 0.02  # share of new words at which reading ends
CONDENSED = 200  # different words that one condensing call looks at
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Theme:
    """A factor without values."""

    name: str
    definition: str
    source: FactorSource = "text"
    aliases: Sequence[str] = ()


async def vocabularies(
    asker: Asker, themes: Sequence[Theme], items: Sequence[Item], *, batch: int, limit: int
) -> list[Trial]:
    """A vocabulary for each theme for which two or more values are found; not tried yet."""
    words = await _read(asker, themes, items, batch)
    made: dict[int, FactorSpec] = {}

    async def one(place: int) -> None:
        spec = await _condensed(asker, themes[place], words[place], limit)
        if spec is not None:
            made[place] = spec

    await for_each(range(len(themes)), one, workers=asker.sender.concurrency)
    for place, theme in enumerate(themes):
        if place not in made:
            log.info("%s is left out: these products show fewer than two values of it", theme.name)
    return [Trial(made[place], words[place], {}, 0) for place in sorted(made)]


async def improved(
    asker: Asker,
    made: Sequence[Trial],
    items: Sequence[Item],
    *,
    batch: int,
    limit: int,
    limits: Limits,
    seed: int,
) -> list[Trial]:
    """Try the vocabularies on ``items``; make those that fail anew, at most ``limits.rounds`` times, keep the best."""
    table = await _labelled(asker, [trial.spec for trial in made], items, batch, seed)
    best = [_judged(trial.spec, trial.words, table) for trial in made]
    last = {place: trial for place, trial in enumerate(best) if trial.faults(limits)}
    for _ in range(limits.rounds):
        words = await _words_of_others(asker, list(last.values()), items, table, batch)
        fresh: dict[int, Trial] = {}
        for (place, tried), more in zip(last.items(), words, strict=True):
            theme = Theme(tried.spec.name, tried.spec.description, tried.spec.source, tried.spec.aliases)
            spec = await _condensed(asker, theme, more, limit, tried=tried, limits=limits)
            if spec is not None and spec.values != tried.spec.values:
                fresh[place] = Trial(spec, more, {}, 0)
        if not fresh:
            break
        table = await _labelled(asker, [trial.spec for trial in fresh.values()], items, batch, seed)
        judged = {place: _judged(trial.spec, trial.words, table) for place, trial in fresh.items()}
        for place, again in judged.items():
            if again.excess(limits) < best[place].excess(limits):
                best[place] = again
        last = {place: again for place, again in judged.items() if again.faults(limits)}
    return best


# --- reading ---


async def _read(asker: Asker, themes: Sequence[Theme], items: Sequence[Item], batch: int) -> list[Counter[str]]:
    """The words of each theme over ``items``, until hardly any is new."""
    words: list[Counter[str]] = [Counter() for _ in themes]
    for at in range(0, len(items), WAVE):
        before = [set(counter) for counter in words]
        found = await _words(asker, themes, items[at : at + WAVE], batch)
        total = new = 0
        for counter, known, more in zip(words, before, found, strict=True):
            counter.update(more)
            total += more.total()
            new += len(set(more) - known)
        if at and new <= FEW_NEW * total:
            break
    return words


async def _words(asker: Asker, themes: Sequence[Theme], items: Sequence[Item], batch: int) -> list[Counter[str]]:
    described = [(theme.name, theme.definition) for theme in themes]
    names = [theme.name for theme in themes]
    readings: dict[int, Reading] = {}

    async def one(at: int) -> None:
        shown = items[at : at + batch]

        def read(text: str) -> Reading:
            reading = read_words(text, names, len(shown))
            if not reading.rows:
                raise RecplugError("; ".join(reading.problems)[:300])
            return reading

        found = await asker.ask(lambda problems: extraction_request(described, shown, problems=problems), read)
        if found is not None:
            readings[at] = found

    await for_each(range(0, len(items), batch), one, workers=asker.sender.concurrency)
    rows = list(chain.from_iterable(readings[at].rows.values() for at in sorted(readings)))
    return [Counter(word for row in rows for raw in row[name] if (word := _word(raw))) for name in names]


async def _words_of_others(
    asker: Asker, tried: Sequence[Trial], items: Sequence[Item], table: FactorTable, batch: int
) -> list[Counter[str]]:
    """The words known so far, and those of products that the last trial put under ``other``."""
    columns = [table.values[trial.spec.name] for trial in tried]
    left = [item for place, item in enumerate(items) if any(column[place] == (OTHER,) for column in columns)]
    themes = [Theme(trial.spec.name, trial.spec.description) for trial in tried]
    more = await _words(asker, themes, left, batch) if left else [Counter[str]() for _ in tried]
    return [Counter(trial.words) + counter for trial, counter in zip(tried, more, strict=True)]


def _word(raw: str) -> str | None:
    word = folded(clean(raw))
    return word if 0 < len(word) <= 60 and word not in (UNKNOWN, OTHER, "none", "n/a") else None


# --- condensing ---


class _Value(BaseModel):
    name: str
    definition: str = ""
    found: list[int]


class _Vocabulary(BaseModel):
    values: list[_Value]


async def _condensed(
    asker: Asker,
    theme: Theme,
    words: Mapping[str, int],
    limit: int,
    *,
    tried: Trial | None = None,
    limits: Limits | None = None,
) -> FactorSpec | None:
    """The closed vocabulary of a theme; the most frequent words where no usable answer comes back."""
    found = sorted(words.items(), key=lambda pair: (-pair[1], pair[0]))[:CONDENSED]
    if len(found) < 2:
        return None
    told = "" if tried is None or limits is None else _told(tried, limits)
    answer = await asker.ask(
        lambda problems: condensing_request(
            (theme.name, theme.definition), found, limit=limit, trial=told, problems=problems
        ),
        lambda text: _vocabulary(read_object(text, _Vocabulary), [word for word, _ in found], limit),
    )
    if answer is None:
        if tried is not None:
            return None
        answer = tuple(Value(name=word) for word, _ in found[:limit])
    other = Value(name=OTHER, definition="it tells, but none of the other values fits")
    return FactorSpec(
        name=theme.name,
        description=theme.definition,
        source=theme.source,
        aliases=tuple(theme.aliases),
        values=(*answer, other),
        other=OTHER,
    )


def _vocabulary(answer: _Vocabulary, words: Sequence[str], limit: int) -> tuple[Value, ...]:
    """An answered vocabulary as values. The words that a value stands for are its aliases, each under one value."""
    first = first_index(len(words))
    named = [(clean(value.name)[:60].strip(), value) for value in answer.values]
    named = [(name, value) for name, value in named if folded(name) not in ("", UNKNOWN, OTHER)]
    names = [folded(name) for name, _ in named]
    if len(set(names)) < len(names):
        raise RecplugError(f"{next(n for n in names if names.count(n) > 1)!r} is the name of two values")
    if not 2 <= len(named) <= limit:
        raise RecplugError(f"it has {len(named)} values besides 'other'; 2 to {limit} are wanted")
    taken = {*names, UNKNOWN, OTHER}
    values = []
    for name, value in named:
        aliases = []
        for number in value.found:
            if first <= number < first + len(words) and words[number - first] not in taken:
                aliases.append(words[number - first])
                taken.add(words[number - first])
        values.append(Value(name=name, definition=clean(value.definition)[:200], aliases=tuple(aliases)))
    return tuple(values)


def _told(tried: Trial, limits: Limits) -> str:
    listed = {value.name: tried.counts.get(value.name, 0) for value in tried.spec.values if value.name != OTHER}
    return (
        f"An earlier list was tried on {tried.n} other products. Products by value:\n"
        f"{json.dumps(listed, ensure_ascii=False)}\nWhat is wrong with it: {'; '.join(tried.faults(limits))}.\n"
        "Make a better list; values that did well keep their names."
    )


# --- the trial ---


async def _labelled(
    asker: Asker, specs: Sequence[FactorSpec], items: Sequence[Item], batch: int, seed: int
) -> FactorTable:
    return await assign(FactorSchema(factors=tuple(specs)), items, asker.sender, batch=batch, seed=seed)


def _judged(spec: FactorSpec, words: Mapping[str, int], table: FactorTable) -> Trial:
    """How ``spec`` did, over the items that got an answer."""
    column = table.values[spec.name]
    labels = [names for names, status in zip(column, table.status, strict=True) if status == "ok"]
    counts = Counter(name for names in labels for name in names)
    return Trial(spec, dict(words), dict(counts), sum(not names for names in labels))
