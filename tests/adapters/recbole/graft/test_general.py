"""General models: propagated nodes and users pass through plugins, and nothing that is kept outlives its parameters."""

import copy
import csv
import json
import pickle
import sys

import pyarrow.parquet as pq
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.loss import BPRLoss
from recbole.utils import InputType, get_trainer, init_seed
from torch import nn

from recplug.adapters.recbole import augment, run
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.graft.hosts import HOSTS
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import Adjacency

pytestmark = pytest.mark.usefixtures("probes")

GRAPH = [host for host in HOSTS.values() if host.family == "graph" and host.status != "refused"]
NODES = [host.name for host in GRAPH if host.nodes]
FREE = [host.name for host in GRAPH if host.free_width]
WITH_USERS = [host.name for host in GRAPH if host.users]
REFUSED = [host.name for host in HOSTS.values() if host.status == "refused"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def arguments_of(model):
    return [getattr(model, name) for name in model.recplug_host.node_arguments]


def plain_nodes(model):
    """What the host propagates, asked past the plugins."""
    host = model.recplug_host
    if host.nodes == "forward":
        return model.recplug_base.forward(model, *arguments_of(model))[:2]
    encoder = getattr(model, host.nodes)
    return type(encoder).forward(encoder, *arguments_of(model))


def loss_of(model, batch):
    init_seed(17, True)
    model.train()
    parts = model.calculate_loss(copy.deepcopy(batch))
    return parts if isinstance(parts, tuple) else (parts,)


def pairs_of(model, users):
    """Every item for each of ``users [u]``, as pairs."""
    fields = {
        model.USER_ID: users.repeat_interleave(model.n_items),
        model.ITEM_ID: torch.arange(model.n_items).repeat(len(users)),
    }
    return Interaction(fields)


def evaluating(model):
    """Switch once, as RecBole's trainer does: a switch drops what was kept."""
    if model.training:
        model.eval()


@torch.no_grad()
def predicted(model, users):
    """``[u, n_items]``, pair by pair."""
    evaluating(model)
    return model.predict(pairs_of(model, users)).reshape(len(users), -1)


@torch.no_grad()
def ranked(model, users):
    """``[u, n_items]``, all items at once."""
    evaluating(model)
    return model.full_sort_predict(Interaction({model.USER_ID: users})).reshape(len(users), -1)


USERS = torch.tensor([1, 7, 30, 59])


# -- propagated nodes


@pytest.mark.parametrize(
    ("name", "plugin"),
    [(n, "shift") for n in NODES] + [(n, "widen") for n in FREE] + [(n, "people") for n in WITH_USERS],
)
def test_a_plugin_trains_and_evaluates(name, plugin, build, batch_of):
    _, model, train, *_ = build(name, plugin)
    _, bare, *_ = build(name)
    mark = model.recplug.plugins[plugin].mark
    with torch.no_grad():
        assert (predicted(model, USERS) != predicted(bare, USERS)).float().mean() > 0.9
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        before = mark.detach().clone()
        optimiser.zero_grad()
        loss = sum(loss_of(model, batch_of(train)))
        loss.backward()
        assert loss.isfinite().all()
        assert mark.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimiser.step()
        assert not torch.equal(mark, before)
        pairs = predicted(model, USERS)
        assert pairs.isfinite().all()
        try:
            everything = ranked(model, USERS)
        except NotImplementedError:
            continue
        torch.testing.assert_close(everything, pairs, **CLOSE)


@pytest.mark.parametrize("name", NODES)
def test_scores_are_of_the_nodes_that_the_plugin_gives(name, build):
    _, model, *_ = build(name, "shift")
    mark = model.recplug.plugins["shift"].mark
    model.eval()
    with torch.no_grad():
        users, items = plain_nodes(model)
        users, items = users + 0.5 * mark[0], items + 0.5 * mark[1]
        expected = users[USERS] @ items.T
        if name == "GCMC":
            expected = model.BiDecoder(users, items, USERS, None)[:, 1].reshape(len(USERS), -1)
    torch.testing.assert_close(predicted(model, USERS), expected, **CLOSE)
    torch.testing.assert_close(ranked(model, USERS), expected, **CLOSE)


@pytest.mark.parametrize("name", FREE)
def test_wider_nodes_are_scored_whole_and_after_the_plugin_before_them(name, build):
    _, model, *_ = build(name, "shift,widen")
    shift, beside = model.recplug.plugins["shift"].mark, 0.5 * model.recplug.plugins["widen"].mark
    model.eval()
    with torch.no_grad():
        users, items = plain_nodes(model)
        users = torch.cat([users + 0.5 * shift[0], beside[: len(users)]], dim=1)
        items = torch.cat([items + 0.5 * shift[1], beside[-len(items) :]], dim=1)
    torch.testing.assert_close(ranked(model, USERS), users[USERS] @ items.T, **CLOSE)


@pytest.mark.parametrize("name", NODES)
def test_a_plugin_is_told_the_width_of_the_nodes(name, build):
    _, model, *_ = build(name, "shift")
    told, host = model.recplug.plugins["shift"].told, HOSTS[name]
    model.eval()
    with torch.no_grad():
        users, items = plain_nodes(model)
    assert told.width["propagated"] == users.shape[1] == items.shape[1]
    assert told.width["propagated"] == {"NGCF": 16 + 16 + 8, "SpectralCF": 16 * 5}.get(name, 16)
    assert (told.free_width, told.others_nodes) == (host.free_width, host.others_nodes)
    assert (len(users), len(items)) == (told.n_users, told.n_items)
    assert told.loss_reduction == ("sum" if name == "SGL" else "mean")
    tables = {side for side, attribute in (("users", host.users), ("items", host.table)) if attribute}
    assert set(told.n_rows) == tables
    assert set(told.width) == {*tables, "propagated"}


def test_asking_for_the_width_draws_no_random_number(build):
    """NGCF drops nodes while it propagates in training mode."""
    states = []
    for plugins in (None, "shift"):
        build("NGCF", plugins, node_dropout=0.5)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("name", NODES)
def test_a_step_asks_the_plugin_once(name, build, batch_of):
    _, model, train, *_ = build(name, "shift")
    seen = model.recplug.plugins["shift"].seen
    seen.clear()
    loss_of(model, batch_of(train))
    assert len(seen) == 1


@pytest.mark.parametrize("name", NODES)
def test_an_evaluation_asks_the_plugin_once_except_where_the_host_propagates_anew(name, build):
    _, model, *_ = build(name, "shift")
    seen = model.recplug.plugins["shift"].seen
    model.eval()
    seen.clear()
    for users in (USERS, USERS + 1):
        ranked(model, users)
    assert len(seen) == (2 if name == "GCMC" else 1)
    seen.clear()
    for users in (USERS, USERS + 1):
        predicted(model, users)
    # NCL returns more than nodes: they cannot be kept for it.
    assert len(seen) == (2 if name in ("GCMC", "NCL") else 0)


# -- what a host keeps


def perturbed(state):
    generator = torch.Generator().manual_seed(9)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator) if key.endswith(("weight", "mark")) else value
        for key, value in state.items()
    }


