"""The contact sheet: pictures of a few items, each beside the items that its vector is nearest to."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recplug.adapters.features.describe import nearest, spread
from recplug.adapters.features.table import FeatureTable
from recplug.adapters.features.tokens import StrPath
from recplug.adapters.files import replacing
from recplug.plugins.errors import RecplugError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

SIDE = 240  # pixels that a thumbnail keeps of its longer side
CELL = (1.75, 2.45)  # inches of a picture and what is written under it
LINE, LINES = 22, 4  # letters of a line, lines of a title


def draw_sheet(
    table: FeatureTable,
    pictures: Mapping[str, str],
    titles: Mapping[str, str],
    path: StrPath,
    *,
    queries: int = 6,
    neighbours: int = 5,
) -> tuple[int, int]:
    """Draw a grid, a row for each query: its picture, and those of its nearest items with their cosines.

    Args:
        table: the vectors.
        pictures: the file or http address of an item's picture, by token.
        titles: what to write under a picture besides the token.
        path: a ``.png``.
        queries: how many items, spread over those that have a vector and a picture.
        neighbours: how many nearest items of each.

    Returns:
        How many rows were drawn, and how many pictures could not be shown.

    Raises:
        RecplugError: where no item has both, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row, token in enumerate(table.tokens) if token in pictures]
    chosen = [shown[place] for place in spread(len(shown), queries)]
    if not chosen:
        raise RecplugError("not one item has both a vector and a picture; name the pictures like the table's items")
    rows, cosines = nearest(table.features, chosen, neighbours)  # [q, k]
    width = rows.shape[1] + 1
    figure = Figure(figsize=(CELL[0] * width + 0.3, CELL[1] * len(chosen) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(chosen), width, squeeze=False)
    lost = 0
    for line, query in enumerate(chosen):
        found = zip(rows[line].tolist(), cosines[line].tolist(), strict=True)
        for column, (row, cosine) in enumerate([(query, None), *found]):
            token = table.tokens[row]
            heading = "item" if cosine is None else f"{cosine:.3f}"
            lost += not _tile(grid[line][column], heading, token, titles.get(token, ""), pictures.get(token))
    encoder = table.metadata.get("encoder", "unknown encoder")
    figure.suptitle(f"{table.modality}, {encoder}: items, and the nearest by cosine", fontsize=10, parse_math=False)
    _written(figure, Path(path))
    return len(chosen), lost


def _tile(axes: Axes, heading: str, token: str, title: str, picture: str | None) -> bool:
    """One item; whether its picture could be shown."""
    image = _thumbnail(picture)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(heading, fontsize=9, fontweight="bold" if heading == "item" else "normal", pad=2)
    axes.set_xlabel("\n".join(_lines(token, title)), fontsize=7.5, parse_math=False)
    axes.set_xlim(0, SIDE)
    axes.set_ylim(SIDE, 0)
    axes.set_aspect("equal")
    for edge in axes.spines.values():
        edge.set_color("#222222" if heading == "item" else "#cccccc")
    if isinstance(image, str):
        axes.set_facecolor("#eeeeee")
        reason = textwrap.fill(image, LINE, max_lines=5)
        axes.text(SIDE / 2, SIDE / 2, reason, ha="center", va="center", fontsize=7.5, color="#666666", parse_math=False)
        return False
    left, top = (SIDE - image.width) / 2, (SIDE - image.height) / 2
    axes.imshow(image, extent=(left, left + image.width, top + image.height, top), interpolation="lanczos")
    axes.set_xlim(0, SIDE)
    axes.set_ylim(SIDE, 0)
    return True


def _thumbnail(picture: str | None) -> Image.Image | str:
    """The picture, small; or why there is none."""
    from recplug.adapters.features.extraction.download import fetch, image_cache
    from recplug.adapters.features.extraction.images import BrokenImage, decode
    from recplug.adapters.features.extraction.sources import is_address

    if picture is None:
        return "no picture"
    found = fetch(picture, image_cache()) if is_address(picture) else Path(picture)
    if isinstance(found, str):
        return found
    try:
        image = decode(found)
    except BrokenImage as error:
        return str(error)
    image.thumbnail((SIDE, SIDE))
    return image


def _lines(token: str, title: str) -> Sequence[str]:
    """The token, and the beginning of the title below it."""
    first = textwrap.shorten(token, LINE, placeholder="...") if " " in token else token[:LINE]
    return [first, *textwrap.wrap(title, LINE, max_lines=LINES - 1, placeholder=" ...")]


def _written(figure: object, path: Path) -> None:
    import warnings

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # no font has every letter of every title
            figure.savefig(partial, dpi=110, format="png")  # type: ignore[attr-defined]
    except OSError as error:
        raise RecplugError(f"cannot write {path}: {error.strerror}; choose another place") from None
