"""``recplug features inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recplug.adapters.console import say
from recplug.adapters.item_files import DataPath, folder_of, item_tokens, named, texts

if TYPE_CHECKING:
    from recplug.adapters.features import FeatureTable
    from recplug.adapters.features.neighbours import NeighbourTable

QUERIES, NEIGHBOURS = 3, 3
NAMED = 3  # items, groups or dimensions that a line names


def inspect(
    file: Annotated[Path, typer.Argument(help="DATASET.MODALITY.safetensors, or DATASET.MODALITY.knn.safetensors.")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="The data set whose items the vectors are of.")
    ] = None,
    data_path: DataPath = None,
    placeholder: Annotated[
        int, typer.Option("--placeholder", min=2, help="As many items with one vector share a placeholder.")
    ] = 10,
    images: Annotated[
        str | None,
        typer.Option("--images", help="For --sheet: folder with TOKEN.jpg, or a column of DATASET.item with files."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Draw a .png: pictures of items beside those of their nearest.")
    ] = None,
    queries: Annotated[int, typer.Option("--queries", min=1, max=40, help="Rows of the sheet.")] = 6,
) -> None:
    """What a feature table or a graph holds: shape, origin, coverage, lengths or cosines, nearest neighbours.

    recplug features inspect NAME.image.safetensors --dataset NAME --images DIR --sheet sheet.png
    """
    from recplug.adapters.features import FeatureTable
    from recplug.adapters.features.neighbours import NeighbourTable, is_neighbour_table
    from recplug.plugins.errors import RecplugError

    if (images is None) != (sheet is None):
        raise RecplugError("a contact sheet needs both --images FOLDER_OR_COLUMN and --sheet FILE.png")
    if sheet is not None and dataset is None:
        raise RecplugError("a contact sheet needs --dataset NAME, whose items the pictures are of")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise RecplugError(f"--sheet {sheet} is no .png; name it {sheet.stem}.png")
    if is_neighbour_table(file):
        if sheet is not None:
            raise RecplugError(f"{file} is a graph; a contact sheet is drawn of a feature table")
        _inspect_graph(NeighbourTable.load(file), dataset, data_path)
        return
    table = FeatureTable.load(file)
    dtype = str(table.features.dtype).removeprefix("torch.")
    say(f"{table.modality}: {len(table.tokens):,} items x {table.features.shape[1]}, {dtype}")
    for key, value in sorted(table.metadata.items()):
        say(f"{key}: {value}")
    if dataset:
        say(f"coverage of {dataset}: {table.coverage(item_tokens(dataset, data_path))}")
    known = texts(dataset, data_path) if dataset else {}
    for line in (*_values(table), *_shared(table, known, placeholder), *_neighbours(table, known)):
        say(line)
    if sheet is not None and images is not None and dataset is not None:
        _draw(table, dataset, data_path, images, known, sheet, queries)


def _values(table: FeatureTable) -> list[str]:
    from recplug.adapters.features.describe import lengths, near_constant

    norms = lengths(table.features)
    lines = [f"lengths: {norms.min():.3f} to {norms.max():.3f}, median {norms.median():.3f}"]
    zeros = int((norms == 0).sum())
    if zeros:
        lines.append(f"zeros: {zeros:,} items have a vector of zeros")
    flat, width = near_constant(table.features), table.features.shape[1]
    some = f", such as {', '.join(map(str, flat[:NAMED]))}" if len(flat) > NAMED else f" ({', '.join(map(str, flat))})"
    return [*lines, f"near-constant dimensions: {f'{len(flat):,} of {width:,}{some}' if flat else 'none'}"]


def _shared(table: FeatureTable, known: dict[str, str], placeholder: int) -> list[str]:
    """Items whose vectors are equal; where many are, they were made of the same stand-in."""
    from recplug.adapters.features.describe import shared_vectors

    groups = shared_vectors(table.features)
    shared = sum(map(len, groups))
    lines = [f"duplicates: {shared:,} items share their vector with another" if shared else "duplicates: none"]
    for rows in groups:
        if len(rows) >= placeholder:
            lines.append(f"placeholder? {len(rows):,} items share one vector, such as")
            lines += [f"    {named(table.tokens[row], known)}" for row in rows[:NAMED]]
    return lines


def _neighbours(table: FeatureTable, known: dict[str, str]) -> list[str]:
    """The nearest items, by cosine, of a few items spread over the table."""
    from recplug.adapters.features.describe import nearest, spread

    queries = spread(len(table.tokens), QUERIES)
    rows, cosines = nearest(table.features, queries, NEIGHBOURS)
    lines = []
    for query, found, near in zip(queries, rows.tolist(), cosines.tolist(), strict=True):
        lines.append(f"nearest to {named(table.tokens[query], known)}")
        lines += [f"    {c:.3f}  {named(table.tokens[row], known)}" for c, row in zip(near, found, strict=True)]
    return lines


def _draw(
    table: FeatureTable,
    dataset: str,
    data_path: Path | None,
    images: str,
    known: dict[str, str],
    sheet: Path,
    queries: int,
) -> None:
    from recplug.adapters.features.extraction import image_items
    from recplug.adapters.features.sheet import draw_sheet

    items = image_items(folder_of(dataset, data_path), dataset, images)
    pictures = dict(zip(items.tokens, items.contents, strict=True))
    drawn, lost = draw_sheet(table, pictures, known, sheet, queries=queries)
    say(f"{sheet}: {drawn} items and their nearest" + (f", {lost} without a picture" if lost else ""))


def _inspect_graph(table: NeighbourTable, dataset: str | None, data_path: Path | None) -> None:
    from recplug.adapters.features.describe import spread

    n, counts = len(table.tokens), table.counts
    say(f"{table.modality}: graph of {n:,} items, {len(table.row):,} edges, {table.cosine.dtype}")
    for key, value in sorted(table.metadata.items()):
        say(f"{key}: {value}")
    if dataset:
        say(f"coverage of {dataset}: {table.coverage(item_tokens(dataset, data_path))}")
    say(f"k: {counts.min()} to {counts.max()} neighbours an item; {(counts > 0).sum():,} of {n:,} items have some")
    say(f"cosines: {table.cosine.min():.3f} to {table.cosine.max():.3f}")
    known = texts(dataset, data_path) if dataset else {}
    for query in spread(n, QUERIES):
        say(f"nearest to {named(table.tokens[query], known)}")
        edges = (table.row == query).nonzero()[0][:NEIGHBOURS]
        for cosine, row in zip(table.cosine[edges], table.neighbour[edges], strict=True):
            say(f"    {cosine:.3f}  {named(table.tokens[row], known)}")
