"""General models whose scores plugins change: which take the seam (tried), and one score for a pair, however asked."""

import copy
import logging
import pickle

import pyarrow.parquet as pq
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.loss import BPRLoss
from recbole.utils import InputType, get_trainer, init_seed
from torch import nn

from recplug.adapters.recbole import run
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.graft.hosts import HOSTS
from recplug.adapters.torch import attach
from recplug.plugins import Augmentation, Plugin, PluginSettings, Requirements, hookimpl, registry, setting
from recplug.plugins.errors import RecplugError

GENERAL = [host.name for host in HOSTS.values() if host.family == "graph" and host.status != "refused"]
SCORED = [host.name for host in HOSTS.values() if host.pair_loss]
UNSCORED = [host.name for host in HOSTS.values() if host.status != "refused" and not host.pair_loss]
NODES = [name for name in SCORED if HOSTS[name].nodes]
DROPOUT = {"NGCF"}  # in training its nodes are others than in evaluation
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
USERS = torch.tensor([1, 7, 30, 59])


class Settings(PluginSettings):
    scale: float = setting(0.5, "How far scores are moved.")


class Gate(Augmentation):
    """Adds to a score what a learned form makes of the two nodes; tabulates the items once an evaluation."""

    def __init__(self, settings, context):
        super().__init__()
        self.scale, self.told = settings.scale, context
        self.form = nn.Parameter(torch.randn(context.width.get("propagated", context.width["users"])))
        self.seen, self.tabulated = [], 0

    def score(self, base, users, items, step):
        self.seen.append((tuple(base.shape), step.kind, items is step.batch.positives, base.dtype))
        if self.scale == 0:
            return base
        user_nodes, item_nodes = step.nodes()
        if "gate.items" not in step.memory:
            self.tabulated += 1
            step.memory["gate.items"] = item_nodes.tanh()
        left, right = user_nodes[users] * self.form, step.memory["gate.items"][items]
        found = left @ right.T if base.dim() == 2 else (left * right).sum(dim=-1)
        return base + (self.scale * found).to(base.dtype)


class Other(Gate):
    """A second one."""


def plugin_of(augmentation):
    return Plugin(
        name=augmentation.__name__.lower(),
        summary="for the tests",
        paper="",
        settings=Settings,
        requirements=lambda settings: Requirements(seams=frozenset({"score"})),
        build=augmentation,
        identity={"scale": 0.0},
    )


class Package:
    """Stands in for an installed package."""

    def __init__(self, plugin):
        self.plugin = plugin

    @hookimpl
    def recplug_plugin(self):
        return self.plugin


@pytest.fixture(scope="module", autouse=True)
def gates(probes):
    packages = [Package(plugin_of(augmentation)) for augmentation in (Gate, Other)]
    for package in packages:
        registry.manager().register(package)
    yield
    for package in packages:
        registry.manager().unregister(package)


def predicted(model, users, items=None):
    """``[u, n]``, pair by pair."""
    items = torch.arange(model.n_items) if items is None else items
    fields = {model.USER_ID: users.repeat_interleave(len(items)), model.ITEM_ID: items.repeat(len(users))}
    if model.training:
        model.eval()
    with torch.no_grad():
        return model.predict(Interaction(fields)).reshape(len(users), -1)


def ranked(model, users):
    """``[u, n_items]``, all items at once."""
    if model.training:
        model.eval()
    with torch.no_grad():
        return model.full_sort_predict(Interaction({model.USER_ID: users})).reshape(len(users), -1)


@torch.no_grad()
def expected(model, users):
    """``[u, n_items]`` by hand, from the host's own nodes."""
    model.eval()
    host = model.recplug_base
    if model.recplug_host.nodes:
        all_users, items = host.forward(model)[:2]
    else:
        all_users, items = model.user_embedding.raw, model.item_embedding.raw
    gate = model.recplug.plugins["gate"]
    found = torch.empty(len(users), len(items))
    for row, user in enumerate(users):
        for item in range(len(items)):
            extra = (all_users[user] * gate.form * items[item].tanh()).sum()
            found[row, item] = all_users[user] @ items[item] + gate.scale * extra
    return found


