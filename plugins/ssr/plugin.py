"""SSR's entry in the registry."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F

from recplug.plugins.contract import Context, Modality, Plugin, Requirements
from recplug.plugins.errors import RecplugError
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.nn.closed_form import ClosedForm
from recplug.plugins.nn.content import content_graph, principal, similarity_graph
from recplug.plugins.nn.knn import cooccurrence
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.nn.smoothing import CONTENT_FILTER, ITEM_GRAPH, Smoothing
from recplug.plugins.settings import Preset
from recplug.plugins.ssr.content import ContentEncoders, FrozenContent
from recplug.plugins.ssr.decomposition import Decomposition
from recplug.plugins.ssr.hosts import Ranked, RankedNodes, RankedTables, SsrNodes, SsrTables
from recplug.plugins.ssr.module import Ssr
from recplug.plugins.ssr.settings import SsrSettings
from recplug.plugins.ssr.signal import BandedSignal

log = logging.getLogger("recplug")

RECENCY = 0.6
"""What an item of a shown history counts for each step that it lies back: the filter's, by validation."""

CONTENT_WIDTH = 128
"""Principal components kept of wider vectors, where content is frozen."""


def requirements(settings: SsrSettings) -> Requirements:
    """What these settings need."""
    brings = {ITEM_GRAPH: "ssr.item_layers=0"} if settings.item_layers and settings.modalities != () else {}
    if settings.signal:
        brings[CONTENT_FILTER] = "ssr.signal=false"
    return Requirements(
        seams=frozenset({"losses", "score"} if settings.signal else {"losses"}),
        halves=frozenset({"ranking"}),
        one_of=frozenset({"propagated", "tables"}),
        modalities=1 if settings.modalities else 0,
        brings=brings,
    )


def build(settings: SsrSettings, context: Context) -> Ssr:
    """Make SSR for one backbone."""
    nodes = "propagated" in context.width
    n_users = context.n_users if nodes or "users" in context.width else 0
    n_items = context.n_items if nodes else context.n_rows["items"]
    modalities = context.content(settings.modalities, of="ssr")
    if settings.lambda_mask and settings.consistency == "score_kl" and (not n_users or context.family == "sequential"):
        raise RecplugError("ssr.consistency score_kl needs users and negatives; set it to repr_mse")
    if n_users:
        graph = Adjacency.bipartite(context.edges, n_users=n_users, n_items=n_items)
    else:
        graph = cooccurrence(context.edges, n_items, settings.item_neighbours)
    item_graph = None
    if modalities and settings.item_layers:
        similar = content_graph(
            modalities,
            context.neighbours,
            n_rows=n_items,
            k=settings.item_neighbours,
            image_weight=settings.image_weight,
            cache=context.cache,
        )
        item_graph = Smoothing(similar, layers=settings.item_layers)
    decomposition = Decomposition(
        graph=graph,
        split=n_users or None,
        bands=settings.bands,
        engine=settings.engine,
        order=settings.order,
        seed=context.seed,
    )
    log.info("ssr: %s", decomposition.summary().replace("\n", "; "))
    width = context.width["propagated" if nodes else "items"]
    content: FrozenContent | ContentEncoders | None = None
    if modalities and settings.content == "encoders":
        content = ContentEncoders(
            modalities=modalities,
            graph=graph if n_users else None,
            n_users=n_users,
            n_items=n_items,
            width=width,
        )
    elif modalities and settings.content == "vectors":
        content = _frozen(modalities, item_graph, n_users, n_items, width)
    make = (RankedNodes if nodes else RankedTables) if settings.signal else (SsrNodes if nodes else SsrTables)
    ssr = make(
        settings=settings,
        decomposition=decomposition,
        n_users=n_users,
        width=width,
        content=content,
        item_graph=item_graph,
        concat=nodes and context.free_width,
        every_node=context.others_nodes,
        table_width=context.width.get("items", 0),
        seed=context.seed,
    )
    if isinstance(ssr, Ranked):
        ssr.banded = _banded(settings, context, modalities)
        ssr.recency = RECENCY if context.family == "sequential" else 1.0
    return ssr


