"""MARS on hosts: where it starts, what it learns first, which rows it computes, what its losses count."""

import copy
import logging
import pickle

import pytest
import torch

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.mars.clusters import clustered
from recplug.plugins.mars.label_probe import shuffled
from recplug.plugins.mars.module import MarsNodes, MarsTable
from recplug.plugins.step import Batch
from recplug.plugins.testing import toys
from recplug.plugins.testing.case import COLD_ITEM, N_ITEMS, step_loss

TABLES = ["mean-ce", "gru-bpr", "mask-ce", "graph-bpr"]
NODES = ["nodes-bpr", "decoder-sum"]
OFF = {"lambda_semantic": 0.0}
ON = {"lambda_semantic": 0.5, "lambda_view": 0.25, "views": "auto", "x": "ids_content"}


def gradients(toy, batch=None):
    toy.host.zero_grad()
    step_loss(toy.host, batch or toy.batch).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in toy.host.named_parameters()}


def parts(toy, batch=None):
    """Every named loss part of one step."""
    toy.host.chain.read_parts()
    step_loss(toy.host, batch or toy.batch)
    return toy.host.chain.read_parts()


# -- the start


@pytest.mark.parametrize("host", ["graph-bpr", "nodes-bpr"])
def test_the_losses_reach_shared_rows_from_the_first_step(mars, host):
    off = gradients(mars.make(host, moved=False, **OFF))["backbone.items.weight"]
    on = gradients(mars.make(host, moved=False, lambda_semantic=0.5))["backbone.items.weight"]
    assert (on - off).abs().max() > 1e-4


# -- what is scored


