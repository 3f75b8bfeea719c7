"""MARS's entry in the registry."""

from __future__ import annotations

import torch

from recplug.plugins.contract import Context, Modality, Plugin, Requirements, Seam
from recplug.plugins.errors import RecplugError
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.mars.module import Mars, MarsNodes, MarsTable
from recplug.plugins.mars.settings import MarsSettings
from recplug.plugins.nn.content import content_graph
from recplug.plugins.nn.knn import cooccurrence
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.nn.smoothing import ITEM_GRAPH, row_means


def requirements(settings: MarsSettings) -> Requirements:
    """What these settings need."""
    content = settings.structure.startswith("knn") or (settings.structure == "auto" and settings.modalities != ())
    wanted: frozenset[Seam] = frozenset({"items", "propagated"} if settings.seam == "auto" else {settings.seam})
    return Requirements(
        seams=frozenset({"losses"}),
        one_of=wanted,
        modalities=int(
            settings.structure.startswith("knn") or bool(settings.modalities) or settings.gate_input == "content"
        ),
        factors=True,
        brings={ITEM_GRAPH: "mars.structure=none"} if content else {},
    )


def build(settings: MarsSettings, context: Context) -> Mars:
    """Make MARS for one backbone."""
    profiles = context.factors
    assert profiles is not None
    if settings.strength == "auto":
        settings = settings.model_copy(update={"strength": "root" if context.family == "sequential" else "mean"})
    width = context.width
    if "items" not in width:
        raise RecplugError(f"mars reads a table of items, which {context.host} does not have; use LightGCN or NGCF")
    same = "propagated" in width and width["propagated"] == width["items"]
    if settings.seam == "propagated" and not same:
        raise RecplugError(
            f"{context.host} propagates items {width['propagated']} wide, its table is {width['items']}; "
            "set mars.seam to items"
        )
    nodes = same if settings.seam == "auto" else settings.seam == "propagated"
    n_rows = context.n_items if nodes else context.n_rows["items"]
    modalities = context.content(settings.modalities, of="mars")
    contributors = None
    if settings.contributors == "warm":
        contributors = torch.zeros(n_rows, dtype=torch.bool, device=context.device)
        contributors[context.edges[1]] = True
    make = MarsNodes if nodes else MarsTable
    return make(
        settings=settings,
        profiles=profiles.to(context.device),
        n_rows=n_rows,
        width=width["items"],
        modalities=modalities if settings.x == "ids_content" else [],
        structure=_structure(settings, context, modalities, n_rows),
        contributors=contributors,
        every_node=context.others_nodes,
        edges=context.edges,
    )


def _structure(settings: MarsSettings, context: Context, modalities: list[Modality], n_rows: int) -> Adjacency | None:
    """S: by content, by common users, or the mean of both; every row is a mean or empty."""
    kind = settings.structure
    if kind == "auto":
        kind = "knn" if modalities else "cooccurrence"
    graphs = []
    if kind.startswith("knn"):
        if not modalities:
            raise RecplugError(f"mars.structure {kind} needs content; let mars.modalities name some, or set it to auto")
        graphs.append(
            content_graph(
                modalities,
                context.neighbours,
                n_rows=n_rows,
                k=settings.neighbours,
                image_weight=settings.image_weight,
                cache=context.cache,
            )
        )
    if kind.endswith("cooccurrence"):
        graphs.append(row_means(cooccurrence(context.edges, n_rows, settings.neighbours)))
    if len(graphs) < 2:
        return graphs[0] if graphs else None
    indices = torch.cat([graph.indices() for graph in graphs], dim=1)
    return row_means(Adjacency.of(indices, torch.cat([graph.values() for graph in graphs]), graphs[0].shape))


@hookimpl
def recplug_plugin() -> Plugin:
    """MARS."""
    return Plugin(
        name="mars",
        summary="semantic factors of items: group means, a gate, a semantic head",
        paper="MARS, OpenReview Y6idSGOwfK",
        settings=MarsSettings,
        requirements=requirements,
        build=build,
        identity={"pool": "none", "structure": "none", "lambda_semantic": 0.0, "lambda_view": 0.0},
    )
