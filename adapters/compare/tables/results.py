"""The table of all cells, ``results.parquet``."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from recplug.adapters.compare.cells.plan import Cell
from recplug.adapters.compare.cells.status import Outcome
from recplug.adapters.compare.numbers import Numbers


def results(comparison: Numbers) -> pa.Table:
    """A row a cell; what a cell lacks is empty there, and so is the test of what validation did not choose."""
    listed = [
        _row(cell, comparison.outcomes.get(cell.key), tested=variant is best or bool(cell.control))
        for variants, best, controls in comparison.blocks
        for variant in (*variants, *controls)
        for cell in variant.cells
    ]
    columns = dict.fromkeys(key for row in listed for key in row)
    return pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in listed])


def _row(cell: Cell, ended: Outcome | None, *, tested: bool) -> dict[str, Any]:
    row = {"key": cell.key, **_about(cell), "status": "missing", "error": "", "chosen": tested}
    if ended is None:
        return row
    if ended.result is None:
        return {**row, "status": "failed", "error": ended.error}
    result = ended.result
    parameters = result.get("parameters") or {}
    row |= {
        "status": "finished",
        "valid_metric": result.get("valid_metric"),
        "best_valid_score": float(result["best_valid_score"]),
        "epochs": result.get("epochs"),
        "seconds_per_epoch": result.get("seconds_per_epoch"),
        "peak_memory_bytes": result.get("peak_memory_bytes"),
        "parameters_backbone": parameters.get("backbone"),
        "parameters_plugins": sum((parameters.get("plugins") or {}).values()),
        "settings": json.dumps(result.get("settings") or {}, sort_keys=True),
        "data_fingerprint": result.get("data_fingerprint"),
    }
    row |= {f"valid/{name}": float(value) for name, value in (result.get("best_valid_result") or {}).items()}
    return row | ({f"test/{name}": float(v) for name, v in result["test_result"].items()} if tested else {})


def _about(cell: Cell) -> dict[str, Any]:
    """What a cell is."""
    return {
        "dataset": cell.dataset,
        "model": cell.model,
        "plugins": "+".join(cell.plugins) or "none",
        "control": cell.control,
        "grid": json.dumps(dict(cell.choice)) if cell.choice else "",
        "seed": cell.seed,
    }
