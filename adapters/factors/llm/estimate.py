"""What a run would ask and cost, without asking anyone: the requests it would send, made of real items and counted."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from recplug.adapters.factors.llm.content import Item, distinct
from recplug.adapters.factors.llm.induce import Sizes
from recplug.adapters.factors.llm.log import Usage
from recplug.adapters.factors.llm.messages import Request
from recplug.adapters.factors.llm.prompts import (
    assignment_request,
    condensing_request,
    extraction_request,
    merge_request,
    proposal_request,
)
from recplug.adapters.factors.schema import FactorSchema

MEASURED = 200  # items


@dataclass(frozen=True)
class Part:
    """Requests of one kind: what for, how many at the first attempt, and the tokens of one."""

    name: str
    calls: int
    input_tokens: float
    output_tokens: float

    def __str__(self) -> str:
        read, written = self.input_tokens, self.output_tokens
        return f"{self.name}: {self.calls:,} calls of {read:,.0f} tokens read, {written:,.0f} written"


@dataclass(frozen=True)
class Estimate:
    """All requests of a run.

    Attributes:
        parts: by kind.
        measured: calls of earlier runs whose written tokens, thoughts included, stand for those of the next.
    """

    parts: tuple[Part, ...]
    measured: int

    @property
    def calls(self) -> int:
        """Requests."""
        return sum(part.calls for part in self.parts)

    @property
    def input_tokens(self) -> float:
        """Expected, over all requests."""
        return sum(part.calls * part.input_tokens for part in self.parts)

    @property
    def output_tokens(self) -> float:
        """Expected, over all requests."""
        return sum(part.calls * part.output_tokens for part in self.parts)

    def cost(self, price_in: float, price_out: float) -> float:
        """USD, at prices in USD for a million tokens."""
        return (self.input_tokens * price_in + self.output_tokens * price_out) / 1e6

    def lines(self) -> list[str]:
        """For a person."""
        rule = (
            f"tokens: read, four bytes each; written, as in the {self.measured:,} calls so far"
            if self.measured
            else "tokens: four bytes each, without thoughts; after a run with --limit 20 the server's own count is used"
        )
        whole = (
            f"together {self.calls:,} calls, {self.input_tokens:,.0f} tokens read, {self.output_tokens:,.0f} written"
        )
        return [*map(str, self.parts), f"{whole}; without retries, and nothing deducted for answers kept", rule]


def estimate_assignment(
    schema: FactorSchema, items: Sequence[Item], *, batch: int = 10, seed: int = 0, usage: Usage | None = None
) -> Estimate:
    """Labelling ``items``: requests made of up to :data:`MEASURED` of them.

    Args:
        schema: the factors.
        items: as for ``assign``; equal contents are asked about once, empty ones not at all.
        batch: items a request.
        seed: of the sample.
        usage: of the log that the run would go on with.
    """
    different, requests = distinct(items), []
    sample = random.Random(seed).sample(different, min(MEASURED, len(different)))
    for at in range(0, len(sample), batch):
        requests.append(assignment_request(schema, sample[at : at + batch]))
    part = _part("labelling", -(-len(different) // batch), requests)
    row = {"index": 101} | {spec.name: sorted(spec.names, key=len)[len(spec.names) // 2] for spec in schema.factors}
    written = min(batch, len(different)) * len(json.dumps(row, ensure_ascii=False).encode()) / 4
    return Estimate(*_measured([replace(part, output_tokens=written)], usage))


def estimate_induction(
    items: Sequence[Item],
    *,
    factors: int = 10,
    values: int = 30,
    sizes: Sizes | None = None,
    seed: int = 0,
    usage: Usage | None = None,
) -> Estimate:
    """Making a schema. What the model will name is not known, so made-up names of usual length stand for it."""
    different = distinct(items)
    sizes = (sizes or Sizes()).fitted(len(different))
    sample = random.Random(seed).sample(different, min(MEASURED, len(different)))
    shown = [sample[at : at + sizes.batch] for at in range(0, len(sample), sizes.batch)]
    described = [(f"factor name {k}", "what this factor tells about a product, in one line") for k in range(factors)]
    words = [(f"some word {v}", 10) for v in range(2 * values)]
    parts = [
        _part("factors", -(-sizes.sample // sizes.batch), [proposal_request(part) for part in shown]),
        _part("same factors", 1, [merge_request(described * 3)]),
        _part("reading", -(-sizes.extract // sizes.batch), [extraction_request(described, part) for part in shown]),
        _part("values", factors, [condensing_request(described[0], words, limit=values)]),
    ]
    return Estimate(*_measured(parts, usage))


def _part(name: str, calls: int, requests: Sequence[Request]) -> Part:
    """The room that a request leaves for its answer is about twice what is usual."""
    n = max(1, len(requests))
    return Part(name, calls, sum(r.tokens for r in requests) / n, sum(r.answer_tokens for r in requests) / n / 2)


def _measured(parts: Sequence[Part], usage: Usage | None) -> tuple[tuple[Part, ...], int]:
    if usage is None or not usage.output_tokens:
        return tuple(parts), 0
    written = usage.output_tokens / usage.calls
    return tuple(replace(part, output_tokens=written) for part in parts), usage.calls
