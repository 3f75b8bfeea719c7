"""Factors without names: groups of items that look alike, from their feature tables."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np

from recplug.adapters.factors.schema import FactorSchema, FactorSpec, Value
from recplug.adapters.factors.table import FactorTable
from recplug.adapters.features.table import FeatureTable
from recplug.plugins.errors import RecplugError

PER_BLOCK = 16
SOURCES: dict[str, Literal["text", "image"]] = {"text": "text", "image": "image"}
Array = np.ndarray[Any, np.dtype[Any]]


def from_clusters(
    tables: Mapping[str, FeatureTable],
    *,
    factors: int = 10,
    values: int = 20,
    like: FactorSchema | None = None,
    seed: int = 0,
) -> FactorTable:
    """Partitions of the items by product quantisation of their features.

    The factors are shared out among the modalities, the first ones get one more. Each modality's vectors are turned to
    their principal components, and the components dealt to as many blocks as it has factors. One factor is k-means in
    one block. The strongest components go one to each block, then the next, so that no block has the noise only (our
    choice; the paper gives no details of its clusters): at most 16 a block. A factor's source is its modality, where
    that is text or image: "clusters in place of factors" then has the views of eq. 12 as well.

    Args:
        tables: the feature tables by modality.
        factors: how many factors in all, such as ``image_1``; at least one a modality.
        values: how many values each has, ``c00`` (the largest group), ``c01``, ...
        like: instead of both, as many factors of each source as this schema has, each with as many values; those of
            other sources are shared out.
        seed: of the components and the centres. Equal seeds give equal groups.

    Returns:
        A table of all items that any of the tables has; an item without a vector is unknown in that modality.

    Raises:
        RecplugError: for fewer factors than modalities, fewer than two values, or too few items or components.
    """
    sizes = _sizes(list(tables), factors, values, like)
    tokens = tuple(dict.fromkeys(token for table in tables.values() for token in table.tokens))
    specs: list[FactorSpec] = []
    columns: dict[str, tuple[tuple[str, ...], ...]] = {}
    for modality, table in tables.items():
        blocks = len(sizes[modality])
        for block, labels in enumerate(_partitions(modality, table, sizes[modality], seed), 1):
            most = int(labels.max())
            names = [f"c{value:0{max(2, len(str(sizes[modality][block - 1] - 1)))}d}" for value in range(most + 1)]
            spec = FactorSpec(
                name=f"{modality}_{block}",
                description=f"items whose {modality} vectors lie together, block {block} of {blocks}",
                source=SOURCES.get(modality, "cluster"),
                values=tuple(Value(name=name) for name in names),
            )
            group = {token: (names[label],) for token, label in zip(table.tokens, labels.tolist(), strict=True)}
            specs.append(spec)
            columns[spec.name] = tuple(group.get(token, ()) for token in tokens)
    asked = f"factors={factors}, values={values}" if like is None else f"sizes of the schema {like.sha256[:12]}"
    origin = {
        "made_by": f"recplug: product quantisation, {asked}, seed={seed}",
        "created": datetime.now(timezone.utc).date().isoformat(),
        "licence": "; ".join(dict.fromkeys(table.metadata.get("licence", "unknown") for table in tables.values())),
        "features": "; ".join(f"{modality} sha256 {table.sha256}" for modality, table in tables.items()),
    }
    schema = FactorSchema(factors=tuple(specs), provenance=origin)
    return FactorTable(schema, tokens, columns, ("ok",) * len(tokens), origin)


def _sizes(modalities: list[str], factors: int, values: int, like: FactorSchema | None) -> dict[str, list[int]]:
    """How many values each factor of each modality has."""
    wanted = [("", values)] * factors
    if like is not None:
        wanted = [(SOURCES.get(spec.source, ""), len(spec.names) - (spec.other is not None)) for spec in like.factors]
    if not modalities or len(wanted) < len(modalities):
        raise RecplugError(
            f"{len(wanted)} factors of {len(modalities)} feature tables: give at least one table, and a factor each"
        )
    if min(size for _, size in wanted) < 2:
        raise RecplugError(f"{min(size for _, size in wanted)} values a factor tell nothing apart; give 2 or more")
    found: dict[str, list[int]] = {modality: [] for modality in modalities}
    for source, size in wanted:
        shortest = min(modalities, key=lambda modality: len(found[modality]))
        found[source if source in found else shortest].append(size)
    if not all(found.values()):
        lacks = next(modality for modality, sizes in found.items() if not sizes)
        raise RecplugError(f"the schema has no factor for the {lacks} vectors; leave {lacks} out of the modalities")
    return found


def _partitions(modality: str, table: FeatureTable, sizes: list[int], seed: int) -> list[Array]:
    """A labelling ``[n]`` of the table's items for each of ``sizes``, numbered from its largest group on."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    (n, width), blocks = table.features.shape, len(sizes)
    if n < max(sizes) or min(n, width) < blocks:
        raise RecplugError(
            f"{modality}: {n} items of width {width} are too few for {blocks} factors of up to {max(sizes)} values;"
            " ask for fewer"
        )
    found = []
    # One thread: several add up in an order of their own, and a group could differ from run to run. Groups that stay
    # empty, because vectors repeat, are left out and need no warning.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        kept = min(n, width, PER_BLOCK * blocks)
        components = PCA(kept, random_state=seed).fit_transform(table.features.float().numpy())  # [n, kept]
        for block, values in enumerate(sizes):
            means = KMeans(values, n_init=4, random_state=seed + block)
            labels = means.fit_predict(np.ascontiguousarray(components[:, block::blocks]))  # [n]
            _, first, label, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
            rank = np.empty_like(first)
            rank[np.lexsort((first, -counts))] = np.arange(len(first))
            found.append(rank[label])
    return found
