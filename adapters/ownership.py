"""Whose folder it is, which files may be replaced, and whether a file is still what was written.

Every folder that a command fills holds a marker, an empty file: of several processes that want the folder, one
makes it. What is not ours is refused, and never written to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recplug.plugins.errors import RecplugError

# What a run leaves, beside its state, its log and its result.
FILES = ("config.yaml", "metrics.csv", "checkpoint.pth", "ranks.parquet", "adapter.safetensors", "adapter.json")
WORDS = {"run": "run_recbole", "comparison": "recplug compare", "search": "recplug tune"}


def marker(folder: Path, kind: str) -> Path:
    """The file that says what fills a folder: a ``run``, a ``comparison`` or a ``search``."""
    return folder / f".recplug-{kind}"


def claim(folder: Path, kind: str, *, again: bool = False) -> bool:
    """Make a folder ours; of several processes that try at once, one does.

    Args:
        folder: a new or empty one.
        kind: what fills it.
        again: whether one that such a command has claimed before will do.

    Returns:
        Whether the folder itself was made here.

    Raises:
        RecplugError: for a folder that holds anything else, that another process has just taken, or that cannot be
            written to.
    """
    try:
        return _claim(folder, kind, again=again)
    except OSError as error:
        raise RecplugError(f"cannot write to {folder}: {error.strerror}; choose another {_option(kind)}") from error


def _claim(folder: Path, kind: str, *, again: bool) -> bool:
    try:
        folder.mkdir(parents=True)
        made = True
    except FileExistsError:
        made = False
    mine = marker(folder, kind)
    if again and mine.exists():
        return made
    if held := next(folder.iterdir(), None):
        why = f"holds {held.name}, and is none of {WORDS[kind]}'s" if again else "is not empty"
        raise RecplugError(f"the output directory {folder} {why}; choose a new one with {_option(kind)}")
    try:
        mine.open("x").close()
    except FileExistsError:
        if again:
            return made
        raise RecplugError(f"another process has just taken {folder}; choose another {_option(kind)}") from None
    return made


def check_owned(folder: Path, kind: str) -> None:
    """Refuse a folder without our marker: what is in it is somebody's.

    Raises:
        RecplugError: naming the marker.
    """
    if not (mine := marker(folder, kind)).is_file():
        raise RecplugError(
            f"{folder} lacks {mine.name}: {WORDS[kind]} has not made it, or it was not copied whole; name another"
        )


def check_free(target: Path, *, overwrite: bool, option: str = "--output") -> None:
    """Refuse to replace a file, unless that was asked for; a run's own files are never replaced.

    Raises:
        RecplugError: for one that is there.
    """
    if marker(target.parent, "run").exists() and target.name in (*FILES, "result.json", "run.log", "resume.pth"):
        raise RecplugError(f"{target} is the run's own file; choose another {option}")
    if target.exists() and not overwrite:
        raise RecplugError(f"{target} exists; add --overwrite, or choose another {option}")


def _option(kind: str) -> str:
    return "--output_dir" if kind == "run" else "--output"


# -- bytes


def sha256(file: Path) -> str:
    """The digest of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sealed(result: Mapping[str, Any], folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """A result with the digests of the files beside it, and its own.

    Args:
        result: plain values, as they go into ``result.json``.
        folder: where the files lie.
        names: of files; those that are not there are left out.
    """
    files = {name: sha256(folder / name) for name in sorted(names) if (folder / name).is_file()}
    found = {**{key: value for key, value in result.items() if key not in ("files", "sha256")}, "files": files}
    return {**found, "sha256": _digest(found)}


def read_result(folder: Path) -> dict[str, Any]:
    """``result.json``; what is no object counts as damaged.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is not what was written.
    """
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    if "sha256" in found and found["sha256"] != _digest({k: v for k, v in found.items() if k != "sha256"}):
        raise ValueError("it was changed after it was written")
    return found


def check_bytes(folder: Path, result: Mapping[str, Any], *names: str) -> None:
    """Compare files with their digests in a result, which one that is still being trained does not have.

    Args:
        folder: where they lie.
        result: what ``result.json`` says.
        names: which; one that is not there is for its reader to miss.

    Raises:
        RecplugError: for one that is another than was written.
    """
    files = result.get("files") or {}
    for name in names:
        if name in files and (folder / name).is_file() and sha256(folder / name) != files[name]:
            raise RecplugError(f"{folder / name} is not what the run has written (by its SHA-256); copy the run again")


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
