"""Schema induction: which factors matter for these products, and which values they take.

1. Samples of products are shown, some at a time; each call proposes factors. Names are made canonical, one call says
   which of them mean the same, and the factors that most calls named are kept.
2. Further products are read in the model's own words, and the words of a factor condensed to a closed vocabulary. A
   factor for which that fails gives its place to the next.

The paper (MARS, sec. 2.1.1 and App. C.1.4) names step 1 and its ten most frequent factors, and does not say how values
come about.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, Field

from recplug.adapters.factors.llm.answers import read_object
from recplug.adapters.factors.llm.client import Client
from recplug.adapters.factors.llm.content import Item, clean, distinct, singular
from recplug.adapters.factors.llm.limits import for_each
from recplug.adapters.factors.llm.log import provenance
from recplug.adapters.factors.llm.prompts import first_index, merge_request, proposal_request
from recplug.adapters.factors.llm.vocabulary import Theme, vocabularies
from recplug.adapters.factors.schema import RESERVED, UNKNOWN, FactorSchema, FactorSpec, folded
from recplug.plugins.errors import RecplugError

REFILLS = 3  # times that factors without values are replaced
COMPARED = 40  # names that the merging call looks at
# What needs no call to be the same.
SYNONYMS = {
    "colour": "color",
    "colour scheme": "color",
    "age group": "target age",
    "age range": "target age",
    "intended use": "use",
    "usage": "use",
    "use case": "use",
    "usage scenario": "use",
    "main function": "function",
    "functionality": "function",
    "primary material": "material",
}
NO_FACTOR = {*RESERVED, UNKNOWN, "index", "other"}


@dataclass(frozen=True)
class Sizes:
    """How many products each step of an induction sees; all are drawn once and no product is seen by two steps.

    Attributes:
        sample: shown for proposals.
        extract: read for values.
        batch: products a call.
    """

    sample: int = 300
    extract: int = 500
    batch: int = 20

    def __post_init__(self) -> None:
        if min(self.sample, self.extract, self.batch) < 1:
            raise RecplugError("an induction needs one or more products in every step, and in every call")

    def fitted(self, n: int) -> Sizes:
        """The same steps in proportion, for a catalogue of ``n`` products."""
        total = self.sample + self.extract
        sample = max(1, n * self.sample // total)
        return self if n >= total else Sizes(sample, max(1, n - sample), self.batch)


async def induce(
    items: Sequence[Item],
    client: Client,
    *,
    factors: int = 10,
    values: int = 30,
    sizes: Sizes | None = None,
    seed: int = 0,
) -> FactorSchema:
    """Make a schema for ``items``. Given the same answers it is the same schema.

    Args:
        items: the catalogue; products without text, and repeated ones, are not looked at.
        client: how to ask; its log keeps every answer, so that an induction that was stopped goes on.
        factors: K, at most: fewer where no more were proposed that have values.
        values: of one factor, at most, ``other`` not counted.
        sizes: products a step.
        seed: of the samples.

    Raises:
        Stopped: by budget or failures; another call goes on.
        RecplugError: for limits below two values or one factor, fewer than two products, no usable proposal, or no
            factor with values.
    """
    if factors < 1 or values < 2:
        raise RecplugError(f"factors={factors}, values={values}: a schema needs a factor, and a factor two values")
    pool = distinct(items)
    random.Random(seed).shuffle(pool)
    if len(pool) < 2:
        raise RecplugError(f"{len(pool)} different products with text are too few to make a schema of; give 2 or more")
    sizes = (sizes or Sizes()).fitted(len(pool))
    sample, extract = pool[: sizes.sample], pool[sizes.sample : sizes.sample + sizes.extract]
    client.used.clear()
    found, calls = await _proposed(client, sample, sizes.batch)
    named = await _merged(client, found)
    made: dict[str, FactorSpec] = {}
    waiting = [Theme(theme.name, theme.definition, theme.source, theme.aliases) for theme in named]
    for _ in range(REFILLS):
        place = factors - len(made)
        chosen, waiting = waiting[:place], waiting[place:]
        if chosen:
            made |= await vocabularies(client, chosen, extract, batch=sizes.batch, limit=values)
    if not made:
        raise RecplugError("not one proposed factor has two or more values in these products; try another model")
    kept = [theme for theme in named if theme.name in made]
    return FactorSchema(
        factors=tuple(made[theme.name] for theme in kept),
        provenance={
            "made_by": "recplug factors induce",
            **provenance(client.name, client.sampling, client.used),
            "seed": str(seed),
            "products": f"{len(sample)} for factors, {len(extract)} for values",
            "named_by": "; ".join(f"{theme.name} {len(theme.calls)} of {calls} calls" for theme in kept),
        },
    )


def canonical(name: str) -> str:
    """One spelling of a factor's name: folded, one blank between words, the last word in the singular, no synonym."""
    plain = folded(clean(name))
    words = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in plain).split()
    if words:
        words[-1] = singular(words[-1])
    joined = " ".join(words)
    return SYNONYMS.get(joined, joined)


