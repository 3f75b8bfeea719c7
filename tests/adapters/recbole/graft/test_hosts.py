"""One behaviour, every model of RecBole: off means off, on means trained, and nothing else changes."""

import copy
import logging
import pickle

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender, SequentialRecommender
from recbole.utils import init_seed

from recplug.adapters.recbole.augment import Grafted, augment
from recplug.adapters.recbole.config.host_config import model_class, model_names
from recplug.adapters.recbole.graft.hosts import HOSTS, first_choices
from recplug.plugins import get
from recplug.plugins.errors import RecplugError
from recplug.plugins.table import ItemTable

SEQUENTIAL = [name for name, host in HOSTS.items() if host.status != "refused" and host.family == "sequential"]
USABLE = [name for name, host in HOSTS.items() if host.status != "refused"]
REFUSED = [name for name, host in HOSTS.items() if host.status == "refused"]
WITH_TABLE = [name for name in USABLE if HOSTS[name].table]  # GCMC has none, and PRISM acts on one
WITH_LOSS = [(name, loss) for name in WITH_TABLE for loss in (HOSTS[name].losses or (None,))]
# What is scored against is not the table that was grafted, or has no rows at all.
INPUT_ONLY = {"HGN", "RepeatNet"}
# A penalty on the fused table beside fused pairs: gradients are summed up in another order, equal but for rounding.
PENALISED = {"GCSAN", "NextItNet", "Caser"}
ON = {"prism": {"scale": 0.5, "candidates": "fused", "fusion": "user", "granularity": "position"}}


def loss_type(loss):
    return {} if loss is None else {"loss_type": loss}


def steps(model, batch_of, train, shown, count=2):
    """Losses, gradients, parameters and full-sort scores of a few optimiser steps, dropout on."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    init_seed(17, True)
    found = []
    for _ in range(count):
        model.train()
        optimiser.zero_grad()
        loss = model.calculate_loss(batch_of(train))
        loss = sum(loss) if isinstance(loss, tuple) else loss
        loss.backward()
        found.append(("loss", loss.detach()))
        found += [(f"gradient of {n}", p.grad.clone()) for n, p in host_parameters(model) if p.grad is not None]
        optimiser.step()
        model.eval()
        with torch.no_grad():
            found.append(("scores", scores_of(model, batch_of(shown))))
    return found


def scores_of(model, batch):
    """``[B, n_items]``, as RecBole's trainer asks for them."""
    try:
        return model.full_sort_predict(copy.deepcopy(batch)).reshape(len(batch), -1)
    except NotImplementedError:
        pairs = batch.repeat_interleave(model.n_items)
        pairs.update(Interaction({model.ITEM_ID: torch.arange(model.n_items).repeat(len(batch))}))
        return model.predict(pairs).reshape(len(batch), -1)


def host_parameters(model):
    return [(n, p) for n, p in model.named_parameters() if not n.startswith("recplug.")]


@pytest.mark.parametrize(("family", "base", "count"), [
    ("sequential", SequentialRecommender, 31), ("graph", GeneralRecommender, 33),
])  # fmt: skip
def test_the_table_lists_every_model(family, base, count):
    trees = ("xgboost", "XGBoost", "lightgbm", "LightGBM")
    found = {name for name in model_names() if name not in trees and issubclass(model_class(name), base)}
    assert found == {name for name, host in HOSTS.items() if host.family == family}
    assert len(found) == count
    assert set(first_choices(family)) <= set(USABLE)
    assert all(host.reason for host in HOSTS.values() if host.status != "supported")


@pytest.mark.parametrize("plugins", ["", "prism"])
@pytest.mark.parametrize(("name", "loss"), WITH_LOSS)
def test_off_means_off_bit_by_bit(name, loss, plugins, build, batch_of):
    _, bare, train, _, test = build(name, **loss_type(loss))
    settings = {"prism": dict(get("prism").identity)} if plugins else None
    if plugins and loss == "BPR" and name in PENALISED:
        settings["prism"]["candidates"] = "id"
    _, model, *_ = build(name, plugins, settings, trim_padding=False, fast_propagation=False, **loss_type(loss))
    assert type(model.recplug.item_table) is ItemTable
    wanted, found = steps(bare, batch_of, train, test), steps(model, batch_of, train, test)
    assert [n for n, _ in found] == [n for n, _ in wanted]
    assert [n for (n, a), (_, b) in zip(wanted, found, strict=True) if not torch.equal(a, b)] == []


GRAPH = [name for name in USABLE if HOSTS[name].family == "graph"]
PROPAGATING = [name for name in GRAPH if HOSTS[name].nodes]


