"""``recplug recommend``: the best items for users of a finished run, or for new ones."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from recplug.adapters.console import say
from recplug.adapters.item_files import columns, named, texts
from recplug.adapters.ownership import check_free

if TYPE_CHECKING:
    from recplug.adapters.recbole import LoadedRun, Recommendations

Row = TypeVar("Row")
Run = Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")]
DataPath = Annotated[
    Path | None, typer.Option("--data_path", help="Folder that holds the run's data set, where it has moved.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")]
NewItems = Annotated[
    Path | None,
    typer.Option(
        "--items", help="Tokens of new items, one a line; their content is taken from the feature tables (micrec)."
    ),
]
Features = Annotated[
    list[str] | None,
    typer.Option("--features", help="MODALITY=FILE: a feature table that holds new items.", metavar="NAME=FILE"),
]


class Mode(str, Enum):
    """How new users and items get vectors."""

    fold_in = "fold_in"
    exact = "exact"


ModeOption = Annotated[
    Mode, typer.Option("--mode", help="New nodes beside known ones that stay as they are, or everything computed anew.")
]


def recommend(
    run: Run,
    users: Annotated[
        str | None, typer.Option("--users", help="Users of the run: A,B,C, or a file with one a line.", metavar="WHO")
    ] = None,
    interactions: Annotated[
        Path | None,
        typer.Option("--interactions", help="An .inter file: what new users (or known ones, since) have had."),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Items a user.")] = 20,
    output: Annotated[
        Path | None, typer.Option("--output", help="A .parquet, .csv or .jsonl file; default: to the console.")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option("--candidates", help="Items to choose from, one a line; default: all.")
    ] = None,
    no_mask_history: Annotated[
        bool, typer.Option("--no_mask_history", help="Recommend what someone has had, too.")
    ] = False,
    skip_unknown: Annotated[
        bool, typer.Option("--skip_unknown", help="Leave out items of --interactions that the run does not know.")
    ] = False,
    items: NewItems = None,
    features: Features = None,
    mode: ModeOption = Mode.fold_in,
    batch: Annotated[int | None, typer.Option("--batch", help="Users scored at once.")] = None,
    overwrite: Overwrite = False,
    csv_safe: Annotated[
        bool, typer.Option("--csv_safe", help="CSV: a quote mark before texts that a spreadsheet takes for a formula.")
    ] = False,
    data_path: DataPath = None,
) -> None:
    """The best items for users of a finished run, or for people and items that it has not seen.

    recplug recommend RUN --interactions new_users.inter --k 20 --output best.parquet
    """
    from recplug.adapters.recbole import load
    from recplug.adapters.recbole.infer.top_k import check_output
    from recplug.plugins.errors import RecplugError

    if output is not None:
        check_free(check_output(output), overwrite=overwrite)
    given = tables(features)
    if given and items is None:
        raise RecplugError("--features holds content of new items; name these with --items")
    chosen = None if users is None else listed(users)
    among = None if candidates is None else lines(candidates)
    loaded = load(run, data_path=data_path)
    if items is not None:
        loaded.extend_items(lines(items), given or None)
    histories = None if interactions is None else read_interactions(loaded, interactions)
    if histories is not None and not skip_unknown:
        known = loaded.known("items")
        if unknown := [item for had in histories.values() for item in had if item not in known]:
            raise RecplugError(
                f"the run does not know the item '{unknown[0]}' of {interactions}; leave such items out with "
                "--skip_unknown, or make them known with --items (micrec)"
            )
    found = loaded.recommend(
        chosen,
        histories,
        k=k,
        candidates=among,
        mask_history=not no_mask_history,
        unknown_items="skip" if skip_unknown else "error",
        batch=batch,
        mode=mode.value,
    )
    if output is None:
        _show(loaded, found)
        return
    found.save(output, csv_safe=csv_safe)
    say(f"{found.users:,} users, at most {k:,} items each: {output}")


def listed(words: str) -> list[str]:
    """``A,B,C``, or the lines of the file of that name.

    Raises:
        RecplugError: where nobody is named.
    """
    from recplug.plugins.errors import RecplugError

    # A list of users can be longer than a file's name may be, and asking for such a file is an error.
    found = lines(Path(words)) if os.path.isfile(words) else [word.strip() for word in words.split(",") if word.strip()]
    if not found:
        raise RecplugError("--users names nobody; write A,B,C or a file with one a line, or leave it out for everyone")
    return found


def lines(file: Path) -> list[str]:
    """A file's lines, without empty ones.

    Raises:
        RecplugError: if it cannot be read, or is empty.
    """
    from recplug.plugins.errors import RecplugError

    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RecplugError(f"cannot read {file}: {error}; give a text file with one token a line") from None
    if not found:
        raise RecplugError(f"{file} is empty; write one token a line")
    return found


def tables(given: list[str] | None) -> Mapping[str, Any]:
    """``NAME=FILE`` words as feature tables by name."""
    from recplug.adapters.features import FeatureTable
    from recplug.plugins.errors import RecplugError

    found = {}
    for word in given or []:
        name, equals, file = word.partition("=")
        if not equals or not name or not file:
            raise RecplugError(f"--features {word}: write MODALITY=FILE, such as text=new.text.safetensors")
        found[name] = FeatureTable.load(file)
    return found


def read_interactions(loaded: LoadedRun, file: Path) -> dict[str, list[str]]:
    """Items by user, oldest first where the file has a time; a known user's are those of the run and these.

    Raises:
        RecplugError: for a file without the run's fields of users and items, or a time that is no number.
    """
    from recplug.plugins.errors import RecplugError

    user, item, time = (loaded.config[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"))
    rows = columns(file, user, item)
    if not rows:
        raise RecplugError(f"{file} has no interactions; write a header and a line each")
    if any(not cell for row in rows for cell in row):
        raise RecplugError(f"{file} has a line without a {user} or {item}; correct or remove it")
    rows = in_order(file, time, rows)
    found: dict[str, list[str]] = {}
    for who, what in rows:
        found.setdefault(who, loaded.history(who)).append(what)
    return found


def in_order(file: Path, time: str, rows: list[Row]) -> list[Row]:
    """The rows of a file, oldest first where it has a field ``time``.

    Raises:
        RecplugError: for a time that is no number.
    """
    from recplug.plugins.errors import RecplugError

    if not has_field(file, time):
        return rows
    try:
        when = [float(cell) for (cell,) in columns(file, time)]
    except ValueError as error:
        raise RecplugError(f"{file}: field {time} is not a number ({error}); correct it") from None
    if not all(map(math.isfinite, when)):
        raise RecplugError(f"{file}: field {time} is not finite everywhere; correct it")
    return [row for _, row in sorted(zip(when, rows, strict=True), key=lambda pair: pair[0])]


def has_field(file: Path, field: str) -> bool:
    """Whether the header of an atomic file names ``field``."""
    with open(file, encoding="utf-8-sig") as opened:
        return field in (cell.partition(":")[0] for cell in opened.readline().rstrip("\n").split("\t"))


def _show(loaded: LoadedRun, found: Recommendations) -> None:
    """Tab-separated lines, with the beginning of an item's text where the data set has one."""
    folder = Path(loaded.config["data_path"])
    known = texts(loaded.result["dataset"], folder.parent) if folder.name == loaded.result["dataset"] else {}
    for number, batch in enumerate(found.batches()):
        if not number:  # only now is it known that there is an answer
            say("user\trank\tscore\titem")
        for row in batch.to_pylist():
            say(f"{row['user']}\t{row['rank']}\t{row['score']:.4f}\t{named(row['item'], known)}")