def loss_of(model, batch):
    init_seed(17, True)
    model.train()
    return model.calculate_loss(copy.deepcopy(batch))


# -- which hosts


@pytest.mark.parametrize("name", GENERAL)
def test_a_host_takes_the_seam_if_its_loss_compares_what_it_ranks_by(name, build, batch_of):
    """Tried on the bare model: one BPRLoss, called once, with the scores that predict and full_sort_predict give."""
    _, model, train, *_ = build(name)
    losses = {path: module for path, module in model.named_modules() if isinstance(module, BPRLoss)}
    batch, calls = batch_of(train), []
    for path, loss in losses.items():
        loss.register_forward_pre_hook(lambda module, scores, path=path: calls.append((path, *scores)))
    model.train(), model.eval()  # SGL draws its graphs on the way
    with torch.no_grad():
        model.calculate_loss(copy.deepcopy(batch))
        fits = len(losses) == len(calls) == 1
        if fits:
            ((_, *compared),) = calls
            ranking = model.full_sort_predict(copy.deepcopy(batch)).reshape(len(batch), -1)
            for scores, field in zip(compared, (model.ITEM_ID, model.NEG_ITEM_ID), strict=True):
                pairs = Interaction({model.USER_ID: batch[model.USER_ID], model.ITEM_ID: batch[field]})
                torch.testing.assert_close(scores, model.predict(pairs), **CLOSE)
                torch.testing.assert_close(scores, ranking[torch.arange(len(batch)), batch[field]], **CLOSE)
    # NCL's other losses hold its nodes to a dot product that would be the score no more.
    assert fits == (bool(HOSTS[name].pair_loss) or name == "NCL")
    if HOSTS[name].pair_loss:
        assert list(losses) == [HOSTS[name].pair_loss]


def test_no_sequential_model_offers_the_training_half():
    assert {HOSTS[name].family for name in SCORED} == {"graph"}
    assert SCORED == ["LightGCN", "NGCF", "SpectralCF", "DGCF", "BPR"]


@pytest.mark.parametrize("name", UNSCORED)
def test_the_others_refuse_in_one_line_with_a_reason_and_what_to_do(name, build):
    with pytest.raises(RecplugError) as refusal:
        build(name, "gate")
    text = str(refusal.value)
    assert text.startswith(f"gate changes scores in training, which {name} does not offer: {HOSTS[name].no_scores}; ")
    assert "node mode" in text
    assert "LightGCN" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "plugin"), [("LightGCN", "shift"), ("SGL", "shift"), ("BPR", "people"), ("ENMF", "people")]
)
def test_a_plugin_is_told_whether_scores_can_be_changed(name, plugin, build):
    _, model, *_ = build(name, plugin)
    assert model.recplug.plugins[plugin].told.halves == {"ranking", *(["training"] if name in SCORED else [])}


def test_plain_pytorch_refuses_it_in_one_line():
    model = nn.Module()
    model.items = nn.Embedding(5, 3, padding_idx=0)
    line = r"^gate acts on \['score'\], which Module does not offer: scores are made in the training loop.*node mode"
    with pytest.raises(RecplugError, match=line) as refusal:
        attach(model, plugins="gate", family="graph")
    assert "\n" not in str(refusal.value)


def test_each_takes_the_previous_ones_score_as_its_base(build):
    settings = {"gate": {"scale": 0.5}, "other": {"scale": 2.0}}
    _, both, *_ = build("LightGCN", "gate,other", settings)
    gate, other = both.recplug.plugins["gate"], both.recplug.plugins["other"]
    together = ranked(both, USERS)
    other.scale = 0.0
    torch.testing.assert_close(ranked(both, USERS), expected(both, USERS), **CLOSE)
    added = together - ranked(both, USERS)
    gate.scale, other.scale = 0.0, 2.0
    bare = ranked(both, USERS) - added  # what the second adds does not depend on its base
    other.scale = 0.0
    torch.testing.assert_close(ranked(both, USERS), bare, **CLOSE)