@pytest.mark.usefixtures("probes")
@pytest.mark.parametrize("name", GRAPH)
def test_off_is_off_at_every_seam_of_a_graph_model(name, build, batch_of):
    host = HOSTS[name]
    names = [plugin for plugin, seam in (("shift", host.nodes), ("people", host.users), ("prism", host.table)) if seam]
    settings = {plugin: dict(get(plugin).identity) for plugin in names}
    _, bare, train, _, test = build(name)
    _, model, *_ = build(name, names, settings, fast_propagation=False)
    wanted, found = steps(bare, batch_of, train, test), steps(model, batch_of, train, test)
    assert [n for n, _ in found] == [n for n, _ in wanted]
    assert [n for (n, a), (_, b) in zip(wanted, found, strict=True) if not torch.equal(a, b)] == []


@pytest.mark.usefixtures("probes")
@pytest.mark.parametrize("name", PROPAGATING)
def test_off_with_fast_products_is_off_but_for_rounding(name, build, batch_of):
    plugin = "prism" if HOSTS[name].table else "shift"
    _, bare, train, _, test = build(name)
    _, model, *_ = build(name, plugin, {plugin: dict(get(plugin).identity)})
    assert model.recplug_fast
    wanted, found = steps(bare, batch_of, train, test), steps(model, batch_of, train, test)
    for (label, one), (_, other) in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5, msg=lambda m, label=label: f"{label}: {m}")


@pytest.mark.parametrize("name", sorted(PENALISED))
def test_off_with_a_penalty_on_the_fused_table_is_off_but_for_rounding(name, build, batch_of):
    settings = {"prism": {**get("prism").identity, "candidates": "fused"}}
    _, bare, train, _, test = build(name, loss_type="BPR")
    _, model, *_ = build(name, "prism", settings, trim_padding=False, loss_type="BPR")
    wanted, found = steps(bare, batch_of, train, test), steps(model, batch_of, train, test)
    for (label, one), (_, other) in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6, msg=label)


@pytest.mark.parametrize(("name", "loss"), WITH_LOSS)
def test_a_plugin_trains_and_evaluates(name, loss, build, batch_of):
    _, model, train, _, test = build(name, "prism", ON, **loss_type(loss))
    _, bare, *_ = build(name, **loss_type(loss))
    first = {n: p.detach().clone() for n, p in model.recplug.named_parameters()}
    model.eval(), bare.eval()
    with torch.no_grad():
        assert not torch.equal(scores_of(model, batch_of(test)), scores_of(bare, batch_of(test)))
    found = steps(model, batch_of, train, test)
    assert all(torch.isfinite(value).all() for _, value in found)
    assert [n for n, p in model.recplug.named_parameters() if p.grad is None and p.requires_grad] == []
    assert all(not torch.equal(p, first[n]) for n, p in model.recplug.named_parameters() if p.grad.abs().max() > 0)
    moved = {n.split(".")[2] for n, p in model.recplug.named_parameters() if not torch.equal(p, first[n])}
    assert moved == {"content", "experts", "gate", "scale"}
    with torch.no_grad():
        scores = scores_of(model, batch_of(test))
        assert torch.equal(scores, scores_of(model, batch_of(test)))
        assert torch.equal(model.recplug.item_table.weight[0], model.recplug.item_table.raw[0])
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_what_is_scored_against(name, build, batch_of):
    _, model, _, _, test = build(name, "prism", ON)
    _, unfused, *_ = build(name, "prism", {"prism": {**ON["prism"], "candidates": "id"}})
    table = model.recplug.item_table
    encode, seen = model.recplug_base.forward, []

    def spy(self, *args, **kwargs):
        seen.append(encode(self, *args, **kwargs))
        return seen[-1]

    model.eval(), unfused.eval()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        fused_scores = model.full_sort_predict(batch_of(test))
        assert torch.equal(fused_scores, unfused.full_sort_predict(batch_of(test))) == (name in INPUT_ONLY)
        patch.setattr(model.recplug_base, "forward", spy)
        model.recplug_trim = False
        scores = model.full_sort_predict(batch_of(test)).reshape(len(batch_of(test)), -1)
        users = seen[0]
        product = None
        if isinstance(users, torch.Tensor) and users.shape == (len(scores), table.embedding_dim):
            product = users @ table.weight[: scores.shape[1]].T
        dot = product is not None and torch.allclose(product, scores, rtol=1e-5, atol=1e-6)
    assert dot == HOSTS[name].dot


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_model_says_why_and_names_others(name):
    with pytest.raises(RecplugError) as refusal:
        augment(model_class(name), "prism")
    text = str(refusal.value)
    assert "\n" not in text
    assert name in text
    assert HOSTS[name].reason in text
    assert all(other in text for other in first_choices(HOSTS[name].family))


