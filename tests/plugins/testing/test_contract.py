"""The kit can fail: for every check an augmentation that breaks its rule, and one that breaks none."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recplug.plugins import Augmentation, Plugin, PluginSettings, RecplugError, Requirements, setting
from recplug.plugins.nn import Noise
from recplug.plugins.testing import CHECKS, HOSTS, BrokenContract, cases, check_plugin


class Settings(PluginSettings):
    scale: float = setting(0.5, "Weight of the content.")
    penalty: float = setting(0.1, "Weight of the loss.", loss_weight=True)


class Sound(Augmentation):
    """Adds projected content to every row, with noise of its own, and a penalty on its projection."""

    by_item = frozenset({"candidate"})

    def __init__(self, settings, context):
        super().__init__()
        self.settings = settings
        modality = context.modalities["image"]
        self.register_buffer("values", modality.values * modality.present.unsqueeze(-1), persistent=False)
        self.project = nn.Linear(modality.width, context.width["items"], bias=False)
        self.noise = Noise(context.seed)

    def content(self, ids):
        return self.project(self.values[ids.clamp(max=len(self.values) - 1)])

    def items(self, rows, ids, *, role, sequence):
        return rows + self.settings.scale * self.noise.dropout(self.content(ids), 0.5).to(rows.dtype)

    def losses(self, step):
        return {"penalty": self.settings.penalty * self.content(step.asked()).square().mean()}


class WrongShape(Sound):
    def items(self, rows, ids, *, role, sequence):
        return super().items(rows, ids, role=role, sequence=sequence).double()


class KeepsItsLoss(Sound):
    def losses(self, step):
        return {"penalty": self.content(step.asked()).square().mean()}


class ReadsHistory(Sound):
    by_item = frozenset({"input"})

    def items(self, rows, ids, *, role, sequence):
        return rows if sequence is None else rows + 0.1 * rows[:, :1]


class InPlace(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows.add_(1.0)


class CountsIds(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows + 0.01 * ids.unsqueeze(-1)


class ReadsAbsent(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.values = context.modalities["image"].values


class AlwaysOn(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows + 1e-6 * self.content(ids)


class KeepsGraph(Sound):
    def items(self, rows, ids, *, role, sequence):
        self.last = super().items(rows, ids, role=role, sequence=sequence)
        return self.last


class Forgetful(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.calls = 0

    def items(self, rows, ids, *, role, sequence):
        self.calls += self.training
        return rows * (1.0 + 0.01 * self.calls)


class Unpicklable(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.activation = lambda x: x


class MixesTypes(Sound):
    def items(self, rows, ids, *, role, sequence):
        content = self.content(ids).reshape(-1, rows.shape[-1])
        return rows + torch.zeros_like(rows).reshape(content.shape).index_add(
            0, torch.arange(len(content), device=rows.device), content
        ).reshape(rows.shape)


class BatchStatistics(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.norm = nn.BatchNorm1d(context.width["items"])

    def items(self, rows, ids, *, role, sequence):
        return self.norm(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)


class NoisyEvaluation(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows + 0.1 * self.noise.normal(rows)


class UnseededStart(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.scale = nn.Parameter(torch.tensor(random.random()))


class HostsRandomness(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows + F.dropout(self.content(ids), 0.5, self.training)


class ReadsTarget(Sound):
    def items(self, rows, ids, *, role, sequence):
        target = None if self.step is None else self.step.batch.positives
        if role == "candidate" or target is None:
            return rows
        return rows + 0.1 * self.step.table("items")[target].unsqueeze(1)


class ReadsFuture(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows if sequence is None else rows + rows.mean(dim=(0, 1))


class MakesTensors(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows * torch.full((rows.shape[-1],), 2.0)


class Nodes(Augmentation):
    """Acts on users, on both tables and on nodes, which it widens where that is free."""

    def __init__(self, settings, context):
        super().__init__()
        self.settings = settings
        self.by_user = nn.Parameter(torch.randn(context.width["users"]))
        self.by_table = nn.Parameter(torch.randn(context.width["items"]))
        self.beside = None
        if context.free_width:
            self.beside = nn.Parameter(torch.randn(context.n_items, 3))
            self.register_buffer("interest", torch.randn(3), persistent=False)

    def propagated_width(self, width):
        return width + (3 if self.beside is not None and self.settings.scale else 0)

    def users(self, rows, ids):
        return rows + self.settings.scale * self.by_user

    def tables(self, users, items):
        return users * (1.0 + self.settings.scale * self.by_table), items + self.settings.scale * self.by_table

    def propagated(self, users, items):
        if self.settings.scale == 0:
            return users, items
        if self.beside is not None:
            users = torch.cat([users, self.interest.expand(len(users), -1)], dim=1)
            items = torch.cat([items, self.beside], dim=1)
        return users + self.settings.scale, items

    def losses(self, step):
        return {"size": self.settings.penalty * self.by_user.square().mean()}


class UserShape(Nodes):
    def users(self, rows, ids):
        return rows.mean(dim=0)


class TablesShape(Nodes):
    def tables(self, users, items):
        return users[1:], items


class NodeCount(Nodes):
    def propagated(self, users, items):
        return users, items[1:]


class NodeType(Nodes):
    def propagated(self, users, items):
        return users.double(), items


class NodeWidths(Nodes):
    def propagated(self, users, items):
        return torch.cat([users, users], dim=1), items


class UserInPlace(Nodes):
    def users(self, rows, ids):
        return rows.add_(1.0)


class TablesInPlace(Nodes):
    def tables(self, users, items):
        users.data[0] += 1.0
        return users, items


class CountsUsers(Nodes):
    def users(self, rows, ids):
        return rows + 0.01 * ids.unsqueeze(-1)


class CountsNodes(Nodes):
    def propagated(self, users, items):
        return users, items * torch.arange(len(items), device=items.device).unsqueeze(-1)


class AveragesTables(Nodes):
    def tables(self, users, items):
        return users, items - items.mean(dim=0)


class AveragesNodes(Nodes):
    def propagated(self, users, items):
        return users - users.mean(dim=0), items


class DividesByDegree(Nodes):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        count = torch.bincount(context.edges[1], minlength=context.n_items)
        self.register_buffer("count", count.float().unsqueeze(1), persistent=False)

    def propagated(self, users, items):
        return users, items / self.count


class ZeroesCold(DividesByDegree):
    def propagated(self, users, items):
        return users, items * (self.count > 0)


class NeedsEdges(Nodes):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.last = context.edges[0].max()


class KeepsFirst(Nodes):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.kept = []

    def users(self, rows, ids):
        if self.training:
            return rows
        self.kept.append(rows.mean())
        return rows + self.kept[0] * len(self.kept)


class NeverOff(Nodes):
    def propagated(self, users, items):
        return users * 1.001, items


class HalfAGraph(Nodes):
    def graph(self, graph):
        row, col = graph.indices()
        return graph.with_values(graph.values() * (row < col))


class ByOthers(Augmentation):
    """Ranks a history by the others that are ranked with it."""

    halves = frozenset({"ranking"})

    def __init__(self, settings, context):
        super().__init__()
        self.scale = settings.scale

    def score(self, base, users, items, step):
        return base + self.scale * base.mean(dim=0, keepdim=True) if base.dim() == 2 else base


class Scores(Augmentation):
    """Adds to a score what a learned form makes of the nodes, and how well the item fits the user's number of items."""

    def __init__(self, settings, context):
        super().__init__()
        self.settings = settings
        width = context.width.get("propagated", context.width["items"])
        self.form = nn.Parameter(torch.randn(width))
        count = torch.bincount(context.edges[0], minlength=context.n_users)
        self.register_buffer("count", count.float(), persistent=False)

    def score(self, base, users, items, step):
        if self.settings.scale == 0:
            return base
        user_nodes, item_nodes = step.nodes()
        left, right = user_nodes[users] * self.form, item_nodes[items].tanh()
        fit = left @ right.T if base.dim() == 2 else (left * right).sum(dim=-1)
        count = self.count[users] / 10
        return (base + self.settings.scale * fit + (count.unsqueeze(1) if base.dim() == 2 else count)).to(base.dtype)

    def losses(self, step):
        return {"size": self.settings.penalty * self.form.square().mean()}