def fresh_scores(model):
    """What the parameters say, from a copy that has kept nothing."""
    twin = copy.deepcopy(model)
    twin.train()
    twin.recplug.forget()
    assert all(getattr(twin, name, None) is None for name in ("restore_user_e", "restore_item_e"))
    return ranked(twin, USERS)


@pytest.mark.parametrize("plugin", ["shift", "prism"])
@pytest.mark.parametrize("name", [n for n in NODES if n != "GCMC"])
def test_kept_nodes_end_with_the_parameters(name, plugin, build, batch_of):
    _, model, train, *_ = build(name, plugin)
    before = ranked(model, USERS)
    assert model.restore_user_e is not None
    assert torch.equal(ranked(model, USERS), before)

    def moved():
        nonlocal before
        for ask in (predicted, ranked):
            found = ask(model, USERS)
            assert not torch.allclose(found, before, **CLOSE)
            torch.testing.assert_close(found, fresh_scores(model), **CLOSE)
        before = ranked(model, USERS)

    model.load_state_dict(perturbed(model.state_dict()))
    moved()
    with torch.no_grad():
        model.user_embedding.raw[USERS] *= 3.0
    moved()
    with torch.no_grad():
        next(model.recplug.parameters()).add_(1.0)
    moved()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    sum(loss_of(model, batch_of(train))).backward()
    optimiser.step()
    moved()
    model.train()
    assert model.restore_user_e is None
    assert model.restore_item_e is None