def test_one_that_makes_scores_of_its_own_is_refused_after_another(build, monkeypatch):
    monkeypatch.setattr(Other, "replaces", True, raising=False)
    build("LightGCN", "other,gate")
    with pytest.raises(
        RecplugError, match=r"^other with these settings makes scores of its own and would drop those of gate; "
    ):
        build("LightGCN", "gate,other")


# -- off


@pytest.mark.parametrize("plugins", ["gate", "shift,gate"])
@pytest.mark.parametrize("name", SCORED)
def test_off_is_off_bit_by_bit(name, plugins, build, batch_of):
    if "shift" in plugins and name not in NODES:
        plugins = plugins.replace("shift", "people")
    names = plugins.split(",")
    off = {plugin: {"scale": 0.0} for plugin in names}
    _, bare, train, *_ = build(name)
    _, model, *_ = build(name, names, off, fast_propagation=False, score_block=3)
    found = []
    for each in (bare, model):
        optimiser, values = torch.optim.SGD(each.parameters(), lr=0.1), []
        for _ in range(2):
            optimiser.zero_grad()
            loss = loss_of(each, batch_of(train))
            loss.sum().backward()
            values += [loss.detach(), *(p.grad.clone() for _, p in host_parameters(each) if p.grad is not None)]
            optimiser.step()
            values += [ranked(each, USERS), predicted(each, USERS)]
        found.append(values)
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def host_parameters(model):
    return [(n, p) for n, p in model.named_parameters() if not n.startswith("recplug.")]


def test_nothing_stands_on_the_loss_without_such_a_plugin(build):
    for plugin in (None, "", "shift"):
        _, model, *_ = build("LightGCN", plugin)
        assert not model.mf_loss._forward_pre_hooks
    _, model, *_ = build("LightGCN", "gate")
    _, bare, *_ = build("LightGCN")
    assert model.mf_loss._forward_pre_hooks
    assert {key for key in model.state_dict() if not key.startswith("recplug.")} == set(bare.state_dict())


# -- one score for a pair


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", SCORED)
def test_pairs_and_rankings_are_what_the_plugin_makes_of_the_nodes(name, fast, build):
    _, model, *_ = build(name, "gate", fast_propagation=fast)
    wanted = expected(model, USERS)
    torch.testing.assert_close(ranked(model, USERS), wanted, **CLOSE)
    torch.testing.assert_close(predicted(model, USERS), wanted, **CLOSE)
    some = torch.tensor([5, 3, 40])
    torch.testing.assert_close(predicted(model, USERS, some), wanted[:, some], **CLOSE)
    assert not torch.allclose(wanted, ranked(build(name)[1], USERS), **CLOSE)


@pytest.mark.parametrize("name", SCORED)
def test_the_loss_compares_the_scores_that_rank(name, build, batch_of):
    _, model, train, *_ = build(name, "gate", fast_propagation=False)
    _, bare, *_ = build(name)
    batch = batch_of(train)
    gate, rows = model.recplug.plugins["gate"], torch.arange(len(batch))
    dropouts = [m for m in model.modules() if type(m).__name__ in ("Dropout", "SparseDropout")]
    assert bool(dropouts) == (name in DROPOUT)
    ranking = expected(model, batch["user_id"])
    liked, others = ranking[rows, batch["item_id"]], ranking[rows, batch["neg_item_id"]]
    model.eval(), bare.eval()
    init_seed(17, True)
    with torch.no_grad():
        seen = []
        getattr(bare, HOSTS[name].pair_loss).register_forward_pre_hook(lambda m, scores: seen.append(scores))
        plain = bare.calculate_loss(copy.deepcopy(batch)).sum()
        before = BPRLoss()(*seen[0])
        init_seed(17, True)
        loss = model.calculate_loss(copy.deepcopy(batch)).sum()
    torch.testing.assert_close(loss - plain, BPRLoss()(liked, others) - before, **CLOSE)
    assert [row[:3] for row in gate.seen] == [((len(batch),), "training", True), ((len(batch),), "training", False)]


