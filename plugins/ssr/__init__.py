"""SSR (arXiv 2512.01372): spectral bands of a graph, masked, fused across modalities and aligned.

``plugin`` registers and builds; ``module`` is the augmentation, ``hosts`` its form for each kind of backbone;
``content`` and ``decomposition`` (with ``edges``, ``spectral``, ``polynomial``) make the bands, ``operator`` mixes
them, ``losses`` are the training's, ``diagnostics`` the pictures.
"""

from recplug.plugins.ssr.decomposition import Decomposition
from recplug.plugins.ssr.hosts import SsrNodes, SsrTables
from recplug.plugins.ssr.module import Ssr
from recplug.plugins.ssr.settings import SsrSettings

__all__ = ["Decomposition", "Ssr", "SsrNodes", "SsrSettings", "SsrTables"]
