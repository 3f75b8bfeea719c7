"""The values of induced factors: words read off products, condensed to a closed vocabulary."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from recplug.adapters.factors.llm.answers import NOTHING, Reading, read_object, read_words
from recplug.adapters.factors.llm.client import Client
from recplug.adapters.factors.llm.content import Item, clean
from recplug.adapters.factors.llm.limits import for_each
from recplug.adapters.factors.llm.prompts import condensing_request, extraction_request, first_index
from recplug.adapters.factors.schema import UNKNOWN, FactorSpec, Value, folded
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorSource

OTHER = "other"
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
    client: Client, themes: Sequence[Theme], items: Sequence[Item], *, batch: int, limit: int
) -> dict[str, FactorSpec]:
    """The factor of each theme for which two or more values are found, by its name."""
    words = await _words(client, themes, items, batch)
    made: dict[str, FactorSpec] = {}

    async def one(theme: Theme) -> None:
        spec = await _condensed(client, theme, words[theme.name], limit)
        if spec is None:
            log.info("%s is left out: these products show fewer than two values of it", theme.name)
        else:
            made[theme.name] = spec

    await for_each(themes, one, workers=client.concurrency)
    return made


async def _words(client: Client, themes: Sequence[Theme], items: Sequence[Item], batch: int) -> dict[str, Counter[str]]:
    """What a model calls the values of each theme, in its own words, and how many items have each."""
    described = [(theme.name, theme.definition) for theme in themes]
    names = [theme.name for theme in themes]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}

    async def one(at: int) -> None:
        shown = items[at : at + batch]

        def read(text: str) -> Reading:
            reading = read_words(text, names, len(shown))
            if not reading.rows:
                raise RecplugError("; ".join(reading.problems)[:300])
            return reading

        found = await client.read(lambda problems: extraction_request(described, shown, problems=problems), read)
        for row in found.rows.values() if found else ():
            for name, words in row.items():
                counts[name].update(word for raw in words if (word := _word(raw)))

    await for_each(range(0, len(items), batch), one, workers=client.concurrency)
    return counts


def _word(raw: str) -> str | None:
    word = folded(clean(raw))
    return word if len(word) <= 60 and word not in (*NOTHING, OTHER) else None


class _Value(BaseModel):
    name: str
    definition: str = ""
    found: list[int]


class _Vocabulary(BaseModel):
    values: list[_Value]


async def _condensed(client: Client, theme: Theme, words: Mapping[str, int], limit: int) -> FactorSpec | None:
    """The closed vocabulary of a theme; the most frequent words where no usable answer comes back."""
    found = sorted(words.items(), key=lambda pair: (-pair[1], pair[0]))[:CONDENSED]
    if len(found) < 2:
        return None
    answer = await client.read(
        lambda problems: condensing_request((theme.name, theme.definition), found, limit=limit, problems=problems),
        lambda text: _vocabulary(read_object(text, _Vocabulary), [word for word, _ in found], limit),
    )
    values = answer or tuple(Value(name=word) for word, _ in found[:limit])
    other = Value(name=OTHER, definition="it tells, but none of the other values fits")
    return FactorSpec(
        name=theme.name,
        description=theme.definition,
        source=theme.source,
        aliases=tuple(theme.aliases),
        values=(*values, other),
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