@pytest.mark.parametrize("name", [n for n in NODES if n != "GCMC"])
def test_a_checkpoint_holds_no_nodes_and_a_vanilla_model_loads_it(name, build, tmp_path):
    _, model, *_ = build(name, "shift")
    _, bare, *_ = build(name)
    ranked(model, USERS)
    saved = {"state_dict": model.state_dict(), "other_parameter": model.other_parameter()}
    assert saved["other_parameter"].keys() == bare.other_parameter().keys()
    assert set(saved["other_parameter"].values()) == {None}
    torch.save(saved, tmp_path / "checkpoint.pth")
    found = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    state = perturbed({key: value for key, value in found["state_dict"].items() if not key.startswith("recplug.")})
    ranked(bare, USERS)
    bare.load_state_dict(state)
    bare.load_other_parameter(found["other_parameter"])
    with torch.no_grad():
        users, items = bare.forward(*arguments_of(model))[:2] if name == "SGL" else bare.forward()[:2]
    torch.testing.assert_close(ranked(bare, USERS), users[USERS] @ items.T, **CLOSE)


@pytest.mark.parametrize("name", [n for n in NODES if n != "GCMC"])
def test_a_vanilla_checkpoint_brings_no_nodes(name, build):
    _, model, *_ = build(name, "shift")
    _, bare, *_ = build(name)
    wanted = ranked(model, USERS)
    ranked(bare, USERS)
    saved = {"other_parameter": bare.other_parameter(), "state_dict": bare.state_dict()}
    assert saved["other_parameter"]["restore_user_e"] is not None
    model.load_state_dict(saved["state_dict"], strict=False)
    model.load_other_parameter(saved["other_parameter"])
    assert model.restore_user_e is None
    assert torch.equal(ranked(model, USERS), wanted)


# -- hosts with something of their own


def test_sgls_two_views_are_the_hosts_own(build, batch_of):
    _, model, train, *_ = build("SGL", "shift")
    model.train()
    shift = model.recplug.plugins["shift"]
    with torch.no_grad():
        for graph in (model.sub_graph1, model.sub_graph2):
            for found, own in zip(model.forward(graph), model.recplug_base.forward(model, graph), strict=True):
                torch.testing.assert_close(found, own, **CLOSE)
    shift.seen.clear()
    loss_of(model, batch_of(train))
    ((users, items),) = shift.seen
    for found, own in zip((users, items), plain_nodes(model), strict=True):
        torch.testing.assert_close(found, own, **CLOSE)


@pytest.mark.parametrize(("name", "summed"), [("SGL", True), ("ENMF", True), ("ConvNCF", True), ("LightGCN", False)])
def test_a_plugins_loss_weighs_as_much_as_the_hosts(name, summed, build, batch_of):
    settings = {"people": {"scale": 0.0, "penalty": 0.375}}
    _, model, train, *_ = build(name, "people", settings)
    _, bare, *_ = build(name)
    batch = batch_of(train)
    host, total = loss_of(model, batch)
    assert total == (0.375 * len(batch) if summed else 0.375)
    torch.testing.assert_close(host, loss_of(bare, batch)[0], **CLOSE)
    # The host's own loss of the batch twice tells whether it is a sum over the batch.
    if name != "ENMF":  # it has one row a user
        twice = Interaction({key: torch.cat([batch[key], batch[key]]) for key in batch.columns})
        reg = {"reg_weight": 0.0} if name == "LightGCN" else {"reg_weight": 0.0, "ssl_weight": 0.0}
        reg = {"reg_1": 0.0, "reg_2": 0.0, "reg_weights": [0.0, 0.0]} if name == "ConvNCF" else reg
        _, free, *_ = build(name, **reg, **({"dropout_prob": 0.0} if name == "ConvNCF" else {}))
        once, double = (loss_of(free, each)[0].sum() for each in (batch, twice))
        torch.testing.assert_close(double, once * (2 if summed else 1), **CLOSE)


NCL_SETTINGS = {"shift": {"scale": 0.0, "penalty": 0.25}}


