"""What has become of the cells: read from the folder of a comparison, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recplug.adapters.ownership import check_bytes, read_result
from recplug.plugins.errors import RecplugError, one_line

CELLS, FAILED, LOGS = "cells", "failed", "logs"


@dataclass(frozen=True)
class Outcome:
    """A cell that has ended.

    Attributes:
        result: its ``result.json`` where it finished, else None.
        error: one line where it failed, else empty.
    """

    result: dict[str, Any] | None
    error: str = ""


def outcome(output: Path, key: str) -> Outcome | None:
    """Of one cell; None where it has not begun, or was cut off: then it is run again."""
    try:
        result = read_result(output / CELLS / key)
    except (OSError, ValueError):  # none, or only a part of one
        result = {}
    if result.get("status") == "finished":
        if result.get("test_result") is None or result.get("best_valid_score") is None:
            return Outcome(None, "the data have no validation or no test part, by which cells are compared")
        return Outcome(result)
    failure = _read(output / FAILED / f"{key}.json")
    return Outcome(None, str(failure["error"])) if "error" in failure else None


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none, or only a part of one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def ranks(output: Path, key: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """Users, items (tokens) and ranks of all test targets, ``[n]`` each; None where the run left none.

    Raises:
        RecplugError: where the file was damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = output / CELLS / key / "ranks.parquet"
    if not path.is_file():
        return None
    check_bytes(path.parent, read_result(path.parent), path.name)
    try:
        table = pq.read_table(path, columns=["user", "item", "rank"])
    except pa.ArrowException as error:
        raise RecplugError(f"{path} is damaged ({one_line(error)}); delete {path.parent} and go on") from error
    user, item = (table[name].to_numpy(zero_copy_only=False).astype(str) for name in ("user", "item"))
    return user, item, table["rank"].to_numpy().astype(np.int64)


def seconds(output: Path, key: str) -> float:
    """How long a finished cell took, from its configuration to its result."""
    folder = output / CELLS / key
    return max(0.0, (folder / "result.json").stat().st_mtime - (folder / "config.yaml").stat().st_mtime)