def _banded(settings: SsrSettings, context: Context, modalities: list[Modality]) -> BandedSignal:
    """The interaction signal's filter, in as many bands as the vectors have."""
    content = None
    if modalities:
        content = similarity_graph(
            modalities,
            context.neighbours,
            n_rows=context.n_items,
            k=settings.item_neighbours,
            image_weight=settings.image_weight,
            cache=context.cache,
        ).to(context.device)
    form = ClosedForm(context.edges, n_users=context.n_users, n_items=context.n_items, content=content, order=2)
    return BandedSignal(form=form, bands=settings.bands, seed=context.seed, shuffled=settings.engine == "random")


def _frozen(
    modalities: list[Modality], item_graph: Smoothing | None, n_users: int, n_items: int, width: int
) -> FrozenContent:
    """An item's content is the content graph's mean; a user has none of their own."""
    signals = {}
    for modality in modalities:
        items = principal(modality, n_items, CONTENT_WIDTH)
        signals[modality.name] = F.pad(items if item_graph is None else item_graph(items), (0, 0, n_users, 0))
    present = torch.stack([m.present for m in modalities], dim=1)  # [n, P-1]
    present = F.pad(present, (0, 0, n_users, n_items - len(present)))
    return FrozenContent(signals=signals, present=present, width=width)


HOST: dict[str, Any] = {
    "embedding_size": 64,
    "n_layers": 2,
    "learning_rate": 1e-4,
    "weight_decay": 0.0,
    "reg_weight": 0.0,
    "train_batch_size": 2048,
    "epochs": 1000,
    "stopping_step": 20,
    "eval_step": 1,
    "metrics": ["Recall", "NDCG"],
    "topk": [10, 20],
    "valid_metric": "Recall@20",
}
PAPER: dict[str, Any] = {
    "content": "encoders",
    "item_source": "nodes",
    "fusion": "cp",
    "gate": True,
    "lambda_mask": 1e-3,
    "lambda_operator": 0.1,
    "lambda_ridge": 0.0,
    "anchors": 3 * 2048,  # every band of every item of a batch
}
PRESETS = {
    "paper": Preset(
        "The paper as far as it is known: bands of equal energy, encoders a modality, the gated low-rank operator, "
        "masking and contrast at the weights of the one configuration known in full.",
        settings=PAPER,
        host=HOST,
    ),
    "code": Preset(
        "The authors' public file: the same, with its fixed polynomials for bands and its column softmax for mixing.",
        settings=PAPER | {"engine": "legacy_cheb", "order": 5, "fusion": "colsoftmax"},
        host=HOST,
    ),
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "w/o semantic-aware fusion": {"item_layers": 0},  # our reading: without the content graph's share of the signal
    "w/o G-HSNO": {"fusion": "sum"},
    "w/o masking": {"lambda_mask": 0.0},
    "w/o contrastive alignment": {"lambda_contrast": 0.0},
    "w/o multimodal features": {"modalities": ()},
    "one band": {"bands": 1},
    "random bands": {"engine": "random"},
}
MECHANISMS: dict[str, dict[str, Any]] = {
    "a frozen content graph over items": {"item_layers": 0},
    "content vectors beside the backbone's": {"content": "graph"},
}


@hookimpl
def recplug_plugin() -> Plugin:
    """SSR."""
    return Plugin(
        name="ssr",
        summary=f"{', and '.join(MECHANISMS)}; at its presets, bands of the graph's spectrum, masked and mixed",
        paper="SSR, arXiv 2512.01372",
        settings=SsrSettings,
        requirements=requirements,
        build=build,
        identity={"bands": 1, "modalities": (), "fusion": "sum", "lambda_mask": 0.0},
        presets=PRESETS,
        ablations=ABLATIONS,
        mechanisms=MECHANISMS,
    )
