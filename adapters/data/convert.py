"""Data sets that are made from the user's copy of their source: Amazon Baby and Beauty of 2014.

The source is a folder ``CATEGORY/`` with ``CATEGORY.inter.gz``, ``items.tsv.gz`` and ``users.tsv.gz`` (tab-separated,
RecBole's headers, numbers for ids, item id = row), a matrix of vectors by modality, and perhaps kNN graphs.
"""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recplug.adapters.data.checking import PARTS
from recplug.adapters.features.importers import Provenance, from_npy
from recplug.adapters.features.neighbours import SUFFIX as GRAPH
from recplug.adapters.features.neighbours import from_knn
from recplug.adapters.features.table import SUFFIX as TABLE
from recplug.plugins.errors import RecplugError

HERE = Path(__file__).parent
LICENCE = "none stated; research use only, not commercial, cite the papers (TERMS.md)"
MMREC = "github.com/Blackycat111/SAIA at 5a58082, data/baby; protocol of MMRec (X. Zhou, 2023)"


@dataclass(frozen=True)
class Content:
    """A file about the items.

    Attributes:
        modality: ``"image"`` or ``"text"``.
        file: its name in the source folder.
        encoder, source: for the header of what is made of it.
    """

    modality: str
    file: str
    encoder: str
    source: str

    @property
    def provenance(self) -> Provenance:
        """The header; undated, so that the same source gives the same bytes."""
        return Provenance(encoder=self.encoder, licence=LICENCE, source=self.source, created="unknown")


@dataclass(frozen=True)
class Recipe:
    """How one data set is made, and what must come out.

    Attributes:
        name: what ``--dataset`` takes.
        category: the source folder's name, and that of its interactions.
        summary: one line.
        users, items, interactions: counts, without padding.
        order: whether the third column is the place in the user's history; else it is the part of a ready-made split.
        features, graphs: the files about the items.
    """

    name: str
    category: str
    summary: str
    users: int
    items: int
    interactions: int
    order: bool
    features: tuple[Content, ...]
    graphs: tuple[Content, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all source files."""
        about = (content.file for content in self.features + self.graphs)
        return (f"{self.category}.inter.gz", "items.tsv.gz", "users.tsv.gz", *about)

    @property
    def advice(self) -> str:
        """The command that makes it."""
        return f"recplug data get {self.name} --from DIR"


_IMAGE, _TEXT = "4096-d CNN", "384-d sentence transformer"
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "amazon-baby",
            "baby",
            "Amazon Baby 2014, 5-core, the split of MMRec; image and text for every item",
            19_445,
            7_050,
            160_792,
            order=False,
            features=tuple(
                Content(modality, f"{modality}_feat_rec128.npy", f"128-d fitted to the kNN graph of {official}", MMREC)
                for modality, official in (("image", _IMAGE), ("text", _TEXT))
            ),
            graphs=tuple(
                Content(modality, f"{modality}_knn.npz", official, MMREC)
                for modality, official in (("image", _IMAGE), ("text", _TEXT))
            ),
        ),
        Recipe(
            "amazon-beauty",
            "beauty",
            "Amazon Beauty 2014, 5-core, in order; text for every item",
            22_363,
            12_101,
            198_502,
            order=True,
            features=(
                Content(
                    "text",
                    "text_feat_lsa128.npy",
                    "TF-IDF of title words and pairs, SVD to 128",
                    "titles: github.com/Quhaoh233/DeftRec at f29f02a, data/beauty",
                ),
            ),
        ),
    )
}


def convert(recipe: Recipe, source: str | os.PathLike[str], directory: str | os.PathLike[str]) -> Path:
    """Make ``directory/NAME`` from the source files: interactions, items, users, tables, graphs, settings, terms.

    Ids stay those of the source, so that other files numbered like it (MMRec's matrices) fit. Nothing is left behind
    where anything fails.

    Args:
        recipe: one of :data:`RECIPES`.
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
    if os.path.lexists(target):
        raise RecplugError(f"{target} exists; move it away or choose another folder")
    try:
        with _new_folder(target) as partial:
            _fill(recipe, folder, partial)
    except OSError as error:
        raise RecplugError(f"cannot write {target}: {error.strerror}; choose another folder") from None
    return target


def _fill(recipe: Recipe, folder: Path, target: Path) -> None:
    items, users = folder / "items.tsv.gz", folder / "users.tsv.gz"
    tokens = _numbered(items, "item_id:token")
    people = _numbered(users, "user_id:token")
    for file, kind in ((items, "item"), (users, "user")):
        with gzip.open(file) as packed:
            (target / f"{recipe.name}.{kind}").write_bytes(packed.read())

    file = folder / recipe.files[0]
    ids, last = ["user_id:token", "item_id:token"], "order:float" if recipe.order else "split:token"
    header, rows = _read(file)
    if header != [*ids, last]:
        raise RecplugError(f"{file} has the header {' '.join(header)}, not {' '.join([*ids, last])}; give the original")
    wrong = next((row[2] for row in rows if not (row[2].isdecimal() if recipe.order else row[2] in "012")), None)
    if wrong is not None:
        raise RecplugError(f"{file}: {wrong!r} is no {last.partition(':')[0]}; copy the file again")
    bought = {row[1] for row in rows}
    found = (len({row[0] for row in rows}), len(bought), len(rows))
    expected = (recipe.users, recipe.items, recipe.interactions)
    if found != expected or (len(people), len(tokens)) != expected[:2] or not bought <= set(tokens):
        raise RecplugError(
            f"{folder} holds {found[0]:,} users, {found[1]:,} items and {found[2]:,} interactions of {len(people):,}"
            f" users and {len(tokens):,} items, {recipe.name} has {expected[0]:,}, {expected[1]:,} and"
            f" {expected[2]:,}; give the original files"
        )
    if recipe.order:
        _write(target / f"{recipe.name}.inter", [header, *rows])
    else:
        for number, part in enumerate(PARTS):
            own = [row[:2] for row in rows if row[2] == str(number)]
            _write(target / f"{recipe.name}.{part}.inter", [ids, *own])

    for content in recipe.features:
        table = from_npy(folder / content.file, tokens, content.modality, provenance=content.provenance)
        table.save(target / f"{recipe.name}.{content.modality}{TABLE}")
    for content in recipe.graphs:
        graph = from_knn(folder / content.file, content.modality, tokens=tokens, provenance=content.provenance)
        graph.save(target / f"{recipe.name}.{content.modality}{GRAPH}")
    shutil.copyfile(HERE / recipe.name / f"{recipe.name}.yaml", target / f"{recipe.name}.yaml")
    shutil.copyfile(HERE / "TERMS.md", target / "TERMS.md")


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to fill, which takes its place when the block ends and vanishes when it fails."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _numbered(file: Path, first: str) -> list[str]:
    """The ids of a table, which must be the numbers of its rows."""
    header, rows = _read(file)
    tokens = [row[0] for row in rows]
    if header[0] != first or tokens != [str(number) for number in range(len(tokens))]:
        raise RecplugError(f"{file}: its first column is not {first} with the numbers of the rows; give the original")
    return tokens


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