@pytest.mark.parametrize("name", SCORED)
def test_it_trains(name, build, batch_of):
    _, model, train, *_ = build(name, "gate")
    gate = model.recplug.plugins["gate"]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimiser.zero_grad()
        loss_of(model, batch_of(train)).sum().backward()
        assert gate.form.grad.abs().max() > 0
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
        for key in ("recplug.plugins.gate.form", "user_embedding.weight", "item_embedding.weight"):
            moved = dict(model.named_parameters())[key]
            assert not torch.equal(moved, before[key])
        torch.testing.assert_close(ranked(model, USERS), expected(model, USERS), **CLOSE)
        torch.testing.assert_close(predicted(model, USERS), expected(model, USERS), **CLOSE)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_of_users_give_the_same_ranking(block, build):
    _, whole, *_ = build("LightGCN", "gate")
    _, model, *_ = build("LightGCN", "gate", score_block=block)
    users = torch.arange(1, 11)
    torch.testing.assert_close(ranked(model, users), ranked(whole, users), rtol=1e-6, atol=1e-7)
    shapes = [shape for shape, *_ in model.recplug.plugins["gate"].seen]
    assert shapes == [(min(block, 10 - first), model.n_items) for first in range(0, 10, block)]


@pytest.mark.parametrize("wrong", [0, -2, "many", 1.5, True])
def test_a_block_is_a_number_of_users(wrong, build):
    with pytest.raises(RecplugError, match=f"^score_block={wrong} is no number of users; write 1 or more"):
        build("LightGCN", "gate", score_block=wrong)


def test_the_plugins_before_it_make_the_nodes_that_it_scores(build):
    for order in (["gate", "shift", "widen"], ["shift", "widen", "gate"]):
        _, model, *_ = build("LightGCN", order, {"gate": {"scale": 0.0}, "shift": {}, "widen": {}})
        _, other, *_ = build("LightGCN", [n for n in order if n != "gate"])
        gate, asked = model.recplug.plugins["gate"], []
        gate.score = lambda base, users, items, step, asked=asked: asked.append(step.nodes()) or base
        assert torch.equal(ranked(model, USERS), ranked(other, USERS))
        ((users, items),) = asked
        torch.testing.assert_close(users[USERS] @ items.T, ranked(other, USERS), **CLOSE)
        assert users.shape[1] == 19


def test_fused_items_are_the_nodes_of_a_host_that_propagates_nothing(build):
    _, model, *_ = build("BPR", "prism,people,gate", {"prism": {"scale": 0.5, "candidates": "fused", "fusion": "item"}})
    _, other, *_ = build("BPR", "prism,people", {"prism": {"scale": 0.5, "candidates": "fused", "fusion": "item"}})
    gate = model.recplug.plugins["gate"]
    other.eval()
    with torch.no_grad():
        users, items = other.user_embedding.weight, other.item_embedding.weight
        wanted = users[USERS] @ items.T + 0.5 * (users[USERS] * gate.form) @ items.tanh().T
    torch.testing.assert_close(ranked(model, USERS), wanted, **CLOSE)
    torch.testing.assert_close(predicted(model, USERS), wanted, **CLOSE)


