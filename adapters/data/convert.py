"""Data sets that are made from the user's copy of their source: Amazon's Baby, Beauty, Food and Kitchen, MovieLens.

The source is a folder ``CATEGORY/`` with ``CATEGORY.inter.gz``, ``items.tsv.gz`` and, where users are numbers,
``users.tsv.gz`` (tab-separated, RecBole's headers; item id = row where items are numbers), a matrix of vectors by
modality with a row for each item of ``items.tsv.gz``, and perhaps kNN graphs.

Baby and Beauty both number their users, each from 0: 19,445 numbers are in both and none means the same person. So the
numbers give way to the reviewers' pseudonyms, which are the same person wherever they occur. Food and Kitchen have one
numbering for both and no pseudonyms: "fk" before a number tells it from those of other sources.
"""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recplug.adapters.data.check import PARTS
from recplug.adapters.data.held_out_nodes import GROUP, QUERY, SUPPORT, last_apart
from recplug.adapters.data.recipes import RATINGS, SPLIT, Recipe, Rows
from recplug.adapters.factors.table import SUFFIX as FACTORS
from recplug.adapters.features.exchange.importers import from_npy
from recplug.adapters.features.neighbours import SUFFIX as GRAPH
from recplug.adapters.features.neighbours import from_knn
from recplug.adapters.features.table import SUFFIX as TABLE
from recplug.adapters.features.table import FeatureTable
from recplug.plugins.errors import RecplugError

HERE = Path(__file__).parent


def convert(recipe: Recipe, source: str | os.PathLike[str], directory: str | os.PathLike[str]) -> Path:
    """Make ``directory/NAME`` from the source files: interactions, items, users, tables, graphs, settings, terms.

    Items keep the source's ids, so that other files numbered like it (MMRec's matrices) fit; users that are numbers get
    their pseudonyms, and ``NAME.user`` has the numbers. Nothing is left behind where anything fails.

    Args:
        recipe: one of :data:`recplug.adapters.data.recipes.RECIPES`.
        source: the category's folder, or the one above it.
        directory: where the new folder goes.

    Returns:
        The new folder.

    Raises:
        RecplugError: a source file is missing, damaged or of another data set, or the new folder exists or cannot be
            written.
    """
    folder, target = Path(source), Path(directory) / recipe.name
    if not (folder / recipe.files[0]).is_file() and (folder / recipe.category).is_dir():
        folder = folder / recipe.category
    missing = [name for name in recipe.files if not (folder / name).is_file()]
    if missing:
        raise RecplugError(f"{folder} lacks {', '.join(missing)}; --from takes the folder that holds {recipe.files[0]}")
    with new_folder(target) as partial:
        _fill(recipe, folder, partial)
    return target


def _fill(recipe: Recipe, folder: Path, target: Path) -> None:
    source = _items(recipe, folder / "items.tsv.gz")
    about = [row for row in source if recipe.domain in (None, row.get("domain"))]
    header, rows = _interactions(recipe, folder, [row["item_id"] for row in about])
    if recipe.numbered:
        names = _pseudonyms(folder / "users.tsv.gz")
        rows = [[names[row[0]], *row[1:]] for row in rows]
        numbers = [[name, number] for number, name in names.items()]
        _write(target / f"{recipe.name}.user", [["user_id:token", "number:token"], *numbers])
    rows = [[recipe.people + row[0], *row[1:]] for row in rows]
    for part, own in _parts(recipe, header, rows).items():
        _write(target / f"{recipe.name}{part}.inter", own)
    _about(recipe, folder, about, target)

    for content in recipe.features:
        tokens = [row["item_id"] for row in source]
        table = from_npy(folder / content.file, tokens, content.modality, provenance=content.provenance)
        _among(table, {row["item_id"] for row in about}).save(target / f"{recipe.name}.{content.modality}{TABLE}")
    for content in recipe.graphs:
        tokens = [row["item_id"] for row in about]
        graph = from_knn(folder / content.file, content.modality, tokens=tokens, provenance=content.provenance)
        graph.save(target / f"{recipe.name}.{content.modality}{GRAPH}")
    if recipe.factors:
        recipe.factors(about).save(target / f"{recipe.name}{FACTORS}")
    for paper in recipe.papers:
        shutil.copyfile(folder / paper, target / paper)
    shutil.copyfile(HERE / recipe.name / f"{recipe.name}.yaml", target / f"{recipe.name}.yaml")
    shutil.copyfile(HERE / "TERMS.md", target / "TERMS.md")


def _parts(recipe: Recipe, header: list[str], rows: list[list[str]]) -> dict[str, list[list[str]]]:
    """What stands in each file of interactions, header first, by what comes between the set's name and ``.inter``."""
    if recipe.told == SPLIT:
        parts = {f".{part}": [row[:2] for row in rows if row[2] == str(i)] for i, part in enumerate(PARTS)}
        return {part: [header[:2], *own] for part, own in parts.items()}
    if recipe.domain is None:
        return {"": [header, *rows]}
    known = [row[:3] for row in rows if row[4].startswith(PARTS[0])]
    new = [[*row[:3], row[4]] for row in rows if not row[4].startswith(PARTS[0])]
    support, query = last_apart(new, {row[1] for row in known})
    apart = [*header[:3], header[4], GROUP]
    return {"": [header[:3], *known], f".{SUPPORT}": [apart, *support], f".{QUERY}": [apart, *query]}