def test_ncls_last_part_stays_last(build, batch_of):
    _, model, train, *_ = build("NCL", "shift", NCL_SETTINGS, fast_propagation=False)
    _, bare, *_ = build("NCL")
    host, structure, total, prototypes = loss_of(model, batch_of(train))
    assert total == 0.25
    for found, own in zip((host, structure, prototypes), loss_of(bare, batch_of(train)), strict=True):
        assert torch.equal(found, own)
    assert set(model.recplug.read_parts()) == {"backbone", "backbone.2", "backbone.3", "shift.size"}


def test_ncls_warm_up_leaves_out_its_own_last_loss_only(build, tmp_path):
    config, model, train, *_ = build("NCL", "shift", NCL_SETTINGS, warm_up_step=1, m_step=1, epochs=2)
    config["checkpoint_dir"] = str(tmp_path)
    epochs, compute = [[]], model.calculate_loss

    def recorded(interaction):
        parts = compute(interaction)
        epochs[-1].append([float(part.detach()) for part in parts])
        return parts

    with pytest.MonkeyPatch.context() as patch, recbole_compat():
        patch.chdir(tmp_path)
        patch.setattr(model, "calculate_loss", recorded)
        trainer = get_trainer(config["MODEL_TYPE"], "NCL")(config, model)
        assert type(trainer).__name__ == "NCLTrainer"
        model.recplug.on_epoch = lambda epoch: epochs.append([])
        trainer.fit(train, saved=False, verbose=False)
    first, second = ([p for p in epoch if p] for epoch in epochs[-2:])
    # The hook that opens an epoch comes after the call began: nothing is recorded before it.
    assert len(first) == len(second) == len(train)
    losses = trainer.train_loss_dict
    assert losses[0] == pytest.approx(sum(host + structure + total for host, structure, total, _ in first), rel=1e-5)
    assert losses[1] == pytest.approx(sum(sum(parts) for parts in second), rel=1e-5)
    assert all(parts[2] == 0.25 for parts in (*first, *second))
    assert all(abs(parts[3]) > 1e-6 for parts in first)


def test_gcmcs_copies_act_on_their_own_chain(build):
    _, model, *_ = build("GCMC", "shift")
    _, bare, *_ = build("GCMC")
    model.GcEncoder.dense_activate = model.BiDecoder.activate = nn.Identity()  # the host's lambdas cannot be pickled
    wanted = ranked(model, USERS)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(ranked(twin, USERS), wanted)
        with torch.no_grad():
            twin.recplug.plugins["shift"].mark.zero_()
        torch.testing.assert_close(ranked(twin, USERS), ranked(bare, USERS), **CLOSE)
        assert torch.equal(ranked(model, USERS), wanted)


@pytest.mark.parametrize("name", NODES)
def test_a_copy_keeps_nothing_of_the_original(name, build):
    _, model, *_ = build(name, "shift")
    wanted = ranked(model, USERS)
    twin = copy.deepcopy(model)
    assert torch.equal(ranked(twin, USERS), wanted)
    with torch.no_grad():
        twin.recplug.plugins["shift"].mark.add_(1.0)
    assert not torch.allclose(ranked(twin, USERS), wanted, **CLOSE)
    assert torch.equal(ranked(model, USERS), wanted)


@pytest.mark.parametrize("name", NODES)
def test_other_nodes_than_the_batchs_are_announced(name, build, batch_of):
    """Only where a node that the batch does not name moves the loss may a plugin not leave it out."""
    _, model, train, *_ = build(name, "shift")
    batch = batch_of(train)[torch.arange(6)]
    named = {"users": batch["user_id"], "items": torch.cat([batch["item_id"], batch["neg_item_id"]])}
    shift = model.recplug.plugins["shift"]
    losses = []
    for noise in (0.0, 1.0):

        def propagated(users, items, noise=noise):
            moved = []
            for side, nodes in (("users", users), ("items", items)):
                others = torch.ones(len(nodes), 1).index_fill(0, named[side], 0.0)
                moved.append(
                    nodes + noise * others * torch.randn(nodes.shape, generator=torch.Generator().manual_seed(1))
                )
            return tuple(moved)

        shift.propagated = propagated
        losses.append(sum(part.sum() for part in loss_of(model, batch)).detach())
    assert torch.equal(*losses) == (not HOSTS[name].others_nodes)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_rule_that_a_plugin_is_given_is_lightgcns(layers, build):
    _, model, *_ = build("LightGCN", "shift", n_layers=layers)
    _, bare, *_ = build("LightGCN", n_layers=layers)
    told = model.recplug.plugins["shift"].told
    graph = Adjacency.bipartite(told.edges, n_users=told.n_users, n_items=told.n_items, epsilon=1e-7)
    with torch.no_grad():
        found = told.propagate(graph, bare.user_embedding.weight, bare.item_embedding.weight)
        for mine, own in zip(found, bare.forward(), strict=True):
            torch.testing.assert_close(mine, own, **CLOSE)


