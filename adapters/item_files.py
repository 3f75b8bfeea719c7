"""What commands read from a data set's files: its items, their texts, and who bought them."""

from __future__ import annotations

import csv
import glob
import importlib.util
from pathlib import Path
from typing import Annotated

import typer

DataPath = Annotated[
    Path | None, typer.Option("--data_path", help="Folder that holds the data set, as in run_recbole.")
]


def named(token: str, known: dict[str, str]) -> str:
    """An item's token, and the beginning of its text where that is known."""
    return f"{token}  {known[token][:70]}" if token in known else token


def folder_of(dataset: str, data_path: Path | None) -> Path:
    """Where a data set lies, RecBole's own one too."""
    from recplug.adapters.data import locate
    from recplug.plugins.errors import RecplugError

    folder = locate(dataset, data_path)
    if folder is not None:
        return folder
    recbole = importlib.util.find_spec("recbole")
    if recbole is None or recbole.origin is None:
        raise RecplugError(f"{dataset} comes with RecBole, which is not installed; see: recplug doctor")
    return Path(recbole.origin).parent / "dataset_example" / dataset


def item_tokens(dataset: str, data_path: Path | None) -> list[str]:
    """Padding, and every item of the data set's interactions, before RecBole's filters."""
    from recplug.adapters.data.check import settings_of

    folder = folder_of(dataset, data_path)
    item = settings_of(folder, dataset).get("ITEM_ID_FIELD") or "item_id"
    name = glob.escape(dataset)
    files = sorted({*folder.glob(f"{name}.inter"), *folder.glob(f"{name}.*.inter")})
    return ["[PAD]", *dict.fromkeys(token for file in files for (token,) in columns(file, item) if token)]


def texts(dataset: str, data_path: Path | None) -> dict[str, str]:
    """The first text column of ``DATASET.item`` by item token, where there is one."""
    file = folder_of(dataset, data_path) / f"{dataset}.item"
    if not file.is_file():
        return {}
    with open(file, encoding="utf-8") as lines:
        fields = [cell.partition(":") for cell in lines.readline().rstrip("\n").split("\t")]
    text = next((name for name, _, kind in fields if kind == "token_seq"), None)
    return {row[0]: row[1] for row in columns(file, fields[0][0], text)} if text else {}


def columns(file: Path, *wanted: str) -> list[tuple[str, ...]]:
    """Some fields of an atomic file; empty where a row is too short."""
    from recplug.plugins.errors import RecplugError, did_you_mean

    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            fields = [cell.partition(":")[0] for cell in next(rows, [])]
            if not fields:
                raise RecplugError(f"{file} is empty; write a header and a line each")
            for field in wanted:
                if field not in fields:
                    hint = did_you_mean(field, fields) or f"; it has: {', '.join(fields)}"
                    raise RecplugError(f"{file} has no field '{field}'{hint}")
            places = [fields.index(field) for field in wanted]
            return [tuple(row[place] if place < len(row) else "" for place in places) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecplugError(f"cannot read {file}: {error}; it must be tab-separated UTF-8") from None


def training(dataset: str, data_path: Path | None) -> tuple[list[tuple[str, str]], str]:
    """Users and items of the training interactions, and in words which these are.

    The part of a ready-made split; without the last interactions of each user where the settings leave them out; else
    all, because each run draws its own split.
    """
    from recplug.adapters.data.check import PARTS, settings_of

    folder = folder_of(dataset, data_path)
    settings = settings_of(folder, dataset)
    user, item = settings.get("USER_ID_FIELD") or "user_id", settings.get("ITEM_ID_FIELD") or "item_id"
    whole, part = folder / f"{dataset}.inter", (settings.get("benchmark_filename") or PARTS)[0]
    if settings.get("benchmark_filename") or not whole.is_file():
        return [(one, two) for one, two in columns(folder / f"{dataset}.{part}.inter", user, item)], f"part {part}"
    # RecBole's sequential models leave the last two out where nothing else is said.
    split = (settings.get("eval_args") or {}).get("split") or {"LS": "valid_and_test"}
    time = settings.get("TIME_FIELD") or "timestamp"
    with open(whole, encoding="utf-8") as lines:
        timed = f"{time}:" in lines.readline()
    if "LS" not in split or not timed:
        return [(one, two) for one, two in columns(whole, user, item)], "all, since each run draws its own split"
    left = 2 if split["LS"] == "valid_and_test" else 1
    histories: dict[str, list[tuple[float, str]]] = {}
    for one, two, when in columns(whole, user, item, time):
        histories.setdefault(one, []).append((float(when), two))
    kept = ((one, sorted(history, key=lambda row: row[0])[:-left]) for one, history in histories.items())
    return [(one, two) for one, history in kept for _, two in history], f"all but the last {left} of each user"
