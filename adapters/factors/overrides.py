"""Rows that a person made: no command throws them away."""

from __future__ import annotations

from pathlib import Path

from recplug.adapters.factors import parquet
from recplug.adapters.factors.schema import FactorSchema
from recplug.adapters.factors.table import FactorTable
from recplug.plugins.errors import RecplugError


def overrides(file: Path, schema: FactorSchema) -> FactorTable | None:
    """The rows of status ``override`` in the labels beside ``file``, under those factors of ``schema`` that they have.

    Raises:
        RecplugError: where ``schema`` does not know one of their factors or values, nor drops it.
    """
    labels = file.with_suffix(".parquet")
    if not labels.exists():
        return None
    stored = parquet.read(labels)
    rows = [row for row, status in enumerate(stored.status) if status == "override"]
    if not rows:
        return None
    there = {spec.name for raw in stored.values if (spec := schema.factor(raw)) is not None}
    held = tuple(spec for spec in schema.factors if spec.name in there)
    try:
        part = schema.model_copy(update={"factors": held})
        return FactorTable(
            part,
            tuple(stored.tokens[row] for row in rows),
            {name: tuple(column[row] for row in rows) for name, column in stored.values.items()},
            ("override",) * len(rows),
        )
    except RecplugError as error:
        raise RecplugError(
            f"{labels} has {len(rows):,} items corrected by hand, which would be lost: {error};"
            " or choose another --output"
        ) from None


def check_kept(file: Path, table: FactorTable | None = None) -> None:
    """Refuse to replace labels whose corrections by hand ``table`` (None: an empty one) does not have.

    Raises:
        RecplugError: naming one of the items.
    """
    labels = file.with_suffix(".parquet")
    if not labels.exists():
        return
    stored = parquet.read(labels)
    new = dict(zip(table.tokens, table.status, strict=True)) if table is not None else {}
    lost = [t for t, s in zip(stored.tokens, stored.status, strict=True) if s == "override" and new.get(t) != s]
    if lost:
        raise RecplugError(
            f"{labels} has {len(lost):,} items corrected by hand, such as {lost[0]!r}, which would be lost; write them"
            f" out with `recplug factors inspect {file} --tsv FILE`, or choose another --output"
        )
