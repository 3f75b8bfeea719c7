"""``recplug factors induce`` and ``assign``: factors read by a language model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from recplug.adapters.cli.factors.llm_session import Option, Session, asks, beside, free, options
from recplug.adapters.console import say
from recplug.adapters.item_files import folder_of

if TYPE_CHECKING:
    from recplug.adapters.factors import FactorSchema, FactorTable
    from recplug.adapters.factors.llm.client import Client


@asks
def induce(
    session: Session,
    factors: Annotated[int, Option("--factors", min=1, help="How many, at most.")] = 10,
    values: Annotated[int, Option("--values", min=2, help="Of one factor, at most.")] = 30,
    sample: Annotated[int, Option("--sample", min=1, help="Items that the factors are proposed from.")] = 300,
    batch: Annotated[int, Option("--batch", min=1, help="Items a call.")] = 20,
) -> None:
    """Let a language model find the factors of a catalogue and their values: DATASET.factors.json, to read and edit.

    recplug factors induce --dataset NAME --llm openai:MODEL --dry_run
    """
    from recplug.adapters.factors.llm.estimate import estimate_induction
    from recplug.adapters.factors.llm.induce import Sizes
    from recplug.adapters.factors.llm.induce import induce as run
    from recplug.adapters.factors.overrides import check_kept

    free(session.file, overwrite=session.overwrite or session.dry_run)
    if not session.dry_run:
        check_kept(session.file)
    items = session.items()
    sizes, seed = Sizes(sample=sample, batch=batch), session.seed
    usage = session.usage()
    if not session.goes_on(
        estimate_induction(items, factors=factors, values=values, sizes=sizes, seed=seed, usage=usage)
    ):
        return

    async def work(client: Client) -> FactorSchema:
        return await run(items, client, factors=factors, values=values, sizes=sizes, seed=seed)

    schema = session.run(work)
    read = session.columns or "all text columns"
    origin = {"dataset": session.dataset, "columns": read, "images": "yes" if session.images else "no"}
    schema.model_copy(update={"provenance": {**schema.provenance, **origin}}).save(session.file)
    named, k = sum(len(spec.values) for spec in schema.factors), len(schema.factors)
    few = f" (of {factors} that were asked for: no more had values)" if k < factors else ""
    say(f"{session.file}: {k} factors{few}, {named} values; read it, edit it, then:")
    shared = ("dataset", "data_path", "llm", "base_url", "columns", "images", "key_env", "output")
    say(f"recplug factors assign{options(**{name: getattr(session, name) for name in shared})}")
    labels = session.file.with_suffix(".parquet")
    if labels.exists():
        say(f"{labels} was made with another schema; assign --overwrite makes it anew")


@asks
def assign(
    session: Session,
    schema: Annotated[
        Path | None, Option("--schema", help="The factors and their values; default DATASET.factors.json.")
    ] = None,
    batch: Annotated[int, Option("--batch", min=1, help="Items a call.")] = 10,
    reask: Annotated[
        int, Option("--reask", min=0, help="Ask again about so many items, one a call: how far both agree.")
    ] = 0,
    retry_failed: Annotated[
        bool, Option("--retry_failed", help="Ask again about labels that failed or were refused before.")
    ] = False,
) -> None:
    """Let a language model label every item under a schema: DATASET.factors.parquet beside its .factors.json.

    Stop it whenever you like: the same command goes on where it was, and asks nothing twice. Rows that a person made
    (override) stay.

    recplug factors assign --dataset NAME --llm openai:MODEL --price_in 0.15 --price_out 0.6 --dry_run
    """
    from tqdm import tqdm

    from recplug.adapters.factors import FactorSchema
    from recplug.adapters.factors.llm.assign import assign as run
    from recplug.adapters.factors.llm.assign import reask as run_again
    from recplug.adapters.factors.llm.content import distinct
    from recplug.adapters.factors.llm.estimate import estimate_assignment
    from recplug.adapters.factors.overrides import overrides

    file, seed, may = session.file, session.seed, session.overwrite or session.dry_run
    labels = file.with_suffix(".parquet")
    free(labels, overwrite=may)
    shipped = folder_of(session.dataset, session.data_path) / f"{session.dataset}.factors.json"
    wanted = FactorSchema.load(schema or (shipped if shipped.exists() and not file.exists() else file))
    if schema is not None and schema.resolve() != file.resolve():
        free(file, overwrite=may)
    kept = overrides(file, wanted)
    items = session.items()
    if not session.goes_on(estimate_assignment(wanted, items, batch=batch, seed=seed, usage=session.usage())):
        return

    async def work(client: Client) -> tuple[FactorTable, FactorTable | None]:
        with tqdm(total=len(distinct(items)), unit="item", disable=None) as bar:
            table = await run(
                wanted, items, client, batch=batch, seed=seed, retry_failed=retry_failed, overrides=kept,
                progress=lambda done, _: bar.update(done - bar.n) and None,
            )  # fmt: skip
        return table, await run_again(wanted, items, client, n=reask, seed=seed) if reask else None

    table, second = session.run(work)
    if second is not None:
        _compare(table, second, beside(file, "reask.factors.json"))
    table.save(file)
    states = Counter(table.status)
    told = ", ".join(f"{states[name]:,} {name}" for name in ("ok", "override", "failed", "refused") if states[name])
    say(f"{labels}: {len(table.tokens):,} items ({told})")
    bad = table.metadata.get("labels_without_answer")
    if bad:
        say(f"{bad} labels failed or were refused, and are unknown; --retry_failed asks about them again")
    again = options(dataset=session.dataset, data_path=session.data_path)
    say(f"look at it with: recplug factors inspect {file}{again}")


@asks
def caption(
    session: Session,
    column: Annotated[str, Option("--column", help="What the new text column is called.")] = "caption",
    retry_failed: Annotated[bool, Option("--retry_failed", help="Show again the pictures that were refused.")] = False,
) -> None:
    """Turn pictures into a text column of DATASET.item (or of --output FILE.item), by a model that sees.

    recplug factors caption --dataset NAME --data_path DIR --images DIR --llm openai:MODEL
    """
    from tqdm import tqdm

    from recplug.adapters.factors.llm.caption import add_column, captions, item_rows
    from recplug.plugins.errors import RecplugError

    if session.images is None or session.columns is not None:
        raise RecplugError("captions are made of pictures alone; give --images DIR, and leave --columns out")
    if session.output is None and session.data_path is None:
        raise RecplugError("bundled data sets stay as they are; give --output FILE.item, or --data_path of your own")
    file = folder_of(session.dataset, session.data_path) / f"{session.dataset}.item"
    target, session = session.output or file, replace(session, output=None)
    if target != file:
        free(target, overwrite=session.overwrite)
    items = [item for item in session.items() if item.image is not None]
    rows = item_rows(file, column, overwrite=session.overwrite)
    if session.dry_run:
        say(f"{len(items):,} pictures, one a call, and about 1,000 tokens each; nothing was asked")
        return

    async def work(client: Client) -> dict[str, str]:
        with tqdm(total=len(items), unit="picture", disable=None) as bar:
            return await captions(
                items, client, retry_failed=retry_failed, progress=lambda done, _: bar.update(done - bar.n) and None
            )

    found = session.run(work)
    add_column(rows, target, column, found)
    say(f"{target}: {len(found):,} of {len(items):,} pictures in the column {column}; read it with --columns {column}")


def _compare(table: FactorTable, second: FactorTable, place: Path) -> None:
    """Say how far two labellings agree, and keep the second for ``inspect --second``."""
    from recplug.adapters.factors.report import agreement

    second.save(place)
    for spec in table.schema.factors:
        found = agreement(table, second, spec.name)
        if found is not None:
            say(f"asked again, {spec.name}: {found.share:.1%} of {found.items:,} agree, kappa {found.kappa:.2f}")
    say(f"{place}: the second answers, for inspect --second")
