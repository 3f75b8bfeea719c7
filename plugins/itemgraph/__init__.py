"""The control ``itemgraph``: FREEDOM's frozen item graph and edge dropout, and a graph of like users."""

from recplug.plugins.itemgraph.module import DroppedEdges, ItemGraph
from recplug.plugins.itemgraph.settings import ItemGraphSettings

__all__ = ["DroppedEdges", "ItemGraph", "ItemGraphSettings"]
