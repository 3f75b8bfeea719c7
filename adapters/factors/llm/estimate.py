"""What a run would ask and cost, without asking anyone: the requests it would send, made of real items and counted."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recplug.adapters.factors.llm.chat import Request, tokens_in
from recplug.adapters.factors.llm.content import Item, distinct
from recplug.adapters.factors.llm.induce import Sizes
from recplug.adapters.factors.llm.prompts import (
    assignment_request,
    condensing_request,
    extraction_request,
    merge_request,
    proposal_request,
    scoring_prompt,
)
from recplug.adapters.factors.llm.trial import Limits
from recplug.adapters.factors.schema import UNKNOWN, FactorSchema, FactorSpec, Value

MEASURED = 200  # items
_VOCABULARY = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"

Count = Callable[[Request], int]


@dataclass(frozen=True)
class Part:
    """Requests of one kind.

    Attributes:
        name: what they are for.
        calls: how many there would be, first attempts only.
        input_tokens, output_tokens: of one request: least, mean and most of those measured.
    """

    name: str
    calls: int
    input_tokens: tuple[float, float, float]
    output_tokens: tuple[float, float, float]

    def __str__(self) -> str:
        (a, b, c), (d, e, f) = self.input_tokens, self.output_tokens
        return (
            f"{self.name}: {self.calls:,} calls; input tokens a call {a:,.0f} / {b:,.0f} / {c:,.0f}, output"
            f" {d:,.0f} / {e:,.0f} / {f:,.0f} (least / mean / most)"
        )


@dataclass(frozen=True)
class Estimate:
    """All requests of a run.

    Attributes:
        parts: by kind.
        rule: how tokens were counted.
    """

    parts: tuple[Part, ...]
    rule: str

    @property
    def calls(self) -> int:
        """Requests."""
        return sum(part.calls for part in self.parts)

    @property
    def input_tokens(self) -> float:
        """Expected, over all requests."""
        return sum(part.calls * part.input_tokens[1] for part in self.parts)

    @property
    def output_tokens(self) -> float:
        """Expected, over all requests."""
        return sum(part.calls * part.output_tokens[1] for part in self.parts)

    def cost(self, price_in: float, price_out: float) -> float:
        """USD, at prices in USD for a million tokens."""
        return (self.input_tokens * price_in + self.output_tokens * price_out) / 1e6

    def seconds(self, *, rate_in: float, rate_out: float) -> float:
        """At so many tokens a second, read and written."""
        return self.input_tokens / rate_in + self.output_tokens / rate_out

    def minutes(self, tokens_per_minute: int) -> float:
        """At least, under a limit of tokens a minute."""
        return (self.input_tokens + self.output_tokens) / tokens_per_minute

    def lines(self) -> list[str]:
        """For a person."""
        whole = f"together {self.calls:,} calls, {self.input_tokens:,.0f} input and {self.output_tokens:,.0f} output"
        return [*map(str, self.parts), f"{whole} tokens, without retries", f"tokens: {self.rule}"]


def estimate_assignment(
    schema: FactorSchema, items: Sequence[Item], *, batch: int = 10, seed: int = 0, scored: bool = False
) -> Estimate:
    """Labelling ``items``: requests made of up to :data:`MEASURED` of them. What a log already holds is not deducted.

    Args:
        schema: the factors.
        items: as for ``assign``; equal contents are asked about once, empty ones not at all.
        batch: items a request.
        seed: of the sample.
        scored: each factor of each item is weighed by itself, by a model on this machine.
    """
    count, rule = _counter()
    different = distinct(items)
    sample = random.Random(seed).sample(different, min(MEASURED, len(different)))
    if scored:
        read = [_scored(spec, item, count) for item in sample for spec in schema.factors]
        weighed = Part("weighing", len(different) * len(schema.factors), _three(read), (0.0, 0.0, 0.0))
        return Estimate((weighed,), rule)
    shown = _batches(sample, batch)
    written = _answer_tokens(schema, count)
    sizes = [len(part) for part in shown]
    return Estimate(
        (
            Part(
                "labelling",
                _calls(len(different), batch),
                _three([count(assignment_request(schema, part)) for part in shown]),
                (min(sizes, default=0) * written[0], _mean(sizes) * written[1], max(sizes, default=0) * written[2]),
            ),
        ),
        rule,
    )


def estimate_induction(
    items: Sequence[Item],
    *,
    factors: int = 10,
    values: int = 30,
    sizes: Sizes | None = None,
    limits: Limits | None = None,
    seed: int = 0,
) -> Estimate:
    """Making a schema. What the model will name is not known, so made-up names of usual length stand for it.

    Counted with the upper end in mind: reading goes on to its end, a third of the vocabularies are made anew once, and
    the trial is then repeated whole.
    """
    count, rule = _counter()
    different = distinct(items)
    sizes = (sizes or Sizes()).fitted(len(different))
    sample = random.Random(seed).sample(different, min(MEASURED, len(different)))
    described = [(f"factor name {k}", "what this factor tells about a product, in one line") for k in range(factors)]
    words = [(f"some word {v}", 10) for v in range(2 * values)]
    named = tuple(Value(name=f"value name {v}", definition="a line that tells it from others") for v in range(values))
    schema = FactorSchema(factors=tuple(FactorSpec(name=n, description=d, values=named) for n, d in described))
    shown = _batches(sample, sizes.batch)
    half = max(1, sizes.batch // 2)
    mended = -(-factors // 3) if limits is None or limits.rounds else 0
    labelled = estimate_assignment(schema, sample, batch=half, seed=seed).parts[0]
    label_calls = _calls(sizes.trial, half) * (2 if mended else 1)
    proposals = [count(proposal_request(part)) for part in shown]
    readings = [count(extraction_request(described, part)) for part in shown]
    merge = count(merge_request(described * 3))
    condense = count(condensing_request(described[0], words, limit=values))
    # Written: five to twelve proposals of about 60 tokens; a short word a factor; 30 tokens a value.
    parts = (
        Part("factors", _calls(sizes.sample, sizes.batch), _three(proposals), (300.0, 500.0, 720.0)),
        Part("same factors", 1, (merge, merge, merge), (10.0 * factors, 30.0 * factors, 600.0)),
        Part(
            "reading", _calls(sizes.extract, sizes.batch), _three(readings), _three([8 * sizes.batch * (factors + 1)])
        ),
        Part("values", factors + mended, (condense, condense, condense), (100.0, 15.0 * values, 30.0 * values)),
        Part("trial", label_calls, labelled.input_tokens, labelled.output_tokens),
    )
    return Estimate(parts, rule)


def _counter() -> tuple[Count, str]:
    """How tokens are counted, and that in words. Nothing is fetched: ``tiktoken`` only counts with what it has."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR")
    name = hashlib.sha1(_VOCABULARY.encode(), usedforsecurity=False).hexdigest()
    if folder and (Path(folder) / name).is_file():
        try:
            import tiktoken
        except ImportError:
            return _by_bytes()
        encoding = tiktoken.get_encoding("o200k_base")
        return (
            lambda request: _spoken(request, lambda text: len(encoding.encode(text, disallowed_special=()))),
            "counted by tiktoken (o200k_base), pictures as 1,000 each",
        )
    return _by_bytes()


