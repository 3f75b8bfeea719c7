"""MICRec's entry in the registry."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from recplug.plugins.contract import Context, Plugin, Requirements, Side
from recplug.plugins.errors import RecplugError
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.micrec.content import Content, content_vectors, text_first, user_content
from recplug.plugins.micrec.diagnostics import skewness
from recplug.plugins.micrec.module import Micrec, MicrecNodes
from recplug.plugins.micrec.neighbours import neighbourhood
from recplug.plugins.micrec.settings import MicrecSettings
from recplug.plugins.micrec.templates import Templates
from recplug.plugins.nn.knn import Neighbours
from recplug.plugins.settings import Preset

log = logging.getLogger("recplug")


def requirements(settings: MicrecSettings) -> Requirements:
    """What these settings need."""
    return Requirements(
        seams=frozenset({"tables", "losses"}),
        optional=frozenset({"propagated"}),
        modalities=1 if settings.modalities else 0,
        second_domain="required" if settings.source else "optional",
    )


def build(settings: MicrecSettings, context: Context) -> Micrec:
    """Make MICRec for one backbone."""
    nodes, has_users = "propagated" in context.width, "users" in context.width
    n_users = context.n_rows.get("users", context.n_users)
    n_rows, width = context.n_rows["items"], context.width["items"]
    if has_users and context.width["users"] != width:
        raise RecplugError(
            f"{context.host} has users of width {context.width['users']} and items of width {width}; micrec makes one "
            "from the other and needs them alike"
        )
    edges = torch.unique(context.edges.to(context.device), dim=1)
    degrees: dict[Side, Tensor] = {
        "users": torch.bincount(edges[0], minlength=n_users),
        "items": torch.bincount(edges[1], minlength=n_rows),
    }
    templates = None
    if settings.templates:
        templates = Templates(
            edges=edges,
            n_users=n_users,
            n_rows=n_rows,
            width=width,
            share=settings.share,
            annealing=settings.annealing,
            dropout=settings.edge_dropout,
            of_users=has_users,
            seed=context.seed,
        )
    contents, neighbours = _likeness(settings, context, edges, degrees, has_users)
    make = MicrecNodes if nodes else Micrec
    return make(
        settings=settings,
        templates=templates,
        neighbours=neighbours,
        contents=contents,
        degrees=degrees,
        width=width,
        own_users=0 if has_users else n_users,
        source=context.source,
        vector_width=context.width["propagated" if nodes else "users" if has_users else "items"],
        loss_sum=context.loss_reduction == "sum",
        seed=context.seed,
    )


def _likeness(
    settings: MicrecSettings, context: Context, edges: Tensor, degrees: dict[Side, Tensor], has_users: bool
) -> tuple[dict[Side, Content], dict[Side, Neighbours]]:
    """Content and nearest neighbours of each side that is refined."""
    known = {side: degree > 0 for side, degree in degrees.items()}
    contents: dict[Side, Content] = {}
    neighbours: dict[Side, Neighbours] = {}
    modalities = context.content(settings.modalities, of="micrec")
    if not modalities or not settings.neighbours:
        if settings.neighbours:
            log.info("micrec: no content here, so nothing has content neighbours; name some with --features.text FILE")
        return contents, neighbours
    names = [m.name for m in modalities]
    default = MicrecSettings.model_fields["text_weight"].default
    if settings.text_weight != default and ("text" not in names or len(names) == 1):
        raise RecplugError(
            f"micrec.text_weight weighs 'text' against other modalities, and there is {', '.join(names)} alone; leave "
            "it out"
        )
    weights = text_first(names, settings.text_weight)
    contents["items"] = items = content_vectors(
        modalities, weights, len(known["items"]), known=known["items"], device=context.device
    )
    neighbours["items"] = neighbourhood(items, known["items"], settings.neighbours)
    if has_users:
        contents["users"] = users = user_content(items, edges, len(known["users"]))
        neighbours["users"] = neighbourhood(users, known["users"], settings.neighbours)
    for side, found in neighbours.items():
        most, skew = _hubs(found)
        log.info("micrec: %s have content neighbours; the likeliest is so for %d, skewness %.1f", side, most, skew)
    # Only what comes later is compared with it.
    return {side: each.to("cpu") for side, each in contents.items()}, neighbours


def _hubs(found: Neighbours) -> tuple[int, float]:
    times = torch.bincount(found.index[found.valid], minlength=len(found.index))
    return int(times.max()), skewness(times[found.valid.any(dim=1)])


PAPER = Preset(
    "What is known of the paper: representations in the place of the backbone's rows, three layers, the contrast at "
    "its full weight from the first epoch, and nothing borrowed. Its formulas and the other values were not available.",
    settings={"join": "replace", "isolated": "keep", "gamma": 1.0, "warm_up": 0},
    host={"n_layers": 3},
)
INMO = Preset(
    "INMO's code with LightGCN, what MICRec builds on: templates alone, without content and a second domain.",
    settings={"join": "replace", "neighbours": 0, "gamma": 0.0, "edge_dropout": 0.3},
    host={
        "n_layers": 3,
        "embedding_size": 64,
        "reg_weight": 0.0,
        "learning_rate": 0.001,
        "train_batch_size": 2048,
        "epochs": 1000,
        "stopping_step": 50,
        "valid_metric": "NDCG@20",
        "topk": [20],
    },
)


@hookimpl
def recplug_plugin() -> Plugin:
    """MICRec."""
    return Plugin(
        name="micrec",
        summary="users and items from each other's templates and content neighbours; transfer where a source is named",
        paper="MICRec, arXiv 2510.21812",
        settings=MicrecSettings,
        requirements=requirements,
        build=build,
        identity={"templates": False, "neighbours": 0, "lambda_self": 0.0, "gamma": 0.0},
        presets={"paper": PAPER, "inmo": INMO},
        ablations={
            "w/o multimodal": {"neighbours": 0},
            "w/o cross-domain": {"gamma": 0.0},
            "w/o self-enhanced": {"lambda_self": 0.0},
            "w/o annealing": {"annealing": 1.0},
        },
        mechanisms={"templates": {"templates": False}, "content neighbours": {"neighbours": 0}},
    )
