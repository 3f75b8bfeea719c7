"""From a dataset's folder to modalities aligned with a host."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from recplug.adapters.features import neighbours
from recplug.adapters.features.neighbours import NeighbourTable
from recplug.adapters.features.table import SUFFIX, FeatureTable
from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.nn.knn import Neighbours

FIRST = ("image", "text")


def find_tables(
    dataset_dir: str | os.PathLike[str], dataset: str, paths: Mapping[str, str | os.PathLike[str]]
) -> dict[str, Path]:
    """Where each modality's table lies: ``DATASET.MODALITY.safetensors`` in the folder, unless ``paths`` names another.

    Relative ``paths`` count from ``dataset_dir``. Image comes first, then text, then the others by name. The files
    that ``paths`` names need not exist.
    """
    return _found(Path(dataset_dir), dataset, SUFFIX, paths)


def find_neighbours(dataset_dir: str | os.PathLike[str], dataset: str) -> dict[str, Path]:
    """Where each modality's ``DATASET.MODALITY.knn.safetensors`` lies, in the order of :func:`find_tables`."""
    return _found(Path(dataset_dir), dataset, neighbours.SUFFIX, {})


def _found(folder: Path, dataset: str, suffix: str, paths: Mapping[str, str | os.PathLike[str]]) -> dict[str, Path]:
    prefix = f"{dataset}."
    tables: dict[str, Path] = {}
    for path in folder.glob(f"{glob.escape(prefix)}*{suffix}"):
        modality = path.name[len(prefix) : -len(suffix)]
        # With a dot in it, the file belongs to a dataset whose name only starts like this one.
        if modality and "." not in modality:
            tables[modality] = path
    tables |= {name: folder / Path(path).expanduser() for name, path in paths.items()}
    order = sorted(tables, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    return {name: tables[name] for name in order}


def load_modalities(
    dataset_dir: str | os.PathLike[str],
    dataset: str,
    names: Sequence[str] | None,
    paths: Mapping[str, str | os.PathLike[str]],
    id_tokens: Sequence[str],
) -> tuple[dict[str, Modality], list[str]]:
    """Load a dataset's feature tables, aligned with a host's item rows.

    Args:
        dataset_dir: the folder that holds ``DATASET.inter``.
        dataset: its name.
        names: the modalities wanted, in this order; None for every table found (see :func:`find_tables`).
        paths: files that are not in their usual place, by modality.
        id_tokens: the token of every host row; row 0 is ``"[PAD]"``.

    Returns:
        The modalities by name, and one report line for each.

    Raises:
        RecplugError: for a missing or malformed table, one without any of the dataset's items, or a name given twice.
    """
    tables = find_tables(dataset_dir, dataset, paths)
    wanted = list(tables) if names is None else list(names)
    if len(set(wanted)) < len(wanted):
        raise RecplugError(f"modalities {', '.join(wanted)}: one is named twice; name each once")
    modalities, lines = {}, []
    for name in wanted:
        path = tables.get(name, Path(dataset_dir) / f"{dataset}.{name}{SUFFIX}")
        if not path.is_file():
            hint = did_you_mean(name, [other for other in tables if other != name])
            raise RecplugError(
                f"no {name} features of {dataset} at {path}{hint};"
                " make them with `recplug features import --from npy ...`"
            )
        table = FeatureTable.load(path)
        modalities[name] = table.align(id_tokens, name=name)
        stored = "" if name == table.modality else f" (as {name})"
        encoder = table.metadata.get("encoder", "unknown encoder")
        lines.append(f"{table.coverage(id_tokens)}{stored}; {table.features.shape[1]}-d {encoder}, {path.name}")
    return modalities, lines


def load_neighbours(
    dataset_dir: str | os.PathLike[str],
    dataset: str,
    id_tokens: Sequence[str],
    *,
    k: int | None = None,
    include_self: bool = False,
) -> tuple[dict[str, Neighbours], list[str]]:
    """Load a dataset's neighbour tables, aligned with a host's item rows; see :meth:`NeighbourTable.align`.

    Args:
        dataset_dir: the folder that holds ``DATASET.inter``.
        dataset: its name.
        id_tokens: the token of every host row; row 0 is ``"[PAD]"``.
        k: keep the k nearest; None: all.
        include_self: every item is its own first neighbour.

    Returns:
        The neighbours by modality, and one report line for each; nothing where there are no such files.

    Raises:
        RecplugError: for a malformed table, or one that joins none of the dataset's items.
    """
    found, lines = {}, []
    for name, path in find_neighbours(dataset_dir, dataset).items():
        table = NeighbourTable.load(path)
        found[name] = table.align(id_tokens, k=k, include_self=include_self)
        lines.append(f"{table.coverage(id_tokens)}; up to {table.k} each, {path.name}")
    return found, lines