# -- models of one's own


class Own(GeneralRecommender):
    """A user's own: propagates one step, and calls its tables otherwise."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.my_users = nn.Embedding(self.n_users, config["embedding_size"])
        self.my_items = nn.Embedding(self.n_items, config["embedding_size"])
        self.loss = BPRLoss()

    def forward(self):
        users, items = self.my_users.weight, self.my_items.weight
        return users + items.mean(dim=0), items + users.mean(dim=0)

    def calculate_loss(self, interaction):
        users, items = self.forward()
        user = users[interaction[self.USER_ID]]
        positive, negative = items[interaction[self.ITEM_ID]], items[interaction[self.NEG_ITEM_ID]]
        return self.loss((user * positive).sum(dim=1), (user * negative).sum(dim=1))

    def predict(self, interaction):
        users, items = self.forward()
        return (users[interaction[self.USER_ID]] * items[interaction[self.ITEM_ID]]).sum(dim=1)

    def full_sort_predict(self, interaction):
        users, items = self.forward()
        return users[interaction[self.USER_ID]] @ items.T


class OwnPairs(GeneralRecommender):
    """A user's own whose forward scores pairs: nothing is propagated."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.user_embedding = nn.Embedding(self.n_users, config["embedding_size"])
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"])
        self.loss = BPRLoss()

    def forward(self, user, item):
        return (self.user_embedding(user) * self.item_embedding(item)).sum(dim=1)

    def calculate_loss(self, interaction):
        user = interaction[self.USER_ID]
        return self.loss(
            self.forward(user, interaction[self.ITEM_ID]), self.forward(user, interaction[self.NEG_ITEM_ID])
        )

    def predict(self, interaction):
        return self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])


class OwnScores(Own):
    """A user's own whose forward takes nothing and returns something else."""

    def forward(self):
        return self.my_users.weight @ self.my_items.weight.T


OWN = {"table": "my_items", "users": "my_users"}
WHOLE = {"scale": 0.5, "candidates": "fused", "fusion": "item"}


@pytest.mark.parametrize("plugin", ["shift", "people", "prism"])
def test_a_propagating_model_of_ones_own(plugin, build, batch_of):
    _, bare, train, *_ = build(Own)
    _, model, *_ = build(Own, plugin, {"prism": WHOLE} if plugin == "prism" else None, **OWN)
    assert model.my_users is model.recplug.user_table
    assert model.my_items is model.recplug.item_table
    assert not torch.allclose(ranked(model, USERS), ranked(bare, USERS), **CLOSE)
    torch.testing.assert_close(ranked(model, USERS), predicted(model, USERS), **CLOSE)
    sum(loss_of(model, batch_of(train))).backward()
    assert all(p.grad.abs().max() > 0 for n, p in model.recplug.named_parameters() if n.endswith(("mark", "scale")))
    assert torch.equal(ranked(pickle.loads(pickle.dumps(model)), USERS), ranked(model, USERS))


@pytest.mark.parametrize("plugin", ["people", "prism"])
def test_a_pairwise_model_of_ones_own(plugin, build, batch_of):
    _, bare, train, *_ = build(OwnPairs)
    _, model, *_ = build(OwnPairs, plugin, {"prism": WHOLE} if plugin == "prism" else None)
    assert not torch.allclose(predicted(model, USERS), predicted(bare, USERS), **CLOSE)
    sum(loss_of(model, batch_of(train))).backward()
    with pytest.raises(RecplugError, match=r"shift acts on \['propagated'\], which OwnPairs does not offer"):
        build(OwnPairs, "shift")


