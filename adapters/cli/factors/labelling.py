"""``recplug factors induce`` and ``assign``: factors read by a language model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recplug.adapters.cli.factors.llm_session import affordable, asking, beside, estimated
from recplug.adapters.console import say
from recplug.adapters.data.item_files import DataPath, columns, folder_of, training

if TYPE_CHECKING:
    from recplug.adapters.factors import FactorSchema, FactorTable
    from recplug.adapters.factors.llm.content import Item
    from recplug.adapters.factors.llm.sending import Sender

Dataset = Annotated[str, typer.Option("--dataset", help="The data set; its NAME.item holds the texts.")]
Llm = Annotated[
    str | None,
    typer.Option("--llm", help="openai:MODEL on any server of that protocol, or transformers:FOLDER_OR_ID, here."),
]
BaseUrl = Annotated[
    str | None, typer.Option("--base_url", help="openai: the server, such as http://localhost:8000/v1.")
]
KeyEnv = Annotated[
    str | None,
    typer.Option("--key_env", help="openai: the variable that holds the key; OPENAI_API_KEY for OpenAI itself alone."),
]
Columns = Annotated[
    str | None, typer.Option("--columns", help="A,B: what the model may read; default all text columns of NAME.item.")
]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder of pictures TOKEN.jpg, .png or .webp, for a vision model.")
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Requests under way at once.")]
TokensPerMinute = Annotated[int | None, typer.Option("--tokens_per_minute", min=1, help="Not faster than this.")]
MaxTokens = Annotated[
    int | None, typer.Option("--max_tokens_total", min=1, help="Stop before more tokens than this, over all runs.")
]
MaxCost = Annotated[
    float | None, typer.Option("--max_cost", min=0, help="USD; above it --yes is needed. Needs both prices.")
]
PriceIn = Annotated[float | None, typer.Option("--price_in", min=0, help="USD for a million tokens read.")]
PriceOut = Annotated[float | None, typer.Option("--price_out", min=0, help="USD for a million tokens written.")]
RateIn = Annotated[float | None, typer.Option("--rate_in", min=1e-9, help="Tokens a second that the model reads.")]
RateOut = Annotated[float | None, typer.Option("--rate_out", min=1e-9, help="Tokens a second that it writes.")]
Yes = Annotated[bool, typer.Option("--yes", help="Go on above --max_cost.")]
Output = Annotated[Path | None, typer.Option("--output", help="Default: DATASET.factors.json.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist.")]
DryRun = Annotated[bool, typer.Option("--dry_run", help="Say what would be asked and what it costs; ask nobody.")]
Seed = Annotated[int, typer.Option("--seed", help="Of samples and order.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many items.")]


def induce(
    dataset: Dataset,
    data_path: DataPath = None,
    llm: Llm = None,
    base_url: BaseUrl = None,
    key_env: KeyEnv = None,
    columns: Columns = None,
    images: Images = None,
    factors: Annotated[int, typer.Option("--factors", min=1, help="How many, at most.")] = 10,
    values: Annotated[int, typer.Option("--values", min=2, help="Of one factor, at most.")] = 30,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Items that the factors are proposed from.")] = 300,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Items a call.")] = 20,
    concurrency: Concurrency = 8,
    tokens_per_minute: TokensPerMinute = None,
    max_tokens_total: MaxTokens = None,
    max_cost: MaxCost = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    rate_in: RateIn = None,
    rate_out: RateOut = None,
    yes: Yes = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    limit: Limit = None,
) -> None:
    """Let a language model find the factors of a catalogue and their values: DATASET.factors.json, to read and edit.

    recplug factors induce --dataset NAME --llm openai:MODEL --dry_run
    """
    from recplug.adapters.factors.llm.content import read_items
    from recplug.adapters.factors.llm.estimate import estimate_induction
    from recplug.adapters.factors.llm.induce import Sizes
    from recplug.adapters.factors.llm.induce import induce as run

    output = _output(output, dataset, data_path)
    _free(output, overwrite or dry_run)
    items = read_items(dataset, data_path, _names(columns), images=images, limit=limit)
    sizes = Sizes(sample=sample, batch=batch)
    _tell(items)
    estimate = estimate_induction(items, factors=factors, values=values, sizes=sizes, seed=seed)
    if dry_run:
        estimated(estimate, price_in, price_out, rate_in, rate_out, tokens_per_minute)
        return
    affordable(estimate, max_cost, price_in, price_out, yes)
    groups = _strata(dataset, data_path)

    async def work(sender: Sender) -> FactorSchema:
        return await run(items, sender, factors=factors, values=values, sizes=sizes, strata=groups, seed=seed)

    limits = {"concurrency": concurrency, "tokens_per_minute": tokens_per_minute, "max_tokens_total": max_tokens_total}
    schema = asking(work, llm, base_url, key_env, output, limits, price_in, price_out)
    origin = {"dataset": dataset, "columns": columns or "all text columns", "images": "yes" if images else "no"}
    schema.model_copy(update={"provenance": {**schema.provenance, **origin}}).save(output)
    named = sum(len(spec.values) for spec in schema.factors)
    say(f"{output}: {len(schema.factors)} factors, {named} values; read it, edit it, then:")
    given = {"--data_path": data_path, "--llm": llm, "--base_url": base_url, "--columns": columns, "--images": images}
    given |= {"--key_env": key_env, "--output": output}
    say(f"recplug factors assign --dataset {dataset}{''.join(_given(*option) for option in given.items())}")
    if output.with_suffix(".parquet").exists():
        say(f"{output.with_suffix('.parquet')} was made with another schema; assign --overwrite makes it anew")


def assign(
    dataset: Dataset,
    data_path: DataPath = None,
    llm: Llm = None,
    base_url: BaseUrl = None,
    key_env: KeyEnv = None,
    schema: Annotated[
        Path | None, typer.Option("--schema", help="The factors and their values; default DATASET.factors.json.")
    ] = None,
    columns: Columns = None,
    images: Images = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Items a call.")] = 10,
    concurrency: Concurrency = 8,
    tokens_per_minute: TokensPerMinute = None,
    max_tokens_total: MaxTokens = None,
    max_cost: MaxCost = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    rate_in: RateIn = None,
    rate_out: RateOut = None,
    yes: Yes = False,
    reask: Annotated[
        int, typer.Option("--reask", min=0, help="Ask again about so many items, one a call: how far both agree.")
    ] = 0,
    retry_failed: Annotated[
        bool, typer.Option("--retry_failed", help="Ask again about items that failed or were refused before.")
    ] = False,
    output: Output = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    limit: Limit = None,
) -> None:
    """Let a language model label every item under a schema: DATASET.factors.parquet beside its .factors.json.

    Stop it whenever you like: the same command goes on where it was, and asks nothing twice.

    recplug factors assign --dataset NAME --llm openai:MODEL --price_in 0.15 --price_out 0.6 --dry_run
    """
    from tqdm import tqdm

    from recplug.adapters.factors import FactorSchema
    from recplug.adapters.factors.llm.assign import assign as run
    from recplug.adapters.factors.llm.assign import reask as run_again
    from recplug.adapters.factors.llm.content import distinct, read_items
    from recplug.adapters.factors.llm.estimate import estimate_assignment

    output = _output(output, dataset, data_path)
    labels = output.with_suffix(".parquet")
    _free(labels, overwrite or dry_run)
    shipped = folder_of(dataset, data_path) / f"{dataset}.factors.json"
    wanted = FactorSchema.load(schema or (shipped if shipped.exists() and not output.exists() else output))
    if schema is not None and schema.resolve() != output.resolve():
        _free(output, overwrite or dry_run)
    items = read_items(dataset, data_path, _names(columns), images=images, limit=limit)
    _tell(items)
    scored = (llm or "").startswith("transformers:")
    estimate = estimate_assignment(wanted, items, batch=batch, seed=seed, scored=scored)
    if dry_run:
        estimated(estimate, price_in, price_out, rate_in, rate_out, tokens_per_minute)
        return
    affordable(estimate, max_cost, price_in, price_out, yes)

    async def work(sender: Sender) -> tuple[FactorTable, FactorTable | None]:
        before = _answered(sender)
        with tqdm(total=len(distinct(items)), unit="item", disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.update(done - bar.n)

            table = await run(
                wanted, items, sender, batch=batch, seed=seed, retry_failed=retry_failed, progress=progress
            )
        new = _answered(sender) - before
        say(f"{len(distinct(items)):,} different items, about {new:,} answered now, the others from earlier runs")
        return table, await run_again(wanted, items, sender, n=reask, seed=seed) if reask else None

    limits = {"concurrency": concurrency, "tokens_per_minute": tokens_per_minute, "max_tokens_total": max_tokens_total}
    table, second = asking(work, llm, base_url, key_env, output, limits, price_in, price_out)
    table.save(output)
    states = Counter(table.status)
    told = ", ".join(f"{states[name]:,} {name}" for name in ("ok", "failed", "refused") if states[name])
    say(f"{labels}: {len(table.tokens):,} items ({told})")
    if states["failed"] or states["refused"]:
        say("items that failed or were refused are unknown everywhere; --retry_failed asks about them again")
    if second is not None:
        _compare(table, second, beside(output, "reask.factors.json"))
    say(f"look at it with: recplug factors inspect {output} --dataset {dataset}{_given('--data_path', data_path)}")


def _answered(sender: Sender) -> int:
    return sum(count for status, count in sender.log.statuses().items() if status != "probe")


def _compare(table: FactorTable, second: FactorTable, place: Path) -> None:
    """Say how far two labellings agree, and keep the second for ``inspect --second``."""
    from recplug.adapters.factors.report import agreement

    second.save(place)
    for spec in table.schema.factors:
        found = agreement(table, second, spec.name)
        if found is not None:
            say(f"asked again, {spec.name}: {found.share:.1%} of {found.items:,} agree, kappa {found.kappa:.2f}")
    say(f"{place}: the second answers, for inspect --second")


def _strata(dataset: str, data_path: Path | None) -> dict[str, str]:
    """A group by item: its category, where a column says so, and the third of popularity that it is in."""
    bought = Counter(item for _, item in training(dataset, data_path)[0])
    ranked = sorted(bought, key=lambda token: (bought[token], token))
    groups = {token: str(3 * place // len(ranked)) for place, token in enumerate(ranked)}
    file = folder_of(dataset, data_path) / f"{dataset}.item"
    with open(file, encoding="utf-8") as lines:
        fields = [cell.partition(":")[0] for cell in lines.readline().rstrip("\n").split("\t")]
    category = next((name for name in fields[1:] if name.lower().startswith(("categor", "genre", "class"))), None)
    if category is not None:
        for token, value in columns(file, fields[0], category):
            groups[token] = f"{value} {groups.get(token, '')}"
    return groups


def _tell(items: list[Item]) -> None:
    read = ", ".join(dict.fromkeys(name for item in items for name in item.text)) or "nothing"
    pictures = sum(item.image is not None for item in items)
    say(f"{len(items):,} items; read of them: {read}" + (f"; {pictures:,} pictures" if pictures else ""))


def _names(columns: str | None) -> list[str] | None:
    return None if columns is None else [name.strip() for name in columns.split(",")]


def _output(output: Path | None, dataset: str, data_path: Path | None) -> Path:
    """Beside the data set where its folder was named, else here."""
    from recplug.plugins.errors import RecplugError

    name = f"{dataset}.factors.json"
    if output is None:
        return folder_of(dataset, data_path) / name if data_path is not None else Path(name)
    if not output.name.endswith(".factors.json"):
        raise RecplugError(f"--output {output} does not end in .factors.json; name it {output.stem}.factors.json")
    return output


def _free(file: Path, overwrite: bool) -> None:
    from recplug.plugins.errors import RecplugError

    if file.exists() and not overwrite:
        raise RecplugError(f"{file} exists; add --overwrite, or choose another --output")


def _given(option: str, value: object) -> str:
    return "" if value is None else f" {option} {value}"
