"""What the commands that ask a language model share: their options, the log, and what is said of cost."""

from __future__ import annotations

import asyncio
import inspect
import sys
import typing
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from recplug.adapters.console import say
from recplug.adapters.item_files import DataPath, folder_of
from recplug.adapters.stopping import exit_code, told

if TYPE_CHECKING:
    from recplug.adapters.factors.llm.client import Client
    from recplug.adapters.factors.llm.content import Item
    from recplug.adapters.factors.llm.estimate import Estimate
    from recplug.adapters.factors.llm.log import Usage

T = TypeVar("T")
Option = typer.Option


@dataclass(kw_only=True)
class Session:
    """The options that ``induce``, ``assign`` and ``caption`` have in common; see :func:`asks`."""

    dataset: Annotated[str, Option("--dataset", help="The data set; its NAME.item holds the texts.")]
    data_path: DataPath = None
    llm: Annotated[str | None, Option("--llm", help="openai:MODEL, on any server that speaks OpenAI's protocol.")] = (
        None
    )
    base_url: Annotated[str | None, Option("--base_url", help="The server, such as http://localhost:8000/v1.")] = None
    key_env: Annotated[
        str | None, Option("--key_env", help="The variable that holds the key; OPENAI_API_KEY for OpenAI itself alone.")
    ] = None
    columns: Annotated[
        str | None, Option("--columns", help="A,B: what the model may read; default all text columns of NAME.item.")
    ] = None
    images: Annotated[
        Path | None, Option("--images", help="Folder of pictures TOKEN.jpg, .png or .webp, for a vision model.")
    ] = None
    mode: Annotated[
        str, Option("--mode", help="How JSON is asked for: strict, json_object, prompt; auto: as the server takes it.")
    ] = "auto"
    temperature: Annotated[float, Option("--temperature", min=0, help="Of the model's choices.")] = 0.0
    reasoning_effort: Annotated[
        str | None,
        Option("--reasoning_effort", help="For models that think: none, low, medium, ..., as the server knows."),
    ] = None
    max_answer_tokens: Annotated[
        int, Option("--max_answer_tokens", min=1, help="The most that one answer may take, thoughts included.")
    ] = 32_000
    timeout: Annotated[float, Option("--timeout", min=1, help="Seconds for one answer, retries included.")] = 600.0
    concurrency: Annotated[int, Option("--concurrency", min=1, help="Requests under way at once.")] = 8
    max_tokens_total: Annotated[
        int | None, Option("--max_tokens_total", min=1, help="Stop before more tokens than this, over all runs.")
    ] = None
    max_cost: Annotated[float | None, Option("--max_cost", min=0, help="USD; above it --yes is needed.")] = None
    price_in: Annotated[float | None, Option("--price_in", min=0, help="USD for a million tokens read.")] = None
    price_out: Annotated[float | None, Option("--price_out", min=0, help="USD for a million tokens written.")] = None
    yes: Annotated[bool, Option("--yes", help="Go on above --max_cost.")] = False
    output: Annotated[Path | None, Option("--output", help="Default: DATASET.factors.json.")] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace output files that exist.")] = False
    dry_run: Annotated[bool, Option("--dry_run", help="Say what would be asked and what it costs; ask nobody.")] = False
    seed: Annotated[int, Option("--seed", help="Of samples and order.")] = 0
    limit: Annotated[int | None, Option("--limit", min=1, help="Only the first so many items.")] = None

    @property
    def file(self) -> Path:
        """The schema: beside the data set where its folder was named, else here."""
        return schema_file(self.output, self.dataset, self.data_path)

    @property
    def answers(self) -> Path:
        """The log of answers, beside the schema."""
        return beside(self.file, "factors.answers.sqlite")

    def items(self) -> list[Item]:
        """What the model is to read, said in one line."""
        from recplug.adapters.factors.llm.content import read_items

        columns = None if self.columns is None else [name.strip() for name in self.columns.split(",")]
        items = read_items(self.dataset, self.data_path, columns, images=self.images, limit=self.limit)
        read = ", ".join(dict.fromkeys(name for item in items for name in item.text)) or "nothing"
        pictures = sum(item.image is not None for item in items)
        say(f"{len(items):,} items; read of them: {read}" + (f"; {pictures:,} pictures" if pictures else ""))
        return items

    def usage(self) -> Usage | None:
        """What earlier runs took."""
        from recplug.adapters.factors.llm.log import AnswerLog

        if not self.answers.exists():
            return None
        with AnswerLog(self.answers) as log:
            return log.usage()

    def goes_on(self, estimate: Estimate) -> bool:
        """Say what a dry run would cost, and refuse one above ``--max_cost``."""
        from recplug.plugins.errors import RecplugError

        cost = None
        if self.price_in is not None and self.price_out is not None:
            cost = estimate.cost(self.price_in, self.price_out)
        if self.dry_run:
            for line in estimate.lines():
                say(line)
            if cost is not None:
                say(f"cost: {cost:.2f} USD at {self.price_in:g} / {self.price_out:g} USD a million tokens")
            say("nothing was asked")
            return False
        if self.max_cost is not None and cost is None:
            raise RecplugError("--max_cost needs the model's prices; give --price_in and --price_out")
        if self.max_cost is not None and cost is not None and cost > self.max_cost and not self.yes:
            raise RecplugError(
                f"this may cost {cost:.2f} USD, more than --max_cost {self.max_cost:g}; add --yes to go on, or see"
                " --dry_run"
            )
        return True

    def run(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Do ``work`` with the model, whose answers are kept, and say what it cost."""
        from recplug.adapters.factors.llm.client import Client
        from recplug.adapters.factors.llm.log import AnswerLog
        from recplug.plugins.errors import RecplugError

        if self.llm is None:
            raise RecplugError("no model; give --llm openai:MODEL, or --dry_run")
        names = inspect.signature(Client).parameters.keys() & {field.name for field in fields(self)}
        with AnswerLog(self.answers) as log:
            client, before = Client(self.llm, log, **{name: getattr(self, name) for name in names}), log.usage()
            say(f"answers are kept in {self.answers}")

            async def whole() -> T:
                async with client:
                    return await work(client)

            try:
                return asyncio.run(whole())
            except KeyboardInterrupt as stopped:
                kept = f"{self.answers} keeps all answers, and the same command goes on from there"
                print(f"{told(stopped)}; {kept}", file=sys.stderr)
                raise typer.Exit(exit_code(stopped)) from None
            finally:
                self._spent(before, log.usage())

    def _spent(self, before: Usage, after: Usage) -> None:
        read, written = after.input_tokens - before.input_tokens, after.output_tokens - before.output_tokens
        attempts = after.attempts - before.attempts
        line = (
            f"{after.calls - before.calls:,} calls ({attempts:,} requests), {read:,} tokens read, {written:,} written"
        )
        if self.price_in is not None and self.price_out is not None:
            line += f", {(read * self.price_in + written * self.price_out) / 1e6:.2f} USD"
        say(f"{line}; with earlier runs {after.calls:,} calls, {after.tokens:,} tokens")


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of :class:`Session` beside its own; it is given them as its first argument."""
    shared = inspect.signature(Session).parameters
    types = typing.get_type_hints(Session, include_extras=True) | typing.get_type_hints(command, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]

    def wrapped(**given: Any) -> None:
        command(Session(**{name: given.pop(name) for name in shared}), **given)

    parameters = [
        parameter.replace(annotation=types[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*shared.values(), *own)
    ]
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def schema_file(output: Path | None, dataset: str | None, data_path: Path | None) -> Path:
    """``--output``, or ``DATASET.factors.json`` beside the data set where its folder was named, else here."""
    from recplug.plugins.errors import RecplugError

    if output is not None:
        if not output.name.endswith(".factors.json"):
            raise RecplugError(f"--output {output} does not end in .factors.json; name it {output.stem}.factors.json")
        return output
    if dataset is None:
        raise RecplugError("no place for the factors; give --output FILE.factors.json, or --dataset NAME")
    name = f"{dataset}.factors.json"
    return folder_of(dataset, data_path) / name if data_path is not None else Path(name)


def beside(file: Path, ending: str) -> Path:
    """A neighbour of ``NAME.factors.json`` that is called ``NAME.ending``."""
    return file.with_name(f"{file.name.removesuffix('.factors.json')}.{ending}")


def free(*files: Path, overwrite: bool) -> None:
    """Refuse files that exist, unless they may be replaced."""
    from recplug.plugins.errors import RecplugError

    there = next((file for file in files if file.exists()), None)
    if there is not None and not overwrite:
        raise RecplugError(f"{there} exists; add --overwrite, or choose another --output")


def options(**given: object) -> str:
    """Options for a command to copy."""
    return "".join(f" --{name} {value}" for name, value in given.items() if value is not None)