def test_what_is_wrong_with_a_model_of_ones_own_is_one_line(build):
    for given, line in [
        ({}, "no nn.Embedding called 'item_embedding'; pass augment"),
        ({"table": "my_items", "users": "nobody"}, "no nn.Embedding called 'nobody'; pass augment"),
    ]:
        with pytest.raises(RecplugError, match=line) as refusal:
            build(Own, "shift", **given)
        assert "\n" not in str(refusal.value)
    with pytest.raises(RecplugError, match=r"OwnScores.forward\(\) does not return \(users, items\)"):
        build(OwnScores, "shift", **OWN)
    # Without a name for the users a model may do without them.
    _, model, *_ = build(Own, "prism", {"prism": WHOLE}, table="my_items")
    assert model.recplug.user_table is None
    with pytest.raises(RecplugError, match=r"people acts on \['users'\], which Own does not offer"):
        build(Own, "people", table="my_items")


def test_the_class_of_ones_own_can_be_pickled():
    found = pickle.loads(pickle.dumps(augment(Own, "shift", **OWN)))
    assert found.recplug_base is Own
    assert (found.recplug_host.table, found.recplug_host.users) == ("my_items", "my_users")


# -- seams that a host does not offer, and models that take no plugin


@pytest.mark.parametrize(
    ("name", "plugin", "seam"),
    [("BPR", "shift", "propagated"), ("GCMC", "people", "users"), ("GCMC", "prism", "items")],
)
def test_a_seam_that_a_host_has_not_is_refused_by_name(name, plugin, seam, build):
    with pytest.raises(RecplugError, match=rf"{plugin} acts on \['{seam}'\], which {name} does not offer"):
        build(name, plugin)


def test_mars_says_that_it_reads_a_table_of_items(build):
    with pytest.raises(RecplugError, match="mars reads a table of items, which GCMC does not have"):
        build("GCMC", "mars")


# What RecBole scores by a value of each pair, not by a ranking.
VALUED = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni20"},
    "metrics": ["AUC"],
    "valid_metric": "AUC",
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False},
}
BARE = {
    "DIN": VALUED,
    "DIEN": {**VALUED, "MAX_ITEM_LIST_LENGTH": 4, "train_batch_size": 1024},
    "FM": VALUED,
    "RaCT": {"train_stage": "actor_pretrain", "pretrain_epochs": 1},
}