def _by_bytes() -> tuple[Count, str]:
    rule = "estimated as one for three bytes of UTF-8, pictures as 1,000 each; English text takes about a quarter less"
    return (lambda request: tokens_in(request.messages)), rule


def _spoken(request: Request, count: Callable[[str], int]) -> int:
    total = 0
    for message in request.messages:
        content = message["content"]
        parts: list[dict[str, Any]] = [{"text": content}] if isinstance(content, str) else content
        total += sum(count(part["text"]) if "text" in part else 1000 for part in parts) + 4
    return total


def _answer_tokens(schema: FactorSchema, count: Count) -> tuple[float, float, float]:
    """The tokens of one answered row, with the shortest, the mean and the longest values."""

    by_length = {spec.name: sorted((*spec.names, UNKNOWN), key=len) for spec in schema.factors}

    def row(share: float) -> float:
        chosen = {name: names[round(share * (len(names) - 1))] for name, names in by_length.items()}
        text = json.dumps({"index": 101, **chosen}, ensure_ascii=False)
        return float(count(Request(({"role": "assistant", "content": text},), None, "row", 1)))

    return row(0.0), row(0.5), row(1.0)


def _scored(spec: FactorSpec, item: Item, count: Count) -> int:
    question, options = scoring_prompt(spec, item)
    text = question + "".join(options)
    return count(Request(({"role": "user", "content": text},), None, "question", 1))


def _batches(sample: Sequence[Item], batch: int) -> list[Sequence[Item]]:
    """Requests' worth of items; a rest that only the sample has would pull the mean down, and is left out."""
    whole = len(sample) - len(sample) % batch
    return [sample[at : at + batch] for at in range(0, whole or len(sample), batch)]


def _calls(n: int, batch: int) -> int:
    return -(-n // batch)


def _three(numbers: Sequence[int]) -> tuple[float, float, float]:
    return (float(min(numbers, default=0)), _mean(numbers), float(max(numbers, default=0)))


def _mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
