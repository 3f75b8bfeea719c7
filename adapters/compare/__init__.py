"""Experiment grids: plugins against the bare backbone and against controls, with seeds, tests and costs."""

from recplug.adapters.compare.comparison import Comparison
from recplug.adapters.compare.experiment import compare, show

__all__ = ["Comparison", "compare", "show"]