def test_in_training_a_noisy_table_is_fused_once_for_the_host_and_the_plugin(build, batch_of):
    settings = {"prism": {"scale": 0.5, "candidates": "fused", "fusion": "item", "gate_dropout": 0.5}}
    _, model, train, *_ = build("BPR", "prism,gate", settings)
    asked = []
    gate = model.recplug.plugins["gate"]
    gate.score = lambda base, users, items, step: asked.append((base, users, items, step.nodes())) or base
    loss_of(model, batch_of(train))
    assert len(asked) == 2
    for base, users, items, (user_nodes, item_nodes) in asked:
        torch.testing.assert_close(base, (user_nodes[users] * item_nodes[items]).sum(dim=-1), **CLOSE)


# -- memory


@pytest.mark.parametrize("name", SCORED)
def test_what_an_evaluation_keeps_ends_with_the_parameters(name, build, batch_of):
    _, model, train, *_ = build(name, "gate")
    gate = model.recplug.plugins["gate"]

    def asked():
        before = gate.tabulated
        for users in (USERS, USERS + 1 - 2 * (USERS == 59)):
            torch.testing.assert_close(ranked(model, users), expected_in_place(model, users), **CLOSE)
            torch.testing.assert_close(predicted(model, users), expected_in_place(model, users), **CLOSE)
        return gate.tabulated - before

    def expected_in_place(model, users):
        twin = copy.deepcopy(model)
        return expected(twin, users)

    assert asked() == 1
    assert asked() == 0
    with torch.no_grad():
        gate.form.mul_(2.0)
    assert asked() == 1
    state = {k: v + 0.1 if k.endswith("weight") else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    assert asked() == 1
    loss_of(model, batch_of(train))
    model.eval()
    assert asked() == 1


@pytest.mark.parametrize("name", SCORED)
def test_scores_under_a_gradient_and_in_another_precision_are_made_anew(name, build):
    _, model, *_ = build(name, "gate")
    wanted = ranked(model, USERS)
    interaction = Interaction({model.USER_ID: USERS})
    scores = model.full_sort_predict(interaction).reshape(len(USERS), -1)
    assert scores.requires_grad
    torch.testing.assert_close(scores, wanted, **CLOSE)
    scores.sum().backward()
    assert model.recplug.plugins["gate"].form.grad.abs().max() > 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        coarse = model.full_sort_predict(interaction).reshape(len(USERS), -1).float()
        torch.testing.assert_close(coarse, wanted, rtol=0.05, atol=0.05)
    assert torch.equal(ranked(model, USERS), wanted)


@pytest.mark.parametrize("name", SCORED)
def test_a_step_in_half_precision_compares_whole_numbers(name, build, batch_of):
    _, model, train, *_ = build(name, "gate")
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, batch_of(train)).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    exact = loss_of(model, batch_of(train)).sum()
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", SCORED)
def test_evaluation_draws_no_random_numbers(name, build):
    _, model, *_ = build(name, "gate")
    model.eval()
    state = torch.get_rng_state()
    ranked(model, USERS), predicted(model, USERS), model.recplug_encode()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", SCORED)
def test_diagnostics_find_the_nodes(name, build):
    _, model, *_ = build(name, "gate")
    model.eval()
    model.recplug_encode()
    with torch.no_grad(), model.recplug.serving() as step:
        users, items = step.nodes()
    torch.testing.assert_close(
        users[USERS] @ items.T,
        ranked(build(name)[1], USERS),
        **CLOSE,
    )


@pytest.mark.parametrize("name", SCORED)
def test_copies_score_through_their_own_plugins(name, build, batch_of):
    _, model, train, *_ = build(name, "gate")
    wanted, loss = ranked(model, USERS), loss_of(model, batch_of(train)).sum()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(ranked(twin, USERS), wanted)
        torch.testing.assert_close(loss_of(twin, batch_of(train)).sum(), loss, **CLOSE)
        with torch.no_grad():
            twin.recplug.plugins["gate"].form.zero_()
        assert not torch.allclose(loss_of(twin, batch_of(train)).sum(), loss, **CLOSE)
        torch.testing.assert_close(ranked(twin, USERS), ranked(build(name)[1], USERS), **CLOSE)
        assert torch.equal(ranked(model, USERS), wanted)


