"""SSR's entry in the registry."""

from __future__ import annotations

import logging

import torch

from recplug.plugins.contract import Context, Modality, Plugin, Requirements
from recplug.plugins.errors import RecplugError
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.nn.content import content_graph, principal
from recplug.plugins.nn.knn import cooccurrence
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.nn.smoothing import ITEM_GRAPH
from recplug.plugins.ssr.content import ContentBands
from recplug.plugins.ssr.decomposition import Decomposition
from recplug.plugins.ssr.module import Ssr, SsrNodes, SsrTables
from recplug.plugins.ssr.settings import SsrSettings

log = logging.getLogger("recplug")


def requirements(settings: SsrSettings) -> Requirements:
    """What these settings need."""
    return Requirements(
        seams=frozenset({"losses"}),
        one_of=frozenset({"propagated", "tables"}),
        modalities=1 if settings.graph == "knn" or settings.modalities else 0,
        brings={ITEM_GRAPH: "ssr.item_layers=0"} if _averages(settings) else {},
    )


def _averages(settings: SsrSettings) -> bool:
    """Whether means over a content graph are added to the items, where there is content."""
    return bool(settings.item_layers and settings.item_weight and settings.modalities != ())


def build(settings: SsrSettings, context: Context) -> Ssr:
    """Make SSR for one backbone."""
    nodes = "propagated" in context.width
    has_users = nodes or "users" in context.width
    n_users = context.n_users if has_users else 0
    n_items = context.n_items if nodes else context.n_rows["items"]
    modalities = context.content(settings.modalities, of="ssr")
    free_width = nodes and context.free_width
    concat = settings.output == "concat" or (settings.output == "auto" and free_width)
    if concat and not free_width and modalities and settings.content_blocks:
        raise RecplugError(f"{context.host} reads its vectors by more than their dot product; set ssr.output to add")
    if settings.consistency.startswith("score") and (not has_users or context.family == "sequential"):
        raise RecplugError(f"ssr.consistency {settings.consistency} needs users and negatives; set it to repr_mse")
    item_graph = None
    if modalities and _averages(settings):
        item_graph = _content_graph(settings, context, modalities, n_items, symmetric=False)
    graph, split = _spectrum(settings, context, modalities, n_users, n_items)
    decomposition = Decomposition(
        graph=graph,
        split=split,
        bands=settings.bands,
        engine=settings.engine,
        order=settings.order,
        rank=settings.rank,
        edges=settings.edges,
        cache=context.cache,
        seed=context.seed,
    )
    log.info("ssr: %s", decomposition.summary().replace("\n", "; "))
    width = context.width["propagated" if nodes else "items"]
    content = None
    if modalities and settings.content_blocks:
        content = _content(settings, context, modalities, item_graph, graph, split, n_users, n_items, width)
    make = SsrNodes if nodes else SsrTables
    return make(
        settings=settings,
        decomposition=decomposition,
        n_users=n_users,
        width=width,
        content=content,
        item_graph=item_graph,
        concat=concat,
        every_node=context.others_nodes,
        table_width=context.width.get("items", 0),
        seed=context.seed,
    )


def _content_graph(
    settings: SsrSettings, context: Context, modalities: list[Modality], n_items: int, *, symmetric: bool
) -> Adjacency:
    return content_graph(
        modalities,
        context.neighbours,
        n_rows=n_items,
        k=settings.item_neighbours,
        image_weight=settings.image_weight,
        symmetric=symmetric,
        cache=context.cache,
    )


def _spectrum(
    settings: SsrSettings, context: Context, modalities: list[Modality], n_users: int, n_items: int
) -> tuple[Adjacency, int | None]:
    """The graph whose spectrum gives the bands, and where its users end if it is bipartite."""
    kind = settings.graph
    if kind == "auto":
        kind = "bipartite" if n_users else "cooccurrence"
    if kind == "bipartite":
        if not n_users:
            raise RecplugError(f"{context.host} has no user vectors; set ssr.graph to cooccurrence or knn")
        return Adjacency.bipartite(context.edges, n_users=n_users, n_items=n_items), n_users
    if kind == "knn":
        if not modalities:
            raise RecplugError(
                "ssr.graph knn needs a modality; let ssr.modalities name one, or choose another ssr.graph"
            )
        items = _content_graph(settings, context, modalities, n_items, symmetric=True)
    else:
        items = cooccurrence(context.edges, n_items, settings.item_neighbours)
    if not n_users:
        return items, None
    n = n_users + n_items  # users are nodes without edges
    return Adjacency.of(items.indices() + n_users, items.values(), (n, n), symmetric=True), None


def _content(
    settings: SsrSettings,
    context: Context,
    modalities: list[Modality],
    item_graph: Adjacency | None,
    graph: Adjacency,
    split: int | None,
    n_users: int,
    n_items: int,
    width: int,
) -> ContentBands:
    """Frozen content over the nodes: an item's is the content graph's mean, a user's what propagation brings."""
    signals = {}
    for modality in modalities:
        items = principal(modality, n_items, settings.content_width)
        users = items.new_zeros(n_users, items.shape[1])
        smooth = items
        if item_graph is not None:
            for _ in range(settings.item_layers):
                smooth = item_graph.matmul(smooth)
        if n_users and settings.user_content == "profile" and context.propagate is not None:
            bipartite = graph if split else Adjacency.bipartite(context.edges, n_users=n_users, n_items=n_items)
            users = context.propagate(bipartite, users, items)[0]
        signals[modality.name] = torch.cat([users, smooth])
    present = torch.zeros(n_users + n_items, len(modalities), dtype=torch.bool, device=graph.device)
    for index, modality in enumerate(modalities):
        present[n_users : n_users + len(modality.present), index] = modality.present
    return ContentBands(signals=signals, present=present, width=width, scale=settings.content_scale)


@hookimpl
def recplug_plugin() -> Plugin:
    """SSR."""
    return Plugin(
        name="ssr",
        summary="a content graph, content signals, and views compared in bands of the graph's spectrum",
        paper="SSR, arXiv 2512.01372",
        settings=SsrSettings,
        requirements=requirements,
        build=build,
        identity={
            "bands": 1,
            "edges": "equal_energy",
            "fusion": "sum",
            "modalities": (),
            "mask_rate": 0.0,
            "lambda_contrast": 0.0,
            "lambda_operator": 0.0,
            "graph": "auto",
        },
    )
