"""What a command that asks a language model says before, and does around it: cost, the log, and being interrupted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from recplug.adapters.console import say

if TYPE_CHECKING:
    from recplug.adapters.factors.llm.estimate import Estimate
    from recplug.adapters.factors.llm.log import Usage
    from recplug.adapters.factors.llm.sending import Sender

T = TypeVar("T")


def asking(
    work: Callable[[Sender], Coroutine[Any, Any, T]],
    llm: str | None,
    base_url: str | None,
    key_env: str | None,
    output: Path,
    limits: dict[str, Any],
    price_in: float | None,
    price_out: float | None,
) -> T:
    """Run ``work`` with a sender whose answers are kept beside the output, and say what it cost."""
    from recplug.adapters.factors.llm.chat import open_chat
    from recplug.adapters.factors.llm.log import AnswerLog
    from recplug.adapters.factors.llm.sending import Sender
    from recplug.plugins.errors import RecplugError

    if llm is None:
        raise RecplugError("no model; give --llm openai:MODEL or transformers:FOLDER_OR_ID, or --dry_run")
    chat = open_chat(llm, base_url=base_url, key_env=key_env)
    kept = beside(output, "factors.answers.sqlite")
    say(f"answers are kept in {kept}")
    with AnswerLog(kept) as log:
        before = log.usage()

        async def run() -> T:
            async with Sender(chat, log, **limits) as sender:
                return await work(sender)

        try:
            return asyncio.run(run())
        except KeyboardInterrupt:
            print(f"interrupted; {kept} keeps all answers, and the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from None
        finally:
            _spent(before, log.usage(), price_in, price_out)


def _spent(before: Usage, after: Usage, price_in: float | None, price_out: float | None) -> None:
    read, written = after.input_tokens - before.input_tokens, after.output_tokens - before.output_tokens
    line = (
        f"{after.calls - before.calls:,} calls ({after.attempts - before.attempts:,} requests), {read:,} tokens read,"
        f" {written:,} written"
    )
    if price_in is not None and price_out is not None:
        line += f", {(read * price_in + written * price_out) / 1e6:.2f} USD"
    say(f"{line}; with earlier runs {after.calls:,} calls, {after.tokens:,} tokens")


def estimated(
    estimate: Estimate,
    price_in: float | None,
    price_out: float | None,
    rate_in: float | None,
    rate_out: float | None,
    tokens_per_minute: int | None,
) -> None:
    """Say what a run would ask, what it costs and how long it takes, as far as prices and rates are known."""
    for line in estimate.lines():
        say(line)
    if price_in is not None and price_out is not None:
        say(f"cost: {estimate.cost(price_in, price_out):.2f} USD at {price_in:g} / {price_out:g} USD a million tokens")
    if rate_in is not None and rate_out is not None:
        say(f"time: {estimate.seconds(rate_in=rate_in, rate_out=rate_out) / 60:,.1f} minutes, one request at a time")
    if tokens_per_minute is not None:
        least = estimate.minutes(tokens_per_minute)
        say(f"time: at least {least:,.1f} minutes at {tokens_per_minute:,} tokens a minute")
    say("nothing was asked")


def affordable(
    estimate: Estimate, max_cost: float | None, price_in: float | None, price_out: float | None, yes: bool
) -> None:
    """Refuse a run above ``max_cost``, unless ``yes``."""
    from recplug.plugins.errors import RecplugError

    if max_cost is None:
        return
    if price_in is None or price_out is None:
        raise RecplugError("--max_cost needs the model's prices; give --price_in and --price_out")
    cost = estimate.cost(price_in, price_out)
    if cost > max_cost and not yes:
        raise RecplugError(
            f"this may cost {cost:.2f} USD (answers of earlier runs not deducted), more than --max_cost {max_cost:g};"
            " add --yes to go on, or see --dry_run"
        )


def beside(output: Path, ending: str) -> Path:
    """A neighbour of ``NAME.factors.json`` that is called ``NAME.ending``."""
    return output.with_name(f"{output.name.removesuffix('.factors.json')}.{ending}")
