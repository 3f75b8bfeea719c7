"""``recplug export``: a finished run's vectors, index, encoder and plain checkpoint, as files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from recplug.adapters.cli.results.recommend import DataPath, Run
from recplug.adapters.console import say


class Tower(str, Enum):
    """What the encoder is written for."""

    torch = "torch"
    onnx = "onnx"


def export(
    run: Run,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the files; default: RUN/export.")] = None,
    items: Annotated[bool, typer.Option("--items", help="items.safetensors: vectors of the items as scored.")] = False,
    users: Annotated[bool, typer.Option("--users", help="users.safetensors: vectors of the users as of now.")] = False,
    faiss: Annotated[bool, typer.Option("--faiss", help="items.faiss: an exact index by inner product.")] = False,
    factory: Annotated[
        str | None, typer.Option("--faiss_factory", help="Another kind of index, in faiss's word: HNSW32, IVF64,Flat.")
    ] = None,
    tower: Annotated[
        Tower | None, typer.Option("--tower", help="tower.pt2 or tower.onnx: the encoder of histories.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="plain.pth: a checkpoint for RecBole without recplug, plugins merged in.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over files that are there.")] = False,
    data_path: DataPath = None,
) -> None:
    """Files to take a run elsewhere. Without a choice: the vectors of items and users.

    recplug export RUN --items --users --faiss --tower onnx

    Whatever is written scores as the run does: it is tried on some users before the file appears. What a run cannot
    give ends with a line that says why; the other files are written.
    """
    from recplug.adapters.recbole import load
    from recplug.adapters.recbole.export.files import tokens_of
    from recplug.plugins.errors import RecplugError

    index = faiss or factory is not None
    if not (items or users or index or tower or plain):
        items = users = True
    folder = to or run / "export"
    program = "tower.onnx" if tower is Tower.onnx else "tower.pt2"
    chosen = {"items.safetensors": items, "users.safetensors": users, "items.faiss": index, program: tower}
    targets = [folder / name for name, wanted in {**chosen, "plain.pth": plain}.items() if wanted]
    files = [*targets, *(tokens_of(path) for path in targets if path.suffix == ".faiss")]
    if not overwrite and (there := next((path for path in files if path.exists()), None)):
        raise RecplugError(f"{there} is there already; add --overwrite, or choose another folder with --to")
    loaded = load(run, data_path=data_path, use_gpu=False if tower else None)  # a program is bound to its device
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecplugError(f"cannot make the folder {folder}: {error.strerror}; choose another with --to") from error
    write: dict[str, Callable[..., None]] = {
        "items.safetensors": loaded.export_items,
        "users.safetensors": loaded.export_users,
        "items.faiss": functools.partial(loaded.export_index, factory="Flat" if factory is None else factory),
        program: loaded.export_tower,
        "plain.pth": loaded.export_plain,
    }
    missing: dict[str, list[str]] = {}
    for path in targets:
        try:
            write[path.name](path, overwrite=overwrite)
        except RecplugError as error:
            missing.setdefault(str(error), []).append(path.name)
        else:
            say(str(path))
    if missing:
        raise RecplugError("; ".join(f"no {', '.join(names)}: {why}" for why, names in missing.items()))
