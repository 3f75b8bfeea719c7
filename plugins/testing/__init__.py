"""The contract tests that every plugin passes, with toy backbones and data whose answer is known.

In a plugin's own test suite one line is enough::

    check_plugin(plugin)
"""

from recplug.plugins.testing.case import Case, cases
from recplug.plugins.testing.contract import check_plugin
from recplug.plugins.testing.domains import PlantedDomain, PlantedPair, ToySource, planted_domains
from recplug.plugins.testing.host import ToyHost
from recplug.plugins.testing.known_answer import Planted, planted_modalities
from recplug.plugins.testing.rules import CHECKS, BrokenContract
from recplug.plugins.testing.toys import HOSTS, ToyGraph, ToyPropagation, ToySequence

__all__ = [
    "CHECKS",
    "HOSTS",
    "BrokenContract",
    "Case",
    "Planted",
    "PlantedDomain",
    "PlantedPair",
    "ToyGraph",
    "ToyHost",
    "ToyPropagation",
    "ToySequence",
    "ToySource",
    "cases",
    "check_plugin",
    "planted_domains",
    "planted_modalities",
]
