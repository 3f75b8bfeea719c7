"""SSR (arXiv 2512.01372): spectral bands of a graph, masked, fused across modalities and aligned."""

from recplug.plugins.ssr.decomposition import Decomposition
from recplug.plugins.ssr.module import Ssr, SsrNodes, SsrTables
from recplug.plugins.ssr.settings import SsrSettings

__all__ = ["Decomposition", "Ssr", "SsrNodes", "SsrSettings", "SsrTables"]
