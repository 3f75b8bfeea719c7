"""``recplug features``: import and export here, what a table holds and how one is made in rooms of their own."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from recplug.adapters.cli.features import extract, inspect
from recplug.adapters.console import say
from recplug.adapters.item_files import DataPath, item_tokens

if TYPE_CHECKING:
    from recplug.adapters.features.neighbours import NeighbourTable

app = typer.Typer(help="Feature tables: one content vector an item, by item token.", rich_markup_mode=None)
app.command("extract")(extract.extract)
app.command("merge")(extract.merge)
app.command("inspect")(inspect.inspect)

Dataset = Annotated[str | None, typer.Option("--dataset", help="The data set whose items the vectors are of.")]


class Source(str, Enum):
    """File formats of other tools."""

    npy = "npy"
    npz = "npz"
    mmrec = "mmrec"
    parquet = "parquet"
    ducho = "ducho"
    cornac = "cornac"
    recbole = "recbole"
    knn = "knn"


class Target(str, Enum):
    """File formats to export to."""

    npy = "npy"
    npz = "npz"
    mmrec = "mmrec"
    parquet = "parquet"
    ducho = "ducho"
    cornac = "cornac"
    recbole = "recbole"


# Which sources know an option; the others refuse it.
TAKES = {
    "--tokens": ("npy", "knn", "cornac"),
    "--positional": ("npy", "npz", "mmrec", "knn"),
    "--mapping": ("mmrec",),
    "--token_column": ("parquet", "recbole"),
    "--feature_columns": ("parquet", "recbole"),
}


@app.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="The file; with mmrec also the data set's folder, with ducho a layer's folder.")
    ],
    source: Annotated[Source, typer.Option("--from", help="What the file is.")],
    modality: Annotated[str, typer.Option("--modality", help="image, text, audio, ...")],
    dataset: Dataset = None,
    data_path: DataPath = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Default: DATASET.MODALITY.safetensors; knn: .knn.safetensors.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output file that exists.")] = False,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            help="npy, knn: item tokens in row order, one a line, or a .tsv, .csv or .item with header; "
            "cornac: default item_ids.txt beside the matrix.",
        ),
    ] = None,
    positional: Annotated[
        bool, typer.Option("--positional", help="npy, npz, mmrec, knn: the items' tokens are the row numbers.")
    ] = False,
    mapping: Annotated[
        Path | None, typer.Option("--mapping", help="mmrec: default i_id_mapping.csv beside the matrix.")
    ] = None,
    features_array: Annotated[str, typer.Option("--features_array", help="npz: the matrix.")] = "features",
    tokens_array: Annotated[str, typer.Option("--tokens_array", help="npz: the item tokens.")] = "tokens",
    token_column: Annotated[
        str | None,
        typer.Option("--token_column", help="parquet: default the only text column; recbole: the first token."),
    ] = None,
    feature_columns: Annotated[
        str | None,
        typer.Option(
            "--feature_columns",
            help="A,B,C; parquet: default the only list, or all floats; recbole: default the only float_seq.",
        ),
    ] = None,
    encoder: Annotated[str, typer.Option("--encoder", help="What made the vectors.")] = "unknown",
    revision: Annotated[str, typer.Option("--revision", help="Its version.")] = "unknown",
    pooling: Annotated[str, typer.Option("--pooling", help="How many vectors became one.")] = "unknown",
    licence: Annotated[str, typer.Option("--licence", help="Under which terms.")] = "unknown",
    citation: Annotated[str, typer.Option("--source", help="Citation or address.")] = "unknown",
) -> None:
    """Make a feature table from another tool's file. A row of zeros means no vector.

    With --from knn the file is no matrix but a graph of nearest items, an .npz with the arrays row, col and cos.

    recplug features import --from npy image.npy --tokens items.txt --modality image --dataset NAME --data_path DIR
    """
    from recplug.adapters import features
    from recplug.adapters.data import locate
    from recplug.adapters.features.neighbours import from_knn
    from recplug.plugins.errors import RecplugError

    given = {"--tokens": tokens, "--positional": positional or None, "--mapping": mapping,
             "--token_column": token_column, "--feature_columns": feature_columns}  # fmt: skip
    for option, value in given.items():
        if value is not None and source.value not in TAKES[option]:
            kinds = " or ".join(TAKES[option])
            why = f"; {source.value} names its items" if option == "--positional" else ""
            raise RecplugError(f"{option} belongs to --from {kinds}, not to --from {source.value}{why}; leave it out")
    folder = locate(dataset, data_path) if dataset else None
    if output is None:
        if dataset is None:
            raise RecplugError("no place for the table; give --output FILE, or --dataset NAME")
        name = f"{dataset}.{modality}{'.knn' if source is Source.knn else ''}.safetensors"
        output = folder / name if folder is not None and data_path is not None else Path(name)
    if output.exists() and not overwrite:
        raise RecplugError(f"{output} exists; add --overwrite, or choose another --output")
    origin = features.Provenance(encoder=encoder, revision=revision, pooling=pooling, licence=licence, source=citation)
    if source in (Source.npy, Source.knn) and tokens is None and not positional:
        raise RecplugError("no item tokens; give --tokens FILE, or --positional if the items are named 0, 1, 2, ...")
    columns = feature_columns.split(",") if feature_columns else None
    if source is Source.knn:
        graph = from_knn(path, modality, tokens=tokens, positional=positional, provenance=origin)
        _save_graph(graph, output, dataset, data_path)
        return
    if source is Source.npy:
        table = features.from_npy(path, tokens, modality, positional=positional, provenance=origin)
    elif source is Source.npz:
        table = features.from_npz(
            path, modality, features=features_array, tokens=tokens_array, positional=positional, provenance=origin
        )
    elif source is Source.mmrec:
        table = features.from_mmrec(path, modality, mapping=mapping, positional=positional, provenance=origin)
    elif source is Source.ducho:
        table = features.from_ducho(path, modality, provenance=origin)
    elif source is Source.cornac:
        table = features.from_cornac(path, modality, ids=tokens, provenance=origin)
    elif source is Source.recbole:
        table = features.from_recbole(
            path, modality, token_column=token_column, feature_columns=columns, provenance=origin
        )
    else:
        table = features.from_parquet(
            path, modality, token_column=token_column, feature_columns=columns, provenance=origin
        )
    covered = table.coverage(item_tokens(dataset, data_path)) if dataset else None
    table.save(output)
    left_out = table.metadata.get("left_out", "nothing")
    say(f"{output}: {len(table.tokens):,} items, {table.features.shape[1]} wide; left out: {left_out}")
    if covered:
        say(str(covered))
    if folder is None or output.resolve().parent != folder.resolve():
        say(f"use it with: run_recbole --dataset {dataset or 'NAME'} --features.{modality} {quote(str(output))}")


def _save_graph(graph: NeighbourTable, output: Path, dataset: str | None, data_path: Path | None) -> None:
    met = graph.coverage(item_tokens(dataset, data_path)) if dataset else None
    graph.save(output)
    say(f"{output}: {len(graph.tokens):,} items, {len(graph.row):,} edges, up to {graph.k} each")
    if met:
        say(str(met))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="DATASET.MODALITY.safetensors.")],
    target: Annotated[Target, typer.Option("--to", help="What to make of it.")],
    output: Annotated[Path, typer.Option("--output", help="The file; with mmrec and ducho the folder.")],
    items: Annotated[
        Path | None,
        typer.Option(
            "--items", help="These items in this order: one a line, a .tsv, .csv or .item with header, or a mapping."
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Or all items of this data set.")] = None,
    data_path: DataPath = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Write a feature table for another tool; `recplug features import` reads it back as the same.

    Items without a vector get a row of zeros where the file goes by row numbers. Without --items and --dataset it
    holds the table's own items.

    recplug features export NAME.image.safetensors --to mmrec --output DIR --items DIR/i_id_mapping.csv
    """
    from recplug.adapters import features
    from recplug.adapters.features.exchange.reading import read_items
    from recplug.plugins.errors import RecplugError

    if items is not None and dataset is not None:
        raise RecplugError("--items and --dataset both say which items; leave one out")
    table = features.FeatureTable.load(file)
    wanted = None
    if items is not None:
        wanted = read_items(items)
    elif dataset is not None:
        wanted = item_tokens(dataset, data_path)[1:]
    export_to = {
        Target.npy: features.to_npy,
        Target.npz: features.to_npz,
        Target.mmrec: features.to_mmrec,
        Target.parquet: features.to_parquet,
        Target.ducho: features.to_ducho,
        Target.cornac: features.to_cornac,
        Target.recbole: features.to_recbole,
    }[target]
    say(str(export_to(table, output, items=wanted, overwrite=overwrite)))
    if target is Target.recbole:
        suffix = output.suffix.removeprefix(".") or "SUFFIX"
        say(f"beside the data as DATASET.{suffix}, RecBole reads it with: additional_feat_suffix: [{suffix}],")
        say(f"    load_col: {{{suffix}: [iid, {table.modality}]}}, alias_of_item_id: [iid], "
            f"preload_weight: {{iid: {table.modality}}}")  # fmt: skip