@pytest.mark.parametrize("name", SCORED)
def test_flops_are_counted_with_one_pair(name, build):
    from recbole.data.transform import construct_transform
    from recbole.utils import get_flops

    config, model, train, *_ = build(name, "gate")
    gate = model.recplug.plugins["gate"]
    gate.seen = seen = _Shared()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    counted = [
        get_flops(each, train.dataset, config["device"], logging.getLogger(), construct_transform(config))
        for each in (model, build(name, "", fast_propagation=True)[1])
    ]
    assert counted[0] == counted[1]
    assert [row[0] for row in seen] == [(1,)]
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


class _Shared(list):
    """A list that copies share."""

    def __deepcopy__(self, memo):
        return self


# -- RecBole's ways to sample


@pytest.mark.parametrize("name", ["LightGCN", "BPR"])
def test_several_negatives_are_several_pairs(name, build, batch_of):
    negatives = {"distribution": "uniform", "sample_num": 3, "alpha": 1.0, "dynamic": False}
    _, model, train, *_ = build(name, "gate", train_neg_sample_args=negatives)
    batch = batch_of(train)
    loss_of(model, batch).sum().backward()
    assert len(batch) % 3 == 0
    assert [row[0] for row in model.recplug.plugins["gate"].seen] == [(len(batch),)] * 2


@pytest.mark.parametrize("name", ["LightGCN", "BPR"])
def test_dynamic_negatives_are_drawn_by_the_plugins_scores(name, build, tmp_path):
    negatives = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": True, "candidate_num": 2}
    config, model, train, valid, _ = build(name, "gate", train_neg_sample_args=negatives, epochs=2)
    config["checkpoint_dir"] = str(tmp_path)
    seen = model.recplug.plugins["gate"].seen
    with pytest.MonkeyPatch.context() as patch, recbole_compat():
        patch.chdir(tmp_path)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        trainer.fit(train, valid, saved=False, verbose=False)
    # Once a batch for the candidates, twice for the loss, and once an evaluation batch.
    kinds = [row[1] for row in seen]
    assert kinds.count("training") == 2 * 2 * len(train)
    assert kinds.count("call") == 2 * len(train)
    assert all(loss > 0 for loss in trainer.train_loss_dict.values())
    assert model.recplug.epoch == 1


# -- models of one's own


class Own(GeneralRecommender):
    """A user's own, which propagates and compares pairs by keyword."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.user_embedding = nn.Embedding(self.n_users, config["embedding_size"])
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"])
        self.loss = BPRLoss()

    def forward(self):
        users, items = self.user_embedding.weight, self.item_embedding.weight
        return users + items.mean(dim=0), items + users.mean(dim=0)

    def pairs(self, interaction):
        users, items = self.forward()
        user = users[interaction[self.USER_ID]]
        fields = [field for field in (self.ITEM_ID, self.NEG_ITEM_ID) if field in interaction]
        return [(user * items[interaction[field]]).sum(dim=1) for field in fields]

    def calculate_loss(self, interaction):
        positive, negative = self.pairs(interaction)
        return self.loss(neg_score=negative, pos_score=positive)

    def predict(self, interaction):
        return self.pairs(interaction)[0]

    def full_sort_predict(self, interaction):
        users, items = self.forward()
        return users[interaction[self.USER_ID]] @ items.T


class OwnPairs(Own):
    """Its forward scores pairs, and nothing ranks all items at once."""

    full_sort_predict = GeneralRecommender.full_sort_predict

    def forward(self, user, item):
        return (self.user_embedding(user) * self.item_embedding(item)).sum(dim=1)

    def pairs(self, interaction):
        fields = [field for field in (self.ITEM_ID, self.NEG_ITEM_ID) if field in interaction]
        return [self.forward(interaction[self.USER_ID], interaction[field]) for field in fields]


class OwnTwice(Own):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) + super().calculate_loss(interaction)


class OwnColumns(Own):
    def calculate_loss(self, interaction):
        positive, negative = self.pairs(interaction)
        return self.loss(positive.unsqueeze(1), negative.unsqueeze(1))


class OwnTwoLosses(Own):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.second = BPRLoss()


class OwnWithoutUsers(Own):
    """Its users are what they have had, which no table holds, and it propagates nothing."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.people, self.user_embedding = self.user_embedding.weight, None

    forward = nn.Module.forward


