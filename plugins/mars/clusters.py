"""Clusters of content in place of factors: the paper's ablation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import Factor, FactorProfiles

COMPONENTS = 16  # principal components that one partition sees


def clustered(profiles: FactorProfiles, modalities: Sequence[Modality], *, seed: int) -> FactorProfiles:
    """As many partitions as there are factors, each with as many clusters as its factor has values.

    By product quantisation: the partitions are shared out among the modalities; each modality's principal components
    are dealt to as many blocks as it has partitions, the strongest one to each block first, and a partition is k-means
    in its block. The paper gives no details of its clusters.

    Args:
        profiles: whose K and V_k are taken, and nothing else.
        modalities: content; an item without a vector is unknown in that modality's partitions.
        seed: of the components and the centres.

    Raises:
        RecplugError: without content, or with too few items or components.
    """
    if not modalities:
        raise RecplugError(
            "mars.pool cluster needs content to cluster; let mars.modalities name some, or set it to group"
        )
    used = modalities[: len(profiles.factors)]
    factors, items, values, start = [], [], [], 0
    for place, modality in enumerate(used):
        sizes = [len(factor.values) for factor in profiles.factors[place :: len(used)]]
        rows = modality.present.nonzero().squeeze(1).cpu()  # [n]
        for number, labels in enumerate(_partitions(modality, rows, sizes, seed), 1):
            names = tuple(f"c{value}" for value in range(int(labels.max()) + 1))
            factors.append(Factor(f"{modality.name} clusters {number}", names, source="cluster"))
            items.append(rows)
            values.append(labels + start)
            start += len(names)
    item, value = torch.cat(items), torch.cat(values)
    order = torch.argsort(item * start + value)
    device = profiles.items.device
    return FactorProfiles(tuple(factors), item[order].to(device), value[order].to(device), profiles.n_items)


def _partitions(modality: Modality, rows: torch.Tensor, sizes: Sequence[int], seed: int) -> list[torch.Tensor]:
    """For each size a labelling ``[n]`` of the items at ``rows [n]``, without empty labels."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    features = modality.values.cpu()[rows].float().numpy()  # [n, d_m]
    if len(features) < max(sizes) or min(features.shape) < len(sizes):
        raise RecplugError(
            f"{modality.name}: {len(features)} items of width {features.shape[1]} are too few for {len(sizes)} "
            f"partitions of up to {max(sizes)} clusters; set mars.pool to group"
        )
    found = []
    # One thread: several add up in an order of their own, and a group could differ from run to run. Clusters that stay
    # empty, because vectors repeat, are left out and need no warning.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        kept = min(*features.shape, COMPONENTS * len(sizes))
        components = PCA(kept, random_state=seed).fit_transform(features)  # [n, kept]
        for block, size in enumerate(sizes):
            own = np.ascontiguousarray(components[:, block :: len(sizes)])
            labels = KMeans(size, n_init=4, random_state=seed + block).fit_predict(own)  # [n]
            found.append(torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(-1)).long())
    return found
