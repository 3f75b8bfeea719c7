"""``recplug features import`` and ``inspect``."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recplug.adapters.cli.common import say
from recplug.adapters.cli.items import DataPath, item_tokens, named, texts

if TYPE_CHECKING:
    from recplug.adapters.features import FeatureTable
    from recplug.adapters.features.neighbours import NeighbourTable

app = typer.Typer(help="Feature tables: one content vector an item, by item token.", rich_markup_mode=None)
QUERIES, NEIGHBOURS = 3, 3

Dataset = Annotated[str | None, typer.Option("--dataset", help="The data set whose items the vectors are of.")]


class Source(str, Enum):
    """File formats of other tools."""

    npy = "npy"
    npz = "npz"
    mmrec = "mmrec"
    parquet = "parquet"
    knn = "knn"


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="The file; with mmrec also the data set's folder.")],
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
            "--tokens", help="npy, knn: item tokens in row order, one a line, or a .tsv, .csv or .item with header."
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
        str | None, typer.Option("--token_column", help="parquet: default the only text column.")
    ] = None,
    feature_columns: Annotated[
        str | None, typer.Option("--feature_columns", help="parquet: A,B,C; default the only list, or all floats.")
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
    from recplug.adapters.data import locate
    from recplug.adapters.features import Provenance, from_mmrec, from_npy, from_npz, from_parquet
    from recplug.adapters.features.neighbours import from_knn
    from recplug.plugins.errors import RecplugError

    only_for = {
        "--tokens": (tokens, ["npy", "knn"]),
        "--mapping": (mapping, ["mmrec"]),
        "--token_column": (token_column, ["parquet"]),
        "--feature_columns": (feature_columns, ["parquet"]),
    }
    for option, (given, kinds) in only_for.items():
        if given is not None and source.value not in kinds:
            named = " or ".join(kinds)
            raise RecplugError(f"{option} belongs to --from {named}, not to --from {source.value}; leave it out")
    if positional and source is Source.parquet:
        raise RecplugError(
            "a Parquet file names its items; leave --positional out, or name the column by --token_column"
        )
    folder = locate(dataset, data_path) if dataset else None
    if output is None:
        if dataset is None:
            raise RecplugError("no place for the table; give --output FILE, or --dataset NAME")
        name = f"{dataset}.{modality}{'.knn' if source is Source.knn else ''}.safetensors"
        output = folder / name if folder is not None and data_path is not None else Path(name)
    if output.exists() and not overwrite:
        raise RecplugError(f"{output} exists; add --overwrite, or choose another --output")
    origin = Provenance(encoder=encoder, revision=revision, pooling=pooling, licence=licence, source=citation)
    if source in (Source.npy, Source.knn) and tokens is None and not positional:
        raise RecplugError("no item tokens; give --tokens FILE, or --positional if the items are named 0, 1, 2, ...")
    if source is Source.knn:
        graph = from_knn(path, modality, tokens=tokens, positional=positional, provenance=origin)
        met = graph.coverage(item_tokens(dataset, data_path)) if dataset else None
        graph.save(output)
        say(f"{output}: {len(graph.tokens):,} items, {len(graph.row):,} edges, up to {graph.k} each")
        if met:
            say(str(met))
        return
    if source is Source.npy:
        table = from_npy(path, tokens, modality, positional=positional, provenance=origin)
    elif source is Source.npz:
        table = from_npz(
            path, modality, features=features_array, tokens=tokens_array, positional=positional, provenance=origin
        )
    elif source is Source.mmrec:
        table = from_mmrec(path, modality, mapping=mapping, positional=positional, provenance=origin)
    else:
        columns = feature_columns.split(",") if feature_columns else None
        table = from_parquet(path, modality, token_column=token_column, feature_columns=columns, provenance=origin)
    covered = table.coverage(item_tokens(dataset, data_path)) if dataset else None
    table.save(output)
    left_out = table.metadata.get("left_out", "nothing")
    say(f"{output}: {len(table.tokens):,} items, {table.features.shape[1]} wide; left out: {left_out}")
    if covered:
        say(str(covered))
    if folder is None or output.resolve().parent != folder.resolve():
        say(f"use it with: run_recbole --dataset {dataset or 'NAME'} --features.{modality} {output}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="DATASET.MODALITY.safetensors, or DATASET.MODALITY.knn.safetensors.")],
    dataset: Dataset = None,
    data_path: DataPath = None,
) -> None:
    """What a feature table or a graph holds: shape, origin, coverage, lengths or cosines, nearest neighbours."""
    from recplug.adapters.features import FeatureTable
    from recplug.adapters.features.neighbours import NeighbourTable, is_neighbour_table

    if is_neighbour_table(file):
        _inspect_graph(NeighbourTable.load(file), dataset, data_path)
        return
    table = FeatureTable.load(file)
    dtype = str(table.features.dtype).removeprefix("torch.")
    say(f"{table.modality}: {len(table.tokens):,} items x {table.features.shape[1]}, {dtype}")
    for key, value in table.metadata.items():
        say(f"{key}: {value}")
    if dataset:
        say(f"coverage of {dataset}: {table.coverage(item_tokens(dataset, data_path))}")
    norms = table.features.float().norm(dim=1)
    say(f"lengths: {norms.min():.3f} to {norms.max():.3f}, median {norms.median():.3f}")
    counts = Counter(row.tobytes() for row in table.features.numpy())
    shared = sum(count for count in counts.values() if count > 1)
    say(f"duplicates: {shared:,} items share their vector with another" if shared else "duplicates: none")
    for line in _neighbours(table, texts(dataset, data_path) if dataset else {}):
        say(line)


def _inspect_graph(table: NeighbourTable, dataset: str | None, data_path: Path | None) -> None:
    n, counts = len(table.tokens), table.counts
    say(f"{table.modality}: graph of {n:,} items, {len(table.row):,} edges, {table.cosine.dtype}")
    for key, value in sorted(table.metadata.items()):
        say(f"{key}: {value}")
    if dataset:
        say(f"coverage of {dataset}: {table.coverage(item_tokens(dataset, data_path))}")
    say(f"k: {counts.min()} to {counts.max()} neighbours an item; {(counts > 0).sum():,} of {n:,} items have some")
    say(f"cosines: {table.cosine.min():.3f} to {table.cosine.max():.3f}")
    known = texts(dataset, data_path) if dataset else {}
    for query in _spread(n):
        say(f"nearest to {named(table.tokens[query], known)}")
        edges = (table.row == query).nonzero()[0][:NEIGHBOURS]
        for cosine, row in zip(table.cosine[edges], table.neighbour[edges], strict=True):
            say(f"    {cosine:.3f}  {named(table.tokens[row], known)}")


def _spread(n: int) -> list[int]:
    """A few rows from the first to the last."""
    return sorted({round(i * (n - 1) / QUERIES) for i in range(QUERIES)})


def _neighbours(table: FeatureTable, known: dict[str, str]) -> list[str]:
    """The nearest items, by cosine, of a few items spread over the table."""
    import torch.nn.functional as F

    rows = F.normalize(table.features.float(), dim=1)  # [n, d]
    lines = []
    for query in _spread(len(rows)):
        cosines = rows @ rows[query]  # [n]
        cosines[query] = -2.0
        best = cosines.topk(min(NEIGHBOURS, len(rows) - 1))
        lines.append(f"nearest to {named(table.tokens[query], known)}")
        for cosine, row in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            lines.append(f"    {cosine:.3f}  {named(table.tokens[row], known)}")
    return lines