class ScoreShape(Scores):
    def score(self, base, users, items, step):
        return base.unsqueeze(-1)


class ScoreType(Scores):
    def score(self, base, users, items, step):
        return base.double()


class ByPlace(Scores):
    def score(self, base, users, items, step):
        return base + 0.1 * torch.arange(base.shape[-1], device=base.device)


class ByBlock(Scores):
    def score(self, base, users, items, step):
        return base - base.mean() if base.dim() == 2 else base


class RanksAlone(Scores):
    def score(self, base, users, items, step):
        return base if step.kind == "training" else super().score(base, users, items, step)


class NumbersScores(Scores):
    def score(self, base, users, items, step):
        return base + 0.1 * items


class NeverOffScores(Scores):
    def score(self, base, users, items, step):
        return base * 1.001


class NoisyScores(Scores):
    def score(self, base, users, items, step):
        return base + 0.1 * torch.rand_like(base)


ITEMS, NODES = ("items", "losses"), ("users", "tables", "propagated", "losses")
SCORES = ("score", "losses")
BREAKS = [  # a check, an augmentation that breaks its rule, the seams that it declares, a host
    ("seams", Sound, ("items",), "mean-ce"),
    ("shapes", WrongShape, ITEMS, "mean-ce"),
    ("by_item", ReadsHistory, ITEMS, "mean-ce"),
    ("padding", InPlace, ITEMS, "mean-ce"),
    ("permutation", CountsIds, ITEMS, "mean-ce"),
    ("missing", ReadsAbsent, ITEMS, "mean-ce"),
    ("identity", AlwaysOn, ITEMS, "mean-ce"),
    ("no_losses", KeepsItsLoss, ITEMS, "mean-ce"),
    ("deepcopy", KeepsGraph, ITEMS, "mean-ce"),
    ("state_dict", Forgetful, ITEMS, "mean-ce"),
    ("pickle", Unpicklable, ITEMS, "mean-ce"),
    ("autocast", MixesTypes, ITEMS, "mean-ce"),
    ("batch_of_one", BatchStatistics, ITEMS, "mean-ce"),
    ("evaluation", NoisyEvaluation, ITEMS, "mean-ce"),
    ("construction", UnseededStart, ITEMS, "mean-ce"),
    ("host_dropout", HostsRandomness, ITEMS, "mean-ce"),
    ("no_target", ReadsTarget, ITEMS, "mean-ce"),
    ("no_future", ReadsFuture, ITEMS, "mean-ce"),
    ("device", MakesTensors, ITEMS, "mean-ce"),
    ("seams", Nodes, ("users", "tables", "losses"), "nodes-bpr"),
    ("shapes", UserShape, NODES, "nodes-bpr"),
    ("shapes", TablesShape, NODES, "nodes-bpr"),
    ("shapes", NodeCount, NODES, "nodes-bpr"),
    ("shapes", NodeType, NODES, "nodes-bpr"),
    ("shapes", NodeWidths, NODES, "nodes-bpr"),
    ("shapes", NodeWidths, NODES, "decoder-sum"),
    ("padding", UserInPlace, NODES, "nodes-bpr"),
    ("padding", TablesInPlace, NODES, "nodes-bpr"),
    ("permutation", CountsUsers, NODES, "nodes-bpr"),
    ("permutation", CountsNodes, NODES, "nodes-bpr"),
    ("padding_alone", AveragesTables, NODES, "nodes-bpr"),
    ("padding_alone", AveragesNodes, NODES, "nodes-bpr"),
    ("padding_alone", DividesByDegree, NODES, "decoder-sum"),
    ("without_interactions", DividesByDegree, NODES, "nodes-bpr"),
    ("without_interactions", ZeroesCold, NODES, "nodes-bpr"),
    ("no_interactions", NeedsEdges, NODES, "nodes-bpr"),
    ("evaluation", KeepsFirst, NODES, "decoder-sum"),
    ("identity", NeverOff, NODES, "nodes-bpr"),
    ("shapes", HalfAGraph, (*NODES, "graph"), "nodes-bpr"),
    ("shapes", ScoreShape, SCORES, "nodes-bpr"),
    ("shapes", ScoreType, SCORES, "graph-bpr"),
    ("pairs", ByPlace, SCORES, "nodes-bpr"),
    ("pairs", ByBlock, SCORES, "graph-bpr"),
    ("shown", ByOthers, ("score",), "mean-ce"),
    ("training_pairs", RanksAlone, SCORES, "nodes-bpr"),
    ("permutation", NumbersScores, SCORES, "graph-bpr"),
    ("identity", NeverOffScores, SCORES, "nodes-bpr"),
    ("evaluation", NoisyScores, SCORES, "nodes-bpr"),
    ("host_dropout", NoisyScores, SCORES, "graph-bpr"),
]


