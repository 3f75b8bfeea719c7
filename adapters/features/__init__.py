"""Feature tables: content vectors by item token, from and to files."""

from recplug.adapters.features.controls import dropped, shuffled
from recplug.adapters.features.exchange.exporters import (
    to_cornac,
    to_ducho,
    to_mmrec,
    to_npy,
    to_npz,
    to_parquet,
    to_recbole,
)
from recplug.adapters.features.exchange.importers import from_mmrec, from_npy, from_npz, from_parquet
from recplug.adapters.features.exchange.reading import Provenance
from recplug.adapters.features.exchange.toolkits import from_cornac, from_ducho, from_recbole
from recplug.adapters.features.find import find_neighbours, find_tables, load_modalities, load_neighbours
from recplug.adapters.features.table import Coverage, FeatureTable

__all__ = [
    "Coverage",
    "FeatureTable",
    "Provenance",
    "dropped",
    "find_neighbours",
    "find_tables",
    "from_cornac",
    "from_ducho",
    "from_mmrec",
    "from_npy",
    "from_npz",
    "from_parquet",
    "from_recbole",
    "load_modalities",
    "load_neighbours",
    "shuffled",
    "to_cornac",
    "to_ducho",
    "to_mmrec",
    "to_npy",
    "to_npz",
    "to_parquet",
    "to_recbole",
]