@pytest.mark.parametrize("name", [n for n in USABLE if HOSTS[n].losses == ("CE",)])
def test_a_restricted_loss_is_refused_by_name(name, build):
    with pytest.raises(RecplugError, match=f"^{name} takes loss_type CE, not BPR.*; set --loss_type CE$"):
        build(name, "prism", loss_type="BPR")


def test_pre_training_is_refused(build):
    with pytest.raises(RecplugError, match=r"^S3Rec works with .*fine-tuning only.*; set --train_stage finetune$"):
        build("S3Rec", "prism", train_stage="pretrain", train_neg_sample_args=None)


def test_ksr_fails_upstream_without_the_remedy(build, batch_of):
    """The remedy has a cause: with the vectors as RecBole hands them over, in float64, no step works."""
    _, bare, train, *_ = build("KSR")
    bare.entity_embedding.double()
    with pytest.raises(RuntimeError, match=r"same dtype|float.*double|Float.*Double|expected .* scalar type"):
        bare.calculate_loss(batch_of(train))


@pytest.mark.parametrize("name", [n for n in WITH_TABLE if not n.endswith("CPR")])
def test_flops_are_counted(name, build):
    from recbole.data.transform import construct_transform
    from recbole.utils import get_flops

    config, model, train, *_ = build(name, "prism", ON)
    before = {n: v.clone() for n, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    flops = get_flops(model, train.dataset, config["device"], logging.getLogger(), construct_transform(config))
    assert flops > 0
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items() if n in before)


@pytest.mark.parametrize("name", [n for n in USABLE if n.endswith("CPR")])
def test_the_cpr_models_cannot_predict_pairs_upstream(name, build, batch_of):
    _, bare, _, _, test = build(name)
    with pytest.raises(AssertionError):
        bare.predict(batch_of(test))


@pytest.mark.parametrize("name", WITH_TABLE)
def test_copies_and_checkpoints(name, build, batch_of):
    _, model, train, _, test = build(name, "prism", ON)
    _, bare, *_ = build(name)
    steps(model, batch_of, train, test, count=1)

    def scores(of):
        of.eval()
        with torch.no_grad():
            return scores_of(of, batch_of(test))

    wanted = scores(model)
    twin = copy.deepcopy(model)
    assert torch.equal(scores(twin), wanted)
    with torch.no_grad():
        twin.recplug.item_table.raw.zero_()
    assert not torch.equal(scores(twin), wanted)
    assert torch.equal(scores(model), wanted)

    state = copy.deepcopy(model.state_dict())
    # The same seed: some hosts draw neighbours that are no part of their state.
    _, other, *_ = build(name, "prism", ON)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert not torch.equal(scores(other), wanted)
    other.load_state_dict(state)
    assert torch.equal(scores(other), wanted)

    added = {key for key in state if key.startswith("recplug.")}
    assert {key.split(".")[1] for key in added} == {"plugins"}
    missing, unexpected = other.load_state_dict(bare.state_dict(), strict=False)
    assert (set(missing), unexpected) == (added, [])
    bare.load_state_dict({key: value for key, value in state.items() if key not in added})
    for key, value in host_parameters(model):
        assert torch.equal(dict(bare.named_parameters())[key], value)


@pytest.mark.parametrize("name", USABLE)
def test_the_class_can_be_pickled(name):
    made = augment(model_class(name), "prism", {"prism": {"scale": 0.25}})
    found = pickle.loads(pickle.dumps(made))
    assert issubclass(found, (Grafted, model_class(name)))
    assert (found.__name__, found.recplug_base) == (name, model_class(name))
    assert (found.recplug_names, found.recplug_settings) == (("prism",), {"prism": {"scale": 0.25}})


def test_an_alias_of_the_table_is_the_table(build, batch_of):
    _, model, _, _, test = build("GRU4RecCPR", "prism", ON)
    assert model.out_item_embedding is model.item_embedding is model.recplug.item_table
    model.eval()
    with torch.no_grad():
        fused = model.full_sort_predict(batch_of(test))
        model.recplug.plugins["prism"].roles = frozenset({"input"})
        model.recplug.forget()
        assert not torch.equal(model.full_sort_predict(batch_of(test)), fused)


@pytest.mark.parametrize("fusion", ["item", "user"])
@pytest.mark.parametrize("loss", ["CE", "BPR"])
def test_a_loss_that_reads_other_users_histories_finds_their_items(loss, fusion, build, batch_of):
    settings = {"prism": {"scale": 0.5, "candidates": "id", "fusion": fusion}}
    more = {"contrast": "su", "sim": "dot", "tau": 1.0, "loss_type": loss}
    _, model, train, *_ = build("FEARec", "prism", settings, **more)
    whole = batch_of(train)
    for few in range(0, 40, 5):
        losses = model.calculate_loss(whole[torch.arange(few, few + 5)])
        assert all(part.isfinite() for part in losses)
