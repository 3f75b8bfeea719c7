"""Factor profiles: the values of items under named factors, by item token, from and to files."""

from recplug.adapters.factors.clusters import from_clusters
from recplug.adapters.factors.controls import FACTOR_CONTROLS, random_groups, shuffled
from recplug.adapters.factors.find import find_factors, load_factors
from recplug.adapters.factors.schema import FactorSchema, FactorSpec, Value
from recplug.adapters.factors.sources import ColumnSpec, from_columns, merge, read_item_file
from recplug.adapters.factors.table import FactorCoverage, FactorTable
from recplug.adapters.factors.tsv import from_tsv, to_tsv

__all__ = [
    "FACTOR_CONTROLS",
    "ColumnSpec",
    "FactorCoverage",
    "FactorSchema",
    "FactorSpec",
    "FactorTable",
    "Value",
    "find_factors",
    "from_clusters",
    "from_columns",
    "from_tsv",
    "load_factors",
    "merge",
    "random_groups",
    "read_item_file",
    "shuffled",
    "to_tsv",
]
