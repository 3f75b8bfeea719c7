"""``recplug factors``: ``import`` and ``inspect``, beside ``induce`` and ``assign`` of the language model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from recplug.adapters.cli.factors import labelling
from recplug.adapters.cli.factors.llm_session import free, options, schema_file
from recplug.adapters.console import say
from recplug.adapters.item_files import DataPath, folder_of, item_tokens, named, texts, training

if TYPE_CHECKING:
    from torch import Tensor

    from recplug.adapters.factors import FactorTable

app = typer.Typer(help="Factor profiles: the values of every item under named factors.", rich_markup_mode=None)
app.command("induce")(labelling.induce)
app.command("assign")(labelling.assign)
app.command("caption")(labelling.caption)

# Which options of a column apply to which kind of it.
ACCEPTS = {
    "token": ("top",),
    "token_seq": ("top", "separator"),
    "float": ("bins", "width"),
    "path": ("top", "separator", "level"),
}
Dataset = Annotated[str | None, typer.Option("--dataset", help="The data set whose items the factors are of.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist.")]


class Source(str, Enum):
    """Where factors come from without a language model."""

    columns = "columns"
    tsv = "tsv"
    clusters = "clusters"


@app.command("import")
def import_(
    source: Annotated[Source, typer.Option("--from", help="What the factors are made of.")],
    path: Annotated[
        Path | None, typer.Argument(help="columns: an .item file, default DATASET.item; tsv: the table.")
    ] = None,
    dataset: Dataset = None,
    data_path: DataPath = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns", help="columns: A,B:KIND,...; KIND is token, token_seq, float or path, default the file's own."
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator", help="columns: between the values of a token_seq (blank), the steps of a path (>)."
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", help="columns: keep so many frequent values a factor; the rest is 'other'.")
    ] = None,
    bins: Annotated[int | None, typer.Option("--bins", help="columns: parts of equal number for a float (5).")] = None,
    width: Annotated[
        float | None, typer.Option("--width", help="columns: parts of this width for a float; 10: decades.")
    ] = None,
    level: Annotated[int | None, typer.Option("--level", help="columns: how many steps of a path count.")] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            help="A .factors.json. tsv: with the allowed values; default: a new one. clusters: of these sizes.",
        ),
    ] = None,
    factors: Annotated[
        int | None, typer.Option("--factors", help="clusters: how many, shared out among the modalities (10).")
    ] = None,
    values: Annotated[int | None, typer.Option("--values", help="clusters: groups a factor (20).")] = None,
    modalities: Annotated[
        str | None, typer.Option("--modalities", help="clusters: image,text,...; default all that there are.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="clusters: of the centres (0).")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Default: DATASET.factors.json.")] = None,
    overwrite: Overwrite = False,
    licence: Annotated[str | None, typer.Option("--licence", help="columns, tsv: under which terms.")] = None,
    citation: Annotated[str | None, typer.Option("--source", help="columns, tsv: citation or address.")] = None,
) -> None:
    """Make factor profiles without a language model.

    recplug factors import --from columns --columns genres,year:float --width 10 --dataset NAME --data_path DIR

    recplug factors import --from clusters --dataset NAME --data_path DIR

    recplug factors import --from tsv edited.tsv --schema NAME.factors.json --dataset NAME --data_path DIR
    """
    from recplug.adapters.factors.overrides import check_kept
    from recplug.plugins.errors import RecplugError

    how = {"separator": separator, "top": top, "bins": bins, "width": width, "level": level}
    only_for: dict[str, tuple[Any, tuple[Source, ...]]] = {
        "--columns": (columns, (Source.columns,)),
        **{f"--{option}": (given, (Source.columns,)) for option, given in how.items()},
        "--schema": (schema, (Source.tsv, Source.clusters)),
        "--factors": (factors, (Source.clusters,)),
        "--values": (values, (Source.clusters,)),
        "--modalities": (modalities, (Source.clusters,)),
        "--seed": (seed, (Source.clusters,)),
        # Clusters have the terms of the tables that they are made of.
        "--licence": (licence, (Source.columns, Source.tsv)),
        "--source": (citation, (Source.columns, Source.tsv)),
    }
    for option, (given, kinds) in only_for.items():
        if given is not None and source not in kinds:
            meant = " or ".join(kind.value for kind in kinds)
            raise RecplugError(f"{option} belongs to --from {meant}, not to --from {source.value}; leave it out")
    output = schema_file(output, dataset, data_path)
    free(output, output.with_suffix(".parquet"), overwrite=overwrite)
    origin = {"licence": licence or "unknown", "source": citation or "unknown"}
    if source is Source.columns:
        table = _from_columns(path, dataset, data_path, columns, how, origin)
    elif source is Source.tsv:
        table = _from_tsv(path, schema, origin)
    else:
        table = _from_clusters(path, dataset, data_path, modalities, schema, factors, values, seed)
    covered = table.coverage(item_tokens(dataset, data_path)) if dataset else None
    check_kept(output, table)
    table.save(output)
    named_values = sum(len(spec.values) for spec in table.schema.factors)
    say(f"{output}: {len(table.tokens):,} items, {len(table.schema.factors)} factors, {named_values:,} values")
    if covered:
        say(str(covered))
    say(f"look at it with: recplug factors inspect {output}{options(dataset=dataset, data_path=data_path)}")


@app.command()
def inspect(
    file: Annotated[
        Path | None, typer.Argument(help="DATASET.factors.json; default that of --dataset.", show_default=False)
    ] = None,
    dataset: Dataset = None,
    data_path: DataPath = None,
    items: Annotated[int, typer.Option("--items", min=0, help="So many items with their values.")] = 3,
    second: Annotated[
        Path | None, typer.Option("--second", help="Another labelling of the same items: how far both agree.")
    ] = None,
    tsv: Annotated[Path | None, typer.Option("--tsv", help="Write the labels as a table to edit.")] = None,
    pictures: Annotated[Path | None, typer.Option("--pictures", help="Folder for pictures of the report.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """What factor profiles are worth: coverage, groups, overlap; with a data set also lift with co-purchase."""
    from recplug.adapters.factors import FactorTable
    from recplug.adapters.factors.report import report
    from recplug.adapters.factors.tsv import to_tsv
    from recplug.plugins.errors import RecplugError

    if file is None:
        if dataset is None:
            raise RecplugError("nothing to look at; give a .factors.json, or --dataset NAME")
        file = folder_of(dataset, data_path) / f"{dataset}.factors.json"
    table = FactorTable.load(file)
    if tsv:
        free(tsv, overwrite=overwrite)
    for key, value in table.schema.provenance.items():
        say(f"{key}: {value}")
    for key, value in table.metadata.items():
        if table.schema.provenance.get(key) != value:
            say(f"labels, {key}: {value}")
    tokens, edges = ["[PAD]", *table.tokens], None
    if dataset:
        tokens = item_tokens(dataset, data_path)
        say(f"coverage of {dataset}: {table.coverage(tokens)}")
        rows, which = training(dataset, data_path)
        edges = _edges(rows, tokens)
        say(f"lift from {len(rows):,} interactions ({which})")
    found = report(table, tokens, edges, second=FactorTable.load(second) if second else None)
    for line in found.lines():
        say(line)
    for line in _examples(table, items, texts(dataset, data_path) if dataset else {}):
        say(line)
    if tsv:
        to_tsv(table, tsv)
        again = f"--schema {file} --output {file} --overwrite{options(dataset=dataset, data_path=data_path)}"
        say(f"{tsv}: edit it, then: recplug factors import --from tsv {tsv} {again}")
    if pictures:
        from recplug.adapters.panels import draw

        pictures.mkdir(parents=True, exist_ok=True)
        for name, panel in found.panels().items():
            draw(panel, pictures / f"{name}.png")
        say(f"pictures: {pictures}")


def _from_columns(
    path: Path | None,
    dataset: str | None,
    data_path: Path | None,
    wanted: str | None,
    how: dict[str, Any],
    origin: dict[str, str],
) -> FactorTable:
    from recplug.adapters.factors.columns import ColumnSpec, from_columns, read_item_file
    from recplug.plugins.errors import RecplugError, did_you_mean

    if path is None:
        if dataset is None:
            raise RecplugError("no columns to read; give an .item file, or --dataset NAME")
        path = folder_of(dataset, data_path) / f"{dataset}.item"
    rows, types = read_item_file(path)
    if not wanted:
        raise RecplugError(f"no columns named; choose --columns A,B,... from: {', '.join(list(types)[1:])}")
    specs = {}
    for word in wanted.split(","):
        name, _, kind = word.strip().partition(":")
        if name not in types:
            hint = did_you_mean(name, types) or f"; it has: {', '.join(list(types)[1:])}"
            raise RecplugError(f"{path} has no column {name!r}{hint}")
        kind = kind or types[name]
        uses = ACCEPTS.get(kind, ())
        specs[name] = ColumnSpec(name, cast(Any, kind), **{key: how[key] for key in uses if how[key] is not None})
    used = {key for spec in specs.values() for key in ACCEPTS[spec.kind]}
    idle = next((key for key, given in how.items() if given is not None and key not in used), None)
    if idle:
        kinds = " or ".join(kind for kind, keys in ACCEPTS.items() if idle in keys)
        raise RecplugError(f"--{idle} applies to columns of the kind {kinds}, and none is named; leave it out")
    return from_columns(rows, specs, metadata=origin)


def _from_tsv(path: Path | None, schema: Path | None, origin: dict[str, str]) -> FactorTable:
    from recplug.adapters.factors import FactorSchema
    from recplug.adapters.factors.tsv import from_tsv
    from recplug.plugins.errors import RecplugError

    if path is None:
        raise RecplugError("no table; name the .tsv that `recplug factors inspect --tsv` wrote, or one like it")
    return from_tsv(path, FactorSchema.load(schema) if schema else None, metadata=origin)


def _from_clusters(
    path: Path | None,
    dataset: str | None,
    data_path: Path | None,
    modalities: str | None,
    schema: Path | None,
    factors: int | None,
    values: int | None,
    seed: int | None,
) -> FactorTable:
    from recplug.adapters.data.check import settings_of
    from recplug.adapters.factors import FactorSchema
    from recplug.adapters.factors.clusters import from_clusters
    from recplug.adapters.features import FeatureTable
    from recplug.adapters.features.find import find_tables
    from recplug.plugins.errors import RecplugError, did_you_mean

    if path is not None or dataset is None:
        raise RecplugError("clusters are made of a data set's feature tables; give --dataset NAME and no file")
    folder = folder_of(dataset, data_path)
    found = find_tables(folder, dataset, settings_of(folder, dataset).get("features", {}))
    if not found:
        raise RecplugError(f"{dataset} has no feature tables to cluster; make one, see: recplug features import --help")
    wanted = modalities.split(",") if modalities else list(found)
    for name in wanted:
        if name not in found:
            hint = did_you_mean(name, found) or f"; there are: {', '.join(found) or 'none'}"
            raise RecplugError(f"{dataset} has no {name} features{hint}")
    tables = {name: FeatureTable.load(found[name]) for name in wanted}
    if schema is not None and (factors is not None or values is not None):
        raise RecplugError("--schema tells how many factors and values; leave --factors and --values out")
    given: dict[str, Any] = {"factors": factors, "values": values, "seed": seed}
    given["like"] = FactorSchema.load(schema) if schema is not None else None
    return from_clusters(tables, **{key: value for key, value in given.items() if value is not None})


def _edges(rows: list[tuple[str, str]], tokens: list[str]) -> Tensor:
    """``[2, n]`` user and item ids."""
    import torch

    users: dict[str, int] = {}
    items = {token: number for number, token in enumerate(tokens)}
    pairs = [(users.setdefault(user, len(users)), items[item]) for user, item in rows if item in items]
    return torch.tensor(pairs).T


def _examples(table: FactorTable, count: int, known: dict[str, str]) -> list[str]:
    """A few items, spread over the table, with their values."""
    n = len(table.tokens)
    lines = []
    for row in sorted({round(i * (n - 1) / max(1, count - 1)) for i in range(count)}):
        lines.append(named(table.tokens[row], known))
        for factor, column in table.values.items():
            lines.append(f"    {factor}: {', '.join(column[row]) or 'unknown'}")
    return lines