@pytest.mark.parametrize("join", ["add", "replace"])
@pytest.mark.parametrize("host", TABLES + NODES)
@torch.no_grad()
def test_scores_are_those_of_the_slow_loop(mars, host, join):
    toy = mars.make(host, join=join, x="ids_content")
    bare = toy.case.backbone().eval()
    truth = mars.slow(toy, bare.items.weight[: len(toy.mars.fusion.available)])
    if host in TABLES:
        rows = truth.h if join == "replace" else bare.items.weight + truth.h
        special = [0] if bare.mask_id is None else [0, bare.mask_id]
        rows[special] = bare.items.weight[special].double()
        bare.items.weight.copy_(rows)
        expected = bare.scores(toy.batch)
    else:
        users, items = bare()
        items[1:] = (truth.h if join == "replace" else items + truth.h)[1:].float()
        bare.forward = lambda: (users, items)
        expected = bare.scores(toy.batch)
    torch.testing.assert_close(toy.host.scores(toy.batch), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("join", ["add", "replace"])
@pytest.mark.parametrize("host", NODES)
@torch.no_grad()
def test_the_padding_node_stays_the_host_s(mars, host, join):
    toy = mars.make(host, join=join)
    toy.host.eval()
    padding = toy.case.backbone().eval()()[1][0]
    assert torch.equal(toy.host.backbone()[1][0], padding)


@torch.no_grad()
def test_the_mask_row_has_no_factor_and_no_neighbour(mars):
    toy = mars.make("mask-ce")
    available = toy.mars.fusion.available
    assert len(available) == N_ITEMS + 1
    assert not available[[0, N_ITEMS]].any()
    assert not available[COLD_ITEM].any()  # neither a profile, nor content, nor users


# -- which rows


def whole(toy):
    """The same with every node computed in every step."""
    other = copy.deepcopy(toy)
    other.mars.every_node = True
    return other


@pytest.mark.parametrize("values", [ON, ON | {"semantic_on": "fused"}, OFF], ids=str)
@pytest.mark.parametrize("host", NODES)
def test_a_batch_s_nodes_are_enough(mars, host, values):
    """Values and gradients, with items that come twice; and so where repeated rows are computed repeatedly."""
    toy = mars.make(host, **values)
    b = toy.batch
    batch = Batch(users=b.users, positives=b.positives[[0, 1, 1, 0]], negatives=b.negatives[[0, 1, 0, 3]])
    other, repeated = whole(toy), copy.deepcopy(toy)
    repeated.mars._rows = lambda step, items: torch.cat(step.batch.items())  # as on an accelerator
    torch.testing.assert_close(step_loss(toy.host, batch), step_loss(other.host, batch))
    torch.testing.assert_close(step_loss(toy.host, batch), step_loss(repeated.host, batch))
    expected = gradients(other, batch)
    for found in (gradients(toy, batch), gradients(repeated, batch)):
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_node_s_step_does_not_touch_others(mars):
    toy = mars.make("nodes-bpr")
    rows = []
    forward = toy.mars.fusion.forward
    toy.mars.fusion.forward = lambda pooled, ids: rows.append(ids) or forward(pooled, ids)
    step_loss(toy.host, Batch(users=toy.batch.users, positives=toy.batch.positives, negatives=toy.batch.negatives))
    assert len(rows) == 1
    assert sorted(rows[0].tolist()) == sorted({*toy.batch.positives.tolist(), *toy.batch.negatives.tolist()})


@pytest.mark.parametrize("host", TABLES + NODES)
def test_an_evaluation_averages_once(mars, host):
    toy = mars.make(host)
    calls = []
    pool = toy.mars.fusion.pool
    toy.mars.fusion.pool = lambda ids: calls.append(1) or pool(ids)
    toy.host.eval()
    with torch.no_grad():
        for _ in range(3):
            toy.host.backbone.scores(toy.batch)
    assert len(calls) == 1


def test_nodes_outside_a_step_are_refused(mars):
    toy = mars.make("nodes-bpr")
    with pytest.raises(RecplugError, match="step"):
        toy.mars.propagated(torch.zeros(3, 16), torch.zeros(N_ITEMS, 16))


@pytest.mark.parametrize(
    ("host", "kind"),
    [("nodes-bpr", MarsNodes), ("graph-bpr", MarsTable), ("mean-ce", MarsTable)],
)
def test_the_seam_suits_the_host(mars, host, kind):
    assert type(mars.make(host).mars) is kind


# -- the structural graph


def dense(mars, kind, **values):
    return mars.make(structure=kind, neighbours=4, **values).mars.fusion.structure.dense().double()


@pytest.mark.parametrize("kind", ["knn", "cooccurrence"])
def test_every_row_of_the_structure_is_a_mean_or_empty(mars, kind):
    rows = dense(mars, kind).sum(dim=1)
    assert ((rows - 1).abs().lt(1e-6) | (rows == 0)).all()
    assert (rows > 0).sum() > N_ITEMS / 2
    assert rows[0] == rows[COLD_ITEM] == 0


def test_the_structure_is_content_s_where_there_is_content(mars, caplog):
    assert torch.equal(dense(mars, "auto"), dense(mars, "knn"))
    with caplog.at_level(logging.INFO, "recplug"):
        assert torch.equal(dense(mars, "auto", modalities=()), dense(mars, "cooccurrence"))
    assert "items with common users, as there is no content" in caplog.text
    assert mars.make(structure="none").mars.fusion.structure is None


@pytest.mark.parametrize(
    "values",
    [{"modalities": ("txet",)}, {"modalities": (), "structure": "knn"}, {"modalities": (), "pool": "cluster"}],
    ids=str,
)
def test_content_that_is_not_there_is_refused(mars, values):
    with pytest.raises(RecplugError, match=r"mars\.modalities"):
        mars.make(**values)


# -- losses


@pytest.mark.parametrize("host", ["graph-bpr", "mean-ce", "nodes-bpr", "decoder-sum"])
@pytest.mark.parametrize("values", [{"views": "by_source"}, {"views": "additive"}, {"semantic_on": "fused"}], ids=str)
def test_an_item_that_comes_twice_counts_once(mars, host, values):
    toy = mars.make(host, **{**ON, **values})
    b = toy.batch
    pick = torch.tensor([0, 1, 2, 2, 1, 1])
    twice = Batch(**{name: None if v is None else v[pick] for name, v in vars(b).items()})
    once = Batch(**{name: None if v is None else v[:3] for name, v in vars(b).items()})
    found, expected = parts(toy, twice), parts(toy, once)
    assert found.keys() == {"mars.semantic", "mars.views"}
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-5)
        assert value > 0


