"""The filter's entry in the registry."""

from __future__ import annotations

import logging

from recplug.plugins.contract import Context, Plugin, Requirements
from recplug.plugins.filter.module import ContentFilter
from recplug.plugins.filter.settings import FilterSettings
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.nn.closed_form import ClosedForm
from recplug.plugins.nn.content import similarity_graph
from recplug.plugins.nn.smoothing import CONTENT_FILTER

log = logging.getLogger("recplug")


def requirements(settings: FilterSettings) -> Requirements:
    """Scores, where items are ranked; content is not needed."""
    adds = settings.alone or settings.fit or settings.weight != 0
    return Requirements(
        seams=frozenset({"score"}),
        halves=frozenset({"ranking"}),
        brings={CONTENT_FILTER: "filter.weight=0"} if adds else {},
    )


def build(settings: FilterSettings, context: Context) -> ContentFilter:
    """Make the filter for one backbone."""
    modalities = context.content(settings.modalities, of="filter")
    content = None
    if modalities and settings.order:
        content = similarity_graph(
            modalities,
            context.neighbours,
            n_rows=context.n_items,
            k=settings.neighbours,
            image_weight=settings.image_weight,
            cache=context.cache,
        ).to(context.device)
    form = ClosedForm(
        context.edges, n_users=context.n_users, n_items=context.n_items, content=content, order=settings.order
    )
    if settings.alone:
        log.info("filter: alone; the backbone is not trained, and its scores do not count")
    return ContentFilter(settings=settings, form=form, sequential=context.family == "sequential", cache=context.cache)


@hookimpl
def recplug_plugin() -> Plugin:
    """The filter."""
    return Plugin(
        name="filter",
        summary="the closed-form content graph filter, added to the backbone's ranking as validation says, or alone",
        paper="ours; related: MM-GF, arXiv 2503.04406; GF-CF, arXiv 2108.07567; LinkProp, arXiv 2207.12680",
        settings=FilterSettings,
        requirements=requirements,
        build=build,
        identity={"weight": 0.0, "alone": False, "fit": False},
        ablations={
            "w/o content": {"order": 0},
            "w/o degrees": {"users": 0.0, "history": 0.0, "items": 0.0, "popularity": 0.0},
        },
        mechanisms={"content graph": {"order": 0}},
    )