def plugin_of(augmentation, seams=ITEMS, one_of=()):
    return Plugin(
        name="mine",
        summary="",
        paper="",
        settings=Settings,
        requirements=lambda settings: Requirements(
            seams=frozenset(seams),
            one_of=frozenset(one_of),
            modalities=int(issubclass(augmentation, Sound)),
            halves=augmentation.halves,
        ),
        build=augmentation,
        identity={"scale": 0.0, "penalty": 0.0},
    )


def test_every_check_has_a_plugin_that_breaks_it():
    assert {check for check, *_ in BREAKS} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("host", HOSTS)
def test_a_sound_plugin_passes(name, host):
    (case,) = cases(plugin_of(Sound), hosts=[host])
    CHECKS[name](case)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("host", ["nodes-bpr", "decoder-sum"])
def test_a_sound_plugin_on_nodes_passes(name, host):
    (case,) = cases(plugin_of(Nodes, NODES), hosts=[host])
    CHECKS[name](case)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("host", ["graph-bpr", "nodes-bpr"])
def test_a_sound_plugin_on_scores_passes(name, host):
    (case,) = cases(plugin_of(Scores, SCORES), hosts=[host])
    CHECKS[name](case)


@pytest.mark.parametrize(
    ("name", "augmentation", "seams", "host"), BREAKS, ids=[f"{n}-{a.__name__}-{h}" for n, a, _, h in BREAKS]
)
def test_a_broken_plugin_is_caught(name, augmentation, seams, host):
    (case,) = cases(plugin_of(augmentation, seams), hosts=[host])
    with pytest.raises(BrokenContract, match=rf"^mine on {host}: .+; .+$") as caught:
        CHECKS[name](case)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("seams", "one_of", "fine"),
    [
        (("users", "tables", "losses"), ("propagated",), True),
        (("users", "tables", "propagated", "losses"), (), True),
        (("users", "losses"), ("propagated", "tables"), False),  # both are taken
        (("users", "tables", "propagated", "losses"), ("items",), False),  # none is taken
    ],
)
def test_exactly_one_of_several_seams_is_taken(seams, one_of, fine):
    plugin = plugin_of(Nodes, seams, one_of)
    (case,) = cases(plugin, hosts=["nodes-bpr"])
    if fine:
        CHECKS["seams"](case)
    else:
        with pytest.raises(BrokenContract, match="declared one of"):
            CHECKS["seams"](case)