@pytest.mark.parametrize("on", ["fused", "base"])
@pytest.mark.parametrize("host", ["graph-bpr", "nodes-bpr"])
def test_the_head_reads_what_it_is_told(mars, host, on):
    toy = mars.make(host, semantic_on=on, lambda_semantic=0.5)
    bare = toy.case.backbone()
    table = bare.items.weight.detach()
    truth = mars.slow(toy, table)
    torch.manual_seed(6)
    base = bare.train()()[1].detach() if host == "nodes-bpr" else table
    vectors = {"fused": truth.h, "base": base}[on]
    each, known = toy.mars.head.per_item(vectors.float()[toy.batch.positives], toy.batch.positives)
    assert parts(toy)["mars.semantic"] == pytest.approx(0.5 * float(each.sum().detach() / known.sum()), rel=1e-4)


def test_free_values_are_held_short(mars):
    toy = mars.make(pool="free", lambda_free=0.2, **OFF)
    expected = 0.2 * float(toy.mars.fusion.free.detach().square().sum(dim=1).mean() / 2)
    assert parts(toy) == {"mars.free": pytest.approx(expected)}


def test_where_a_batch_names_no_items_all_of_them_count(mars):
    toy, users = mars.make(**ON), torch.tensor([1])
    found = {}
    for name, positives in (("none", None), ("all", torch.arange(N_ITEMS))):
        with toy.host.chain.step(Batch(users=users, positives=positives)) as step:
            found[name] = toy.mars.losses(step)
    assert found["none"].keys() == {"semantic", "views"}
    for name, value in found["none"].items():
        torch.testing.assert_close(value, found["all"][name])


@pytest.mark.parametrize("host", ["mask-ce", "nodes-bpr"])
def test_only_parameters_are_saved_or_broadcast(mars, host):
    toy = mars.make(host, **ON)
    assert not list(toy.mars.buffers())
    assert toy.mars.state_dict().keys() == dict(toy.mars.named_parameters()).keys()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(toy.mars)))
    ids = torch.randn(len(toy.mars.fusion.available), toy.mars.width, generator=torch.Generator().manual_seed(1))
    rows = torch.arange(len(ids))
    one, other = (mars.fusion(mars.fusion.pool(ids), rows)[0] for mars in (toy.mars, twin))
    assert torch.equal(one, other)
    away = twin.to("meta")
    assert away.fusion.available.device.type == away.head.slots.device.type == away.sources.device.type == "meta"


def test_nothing_in_the_item_s_place_is_refused(mars):
    with pytest.raises(RecplugError, match="join"):
        mars.make(join="replace", pool="none", structure="none")


# -- clusters in place of factors


def test_clusters_have_the_factors_numbers_and_say_what_content_says(mars):
    """Planted: three far apart groups of vectors; whoever lacks content has no cluster."""
    toy = mars.make(pool="cluster")
    given, found = toy.case.factors(), toy.mars.profiles
    assert len(found.factors) == len(given.factors)
    assert [len(f.values) for f in found.factors] == [4, 2, 3]  # image has the first and third factor's numbers
    assert {f.source for f in found.factors} == {"cluster"}
    known = found.known
    for k, factor in enumerate(found.factors):
        modality = toy.case.modalities()[factor.name.split()[0]]
        assert torch.equal(known[:, k], modality.present)
    group = torch.arange(40) % 3
    values = 10 * torch.eye(3)[group] + 0.1 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    present = torch.arange(40) > 0
    one = FactorProfiles((Factor("f", tuple("abc")),), torch.arange(1, 40), group[1:], 40)
    labels = clustered(one, [Modality("text", values, present)], seed=0).labels()[1:, 0]
    assert len(set(zip(labels.tolist(), group[1:].tolist(), strict=True))) == 3


# -- what is known of the method


def planted_labels(n, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(0, size, (n,), generator=generator) for size in sizes]
    values = torch.stack([draw + sum(sizes[:k]) for k, draw in enumerate(draws)], dim=1)  # [n, K]
    factors = tuple(Factor(f"f{k}", tuple(map(str, range(size)))) for k, size in enumerate(sizes))
    items = torch.arange(1, n + 1).repeat_interleave(len(sizes))
    return FactorProfiles(factors, items, values.reshape(-1), n + 1)


