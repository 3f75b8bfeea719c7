"""Attribute assignment: every item's values under a schema, read by a language model.

What was answered is kept in the log by factor and content: under the digest of the question that the factor was then
(model, words, definitions) and the digest of what the item says. So a run goes on where another ended with any batch
size, equal products are asked about once, and a schema that was edited asks only what it did not ask before.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from recplug.adapters.factors.llm.answers import read_assignment
from recplug.adapters.factors.llm.client import Client
from recplug.adapters.factors.llm.content import Item, content_hash
from recplug.adapters.factors.llm.limits import for_each
from recplug.adapters.factors.llm.log import Entry, provenance
from recplug.adapters.factors.llm.messages import Stopped, Unanswered, digest
from recplug.adapters.factors.llm.prompts import RULES, assignment_request
from recplug.adapters.factors.schema import FactorSchema, FactorSpec, folded
from recplug.adapters.factors.table import FactorTable
from recplug.plugins.errors import RecplugError

Progress = Callable[[int, int], None]
Verdict = Literal["invalid", "cut", "refused", "unanswered"]
QUESTION, LABEL = "question/", "label/"


async def assign(
    schema: FactorSchema,
    items: Sequence[Item],
    client: Client,
    *,
    batch: int = 10,
    seed: int = 0,
    retry_failed: bool = False,
    overrides: FactorTable | None = None,
    progress: Progress | None = None,
) -> FactorTable:
    """Label ``items``, asking about those that the log does not know.

    Of an answer that is partly invalid the valid labels are kept, and the others asked for once more with what was
    wrong; what is still missing, or was cut off, in halves. A label that is invalid for an item alone is ``failed``,
    one that the model declines is ``refused``; both are unknown, and so is the status of an item that has no other.
    An item with nothing to read is unknown without a call.

    Args:
        schema: the factors.
        items: their tokens differ; their contents may not.
        client: how to ask, and the log.
        batch: items a request.
        seed: of the order in which contents are asked about, which is random, so that neighbours in the catalogue do
            not share a request.
        retry_failed: ask again about labels that failed or were refused in an earlier run.
        overrides: rows that a person made, under factors of ``schema``: they stay, and are asked about only where they
            have no such factor. Those of other items are added at the end.
        progress: called with how many different contents are done, and of how many.

    Returns:
        One row an item, in the order given, with where its labels come from in the metadata.

    Raises:
        Stopped: by budget or failures; answers so far are kept, and another call goes on.
        RecplugError: where not one item got a usable answer.
    """
    if batch < 1:
        raise RecplugError(f"batch={batch} asks about nothing; give 1 or more")
    if len({item.token for item in items}) < len(items):
        raise RecplugError("some items have the same token; give each item once")
    made = {} if overrides is None else {token: row for row, token in enumerate(overrides.tokens)}
    theirs = [item for item in items if item.token in made]
    run = _Labelling(schema, client, salt="", progress=progress)
    run.add([item for item in items if item.token not in made], retry_failed)
    if overrides is not None:
        run.add(theirs, retry_failed, without=set(overrides.values))
    await run.ask(batch, seed)
    table = run.table(schema, items)
    return table if overrides is None else _with(overrides, table)


async def reask(
    schema: FactorSchema, items: Sequence[Item], client: Client, *, n: int = 200, seed: int = 0
) -> FactorTable:
    """Label up to ``n`` different items anew: one a request, the values of each factor in another order.

    How far this agrees with :func:`assign` says how much the labels depend on order and company. The answers have keys
    of their own.

    Returns:
        A table of the drawn items under ``schema``.

    Raises:
        RecplugError: as :func:`assign`.
    """
    draw = random.Random(seed)
    pool = sorted({content_hash(item): item for item in items if not item.empty}.items(), key=lambda pair: pair[0])
    drawn = [item for _, item in draw.sample(pool, min(n, len(pool)))]
    mixed = tuple(
        factor.model_copy(update={"values": tuple(draw.sample(factor.values, len(factor.values)))})
        for factor in schema.factors
    )
    run = _Labelling(schema.model_copy(update={"factors": mixed}), client, salt=f"reask {seed}", progress=None)
    run.add(drawn, retry_failed=False)
    await run.ask(1, seed)
    return run.table(schema, drawn)


class _Labelling:
    """One pass over items.

    Args:
        schema: as it is shown to the model.
        client: how to ask.
        salt: makes keys differ from those of other passes.
        progress: see :func:`assign`.
    """

    def __init__(self, schema: FactorSchema, client: Client, *, salt: str, progress: Progress | None) -> None:
        self.schema, self.client, self._report = schema, client, progress
        self.found: dict[str, dict[str, Entry]] = {}  # by content and factor
        self.items: dict[str, Item] = {}
        self._content: dict[str, str] = {}  # by token
        self.open: dict[str, set[str]] = {}
        self._done = 0
        # What no answer came for is failed in this table, and asked about again in the next run.
        self._unanswered: dict[str, dict[str, Entry]] = {}
        questions = {spec.name: _question(spec, client, salt) for spec in schema.factors}
        self._asked = {name: digest(question) for name, question in questions.items()}
        kept = {key.removeprefix(QUESTION): json.loads(e.text) for key, e in client.log.find(QUESTION).items()}
        new = {self._asked[name]: question for name, question in questions.items() if self._asked[name] not in kept}
        client.log.put(
            {QUESTION + key: client.entry(json.dumps(question), "question", "") for key, question in new.items()}
        )
        for spec in schema.factors:
            same = [key for key, old in kept.items() if _covers(old, questions[spec.name], spec)]
            for key in dict.fromkeys((*same, self._asked[spec.name])):
                for place, entry in client.log.find(f"{LABEL}{key}/").items():
                    if entry.status != "ok" or self._words(spec, entry) is not None:
                        self.found.setdefault(place.rpartition("/")[2], {})[spec.name] = entry

    def add(self, items: Sequence[Item], retry_failed: bool, without: set[str] | None = None) -> None:
        """Items to label, under all factors but those ``without``."""
        for item in items:
            if item.empty:
                continue
            content = self._content[item.token] = content_hash(item)
            self.items[content] = item
            known = self.found.setdefault(content, {})
            wanted = {name for name in self._asked if name not in (without or ())}
            done = {name for name, entry in known.items() if entry.status == "ok" or not retry_failed}
            if wanted - done:
                self.open.setdefault(content, set()).update(wanted - done)

    async def ask(self, batch: int, seed: int) -> None:
        """Ask about all that is open."""
        pending = sorted(self.open, key=lambda content: digest(seed, content))
        self._done = len(self.items) - len(pending)
        work = [pending[at : at + batch] for at in range(0, len(pending), batch)]
        try:
            await for_each(work, self._label, workers=self.client.concurrency)
        except Stopped as error:
            left = len(self.items) - self._done
            raise Stopped(f"{error}; {left:,} of {len(self.items):,} items are still to label") from None

    # --- the ladder ---

    async def _label(self, contents: list[str], *, again: bool = True) -> None:
        left, verdict, problems = await self._request(contents, ())
        if left and again and verdict == "invalid":
            contents = left
            left, verdict, problems = await self._request(left, problems)
        if left and len(contents) == 1:
            self._give_up(left[0], verdict, problems)
            return
        middle = (len(left) + 1) // 2
        for half in filter(None, (left[:middle], left[middle:])):
            await self._label(half, again=False)

    async def _request(self, contents: list[str], problems: Sequence[str]) -> tuple[list[str], Verdict, list[str]]:
        """One request; valid labels go into the log. Returns what is still open, and why."""
        wanted = set().union(*(self.open[content] for content in contents))
        asked = tuple(spec for spec in self.schema.factors if spec.name in wanted)
        schema = self.schema.model_copy(update={"factors": asked, "dropped": {}})
        items = [self.items[content] for content in contents]
        try:
            answer = await self.client.ask(assignment_request(schema, items, problems=problems))
        except Unanswered as error:
            return contents, "unanswered", [str(error)]
        if answer.refusal is not None:
            return contents, "refused", [answer.refusal]
        reading = read_assignment(answer.text, schema, len(contents))
        for place, row in reading.rows.items():
            content = contents[place]
            told = {name: words for name, words in row.items() if name in self.open[content]}
            self._keep(content, {name: self.client.entry(json.dumps(words, ensure_ascii=False), "ok", answer.model)
                                 for name, words in told.items()})  # fmt: skip
        left = [content for content in contents if self.open[content]]
        if answer.finish == "content_filter":
            return left, "refused", reading.problems
        if not reading.rows:
            problem = f"the model's answer holds no valid row: {'; '.join(reading.problems)[:200]}"
            self.client.limits.failed(problem, answered=True)
        return left, "cut" if answer.finish == "length" else "invalid", reading.problems

    def _give_up(self, content: str, verdict: Verdict, problems: Sequence[str]) -> None:
        status = "refused" if verdict == "refused" else "failed"
        entry = self.client.entry("; ".join(problems) or verdict, status, self.client.name)
        given = dict.fromkeys(self.open[content], entry)
        if verdict == "unanswered":
            self._unanswered[content] = given
            self._step()
        else:
            self._keep(content, given)

    def _keep(self, content: str, entries: Mapping[str, Entry]) -> None:
        self.client.log.put({f"{LABEL}{self._asked[name]}/{content}": entry for name, entry in entries.items()})
        self.found[content].update(entries)
        self.open[content] -= entries.keys()
        if entries and not self.open[content]:
            self._step()

    def _step(self) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, len(self.items))

    # --- the table ---

    def table(self, schema: FactorSchema, items: Sequence[Item]) -> FactorTable:
        """What is known of ``items``, with the values in the order of ``schema``."""
        contents = [self._content.get(item.token, "") for item in items]
        entries = {content: self._unanswered.get(content, {}) | self.found[content] for content in self.items}
        status = {content: _status(found) for content, found in entries.items()}
        if status and "ok" not in status.values():
            last = next((e for found in reversed(entries.values()) for e in found.values()), None)
            raise RecplugError(
                f"not one of {len(status):,} items got a usable answer (such as: {last.text[:200] if last else ''});"
                " try another model or mode"
            )
        rows = [{} if not content else self._row(entries[content]) for content in contents]
        used = [entry for found in entries.values() for entry in found.values()]
        bad = sum(entry.status != "ok" for entry in used)
        return FactorTable(
            schema,
            tuple(item.token for item in items),
            {spec.name: tuple(row.get(spec.name, ()) for row in rows) for spec in schema.factors},
            tuple(status[content] if content else "ok" for content in contents),
            {
                "made_by": "recplug factors assign",
                **provenance(self.client.name, self.client.sampling, used),
                "schema_asked": self.schema.sha256,
                **({"labels_without_answer": str(bad)} if bad else {}),
            },
            tuple(contents),
        )

    def _row(self, entries: Mapping[str, Entry]) -> dict[str, tuple[str, ...]]:
        return {
            spec.name: self._words(spec, entries[spec.name]) or ()
            for spec in self.schema.factors
            if spec.name in entries and entries[spec.name].status == "ok"
        }

    def _words(self, spec: FactorSpec, entry: Entry) -> tuple[str, ...] | None:
        """A kept label in today's names; None where the schema neither knows nor drops a word of it."""
        words = json.loads(entry.text)
        names = {spec.resolve(word) for word in words}
        if None in names and not all(spec.resolve(word) or self.schema.drops(spec, word) for word in words):
            return None
        return tuple(name for name in spec.names if name in names)


