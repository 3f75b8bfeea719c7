"""A held-out data set's files: what RecBole reads, ``NAME.support.inter``, ``NAME.query.inter``, and who is new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recplug.adapters.data.check import check_directory, interaction_files, read_atomic, settings_of
from recplug.adapters.data.held_out_nodes import APART, GROUP, QUERY, SUPPORT
from recplug.adapters.data.holdout import Draw, Log, hold_out
from recplug.plugins.errors import RecplugError

LEAVES = {"valid_and_test": 2, "valid_only": 1, "test_only": 1}


def write_apart(
    folder: Path, dataset: str, target: Path, draw: Draw, pair: tuple[str, Path] | None = None
) -> list[str]:
    """Hold users and items of a data set out and write every file of interactions, and ``NAME.holdout.json``.

    Args:
        folder: of the data set.
        dataset: its name.
        target: where the files go.
        draw: what to hold out.
        pair: name and folder of a set with the same users' tokens.

    Returns:
        Report lines.

    Raises:
        RecplugError: for what :func:`check_directory` refuses, settings that give ids to users or items without
            interactions, and as :func:`hold_out`.
    """
    check_directory(folder, dataset)
    settings = settings_of(folder, dataset)
    listed = sorted((settings.get("load_col") or {}).keys() & {"item", "user"})
    if listed:
        raise RecplugError(
            f"load_col in {dataset}.yaml reads {dataset}.{listed[0]}, which gives ids to new ones too; leave it out"
        )
    user, item = (settings.get(f"{side}_ID_FIELD") or f"{side.lower()}_id" for side in ("USER", "ITEM"))
    parts = interaction_files(folder, dataset, settings)
    read = {part: read_atomic(file) for part, file in parts.items()}
    header = {name: kind for _, types in read.values() for name, kind in types.items()}
    table = pa.concat_tables([own for own, _ in read.values()], promote_options="default").select(list(header))
    sizes = [len(own) for own, _ in read.values()]
    (users, user_ids), (items, item_ids) = (
        np.unique(table[name].to_numpy(zero_copy_only=False).astype(str), return_inverse=True) for name in (user, item)
    )
    time = settings.get("TIME_FIELD") or "timestamp"
    log = Log(
        user_ids,
        item_ids,
        time=table[time].to_numpy(zero_copy_only=False).astype(np.float64) if time in header else None,
        part=np.repeat(np.arange(len(sizes)), sizes) if len(sizes) > 1 else None,
        last_out=_last_out(settings) if time in header else 0,
    )
    held = hold_out(log, draw)

    starts = np.cumsum([0, *sizes])
    for number, part in enumerate(parts):
        rows = starts[number] + held.known[starts[number] : starts[number + 1]].nonzero()[0]
        file = target / f"{dataset}.{part}.inter" if part else target / f"{dataset}.inter"
        _write(file, read[part][1], table.take(rows))
    order = np.lexsort((np.arange(len(table)) if log.time is None else log.time, log.user))
    for part, mask in ((SUPPORT, held.support), (QUERY, held.query)):
        rows = order[mask[order]]
        _write(
            target / f"{dataset}.{part}.inter",
            {**header, GROUP.partition(":")[0]: "token"},
            table.take(rows).append_column(GROUP.partition(":")[0], pa.array(held.group[rows])),
        )
    new = {"users": users[held.new_users], "items": items[held.new_items]}
    story: dict[str, Any] = {
        "dataset": dataset,
        "draw": asdict(draw),
        "interactions": {
            "known": int(held.known.sum()),
            "support": int(held.support.sum()),
            "query": int(held.query.sum()),
        },
        "query": held.counts(),
        "new_users": new["users"].tolist(),
        "new_items": new["items"].tolist(),
    }
    lines = _report(story, len(users), len(items))
    if pair is not None:
        name, place = pair
        both = sorted(set(new["users"].tolist()) & _users(place, name))
        story["known_in"] = {"dataset": name, "users": both}
        lines.append(f"{len(both):,} of the new users are users of {name}")
    text = json.dumps(story, indent=1, ensure_ascii=False) + "\n"
    (target / f"{dataset}.holdout.json").write_text(text, encoding="utf-8")
    if any((folder / f"{dataset}.{part}.inter").is_file() for part in APART):
        lines.append(f"the new users that {dataset} had before are left out")
    return lines


def _last_out(settings: Mapping[str, Any]) -> int:
    """How many of a user's last interactions the settings leave out; RecBole's sequential models do so unasked."""
    split = (settings.get("eval_args") or {}).get("split") or {"LS": "valid_and_test"}
    return LEAVES.get(str(split.get("LS")), 0)


def _users(folder: Path, dataset: str) -> set[str]:
    """The users whom RecBole reads of a data set."""
    settings = settings_of(folder, dataset)
    field, found = settings.get("USER_ID_FIELD") or "user_id", set()
    for file in interaction_files(folder, dataset, settings).values():
        table, types = read_atomic(file)
        if field not in types:
            raise RecplugError(f"{file} has no field {field!r}; correct USER_ID_FIELD")
        found |= set(table[field].to_pylist())
    return found


def _report(story: Mapping[str, Any], n_users: int, n_items: int) -> list[str]:
    counts, draw = story["interactions"], story["draw"]
    groups = ", ".join(f"{name} {count:,}" for name, count in story["query"].items())
    lines = []
    for side, total in (("users", n_users), ("items", n_items)):
        new, drawn = len(story[f"new_{side}"]), round(draw[f"new_{side}"] * total)
        left = f", {new - drawn:,} of them because nothing was left to train on" if new > drawn else ""
        lines.append(f"new {side}: {new:,} of {total:,}{left}")
    lines.append(f"interactions: known {counts['known']:,}, support {counts['support']:,}, query {counts['query']:,}")
    return [*lines, f"query by group: {groups}"]


def _write(file: Path, types: Mapping[str, str], table: pa.Table) -> None:
    columns = [[f"{name}:{kind}", *table[name].to_pylist()] for name, kind in types.items()]
    file.write_text("".join("\t".join(row) + "\n" for row in zip(*columns, strict=True)), encoding="utf-8", newline="")
