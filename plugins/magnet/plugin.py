"""MAGNET's entry in the registry."""

from __future__ import annotations

import logging
from functools import partial

import torch

from recplug.plugins.contract import Context, Modality, Plugin, Requirements, Seam
from recplug.plugins.errors import RecplugError
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.magnet.induced import induced_edges
from recplug.plugins.magnet.items import MagnetNodes, MagnetTable
from recplug.plugins.magnet.module import Magnet
from recplug.plugins.magnet.pairs import MagnetPairs
from recplug.plugins.magnet.settings import OF_NODES, MagnetSettings
from recplug.plugins.nn.propagation import Adjacency, lightgcn

log = logging.getLogger("recplug")
LAYERS = 2  # of LightGCN's rule, where the host says nothing


def requirements(settings: MagnetSettings) -> Requirements:
    """What these settings need."""
    if settings.mode == "pair":
        return Requirements(seams=frozenset({"losses", "score"}), modalities=1)
    places: set[Seam] = {"items", "propagated"}
    if settings.mode == "auto":
        places.add("score")
    return Requirements(seams=frozenset({"losses"}), one_of=frozenset(places), modalities=1)


def build(settings: MagnetSettings, context: Context) -> Magnet:
    """Make MAGNET for one backbone."""
    modalities = context.content(settings.modalities, of="magnet")
    if not modalities:
        raise RecplugError("magnet.modalities is empty, and MAGNET mixes behaviour with content; name one")
    if settings.mode == "pair" or (settings.mode == "auto" and context.scores):
        return _pairs(settings, context, modalities)
    if settings.mode == "auto":
        log.info("magnet: %s does not let plugins change scores; items are routed by themselves", context.host)
    if settings.views == "dv":
        raise RecplugError("magnet.views dv contrasts behaviour of pairs; set magnet.views to auto or sv in node mode")
    if settings.expert_input not in OF_NODES:
        raise RecplugError(
            f"magnet.expert_input {settings.expert_input} is of pairs, and {context.host} takes node mode; set "
            f"{' or '.join(OF_NODES)}"
        )
    if settings.rerank_top:
        raise RecplugError(f"magnet.rerank_top is of pairs, and {context.host} takes node mode; leave it out")
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
    induced = None
    if settings.views != "sv" and not settings.inert:
        induced = _induced(settings, context, modalities)
    return MagnetPairs(
        settings=settings,
        modalities=modalities,
        n_rows=context.n_items,
        n_users=context.n_users,
        edges=context.edges,
        width=context.width["items"],
        induced=induced,
        propagate=context.propagate or partial(lightgcn, layers=LAYERS),
        seed=context.seed,
    )


def _induced(settings: MagnetSettings, context: Context, modalities: list[Modality]) -> Adjacency | None:
    """The training graph with content-induced edges; None where there are none, and the views would be the same."""
    found = induced_edges(
        modalities,
        context.edges,
        n_users=context.n_users,
        n_items=context.n_items,
        k=settings.neighbours,
        r=settings.induced,
        score=settings.induced_score,
        given=context.neighbours,
        cache=context.cache,
    )
    seen = len(torch.unique(context.edges[0] * context.n_items + context.edges[1]))
    times = found.shape[1] / max(seen, 1)
    log.info("magnet: %d content-induced edges, %.2f times the observed ones", found.shape[1], times)
    if not found.shape[1]:
        return None
    both = torch.cat([context.edges, found.to(context.edges.device)], dim=1)
    return Adjacency.bipartite(both, n_users=context.n_users, n_items=context.n_items)


@hookimpl
def recplug_plugin() -> Plugin:
    """MAGNET."""
    return Plugin(
        name="magnet",
        summary="experts on fixed mixes of behaviour and content, routed by pair or item in two stages",
        paper="MAGNET, arXiv 2602.20723",
        settings=MagnetSettings,
        requirements=requirements,
        build=build,
        identity={"join": "residual", "gamma": 0.0, "learn_gamma": False},
    )