def test_hosts_without_a_plugins_seams_are_left_out():
    def hosts(*seams, one_of=()):
        return [case.host for case in cases(plugin_of(Nodes, seams, one_of))]

    graphs, propagating = ["graph-bpr", "nodes-bpr", "decoder-sum"], ["nodes-bpr", "decoder-sum"]
    assert hosts("items", "tables", "losses") == hosts("losses", one_of=("propagated", "tables")) == list(HOSTS)
    assert hosts("users") == hosts("losses", one_of=("users",)) == graphs
    assert hosts("propagated", "users") == propagating
    assert hosts("losses", one_of=("propagated", "score")) == graphs
    assert hosts("score") == ["graph-bpr", "nodes-bpr"]


def test_all_broken_rules_are_listed():
    with pytest.raises(BrokenContract) as caught:
        check_plugin(plugin_of(MakesTensors), hosts=["mean-ce", "gru-bpr"])
    lines = str(caught.value).splitlines()
    assert any(line.startswith("mine on mean-ce: every tensor made inside a step") for line in lines)
    assert any(line.startswith("mine on gru-bpr: every tensor made inside a step") for line in lines)


def test_the_callers_random_state_is_left_alone():
    before = torch.get_rng_state()
    check_plugin(plugin_of(Sound), hosts=["mean-ce"])
    assert torch.equal(before, torch.get_rng_state())


def test_what_the_toys_cannot_offer_is_said():
    with pytest.raises(RecplugError, match=r"do not offer \['score'\]"):
        check_plugin(plugin_of(Sound, ("score",)), hosts=["mean-ce", "decoder-sum"])
    with pytest.raises(RecplugError, match=r"offer none of \['score'\]"):
        check_plugin(plugin_of(Sound, ("losses",), ("score",)), hosts=["mean-ce", "decoder-sum"])
    with pytest.raises(RecplugError, match=r"do not offer \['propagated'\]"):
        check_plugin(plugin_of(Nodes, NODES), hosts=["mean-ce", "graph-bpr"])
    with pytest.raises(RecplugError, match=r"scael.*did you mean 'scale'"):
        check_plugin(plugin_of(Sound), {"scael": 1.0})