@pytest.mark.parametrize("name", [*REFUSED, "FM"])
def test_a_model_that_takes_no_plugin_is_trained_as_recboles_own(name, build, tmp_path, batch_of):
    found = []
    for plugins in (None, ""):
        config, model, train, *_ = build(name, plugins, epochs=1, **BARE.get(name, {}))
        config["checkpoint_dir"] = str(tmp_path)
        with pytest.MonkeyPatch.context() as patch, recbole_compat():
            patch.chdir(tmp_path)
            init_seed(8, True)
            train.generator.manual_seed(8)  # the loader is shared, and would go on where the other left off
            get_trainer(config["MODEL_TYPE"], config["model"])(config, model).fit(train, saved=True, verbose=False)
        model.eval()
        found.append((model, train))
    (bare, train), (model, _) = found
    assert model.recplug.tables() == {}
    assert isinstance(model, type(bare))
    for (label, one), (_, other) in zip(bare.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(one, other), label
    scores = []
    for each in (bare, model):
        init_seed(3, True)
        batch = batch_of(train) if name in ("DIN", "DIEN", "FM", "FPMC") else pairs_of(each, USERS)
        with torch.no_grad():
            scores.append(torch.as_tensor(each.predict(batch)))
    assert torch.equal(*scores)


# -- a whole run


@pytest.fixture(scope="module")
def lightgcn_run(tiny, tmp_path_factory):
    """LightGCN with PRISM, trained for two epochs on the tiny set."""
    folder = tmp_path_factory.mktemp("run")
    settings = {
        "embedding_size": 16,
        "train_batch_size": 64,
        "epochs": 2,
        "topk": [1, 5, 10],
        "metrics": ["Recall", "MRR"],
        "valid_metric": "MRR@10",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "seed": 5,
        "use_gpu": False,
        "show_progress": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(
            "LightGCN", "tiny", "prism", {**settings, "prism.scale": 0.5}, data_path=tiny, output_dir=folder / "run"
        )


def test_a_run_says_what_was_done(lightgcn_run):
    stored = json.loads((lightgcn_run.directory / "result.json").read_text())
    assert stored["status"] == "finished"
    assert (stored["model"], stored["plugins"], stored["epochs"]) == ("LightGCN", ["prism"], 2)
    assert stored["mask_history"] is True  # RecBole's general models are ranked without the history
    assert stored["trim_padding"] is False
    assert stored["fast_propagation"] == ["norm_adj_matrix"]
    assert set(stored["features"]) == {"image", "text"}
    assert stored["parameters"]["plugins"]["prism"] > 0
    log = (lightgcn_run.directory / "run.log").read_text()
    assert "history masked in evaluation; products of norm_adj_matrix fast" in log
    assert lightgcn_run.result["test_result"]["recall@10"] > 0


def test_ranks_leave_out_the_history_as_recboles_metrics_do(lightgcn_run):
    table = pq.read_table(lightgcn_run.directory / "ranks.parquet").to_pydict()
    ranks = {}
    for user, rank in zip(table["user"], table["rank"], strict=True):
        ranks.setdefault(user, []).append(rank)
    for k in (1, 5, 10):
        recall = sum(sum(rank <= k for rank in of_user) / len(of_user) for of_user in ranks.values()) / len(ranks)
        assert recall == pytest.approx(lightgcn_run.test_result[f"recall@{k}"], abs=1e-4)
    reciprocal = [1 / min(of_user) if min(of_user) <= 10 else 0.0 for of_user in ranks.values()]
    assert sum(reciprocal) / len(ranks) == pytest.approx(lightgcn_run.test_result["mrr@10"], abs=1e-4)


def test_an_evaluation_batch_holds_several_users(tiny, tmp_path, monkeypatch):
    """RecBole divides eval_batch_size by the number of items; what was given stays as it was given."""
    from recplug.adapters.recbole.data import loaders

    monkeypatch.chdir(tmp_path)
    sizes, prepare = [], loaders.data_preparation

    def recorded(config, dataset):
        sizes.append((config["eval_batch_size"], dataset.item_num))
        return prepare(config, dataset)

    monkeypatch.setattr(loaders, "data_preparation", recorded)
    more = {"epochs": 1, "embedding_size": 8, "use_gpu": False, "show_progress": False, "seed": 5}
    more["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
    run("BPR", "tiny", "", more, data_path=tiny, output_dir=tmp_path / "one")
    run("BPR", "tiny", "", {**more, "eval_batch_size": 123}, data_path=tiny, output_dir=tmp_path / "two")
    file = tmp_path / "mine.yaml"
    file.write_text("eval_batch_size: 321\n")
    run("BPR", "tiny", "", more, config_files=[file], data_path=tiny, output_dir=tmp_path / "three")
    # A run's own file repeats its batches.
    again = [tmp_path / "one" / "config.yaml"]
    run("BPR", "tiny", "", {}, config_files=again, data_path=tiny, output_dir=tmp_path / "four")
    assert sizes == [(256 * 41, 41), (123, 41), (321, 41), (256 * 41, 41)]
    assert f"eval_batch_size: {256 * 41}  # recplug" in again[0].read_text()


def test_ncl_says_before_training_that_it_needs_faiss(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)
    more = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    with pytest.raises(RecplugError, match="NCL needs faiss, which is not installed"):
        run("NCL", "tiny", "", more, data_path=tiny, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_user_who_has_every_item_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "full"
    folder.mkdir(parents=True)
    rows = "".join(f"u{u}\ti{i}\n" for u in range(9) for i in range(2))
    (folder / "full.inter").write_text("user_id:token\titem_id:token\n" + rows)
    with pytest.raises(RecplugError, match="full cannot be split and sampled: Some users have interacted with all"):
        run("BPR", "full", "", {}, data_path=tmp_path / "data", output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plugin_s_loss_trains_in_recboles_trainer(tiny, tmp_path):
    """The masked view is SSR's only loss here."""
    settings = {"content": "graph", "lambda_mask": 1.0}
    config = {
        "epochs": 2,
        "ssr": settings,
        "train_batch_size": 64,
        "embedding_size": 16,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    }
    result = run("LightGCN", "tiny", "ssr", config, data_path=tiny, output_dir=tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert len(rows) == 2
    assert all(float(row["loss/ssr.mask"]) > 0 for row in rows)
    assert result.result["status"] == "finished"
