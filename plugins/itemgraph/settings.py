"""Settings of ``itemgraph``."""

from __future__ import annotations

from recplug.plugins.search import Range
from recplug.plugins.settings import NONZERO, PluginSettings, setting


class ItemGraphSettings(PluginSettings):
    """Which items and users are neighbours, how much they count, and how many edges training sees."""

    item_weight: float = setting(
        1.0,
        "Weight of the content graph's means, which are added to the propagated items; 0 leaves the graph out.",
        paper="FREEDOM, eq. 10",
        search=Range(0.3, 3.0, log=True),
        ge=0,
    )
    item_neighbours: int = setting(
        10,
        "Neighbours of an item in each modality, the item itself included.",
        paper="FREEDOM, k",
        when={"item_weight": NONZERO},
        ge=2,
        le=1000,
    )
    image_weight: float = setting(
        0.1,
        "Share of the modality 'image' in the likeness of items and of users; the others share the rest.",
        paper="FREEDOM, α_v",
        ge=0,
        le=1,
    )
    edge_dropout: float = setting(
        0.8,
        "Share of user-item edges that an epoch's training graph lacks, drawn anew every epoch, rather those between "
        "nodes of many edges.",
        paper="FREEDOM, ρ, eq. 4",
        search=[0.0, 0.5, 0.8, 0.9],
        ge=0,
        lt=1,
    )
    user_weight: float = setting(
        1.0,
        "Weight of the means over like users, which are added to the propagated users; 0 leaves them out.",
        search=Range(0.3, 3.0, log=True),
        ge=0,
    )
    user_neighbours: int = setting(
        40, "Neighbours of a user.", paper="DRAGON, k", when={"user_weight": NONZERO}, ge=1, le=1000
    )
    user_content: float = setting(
        0.6,
        "Share of content in the likeness of users, which is that of their histories' mean content and of the items "
        "that they have in common.",
        when={"user_weight": NONZERO},
        ge=0,
        le=1,
    )
    modalities: tuple[str, ...] | None = setting(None, "Content sources by name; by default all there are.")