def test_a_model_of_ones_own_with_one_such_loss(build, batch_of):
    _, bare, train, *_ = build(Own)
    _, model, *_ = build(Own, "gate")
    torch.testing.assert_close(ranked(model, USERS), expected(model, USERS), **CLOSE)
    torch.testing.assert_close(predicted(model, USERS), expected(model, USERS), **CLOSE)
    assert not torch.allclose(ranked(model, USERS), ranked(bare, USERS), **CLOSE)
    batch = batch_of(train)
    ranking, rows = expected(model, batch["user_id"]), torch.arange(len(batch))
    wanted = BPRLoss()(ranking[rows, batch["item_id"]], ranking[rows, batch["neg_item_id"]])
    torch.testing.assert_close(loss_of(model, batch), wanted, **CLOSE)


def test_a_model_of_ones_own_that_propagates_nothing(build, batch_of):
    _, model, train, *_ = build(OwnPairs, "gate")
    assert model.recplug.plugins["gate"].told.halves == {"ranking", "training"}
    model.eval()
    with torch.no_grad():
        users, items = model.user_embedding.raw, model.item_embedding.raw
        wanted = users[USERS] @ items.T + 0.5 * (users[USERS] * model.recplug.plugins["gate"].form) @ items.tanh().T
    torch.testing.assert_close(predicted(model, USERS), wanted, **CLOSE)
    model.recplug_encode()
    loss_of(model, batch_of(train)).backward()
    assert model.recplug.plugins["gate"].form.grad.abs().max() > 0


def test_a_model_of_ones_own_with_none_or_several_is_refused(build):
    for own in (OwnTwoLosses, OwnWithoutUsers):
        line = rf"^gate changes scores in training, which {own.__name__} does not offer: plugins change scores in "
        with pytest.raises(RecplugError, match=line):
            build(own, "gate")


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (OwnTwice, "OwnTwice calls its pairwise loss twice in a step; its scores cannot be changed"),
        (OwnColumns, r"OwnColumns compares scores of the shapes \(64, 1\) and \(64, 1\) for 64 pairs; they cannot be"),
    ],
)
def test_a_loss_of_something_else_is_one_line_at_the_first_step(model, line, build, batch_of):
    _, model, train, *_ = build(model, "gate")
    with pytest.raises(RecplugError, match=f"^{line}"):
        loss_of(model, batch_of(train))


# -- a whole run


def test_a_whole_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
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
        "gate.scale": 0.3,
    }
    found = {}
    for block in (None, 7):
        given = {**settings, "score_block": block}
        result = run("LightGCN", "tiny", "gate", given, data_path=tiny, output_dir=tmp_path / str(block))
        assert result.result["status"] == "finished"
        ranks = pq.read_table(result.directory / "ranks.parquet").to_pydict()
        found[block] = result.test_result, result.result["best_valid_result"], ranks
    assert found[None] == found[7]
    best = [
        min(rank for rank, user in zip(ranks["rank"], ranks["user"], strict=True) if user == u) for u in ranks["user"]
    ]
    assert sum(1 / rank for rank in best if rank <= 10) / len(best) == pytest.approx(
        result.test_result["mrr@10"], abs=1e-3
    )
    with pytest.raises(RecplugError, match="gate changes scores in training"):
        run("SGL", "tiny", "gate", settings, data_path=tiny, output_dir=tmp_path / "refused")
