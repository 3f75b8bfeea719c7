"""Feature tables: content vectors by item token, from and to files."""

from recplug.adapters.features.find import find_neighbours, find_tables, load_modalities, load_neighbours, shuffled
from recplug.adapters.features.importers import Provenance, from_mmrec, from_npy, from_npz, from_parquet
from recplug.adapters.features.table import Coverage, FeatureTable

__all__ = [
    "Coverage",
    "FeatureTable",
    "Provenance",
    "find_neighbours",
    "find_tables",
    "from_mmrec",
    "from_npy",
    "from_npz",
    "from_parquet",
    "load_modalities",
    "load_neighbours",
    "shuffled",
]
