"""The data sets recplug knows: list, find, copy out or make them, and check any set of files like them."""

from __future__ import annotations

import glob
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from recplug.adapters.data.check import check_directory, dataset_in, settings_of
from recplug.adapters.data.convert import convert, new_folder
from recplug.adapters.data.holdout import Draw
from recplug.adapters.data.holdout_files import write_apart
from recplug.adapters.data.recipes import RECIPES, Recipe
from recplug.adapters.files import replacing
from recplug.plugins.errors import RecplugError, did_you_mean

__all__ = ["RECIPES", "DataSet", "Draw", "Recipe", "bundled", "check", "get", "holdout", "locate"]

HERE = Path(__file__).parent
TERMS = "research only, not commercial, cite the papers in TERMS.md"
RECBOLE_OWN = "ml-100k"


@dataclass(frozen=True)
class DataSet:
    """A bundled data set.

    Attributes:
        name: what ``--dataset`` takes.
        directory: the folder that holds ``NAME.inter``, or its ready-made split.
        summary: one line.
        users, items, interactions: counts, without padding.
        terms: one line; ``TERMS.md`` has the whole.
    """

    name: str
    directory: Path
    summary: str
    users: int
    items: int
    interactions: int
    terms: str = TERMS


def bundled() -> dict[str, DataSet]:
    """The data sets that come with recplug, by name."""
    small, full, baby = "amazon-scientific", "amazon-scientific-full", "amazon-baby-small"
    food, kitchen, both = "food-small", "kitchen-small", "595 users are users of"
    sets = (
        DataSet(small, HERE / small, "Amazon Scientific 2018; image and text for every item", 2_928, 1_585, 19_712),
        DataSet(full, HERE / full, "Amazon Scientific 2018; image and text for 36 % of items", 8_442, 4_385, 59_384),
        DataSet(
            baby, HERE / baby, "a dense cut of Amazon Baby 2014; image and text for every item", 1_489, 890, 16_880
        ),
        DataSet(
            food, HERE / food, f"a cut of Amazon Food; text; new users apart; {both} {kitchen}", 1_983, 780, 12_044
        ),
        DataSet(
            kitchen,
            HERE / kitchen,
            f"a cut of Amazon Kitchen; text; new users apart; {both} {food}",
            2_797,
            1_267,
            17_272,
        ),
    )
    return {data_set.name: data_set for data_set in sets}


def locate(dataset: str, data_path: str | os.PathLike[str] | None) -> Path | None:
    """The folder that holds ``DATASET.inter``, or its ready-made splits ``DATASET.PART.inter``.

    Looked at in this order: ``data_path/DATASET``, ``data_path``, ``./dataset/DATASET``, the bundled sets.

    Returns:
        The folder, or None for ``ml-100k``: RecBole brings that one itself, wherever ``data_path`` points.

    Raises:
        RecplugError: where no such folder exists.
    """
    if dataset == RECBOLE_OWN:
        return None
    if not dataset or Path(dataset).name != dataset:
        raise RecplugError(f"dataset {dataset!r} is not a plain name; give the name, and its folder with --data_path")
    places = [Path("dataset") / dataset]
    if data_path is not None:
        places = [Path(data_path) / dataset, Path(data_path), *places]
    known = bundled()
    if dataset in known:
        places.append(known[dataset].directory)
    for place in places:
        if any(place.glob(f"{glob.escape(dataset)}.inter")) or any(place.glob(f"{glob.escape(dataset)}.*.inter")):
            return place
    names = [*known, RECBOLE_OWN]
    if dataset in RECIPES:
        raise RecplugError(
            f"no {dataset} in {', '.join(map(str, places))}; make it with `{RECIPES[dataset].advice}`, or give its"
            " folder with --data_path"
        )
    raise RecplugError(
        f"no {dataset}.inter in {', '.join(map(str, places))}{did_you_mean(dataset, [*names, *RECIPES])};"
        f" give its folder with --data_path, or use {' or '.join(names)}"
    )


