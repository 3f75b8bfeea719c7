"""MAGNET: a mixture of experts over behaviour and content, with entropy-triggered routing (arXiv 2602.20723)."""

from recplug.plugins.magnet.items import MagnetNodes, MagnetTable
from recplug.plugins.magnet.pairs import MagnetPairs
from recplug.plugins.magnet.settings import MagnetSettings

__all__ = ["MagnetNodes", "MagnetPairs", "MagnetSettings", "MagnetTable"]
