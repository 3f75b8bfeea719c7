"""Factor profiles: the values of items under named factors, by item token, from and to files.

In come catalogue columns, tables made by hand, feature tables or a language model's answers (``llm``); out go the two
files of a :class:`FactorTable`, and ``FactorProfiles`` aligned with a host's items. Called by the commands and by
``adapters.recbole``.
"""

from recplug.adapters.factors.clusters import from_clusters
from recplug.adapters.factors.columns import ColumnSpec, from_columns, read_item_file
from recplug.adapters.factors.controls import FACTOR_CONTROLS, random_groups, shuffled
from recplug.adapters.factors.find import find_factors, load_factors
from recplug.adapters.factors.schema import FactorSchema, FactorSpec, Value
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
    "random_groups",
    "read_item_file",
    "shuffled",
    "to_tsv",
]