@pytest.mark.parametrize(("on", "low", "high"), [("fused", 0.5, 1.0), ("base", 0.0, 0.2)])
def test_the_head_decodes_random_labels_through_the_graph(mars, on, low, high):
    """Labels at random, a fifth of the items never in the loss but, as always, in the graph: the head on H finds the
    labels of those items, many times better than chance (1/8), so its accuracy proves nothing about items. On the
    item's own row it cannot."""
    n, k, size = 400, 3, 8
    given = planted_labels(n, [size] * k, seed=0)
    torch.manual_seed(0)
    settings = mars.settings(semantic_on=on, lambda_semantic=1.0, structure="none", gate="uniform")
    module = MarsTable(settings=settings, profiles=given, n_rows=n + 1, width=32)
    table = torch.nn.Parameter(0.1 * torch.randn(n + 1, 32))
    optimiser = torch.optim.Adam([table, *module.head.parameters()], lr=0.03)
    items, held_out = torch.arange(1, n + 1)[: 4 * n // 5], torch.arange(1, n + 1)[4 * n // 5 :]

    def vectors(rows):
        if on == "base":
            return table[rows]
        pooled = module.fusion.pool(table)
        weights = module.fusion(pooled, rows)[1]
        return module.fusion.groups.mix(pooled.values, weights[:, 1:], rows)

    for _ in range(60):
        optimiser.zero_grad()
        module.head.per_item(vectors(items), items)[0].mean().backward()
        optimiser.step()
    with torch.no_grad():
        logits = module.head(vectors(held_out)).reshape(len(held_out), k, size)
    accuracy = float((logits.argmax(dim=2) == given.labels()[held_out] % size).float().mean())
    assert low <= accuracy <= high


def toy_ranking(mars, *, rho, seed, kind):
    """Recall@20 of matrix factorisation, bare or with MARS, on items that factors explain to a share rho."""
    n_items, n_users, d, k, size = 600, 800, 16, 4, 8
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    given = planted_labels(n_items, [size] * k, seed)
    by_value = normal(k * size, d) / k**0.5
    explained = by_value[given.values.reshape(n_items, k)].sum(dim=1)
    items = rho**0.5 * explained + (1 - rho) ** 0.5 * normal(n_items, d)
    chances = (0.6 * normal(n_users, d) @ items.T).softmax(dim=1)
    drawn = torch.multinomial(chances, 12, generator=generator) + 1
    train, test = drawn[:, :8], drawn[:, 8:]
    torch.manual_seed(seed)
    backbone = toys.ToyGraph(n_users=n_users, n_items=n_items + 1, width=d, dropout=0.0)
    module = None
    if kind != "bare":
        if kind == "shuffled":
            given = shuffled(given)
        settings = mars.settings(structure="none", strength="mean", factor_weight=1.0, **OFF)
        module = MarsTable(settings=settings, profiles=given, n_rows=n_items + 1, width=d)
    parameters = [*backbone.parameters(), *(module.parameters() if module else ())]
    optimiser = torch.optim.Adam(parameters, lr=0.01, weight_decay=1e-4)
    every, user = torch.arange(n_items + 1), torch.arange(n_users).repeat_interleave(8)

    def rows():
        table = backbone.items.weight
        return (
            table if module is None else module.fusion.join(table, module.fusion(module.fusion.pool(table), every)[0])
        )

    with torch.no_grad():
        for table in (backbone.users.weight, backbone.items.weight):
            table.mul_(1 / 3)
    best = 0.0
    for step in range(160):
        negatives = torch.randint(1, n_items + 1, (len(user),), generator=generator)
        table = rows()
        optimiser.zero_grad()
        toys.bpr(backbone.users.weight[user], table[train.reshape(-1)], table[negatives]).backward()
        optimiser.step()
        if step % 4 == 3:
            with torch.no_grad():
                scores = backbone.users.weight @ rows().T
            scores.scatter_(1, train, -torch.inf)
            scores[:, 0] = -torch.inf
            top = scores.topk(20, dim=1).indices
            best = max(best, float((top.unsqueeze(2) == test.unsqueeze(1)).any(dim=1).float().mean()))
    return best


@pytest.mark.slow
def test_planted_factors_help_shuffled_and_irrelevant_ones_do_no_harm(mars):
    """Means of three seeds; the best epoch is picked on the test items, so only the order counts."""

    def mean(kind, rho):
        return sum(toy_ranking(mars, rho=rho, seed=seed, kind=kind) for seed in range(3)) / 3

    bare = mean("bare", 0.3)
    assert mean("mars", 0.3) >= 1.08 * bare
    assert mean("shuffled", 0.3) <= 1.02 * bare
    assert mean("mars", 0.0) >= 0.95 * mean("bare", 0.0)