def _question(spec: FactorSpec, client: Client, salt: str) -> dict[str, Any]:
    """All that an answer under a factor depends on, but the item."""
    return {
        "model": [client.name, client.sampling, salt, digest(RULES)],
        "factor": spec.name,
        "meaning": [spec.description, spec.source, spec.multi],
        "values": {folded(value.name): value.definition for value in spec.values},
    }


def _covers(old: Mapping[str, Any], new: Mapping[str, Any], spec: FactorSpec) -> bool:
    """Whether answers to an old question answer the new one: every value was on offer, by one of its names."""
    if [old["model"], old["meaning"]] != [new["model"], new["meaning"]]:
        return False
    if folded(old["factor"]) not in map(folded, (spec.name, *spec.aliases)):
        return False
    return all(
        any(old["values"].get(folded(name)) == value.definition for name in (value.name, *value.aliases))
        for value in spec.values
    )


def _status(entries: Mapping[str, Entry]) -> str:
    found = {entry.status for entry in entries.values()}
    return next((status for status in ("ok", "refused", "failed") if status in found), "ok")


def _with(overrides: FactorTable, table: FactorTable) -> FactorTable:
    """``table`` with a person's rows in the place of its own."""
    made = {token: row for row, token in enumerate(overrides.tokens)}
    there = set(table.tokens)
    more = tuple(token for token in overrides.tokens if token not in there)
    tokens = (*table.tokens, *more)
    values = {}
    for name, column in table.values.items():
        theirs = overrides.values.get(name)
        padded = (*column, *((),) * len(more))
        values[name] = tuple(
            theirs[made[t]] if theirs and t in made else v for t, v in zip(tokens, padded, strict=True)
        )
    status = tuple("override" if t in made else s for t, s in zip(tokens, (*table.status, *more), strict=True))
    return FactorTable(table.schema, tokens, values, status, table.metadata, (*table.content_sha256, *[""] * len(more)))
