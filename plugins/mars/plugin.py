"""MARS's entry in the registry."""

from __future__ import annotations

import logging
from typing import Any

from recplug.plugins.contract import Context, Modality, Plugin, Requirements
from recplug.plugins.errors import RecplugError
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.mars.clusters import clustered
from recplug.plugins.mars.module import Mars, MarsNodes, MarsTable
from recplug.plugins.mars.settings import MarsSettings
from recplug.plugins.nn.content import content_graph
from recplug.plugins.nn.knn import cooccurrence
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.nn.smoothing import ITEM_GRAPH, row_means
from recplug.plugins.settings import Preset

log = logging.getLogger("recplug")

# Eqs. 5 to 13 as they stand; what the paper leaves open is said in docs/methods/mars.rst.
EQUATIONS: dict[str, Any] = {
    "x": "ids_content",
    "content_width": None,
    "content_scale": None,
    "strength": "mean",
    "other": "group",
    "factor_weight": None,
    "semantic_on": "fused",
    "views": "auto",
}
# App. C.1.3; and no value is rolled up, as the paper says nothing of rare ones.
SELECTION: dict[str, Any] = {"topk": [10, 20], "valid_metric": "Recall@20", "factor_min_group": 0}

PRESETS = {
    "paper": Preset(
        "The equations as they stand: H takes the item's place (eq. 7), contents unreduced in X, the gate over "
        "structure and factors, the head on H, the view loss.",
        {**EQUATIONS, "join": "replace"},
        SELECTION,
        was=("paper_literal",),
    ),
    "mmrec": Preset(
        "The same equations with H added to the backbone's item, as MMRec's LATTICE and FREEDOM do, in MMRec's "
        "training.",
        {**EQUATIONS, "join": "add"},
        {
            **SELECTION,
            "embedding_size": 64,
            "learner": "adam",
            "learning_rate": 1e-3,
            "train_batch_size": 2048,
            "epochs": 1000,
            "stopping_step": 20,
            "reg_weight": 0.0,
        },
        was=("paper_mmrec",),
    ),
}

# Fig. 2 of the paper; that the gate counts is our question.
ABLATIONS: dict[str, dict[str, Any]] = {
    "w/o factor graphs, prediction kept": {"pool": "none"},
    "plain concatenation in place of graphs (H = X)": {"h": "x", "x": "ids_content"},
    "clusters in place of factors": {"pool": "cluster"},
    "w/o multimodal content": {"x": "ids", "modalities": ()},
    "w/o adaptive gate": {"gate": "uniform"},
    "w/o semantic head": {"lambda_semantic": 0.0},
    "w/o view consistency": {"views": "off"},
}

# Without the head, whose loss is on but, at the paper's weight, hardly moves sequential hosts (docs/methods/mars.rst).
MECHANISMS: dict[str, dict[str, Any]] = {
    "means of the items that share a factor's value": {"pool": "none"},
    "a gate": {"gate": "uniform"},
    "similar items' means": {"structure": "none"},
}


def requirements(settings: MarsSettings) -> Requirements:
    """What these settings need."""
    graph = settings.h == "graphs" and settings.structure in ("auto", "knn") and settings.modalities != ()
    content = settings.structure == "knn" or settings.pool == "cluster" or bool(settings.modalities)
    return Requirements(
        seams=frozenset({"losses"}),
        one_of=frozenset({"items", "propagated"}),
        modalities=int(content),
        factors=True,
        brings={ITEM_GRAPH: "mars.structure=none"} if graph else {},
    )


def build(settings: MarsSettings, context: Context) -> Mars:
    """Make MARS for one backbone: on propagated items where they are as wide as the table, else on the item table."""
    profiles = context.factors
    assert profiles is not None
    if settings.strength == "auto":
        settings = settings.model_copy(update={"strength": "root" if context.family == "sequential" else "mean"})
    width = context.width
    if "items" not in width:
        raise RecplugError(f"mars reads a table of items, which {context.host} does not have; use LightGCN or NGCF")
    nodes = width.get("propagated") == width["items"]
    n_rows = context.n_items if nodes else context.n_rows["items"]
    modalities = context.content(settings.modalities, of="mars")
    if settings.pool == "cluster" and settings.h == "graphs":
        profiles = clustered(profiles, modalities, seed=context.seed)
    if settings.x == "ids_content" and not modalities:
        log.info("mars: X holds the items' rows alone (eq. 5 without contents), as there is no content")
    make = MarsNodes if nodes else MarsTable
    return make(
        settings=settings,
        profiles=profiles.to(context.device),
        n_rows=n_rows,
        width=width["items"],
        modalities=modalities if settings.x == "ids_content" else [],
        structure=None if settings.h == "x" else _structure(settings, context, modalities, n_rows),
        every_node=context.others_nodes,
        edges=context.edges,
    )


def _structure(settings: MarsSettings, context: Context, modalities: list[Modality], n_rows: int) -> Adjacency | None:
    """S, by content or by common users; every row is a mean or empty."""
    kind = settings.structure
    if kind == "auto":
        kind = "knn" if modalities else "cooccurrence"
        if not modalities:
            log.info("mars: structure is made from items with common users, as there is no content")
    if kind == "none":
        return None
    if kind == "cooccurrence":
        return row_means(cooccurrence(context.edges, n_rows, settings.neighbours))
    if not modalities:
        raise RecplugError("mars.structure knn needs content; let mars.modalities name some, or set it to auto")
    return content_graph(
        modalities,
        context.neighbours,
        n_rows=n_rows,
        k=settings.neighbours,
        image_weight=settings.image_weight,
        cache=context.cache,
    )


@hookimpl
def recplug_plugin() -> Plugin:
    """MARS."""
    return Plugin(
        name="mars",
        summary="semantic factors of items: gated means over the items that share one, beside similar items' means",
        paper="MARS, OpenReview Y6idSGOwfK",
        settings=MarsSettings,
        requirements=requirements,
        build=build,
        identity={
            "h": "graphs",
            "pool": "none",
            "structure": "none",
            "join": "add",
            "lambda_semantic": 0.0,
            "views": "off",
        },
        presets=PRESETS,
        ablations=ABLATIONS,
        mechanisms=MECHANISMS,
    )