def get(name: str, directory: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> Path:
    """Put a data set into ``directory/NAME``, with its terms: a copy of a bundled one, or one of :data:`RECIPES`.

    A bundled set comes with the feature tables that it shares with another set. A file that is already there and equal
    is left alone; where one differs, nothing at all is copied.

    Args:
        name: of the set.
        directory: where its folder goes.
        source: the folder of the original files, for a set that is not bundled; see :func:`convert.convert`.

    Returns:
        The new folder.

    Raises:
        RecplugError: for an unknown name, a source that is missing, damaged or not needed, a file that differs, or a
            folder that cannot be written.
    """
    known = bundled()
    if name in RECIPES:
        if source is None:
            raise RecplugError(f"{name} is not bundled; get its files and make it with `{RECIPES[name].advice}`")
        return convert(RECIPES[name], source, directory)
    if name not in known:
        names = [*known, *RECIPES]
        hint = did_you_mean(name, names) or f"; there are: {', '.join(names)}"
        raise RecplugError(f"no data set {name!r}{hint}")
    if source is not None:
        raise RecplugError(f"{name} is bundled and made from no other files; leave --from out")
    source, target = known[name].directory, Path(directory) / name
    copies = {target / file.name: file for file in sorted(source.iterdir()) if file.is_file()}
    copies |= _shared(source, target, name)
    try:
        missing = {to: file for to, file in copies.items() if not os.path.lexists(to)}
        for to in copies.keys() - missing.keys():
            if not to.is_file() or to.read_bytes() != copies[to].read_bytes():
                raise RecplugError(
                    f"{to} exists and differs from the bundled file; move it away or choose another folder"
                )
        for to, file in missing.items():
            _copy(file, to)
    except OSError as error:
        raise RecplugError(f"cannot copy {name} to {directory}: {error.strerror}; choose another folder") from None
    return target


def holdout(
    name: str,
    directory: str | os.PathLike[str],
    draw: Draw,
    *,
    data_path: str | os.PathLike[str] | None = None,
    pair: str | None = None,
) -> tuple[Path, list[str]]:
    """Put a data set into ``directory/NAME`` with some of its users and items held out as new ones.

    RecBole reads what is left under the set's own settings. ``NAME.support.inter`` and ``NAME.query.inter`` have the
    new ones' interactions, ``NAME.holdout.json`` says who is new and how they were drawn.

    Args:
        name: of the set, with its folder as :func:`locate` finds it.
        directory: where the new folder goes.
        draw: the shares and the seed; see :func:`recplug.adapters.data.holdout.hold_out`.
        data_path: as for :func:`locate`.
        pair: another set with the same users' tokens, sought in ``directory`` first; the new users whom it knows are
            named in ``NAME.holdout.json``.

    Returns:
        The new folder, and report lines.

    Raises:
        RecplugError: for a set that is not found, that :func:`check` refuses, or whose settings give ids to items
            without interactions; where the new folder exists; and as :func:`hold_out`.
    """
    folder, target = locate(name, data_path), Path(directory) / name
    if folder is None:
        raise RecplugError(f"{name} is RecBole's own; give a set with files of its own")
    others: tuple[str, Path] | None = None
    if pair is not None:
        beside = Path(directory) / pair
        found = beside if beside.is_dir() else locate(pair, data_path)
        if found is None:
            raise RecplugError(f"{pair} is RecBole's own; give --pair a set with files of its own")
        others = (pair, found)
    made = (".inter", ".holdout.json")
    there = (file for file in folder.glob(f"{glob.escape(name)}.*") if file.is_file())  # no extraction under way
    files = (file for file in there if not file.name.endswith(made))
    copies = {target / file.name: file for file in files}
    copies |= {target / file.name: file for file in (*folder.glob("TERMS*"), *folder.glob("LICENSE*"))}
    with new_folder(target) as partial:
        lines = write_apart(folder, name, partial, draw, others)
        for to, file in {**copies, **_shared(folder, target, name)}.items():
            inside = to.is_relative_to(target)
            if inside or not to.exists():
                _copy(file, partial / to.relative_to(target) if inside else to)
    return target, lines


def check(directory_or_name: str | os.PathLike[str]) -> list[str]:
    """Check a data set: headers, column types, tokens, time, repeats, feature tables and their coverage.

    Args:
        directory_or_name: a folder with one ``NAME.inter`` or its ready-made split, or the name of a set that
            :func:`locate` finds here or among the bundled ones.

    Returns:
        Report lines.

    Raises:
        RecplugError: for the first thing that would spoil training.
    """
    known, folder = bundled(), Path(directory_or_name)
    if not folder.is_dir():
        name, names = str(directory_or_name), [*known, *RECIPES]
        if name not in names:
            hint = did_you_mean(name, names) or f"; there are: {', '.join(names)}"
            raise RecplugError(f"{name} is neither a folder nor a bundled data set{hint}")
        folder = known[name].directory if name in known else locate(name, None) or folder
    return check_directory(folder, dataset_in(folder))


def _shared(source: Path, target: Path, name: str) -> dict[Path, Path]:
    """Terms, and the feature tables that the set has from another folder, by the place they go to."""
    copies = {target / "TERMS.md": HERE / "TERMS.md"} if source.parent == HERE else {}
    for path in settings_of(source, name).get("features", {}).values():
        copies[Path(os.path.normpath(target / path))] = Path(os.path.normpath(source / path))
    return copies


def _copy(file: Path, to: Path) -> None:
    """Copy so that an interruption leaves no half file, which the next attempt would take for the user's own."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with replacing(to) as partial:
        shutil.copyfile(file, partial)