def _among(table: FeatureTable, items: set[str]) -> FeatureTable:
    """The rows of these items."""
    kept = [place for place, token in enumerate(table.tokens) if token in items]
    return FeatureTable(
        table.features[kept], tuple(table.tokens[place] for place in kept), table.modality, table.metadata
    )


def _items(recipe: Recipe, file: Path) -> Rows:
    """The source's items by field."""
    header, rows = _read(file)
    tokens = _numbered(header, rows, file, "item_id") if recipe.numbered else [row[0] for row in rows]
    names = [cell.partition(":")[0] for cell in header]
    if names[0] != "item_id" or len(set(tokens)) < len(tokens):
        raise RecplugError(f"{file} does not name each item once, in the column item_id; give the original")
    missing = [field for field in recipe.fields if field not in names]
    if missing:
        raise RecplugError(f"{file} lacks the columns {', '.join(missing)}; give the original")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _interactions(recipe: Recipe, folder: Path, tokens: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, checked against the recipe's counts."""
    file, expected_header = folder / recipe.files[0], ["user_id:token", "item_id:token", *recipe.told]
    header, rows = _read(file)
    if header != expected_header:
        raise RecplugError(
            f"{file} has the header {' '.join(header)}, not {' '.join(expected_header)}; give the original"
        )
    for place, field in enumerate(recipe.told, 2):
        wrong = next((row[place] for row in rows if not _told(recipe, field, row[place])), None)
        if wrong is not None:
            raise RecplugError(f"{file}: {wrong!r} is no {field.partition(':')[0]}; copy the file again")
    if recipe.domain is not None:
        rows = [row for row in rows if row[3] == recipe.domain]
    bought, people = {row[1] for row in rows}, {row[0] for row in rows}
    known = len(_pseudonyms(folder / "users.tsv.gz")) if recipe.numbered else len(people)
    found = (len(people), len(bought), len(rows))
    expected = (recipe.users, recipe.items, recipe.interactions)
    if found != expected or (known, len(tokens)) != expected[:2] or not bought <= set(tokens):
        raise RecplugError(
            f"{folder} holds {found[0]:,} users, {found[1]:,} items and {found[2]:,} interactions of {known:,}"
            f" users and {len(tokens):,} items, {recipe.name} has {expected[0]:,}, {expected[1]:,} and"
            f" {expected[2]:,}; give the original files"
        )
    return header, rows


def _told(recipe: Recipe, field: str, cell: str) -> bool:
    """Whether an interaction's further cell is what its field promises."""
    if field in SPLIT:
        return cell in recipe.splits
    if field.endswith(":token"):
        return bool(cell)
    return cell.isdecimal() or (field == RATINGS[0] and cell.replace(".", "", 1).isdecimal())


def _about(recipe: Recipe, folder: Path, about: Rows, target: Path) -> None:
    """``NAME.item``."""
    file = target / f"{recipe.name}.item"
    if recipe.catalogue:
        rows = recipe.catalogue(about)
        _write(file, [list(rows[0]), *(list(row.values()) for row in rows)])
    else:
        with gzip.open(folder / "items.tsv.gz") as packed:
            file.write_bytes(packed.read())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to fill, which takes its place when the block ends and vanishes when it fails.

    Raises:
        RecplugError: where ``target`` exists or cannot be written.
    """
    if os.path.lexists(target):
        raise RecplugError(f"{target} exists; move it away or choose another folder")
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, target)
    except OSError as error:
        raise RecplugError(f"cannot write {target}: {error.strerror}; choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _numbered(header: list[str], rows: list[list[str]], file: Path, field: str) -> list[str]:
    """The ids of a table, which must be the numbers of its rows."""
    tokens = [row[0] for row in rows]
    if header[0] != f"{field}:token" or tokens != [str(number) for number in range(len(tokens))]:
        raise RecplugError(
            f"{file}: its first column is not {field}:token with the numbers of the rows; give the original"
        )
    return tokens


def _pseudonyms(file: Path) -> dict[str, str]:
    """Each user's pseudonym by number."""
    header, rows = _read(file)
    numbers = _numbered(header, rows, file, "user_id")
    names = [row[1] for row in rows] if header[1:2] == ["reviewer_id:token"] else []
    if len(set(names) - {""}) < len(numbers):
        raise RecplugError(f"{file} does not name each user once, in the column reviewer_id; give the original")
    return dict(zip(numbers, names, strict=True))


def _read(file: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a packed table."""
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
            header, *rows = [line.rstrip("\n").split("\t") for line in lines]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecplugError(f"{file} is damaged ({reason}); copy it again") from None
    if any(len(row) != len(header) for row in rows):
        raise RecplugError(f"{file} has rows of another length than its header; copy it again")
    return header, rows


def _write(file: Path, rows: list[list[str]]) -> None:
    file.write_bytes("".join("\t".join(row) + "\n" for row in rows).encode())
