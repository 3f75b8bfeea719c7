"""MAGNET's entry in the registry."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch

from recplug.plugins.contract import Context, Modality, Plugin, Requirements, Seam
from recplug.plugins.errors import RecplugError
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.magnet.channels import Channels, telling
from recplug.plugins.magnet.induced_edges import induced_edges
from recplug.plugins.magnet.items import MagnetNodes, MagnetTable
from recplug.plugins.magnet.module import Magnet
from recplug.plugins.magnet.pairs import MagnetPairs
from recplug.plugins.magnet.settings import MagnetSettings
from recplug.plugins.nn.content import content_graph
from recplug.plugins.nn.propagation import Adjacency, lightgcn
from recplug.plugins.nn.smoothing import ITEM_GRAPH
from recplug.plugins.settings import Preset

log = logging.getLogger("recplug")
LAYERS = 2  # of LightGCN's rule, where the host says nothing


def requirements(settings: MagnetSettings) -> Requirements:
    """What these settings need."""
    brings = {}
    if settings.mode != "node" and settings.expert_input == "channels" and not settings.inert:
        brings[ITEM_GRAPH] = "magnet.expert_input=product"
    if settings.mode == "pair":
        return Requirements(seams=frozenset({"losses", "score"}), modalities=1, brings=brings)
    places: set[Seam] = {"items", "propagated"}
    if settings.mode == "auto":
        places.add("score")
    return Requirements(seams=frozenset({"losses"}), one_of=frozenset(places), modalities=1, brings=brings)


def build(settings: MagnetSettings, context: Context) -> Magnet:
    """Make MAGNET for one backbone."""
    modalities = context.content(settings.modalities, of="magnet")
    if not modalities:
        raise RecplugError("magnet.modalities is empty, and MAGNET mixes behaviour with content; name one")
    if settings.mode == "pair" or (settings.mode == "auto" and "training" in context.halves):
        return _pairs(settings, context, modalities)
    if settings.mode == "auto":
        log.info("magnet: %s does not let plugins change scores; items are routed by themselves", context.host)
    nodes = "propagated" in context.width
    shared = {
        "settings": settings,
        "modalities": modalities,
        "n_rows": context.n_items if nodes else context.n_rows["items"],
        "n_users": context.n_users,
        "edges": context.edges,
        "width": context.width["propagated" if nodes else "items"],
        "of_pairs": False,
        "seed": context.seed,
    }
    if not nodes:
        return MagnetTable(**shared)  # type: ignore[arg-type]
    found = MagnetNodes(**shared)  # type: ignore[arg-type]
    found.every_node = context.others_nodes
    return found


def _pairs(settings: MagnetSettings, context: Context, modalities: list[Modality]) -> MagnetPairs:
    channels = None
    if settings.expert_input != "concat" and not settings.inert:  # the paper's form takes all content as it comes
        graphs = {m.name: _item_graph(m, settings, context) for m in modalities}
        kept = telling(modalities, graphs, context.edges, n_users=context.n_users)
        if not kept:
            log.warning("magnet: content says nothing of who has what here; %s's own scores stand", context.host)
            settings = settings.model_copy(update={"gamma": 0.0, "base": "views"})
        else:
            modalities = kept
            if settings.expert_input == "channels":
                channels = Channels([graphs[m.name] for m in kept])
    induced = _induced(settings, context, modalities) if settings.induced and not settings.inert else None
    return MagnetPairs(
        settings=settings,
        modalities=modalities,
        n_rows=context.n_items,
        n_users=context.n_users,
        edges=context.edges,
        width=context.width["items"],
        induced=induced,
        channels=channels,
        propagate=context.propagate or partial(lightgcn, layers=LAYERS),
        seed=context.seed,
    )


def _item_graph(modality: Modality, settings: MagnetSettings, context: Context) -> Adjacency:
    return content_graph(
        [modality],
        context.neighbours,
        n_rows=context.n_items,
        k=settings.neighbours,
        image_weight=1.0,
        cache=context.cache,
    )


def _induced(settings: MagnetSettings, context: Context, modalities: list[Modality]) -> Adjacency | None:
    """The training graph with content-induced edges; None where there are none, and the views would be the same."""
    given = context.neighbours
    if any(m.name in given for m in modalities):
        log.info(
            "magnet: the data's own item graphs give the neighbours, so that candidates are ranked by cosines with "
            "items that they are neighbours of (eq. 2 takes the whole history): vectors fitted to such a graph say "
            "nothing of others"
        )
    found = induced_edges(
        modalities,
        context.edges,
        n_users=context.n_users,
        n_items=context.n_items,
        k=settings.neighbours,
        r=settings.induced,
        given=given,
        cache=context.cache,
    )
    seen = len(torch.unique(context.edges[0] * context.n_items + context.edges[1]))
    times = found.shape[1] / max(seen, 1)
    log.info("magnet: %d content-induced edges, %.2f times the observed ones", found.shape[1], times)
    if not found.shape[1]:
        return None
    both = torch.cat([context.edges, found.to(context.edges.device)], dim=1)
    return Adjacency.bipartite(both, n_users=context.n_users, n_items=context.n_items)


PAPER = Preset(
    "The paper's equations with its values for Amazon Baby (table 3): its scores in the backbone's place, experts as "
    "MLPs, 150 edges a user, the literal trigger, BPR as a sum over the batch.",
    settings={
        "mode": "pair",
        "base": "none",
        "neighbours": 20,
        "induced": 150,
        "content_width": 0,
        "leave_one_out": False,
        "expert_input": "concat",
        "trigger": "paper",
        "lambda_view": 0.01,
        "reduction": "sum",
    },
    host={
        "embedding_size": 64,
        "n_layers": 2,
        "learning_rate": 1e-3,
        "train_batch_size": 1024,
        "epochs": 200,
        "stopping_step": 5,
        "valid_metric": "NDCG@20",
        "topk": [10, 20],
        # Eq. 32 is of all parameters, which the optimiser alone knows: the gradient of 2e-5 |theta|^2 beside a sum over
        # 1,024 pairs, as a mean. The backbone's own penalty is of a batch's rows.
        "weight_decay": 2 * 2e-5 / 1024,
        "reg_weight": 0.0,
    },
)
ABLATIONS: dict[str, dict[str, Any]] = {
    "MAGNET-SV (single view)": {"induced": 0},
    "w/o MoE": {"structure": "single"},
    "w/o templates": {"structure": "free"},
    "w/o view contrast": {"lambda_view": 0.0},
    "w/o routing losses (λ_r = 0)": {"lambda_route": 0.0},
    "coverage only": {"trigger": "fixed@100000"},
    "confidence only": {"trigger": "fixed@0"},
    "fixed switch": {"trigger": "fixed@20"},  # the paper's T/2, with its best epoch on Baby (40) for T
    "Quad-Ent": {"weighting": "quadratic"},
    "Const": {"weighting": "constant"},
    "Rev-Ent": {"weighting": "reversed"},
}
MECHANISMS: dict[str, dict[str, Any]] = {
    "experts on fixed mixes of behaviour and content": {"structure": "single"},
    "a second view": {"induced": 0},
}


@hookimpl
def recplug_plugin() -> Plugin:
    """MAGNET."""
    return Plugin(
        name="magnet",
        summary="experts on fixed mixes of behaviour and content, routed by pair or item, and a second view of graphs",
        paper="MAGNET, arXiv 2602.20723",
        settings=MagnetSettings,
        requirements=requirements,
        build=build,
        identity={"base": "views", "gamma": 0.0},
        presets={"paper": PAPER},
        ablations=ABLATIONS,
        mechanisms=MECHANISMS,
    )
