"""The graph seam of RecBole's models, and which of them the plugin ``itemgraph`` fits, alone and with others."""

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recplug.adapters.recbole.graft.hosts import HOSTS
from recplug.plugins import get
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import Adjacency

WITH_GRAPH = [host.name for host in HOSTS.values() if host.graph]
NODES = [host.name for host in HOSTS.values() if host.nodes]
USERS = torch.tensor([1, 7, 30, 59])


def losses(model, batch):
    init_seed(17, True)
    parts = model.train().calculate_loss(batch)
    return parts if isinstance(parts, tuple) else (parts,)


def graph_of(model):
    return getattr(model, model.recplug_host.graph)


def training_graphs(model, batch, monkeypatch):
    """The graphs that the host multiplied by in a step of training, and in an evaluation after it."""
    seen = []
    times = Adjacency.times
    monkeypatch.setattr(Adjacency, "times", lambda graph, x: (seen.append(graph), times(graph, x))[1])
    assert all(part.isfinite().all() for part in losses(model, batch))
    training, seen[:] = list(seen), []
    model.eval()
    with torch.no_grad():
        model.full_sort_predict(Interaction({model.USER_ID: USERS}))
    return training, list(seen)


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_training_propagates_over_fewer_edges_and_evaluation_over_all(name, build, batch_of, monkeypatch):
    settings = {"itemgraph": {"edge_dropout": 0.75, "item_weight": 0.0, "user_weight": 0.0}}
    _, model, train, *_ = build(name, "itemgraph", settings)
    whole = graph_of(model)
    training, evaluation = training_graphs(model, batch_of(train), monkeypatch)
    assert graph_of(model) is whole
    dropped = model.recplug.plugins["itemgraph"]._drawn
    assert dropped.nnz == 2 * int(whole.nnz / 2 * 0.25)
    assert any(graph is dropped for graph in training)
    assert whole in evaluation
    assert dropped not in evaluation
    if name == "LightGCN":
        assert whole not in training


def test_edges_are_dropped_in_proportion_to_the_hosts_own_normalisation(build):
    _, model, *_ = build("LightGCN", "itemgraph")
    told, graph = model.recplug, graph_of(model)
    row, col = graph.indices()
    degree = torch.bincount(row, minlength=graph.shape[0]).double()
    torch.testing.assert_close(graph.values().double(), (degree[row] * degree[col]).rsqrt(), rtol=1e-5, atol=0)
    assert told.acting("graph")


@pytest.mark.parametrize("name", ["DGCF", "SpectralCF", "GCMC"])
def test_other_hosts_refuse_edge_dropout_by_name_and_take_the_rest(name, build):
    with pytest.raises(RecplugError, match=f"{name} does not offer.*LightGCN.*set edge_dropout to 0"):
        build(name, "itemgraph")
    build(name, "itemgraph", {"itemgraph": {"edge_dropout": 0.0}})


def test_without_fast_products_it_says_so(build):
    with pytest.raises(RecplugError, match="fast_propagation"):
        build("LightGCN", "itemgraph", fast_propagation=False)


@pytest.mark.parametrize(("name", "why"), [("SASRec", "works on graph backbones"), ("BPR", "propagated")])
def test_hosts_that_do_not_propagate(name, why, build):
    with pytest.raises(RecplugError, match=why):
        build(name, "itemgraph", {"itemgraph": {"edge_dropout": 0.0}})


@pytest.mark.parametrize(("other", "without"), [("ssr", {"item_layers": 0}), ("mars", {"structure": "none"})])
def test_a_model_takes_one_content_graph_of_items(other, without, build):
    for names in (f"itemgraph,{other}", f"{other},itemgraph"):
        with pytest.raises(
            RecplugError, match=rf"both bring a content graph over items.*--{other}\.{next(iter(without))}"
        ):
            build("LightGCN", names)
        build("LightGCN", names, {other: without})
        build("LightGCN", names, {"itemgraph": {"item_weight": 0.0}})


def test_with_magnet_in_either_order(build, batch_of):
    for names in ("itemgraph,magnet", "magnet,itemgraph"):
        _, model, train, *_ = build("LightGCN", names)
        sum(losses(model, batch_of(train))).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NODES)
def test_it_trains_and_is_off_at_its_identity(name, build, batch_of):
    on = {"edge_dropout": get("itemgraph").settings().edge_dropout if name in WITH_GRAPH else 0.0}
    _, model, train, *_ = build(name, "itemgraph", {"itemgraph": on})
    sum(losses(model, batch_of(train))).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    found = []
    for plugins, settings in (("itemgraph", {"itemgraph": dict(get("itemgraph").identity)}), ("", None)):
        _, other, train, *_ = build(name, plugins, settings, trim_padding=False, fast_propagation=False)
        found.append(losses(other, batch_of(train)))
    for mine, bare in zip(*found, strict=True):
        assert torch.equal(mine, bare)