# --- step 1 ---


class _Proposal(BaseModel):
    name: str
    definition: str = ""
    examples: list[str] = Field(default_factory=list)
    source: Literal["text", "image", "joint"] = "text"


class _Proposals(BaseModel):
    factors: list[_Proposal] = Field(min_length=1)


class _Same(BaseModel):
    index: int
    same_as: int


class _SameAs(BaseModel):
    factors: list[_Same]


@dataclass
class _Named:
    """A factor as it was proposed so far: by which calls, and how they describe it."""

    name: str
    definition: str
    calls: set[int] = field(default_factory=set)
    sources: Counter[str] = field(default_factory=Counter)
    aliases: list[str] = field(default_factory=list)

    @property
    def source(self) -> Literal["text", "image", "joint"]:
        best = max(self.sources.values())
        return next(s for s in ("text", "joint", "image") if self.sources[s] == best)


async def _proposed(client: Client, sample: Sequence[Item], batch: int) -> tuple[list[_Named], int]:
    """All proposed factors, most named first, and how many calls had a usable answer."""
    answers: dict[int, _Proposals] = {}

    async def one(at: int) -> None:
        shown = sample[at : at + batch]
        found = await client.read(
            lambda problems: proposal_request(shown, problems=problems), lambda text: read_object(text, _Proposals)
        )
        if found is not None:
            answers[at] = found

    await for_each(range(0, len(sample), batch), one, workers=client.concurrency)
    named: dict[str, _Named] = {}
    for call in sorted(answers):
        for proposal in answers[call].factors:
            name = canonical(proposal.name)
            if name and len(name) <= 40 and name not in NO_FACTOR:
                entry = named.setdefault(name, _Named(name, clean(proposal.definition)[:200]))
                entry.calls.add(call)
                entry.sources[proposal.source] += 1
    if not named:
        raise RecplugError("no usable proposal of a factor came back; try another model, or other --columns")
    return sorted(named.values(), key=lambda entry: (-len(entry.calls), min(entry.calls), entry.name)), len(answers)


async def _merged(client: Client, found: list[_Named]) -> list[_Named]:
    """The same, with those that ask the same made one; the one that more calls named gives the name."""
    compared, first = found[:COMPARED], first_index(len(found[:COMPARED]))
    if len(compared) < 2:
        return found
    answer = await client.read(
        lambda problems: merge_request([(entry.name, entry.definition) for entry in compared], problems=problems),
        lambda text: read_object(text, _SameAs),
    )
    if answer is None:
        return found
    root = list(range(len(compared)))
    for same in answer.factors:
        place, earlier = same.index - first, same.same_as - first
        if 0 <= earlier < place < len(compared):
            root[place] = root[earlier]
    for place in reversed(range(len(compared))):
        target = compared[root[place]]
        if root[place] != place:
            target.calls |= compared[place].calls
            target.sources += compared[place].sources
            target.aliases += [compared[place].name, *compared[place].aliases]
    kept = [entry for place, entry in enumerate(compared) if root[place] == place] + found[COMPARED:]
    return sorted(kept, key=lambda entry: (-len(entry.calls), min(entry.calls), entry.name))
