"""From a dataset's folder to factor profiles aligned with a host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from recplug.adapters.factors.table import SUFFIX, FactorTable
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles

StrPath = str | os.PathLike[str]


def find_factors(dataset_dir: StrPath, dataset: str, path: StrPath | None = None) -> Path | None:
    """Where the factor schema lies: ``DATASET.factors.json`` in the folder, if labels are beside it, or ``path``.

    A relative ``path`` counts from ``dataset_dir``, and the file that it names need not exist.
    """
    if path is not None:
        return Path(dataset_dir) / Path(path).expanduser()
    usual = Path(dataset_dir) / f"{dataset}{SUFFIX}"
    return usual if usual.is_file() and usual.with_suffix(".parquet").is_file() else None


def load_factors(
    dataset_dir: StrPath,
    dataset: str,
    path: StrPath | None,
    id_tokens: Sequence[str],
    *,
    min_group: int | None = None,
) -> tuple[FactorProfiles | None, list[str]]:
    """Load a dataset's factor profiles, aligned with a host's item rows.

    Args:
        dataset_dir: the folder that holds ``DATASET.inter``.
        dataset: its name.
        path: the schema, where it is not in its usual place (see :func:`find_factors`).
        id_tokens: the token of every host row; row 0 is ``"[PAD]"``.
        min_group: the smallest group to keep; see :meth:`FactorTable.align`.

    Returns:
        The profiles and a report line; None where there is no file, with a line where only labels are missing.

    Raises:
        RecplugError: where the file that ``path`` names is missing, or for a malformed table or one without any of the
            dataset's items.
    """
    found = find_factors(dataset_dir, dataset, path)
    if found is None:
        schema = Path(dataset_dir) / f"{dataset}{SUFFIX}"
        return None, [f"{schema.name} has no labels yet; see: recplug factors assign"] if schema.is_file() else []
    if not found.is_file():
        raise RecplugError(
            f"no factors of {dataset} at {found}; make them with `recplug factors import` or `recplug factors assign`"
        )
    table = FactorTable.load(found)
    maker = table.metadata.get("model") or table.metadata.get("made_by") or "unknown maker"
    line = f"{table.coverage(id_tokens)}; by {maker}, {found.name}"
    least = table.least(min_group)
    if least > 1:
        line += f"; values of fewer than {least:g} items are rolled up (factor_min_group)"
    return table.align(id_tokens, min_group=min_group), [line]
