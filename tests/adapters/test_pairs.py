"""Every ordered pair of plugins on a sequential, a graph and a two-table toy: it trains, or is refused in one line."""

import itertools

import pytest

from recplug.adapters.chain_builder import build_chain
from recplug.plugins import available
from recplug.plugins.errors import RecplugError
from recplug.plugins.presets import settings_of
from recplug.plugins.testing import Case, ToyHost
from recplug.plugins.testing.case import trained

PLUGINS = available()
PAIRS = list(itertools.permutations(PLUGINS, 2))
TOYS = ("mean-ce", "nodes-bpr", "graph-bpr")  # sequential; a graph with two tables and nodes; two tables


def build(names, host):
    """The chain of these plugins on a toy, as an adapter builds it."""
    cases = [Case(PLUGINS[name], settings_of(PLUGINS[name], {}), host) for name in names]
    backbone = cases[0].backbone()
    context = cases[0].context(backbone)
    settings = {case.plugin.name: case.settings for case in cases}
    chain = build_chain(settings, context, seams=backbone.seams, encoder=backbone.family == "sequential")
    return ToyHost(backbone, chain.augmentations(), context), cases[0].batch()


@pytest.mark.parametrize("host", TOYS)
@pytest.mark.parametrize("names", PAIRS, ids=",".join)
def test_a_pair_trains_or_is_refused_before_training(names, host):
    refusal = None
    try:
        model, batch = build(names, host)
    except RecplugError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        return
    scores = trained(model, batch).scores(batch)
    assert scores.isfinite().all()


def test_a_plugin_behind_one_that_widens_nodes_is_built_for_their_width():
    model, batch = build(("ssr", "magnet"), "nodes-bpr")
    _, items = model.backbone()
    assert items.shape[1] > model.backbone.items.embedding_dim
    assert model.scores(batch).isfinite().all()


@pytest.mark.parametrize("names", [("ssr", "filter"), ("filter", "ssr")], ids=",".join)
def test_the_content_filter_is_added_once(names):
    given = {"ssr": {"signal": True}, "filter": {}}
    settings = {name: settings_of(PLUGINS[name], given[name]) for name in names}
    backbone = Case(PLUGINS["ssr"], settings["ssr"], "nodes-bpr").backbone()
    context = Case(PLUGINS["ssr"], settings["ssr"], "nodes-bpr").context(backbone)
    with pytest.raises(RecplugError, match=r"both bring the content filter.*ssr\.signal=false"):
        build_chain(settings, context, seams=backbone.seams, encoder=False)
