"""The item graph's entry in the registry."""

from __future__ import annotations

import logging
from typing import Any

from recplug.plugins.contract import Context, Modality, Plugin, Requirements, Seam
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.itemgraph.module import DroppedEdges, ItemGraph
from recplug.plugins.itemgraph.settings import ItemGraphSettings
from recplug.plugins.nn.content import content_graph
from recplug.plugins.nn.knn import item_graph
from recplug.plugins.nn.smoothing import ITEM_GRAPH, Smoothing
from recplug.plugins.nn.user_graph import like_users

log = logging.getLogger("recplug")


def requirements(settings: ItemGraphSettings) -> Requirements:
    """Propagated nodes, content, and the host's graph where edges are dropped."""
    seams: set[Seam] = {"propagated"}
    if settings.edge_dropout:
        seams.add("graph")
    return Requirements(
        seams=frozenset(seams),
        families=frozenset({"graph"}),
        modalities=1,
        brings={ITEM_GRAPH: "itemgraph.item_weight=0"} if settings.item_weight else {},
    )


def build(settings: ItemGraphSettings, context: Context) -> ItemGraph:
    """Make the graphs for one backbone."""
    modalities = context.content(settings.modalities, of="itemgraph")
    width = context.width["propagated"]
    graphs: dict[str, Any] = {
        "items": _items(settings, context, modalities) if settings.item_weight else None,
        "users": _users(settings, context, modalities) if settings.user_weight else None,
        "item_table": context.width.get("items") == width,
        "user_table": context.width.get("users") == width,
    }
    if not settings.edge_dropout:
        return ItemGraph(**graphs)
    return DroppedEdges(n_users=context.n_users, rate=settings.edge_dropout, seed=context.seed, **graphs)


def _items(settings: ItemGraphSettings, context: Context, modalities: list[Modality]) -> Smoothing:
    graph = content_graph(
        modalities,
        context.neighbours,
        n_rows=context.n_items,
        k=settings.item_neighbours,
        image_weight=settings.image_weight,
        cache=context.cache,
    )
    log.info("itemgraph: %d edges between items", graph.nnz)
    return Smoothing(graph, weight=settings.item_weight)


def _users(settings: ItemGraphSettings, context: Context, modalities: list[Modality]) -> Smoothing:
    found = like_users(
        context.edges,
        modalities,
        n_users=context.n_users,
        n_items=context.n_items,
        k=settings.user_neighbours,
        content=settings.user_content,
        image_weight=settings.image_weight,
    )
    graph = item_graph({"users": found}, {"users": 1.0}, n_rows=context.n_users)
    log.info("itemgraph: %d edges between users", graph.nnz)
    return Smoothing(graph, weight=settings.user_weight)


@hookimpl
def recplug_plugin() -> Plugin:
    """The item graph."""
    off = {"items": {"item_weight": 0.0}, "edges": {"edge_dropout": 0.0}, "users": {"user_weight": 0.0}}
    return Plugin(
        name="itemgraph",
        summary="a control: a frozen content graph of items, edge dropout by degree and a graph of like users",
        paper="FREEDOM, arXiv 2211.06924; users as in DRAGON, arXiv 2301.12097",
        settings=ItemGraphSettings,
        requirements=requirements,
        build=build,
        identity={**off["items"], **off["edges"], **off["users"]},
        ablations={
            "without edge dropout": off["edges"],
            "without the user graph": off["users"],
            "item graph alone": {**off["edges"], **off["users"]},
        },
        mechanisms={"content graph of items": off["items"], "edge dropout": off["edges"], "like users": off["users"]},
    )
