"""Schema induction: which factors matter for these products, and which values they take.

1. Samples of products are shown, some at a time; each call proposes factors. Names are made canonical, one call says
   which of them mean the same, and the factors that most calls named are kept.
2. Further products are read in the model's own words; the words of a factor are condensed to a closed vocabulary.
3. The schema labels products that neither step saw. A vocabulary that fails there is made anew, a few times.

The paper (MARS, sec. 2.1.1 and App. C.1.4) names step 1 and its ten most frequent factors, and does not say how values
come about.
"""

from __future__ import annotations

import logging
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, Field

from recplug.adapters.factors.llm.answers import read_object
from recplug.adapters.factors.llm.asking import Asker
from recplug.adapters.factors.llm.content import Item, clean, distinct, singular
from recplug.adapters.factors.llm.prompts import first_index, merge_request, proposal_request
from recplug.adapters.factors.llm.sending import Sender, for_each
from recplug.adapters.factors.llm.trial import Limits, trial_line
from recplug.adapters.factors.llm.vocabulary import Theme, improved, vocabularies
from recplug.adapters.factors.schema import RESERVED, UNKNOWN, FactorSchema, folded
from recplug.plugins.errors import RecplugError

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
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """How many products each step of an induction sees; all are drawn once and no product is seen by two steps.

    Attributes:
        sample: shown for proposals.
        extract: read for values, at most: reading ends when hardly any new word comes.
        trial: labelled with the finished schema.
        batch: products a call, in proposals and reading; labelling takes half as many.
    """

    sample: int = 300
    extract: int = 500
    trial: int = 200
    batch: int = 20

    def __post_init__(self) -> None:
        if min(self.sample, self.extract, self.trial, self.batch) < 1:
            raise RecplugError("an induction needs one or more products in every step, and in every call")

    def fitted(self, n: int) -> Sizes:
        """The same steps in proportion, for a catalogue of ``n`` products."""
        total = self.sample + self.extract + self.trial
        if n >= total:
            return self
        sample, extract = max(1, n * self.sample // total), max(1, n * self.extract // total)
        return Sizes(sample, extract, max(1, n - sample - extract), self.batch)


async def induce(
    items: Sequence[Item],
    sender: Sender,
    *,
    factors: int = 10,
    values: int = 30,
    sizes: Sizes | None = None,
    limits: Limits | None = None,
    strata: Mapping[str, str] | None = None,
    seed: int = 0,
) -> FactorSchema:
    """Make a schema for ``items``. Given the same answers it is the same schema.

    Args:
        items: the catalogue; products without text, and repeated ones, are not looked at.
        sender: how to ask; its log keeps every answer, so that an induction that was stopped goes on.
        factors: K, at most.
        values: of one factor, at most, ``other`` not counted.
        sizes: products a step.
        limits: what the trial asks of a vocabulary, and how often it may be made anew.
        strata: a group by item token, such as category and popularity; samples hold them in the catalogue's shares.
        seed: of the samples.

    Raises:
        RecplugError: for limits below two values or one factor, fewer than three products, no usable proposal, or
            no factor with values.
    """
    if factors < 1 or values < 2:
        raise RecplugError(f"factors={factors}, values={values}: a schema needs a factor, and a factor two values")
    pool = in_strata(distinct(items), strata or {}, seed)
    if len(pool) < 3:
        raise RecplugError(f"{len(pool)} different products with text are too few to make a schema of; give 3 or more")
    sizes = (sizes or Sizes()).fitted(len(pool))
    limits = limits or Limits()
    sample, rest = pool[: sizes.sample], pool[sizes.sample :]
    extract, trial = rest[: sizes.extract], rest[sizes.extract : sizes.extract + sizes.trial]

    asker = Asker(sender)
    found, calls = await _proposed(asker, sample, sizes.batch)
    themes = (await _merged(asker, found))[:factors]
    log.info("factors: %s", ", ".join(f"{theme.name} ({len(theme.calls)})" for theme in themes))
    bare = [Theme(theme.name, theme.definition, theme.source, theme.aliases) for theme in themes]
    read = await vocabularies(asker, bare, extract, batch=sizes.batch, limit=values)
    if not read:
        raise RecplugError("not one proposed factor has two or more values in these products; try another model")
    done = await improved(asker, read, trial, batch=max(1, sizes.batch // 2), limit=values, limits=limits, seed=seed)
    for result in done:
        log.info("%s", trial_line(result, limits))
    by_name = {theme.name: theme for theme in themes}
    return FactorSchema(
        factors=tuple(result.spec for result in done),
        provenance={
            "made_by": "recplug factors induce",
            **asker.provenance(),
            "seed": str(seed),
            "products": f"{len(sample)} for factors, {len(extract)} for values, {len(trial)} for the trial",
            "named_by": "; ".join(f"{r.spec.name} {len(by_name[r.spec.name].calls)} of {calls} calls" for r in done),
            "trial": "; ".join(trial_line(result, limits) for result in done),
        },
    )


def in_strata(items: Sequence[Item], strata: Mapping[str, str], seed: int) -> list[Item]:
    """``items`` in a random order of which every stretch holds the strata in about the shares of the whole."""
    draw = random.Random(seed)
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[strata.get(item.token, "")].append(item)
    placed: list[tuple[float, float, Item]] = []
    for name in sorted(groups):
        members = groups[name]
        draw.shuffle(members)
        placed += [((at + draw.random()) / len(members), draw.random(), item) for at, item in enumerate(members)]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


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


async def _proposed(asker: Asker, sample: Sequence[Item], batch: int) -> tuple[list[_Named], int]:
    """All proposed factors, most named first, and how many calls had a usable answer."""
    answers: dict[int, _Proposals] = {}

    async def one(at: int) -> None:
        shown = sample[at : at + batch]
        found = await asker.ask(
            lambda problems: proposal_request(shown, problems=problems), lambda text: read_object(text, _Proposals)
        )
        if found is not None:
            answers[at] = found

    await for_each(range(0, len(sample), batch), one, workers=asker.sender.concurrency)
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


async def _merged(asker: Asker, found: list[_Named]) -> list[_Named]:
    """The same, with those that ask the same made one; the one that more calls named gives the name."""
    compared, first = found[:COMPARED], first_index(len(found[:COMPARED]))
    if len(compared) < 2:
        return found
    answer = await asker.ask(
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
