"""Attribute assignment: every item's values under a schema, read by a language model.

What was answered for an item is kept in the log under a key of model, sampling parameters, prompt, schema and the
item's *content*. So a run goes on where another ended, with any batch size, and equal products are asked about once.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recplug.adapters.factors.llm.answers import read_assignment
from recplug.adapters.factors.llm.chat import Broken
from recplug.adapters.factors.llm.content import Item, content_hash
from recplug.adapters.factors.llm.log import Entry
from recplug.adapters.factors.llm.prompts import assignment_prefix, assignment_request, scoring_prompt
from recplug.adapters.factors.llm.sending import Sender, Stopped, for_each
from recplug.adapters.factors.schema import UNKNOWN, FactorSchema
from recplug.adapters.factors.table import FactorTable
from recplug.plugins.errors import RecplugError

Progress = Callable[[int, int], None]
Verdict = Literal["invalid", "cut", "refused", "broken"]


async def assign(
    schema: FactorSchema,
    items: Sequence[Item],
    sender: Sender,
    *,
    batch: int = 10,
    seed: int = 0,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> FactorTable:
    """Label ``items``, asking about those that the log does not know.

    An answer that is cut off is asked for again in halves. Of one that is partly invalid the valid rows are kept, and
    the others asked for once more with what was wrong; what is still missing, in halves. An item that is invalid alone
    is ``failed``, one that the model declines alone is ``refused``; both stay unknown. An item with nothing to read is
    unknown without a call.

    Args:
        schema: the factors.
        items: their tokens differ; their contents may not.
        sender: how to ask, and the log. A chat with ``score`` is not asked for text: each factor takes its likeliest
            value (one, also where ``multi``).
        batch: items a request.
        seed: of the order in which contents are asked about, which is random, so that neighbours in the catalogue do
            not share a request.
        retry_failed: ask again about items that failed or were refused in an earlier run.
        progress: called with how many different contents are done, and of how many.

    Returns:
        One row an item, in the order given, with where its labels come from in the metadata.

    Raises:
        Stopped: by budget or failures; answers so far are kept, and another call goes on.
        RecplugError: for a server that rejects us, or where not one item got a usable answer.
    """
    if batch < 1:
        raise RecplugError(f"batch={batch} asks about nothing; give 1 or more")
    if len({item.token for item in items}) < len(items):
        raise RecplugError("some items have the same token; give each item once")
    run = _Run(schema, sender, salt="", progress=progress)
    return await run.table(schema, items, batch=batch, seed=seed, retry_failed=retry_failed)


async def reask(
    schema: FactorSchema, items: Sequence[Item], sender: Sender, *, n: int = 200, seed: int = 0
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
    drawn = list({content_hash(item): item for item in items if not item.empty}.items())
    drawn = draw.sample(sorted(drawn, key=lambda pair: pair[0]), min(n, len(drawn)))
    mixed = tuple(
        factor.model_copy(update={"values": tuple(draw.sample(factor.values, len(factor.values)))})
        for factor in schema.factors
    )
    run = _Run(schema.model_copy(update={"factors": mixed}), sender, salt=f"reask {seed}", progress=None)
    return await run.table(schema, [item for _, item in drawn], batch=1, seed=seed, retry_failed=False)


@dataclass(frozen=True)
class _Job:
    """One content to ask about."""

    key: str
    item: Item


class _Run:
    """One pass over the items.

    Args:
        schema: as it is shown to the model.
        sender: how to ask.
        salt: makes keys differ from those of other passes.
        progress: see :func:`assign`.
    """

    def __init__(self, schema: FactorSchema, sender: Sender, *, salt: str, progress: Progress | None) -> None:
        self.schema, self.sender, self.salt = schema, sender, salt
        self.score = getattr(sender.chat, "score", None)
        self._report, self._done, self._total = progress, 0, 0
        # What no usable answer came for is failed in this table, and asked about again in the next run.
        self._unanswered: dict[str, Entry] = {}

    async def table(
        self, schema: FactorSchema, items: Sequence[Item], *, batch: int, seed: int, retry_failed: bool
    ) -> FactorTable:
        """See :func:`assign`; ``schema`` names the values in the order that the table shall have."""
        if self.score is None:
            await self.sender.settle()
        elif any(item.image is not None for item in items):
            raise RecplugError(f"{self.sender.chat.name} reads no pictures; leave --images out, or use openai:MODEL")
        prompt = self._prompt()
        contents = ["" if item.empty else content_hash(item) for item in items]
        jobs = {
            content: _Job(self._key(prompt, content), item)
            for content, item in zip(contents, items, strict=True)
            if content
        }
        pending = [content for content, job in jobs.items() if self._is_open(job, retry_failed)]
        pending.sort(key=lambda content: _digest(seed, content))
        self._total, self._done = len(jobs), len(jobs) - len(pending)
        work = [[jobs[content] for content in pending[at : at + batch]] for at in range(0, len(pending), batch)]
        try:
            await for_each(work, self._choose if self.score else self._label, workers=self.sender.concurrency)
        except Stopped as error:
            raise Stopped(
                f"{error}; {self._total - self._done:,} of {self._total:,} items are still to label"
            ) from None
        entries = {content: self._entry(job) for content, job in jobs.items()}
        self._check(entries)
        return self._compiled(schema, items, contents, entries, prompt)

    # --- the ladder ---

    async def _label(self, jobs: list[_Job], *, again: bool = True) -> None:
        left, verdict, problems = await self._ask(jobs, ())
        if left and again and verdict in ("invalid", "broken"):
            jobs = left
            left, verdict, problems = await self._ask(jobs, problems)
        if len(jobs) == 1 and left:
            self._give_up(jobs[0], verdict, problems)
        elif left:
            middle = (len(left) + 1) // 2
            for half in (left[:middle], left[middle:]):
                if half:
                    await self._label(half, again=False)

    async def _ask(self, jobs: list[_Job], problems: Sequence[str]) -> tuple[list[_Job], Verdict, list[str]]:
        """One request; valid rows go into the log. Returns the jobs without one, and why."""
        try:
            answer = await self.sender.ask(
                assignment_request(self.schema, [job.item for job in jobs], problems=problems)
            )
        except Broken as error:
            # What a server says of itself is not for the model.
            self._unanswered |= {job.key: self.sender.entry(str(error), "failed", "") for job in jobs}
            return jobs, "broken", []
        if answer.refusal is not None:
            return jobs, "refused", [answer.refusal]
        reading = read_assignment(answer.text, self.schema, len(jobs))
        whole = {place: row for place, row in reading.rows.items() if len(row) == len(self.schema.factors)}
        rows = {jobs[place].key: json.dumps(row, ensure_ascii=False) for place, row in sorted(whole.items())}
        self._keep({key: self.sender.entry(text, "ok", answer.model) for key, text in rows.items()})
        left = [job for job in jobs if job.key not in rows]
        if answer.finish in ("length", "content_filter"):
            return left, "cut" if answer.finish == "length" else "refused", list(reading.problems)
        if not rows:
            self.sender.useless(f"the model's answer holds no valid row: {'; '.join(reading.problems)[:200]}")
        return left, "invalid", list(reading.problems)

    def _give_up(self, job: _Job, verdict: Verdict, problems: Sequence[str]) -> None:
        if verdict == "broken":
            self._step(1)
            return
        status = "refused" if verdict == "refused" else "failed"
        self._keep({job.key: self.sender.entry("; ".join(problems) or verdict, status, self.sender.chat.name)})

    async def _choose(self, jobs: list[_Job]) -> None:
        """Label by the likeliest value of each factor."""
        assert self.score is not None
        for job in jobs:
            row: dict[str, list[str]] = {}
            for spec in self.schema.factors:
                question, options = scoring_prompt(spec, job.item)
                scores = self.score(question, options)
                best = options[max(range(len(options)), key=scores.__getitem__)]
                row[spec.name] = [] if best == UNKNOWN else [best]
            text = json.dumps(row, ensure_ascii=False)
            self._keep({job.key: self.sender.entry(text, "ok", self.sender.chat.name)})

    def _keep(self, entries: dict[str, Entry]) -> None:
        self.sender.log.put(entries)
        self._step(len(entries))

    def _step(self, more: int) -> None:
        self._done += more
        if self._report is not None and more:
            self._report(self._done, self._total)

    # --- keys, and the table ---

    def _prompt(self) -> str:
        """The digest of all that is said besides the items."""
        if self.score is None:
            return _digest(assignment_prefix(self.schema))
        return _digest([scoring_prompt(spec, Item("")) for spec in self.schema.factors])

    def _key(self, prompt: str, content: str) -> str:
        chat = self.sender.chat
        return _digest(chat.name, chat.sampling, prompt, self.schema.sha256, content, self.salt)

    def _is_open(self, job: _Job, retry_failed: bool) -> bool:
        known = self.sender.log.get(job.key)
        return known is None or (retry_failed and known.status != "ok")

    def _entry(self, job: _Job) -> Entry:
        known = self.sender.log.get(job.key)
        return self._unanswered[job.key] if known is None else known

    def _check(self, entries: dict[str, Entry]) -> None:
        if entries and all(entry.status == "failed" for entry in entries.values()):
            last = next(reversed(entries.values())).text
            raise RecplugError(
                f"not one of {len(entries):,} items got a usable answer (such as: {last[:200]}); try another model or"
                " mode, or a smaller batch"
            )

    def _compiled(
        self,
        schema: FactorSchema,
        items: Sequence[Item],
        contents: Sequence[str],
        entries: dict[str, Entry],
        prompt: str,
    ) -> FactorTable:
        nothing: dict[str, list[str]] = {factor.name: [] for factor in schema.factors}
        known = {content: json.loads(entry.text) for content, entry in entries.items() if entry.status == "ok"}
        rows = [known.get(content, nothing) for content in contents]
        return FactorTable(
            schema,
            tuple(item.token for item in items),
            {factor.name: tuple(tuple(row[factor.name]) for row in rows) for factor in schema.factors},
            tuple(entries[content].status if content else "ok" for content in contents),
            self._provenance(list(entries.values()), prompt),
            tuple(contents),
        )

    def _provenance(self, entries: list[Entry], prompt: str) -> dict[str, str]:
        """Told by the entries themselves, since they may come from several runs."""
        chat = self.sender.chat
        days = sorted({entry.day for entry in entries})
        return {
            "made_by": "recplug factors assign",
            "model": chat.name,
            "model_reported": _listed(entry.model for entry in entries),
            "server": _listed(entry.place for entry in entries),
            "mode": "label scoring" if self.score else _listed(entry.mode for entry in entries),
            "sampling": chat.sampling,
            "prompt_sha256": prompt,
            "asked_schema_sha256": self.schema.sha256,
            "created": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "unknown",
        }


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _listed(words: Any) -> str:
    return ", ".join(sorted({word for word in words if word})) or "unknown"
