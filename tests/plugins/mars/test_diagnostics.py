"""Pictures against direct formulas, and what the leak check shows where the truth is known."""

import copy

import pytest
import torch

from recplug.plugins.contract import Panel
from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.mars import label_probe
from recplug.plugins.mars.diagnostics import popularity_groups, under
from recplug.plugins.mars.label_probe import held_out, multi_hot, shuffled
from recplug.plugins.mars.module import MarsTable
from recplug.plugins.testing.case import N_ITEMS

HOSTS = ["graph-bpr", "mask-ce", "nodes-bpr"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(labels, sizes):
    """Profiles of ``labels [n, K]``, for items 1 to n."""
    starts = torch.tensor([sum(sizes[:k]) for k in range(len(sizes))])
    factors = tuple(Factor(f"f{k}", tuple(f"v{v}" for v in range(size))) for k, size in enumerate(sizes))
    items = torch.arange(1, len(labels) + 1).repeat_interleave(len(sizes))
    return FactorProfiles(factors, items, (labels + starts).reshape(-1), len(labels) + 1)


def random_labels(n, sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, size, (n,), generator=generator) for size in sizes], dim=1)


class OneStep:
    """An evaluation over a table, and nothing else."""

    kind = "evaluation"

    def __init__(self, table):
        self.memory, self.rows = {}, table

    def table(self, side):
        return self.rows

    def lookup(self, key, ids, compute):
        return compute(ids)


def evaluated(module, table):
    module.eval()
    module.step = OneStep(table)
    return module


def host_diagnostics(toy):
    """As a run asks for them, after an evaluation."""
    toy.host.eval()
    with torch.no_grad():
        toy.host.backbone.scores(toy.batch)
        with toy.host.chain.serving():
            return toy.mars.diagnostics()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(label_probe, "FEWEST", 4)


# -- the whole


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"x": "ids_content", "views": "additive"},
        {"pool": "free"},
        {"views": "by_source"},
        {"join": "replace", "gate": "uniform"},
        {"pool": "none"},
        {"structure": "none"},
        {"h": "x", "x": "ids_content"},
        {"pool": "none", "structure": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("host", HOSTS)
def test_there_is_a_picture_of_everything_that_there_is(mars, small, host, values):
    toy = mars.make(host, **values)
    before = copy.deepcopy(toy.host.state_dict())
    state = torch.get_rng_state()
    found = host_diagnostics(toy)
    assert torch.equal(torch.get_rng_state(), state)
    expected = {"probe", "probe_by_factor"}
    if values != {"pool": "none", "structure": "none"} and "h" not in values:
        expected |= {"gate", "branches"}
    if toy.mars.views != "off":
        expected.add("views")
    assert found.keys() == expected
    for name, each in found.items():
        values = each.values if isinstance(each, Panel) else each
        assert not values.requires_grad
        if isinstance(each, Panel):
            assert each.title
            assert each.caption.endswith(".")
            assert name == "views" or values.isfinite().all()
            assert len(each.rows) == (values.shape[0] if each.kind != "scatter" else len(each.rows))
            assert len(each.columns) in (0, values.shape[1] if each.kind != "scatter" else len(values))
    again = host_diagnostics(toy)
    for name, each in found.items():
        one, other = ((x.values if isinstance(x, Panel) else x) for x in (each, again[name]))
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    for name, value in toy.host.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, before[name])


@pytest.mark.parametrize("host", HOSTS)
def test_without_an_evaluation_there_is_nothing(mars, host):
    assert mars.make(host).mars.diagnostics() == {}


def test_nodes_that_no_evaluation_has_seen_are_not_shown(mars):
    toy = mars.make("nodes-bpr")
    toy.host.eval()
    with torch.no_grad(), toy.host.chain.serving():
        assert toy.mars.diagnostics() == {}


@pytest.mark.parametrize("host", [*HOSTS, "mean-ce", "decoder-sum"])
@torch.no_grad()
def test_what_is_shown_is_what_the_forward_pass_used(mars, small, host):
    """Recorded, not made anew: the gate's weights that the evaluation scored by, after the gate has changed."""
    toy = mars.make(host, lambda_semantic=0.0)
    used, forward = [], toy.mars.fusion.gate.forward
    toy.mars.fusion.gate.forward = lambda x, available: used.append(forward(x, available)) or used[-1]
    toy.host.eval()
    with toy.host.chain.serving():
        toy.host.backbone.scores(toy.batch)
        weights = torch.cat(used)[1:N_ITEMS]  # all rows, in their order
        toy.mars.fusion.gate.weight.add_(5.0)
        seen, panel = toy.mars.seen(), toy.mars.diagnostics()["gate"]
    assert torch.equal(seen.weights, weights)
    assert torch.equal(panel.values[0], weights.mean(dim=0))


# -- branches and gate


@torch.no_grad()
def test_the_gate_is_the_mean_over_items_and_over_groups_of_popularity(mars, small):
    toy = mars.make()
    panel = host_diagnostics(toy)["gate"]
    table = toy.case.backbone().items.weight
    weights = mars.slow(toy, table).weights[1:]
    counts = torch.bincount(toy.edges[1], minlength=N_ITEMS)[1:]
    torch.testing.assert_close(panel.values[0].double(), weights.mean(dim=0), rtol=1e-4, atol=1e-5)
    cold = panel.rows.index(f"cold ({int((counts == 0).sum())})")
    torch.testing.assert_close(panel.values[cold].double(), weights[counts == 0].mean(dim=0), rtol=1e-4, atol=1e-5)
    assert panel.columns == ("structure", "material", "use", "style")
    assert sum(int(row.split("(")[1][:-1]) for row in panel.rows[1:]) == N_ITEMS - 1


def test_popularity_groups_have_a_third_of_the_interactions_each():
    counts = torch.tensor([0, 1, 30, 2, 0, 10, 10, 10, 9, 9, 9])
    groups = popularity_groups(counts)
    assert groups["cold"].nonzero().squeeze(1).tolist() == [0, 4]
    assert groups["head"].nonzero().squeeze(1).tolist() == [2]
    assert groups["mid"].nonzero().squeeze(1).tolist() == [5, 6, 7]
    assert groups["tail"].nonzero().squeeze(1).tolist() == [1, 3, 8, 9, 10]
    assert torch.stack(list(groups.values())).sum(dim=0).eq(1).all()


@torch.no_grad()
def test_branches_are_as_long_as_in_the_slow_loop(mars, small):
    toy = mars.make(x="ids_content")
    panel = host_diagnostics(toy)["branches"]
    table = toy.case.backbone().items.weight
    truth = mars.slow(toy, table)
    length = table[1:].double().norm(dim=1).mean()
    for k in range(4):
        part = truth.weights[1:, k : k + 1] * truth.branches[1:, k]
        assert float(panel.values[0, k]) == pytest.approx(float(part.norm(dim=1).mean() / length), rel=1e-3)
    assert float(panel.values[0, 4]) == pytest.approx(float(truth.h[1:].norm(dim=1).mean() / length), rel=1e-3)


@torch.no_grad()
def test_views_are_apart_by_their_distance_over_the_row_s_length(mars, small):
    toy = mars.make(views="by_source")
    panel = host_diagnostics(toy)["views"]
    assert panel.rows == ("structure and text", "structure and images", "text and images")
    table = toy.case.backbone().items.weight
    truth = mars.slow(toy, table)
    expected = []
    for item in range(1, N_ITEMS):
        _, have = mars.slow_branches(toy, truth.x, item)
        if have[2] and have[0]:
            apart = truth.branches[item, 0] - truth.branches[item, 2]  # one factor is read from images
            expected.append(float(apart.norm() / table[item].double().norm()))
    found = panel.values[1][panel.values[1].isfinite()]
    torch.testing.assert_close(found.sort().values, torch.tensor(expected).sort().values, rtol=1e-3, atol=1e-4)


# -- measures


def test_shuffled_profiles_are_the_same_profiles_of_other_items(mars):
    given = mars.make().mars.profiles
    dealt = shuffled(given)
    holders = sorted(set(given.items.tolist()))
    assert sorted(set(dealt.items.tolist())) == holders

    def rows(profiles):
        return [tuple(profiles.values[profiles.items == i].tolist()) for i in holders]

    assert sorted(rows(given)) == sorted(rows(dealt))
    assert rows(given) != rows(dealt)
    assert torch.equal(shuffled(given).items, dealt.items)


def test_multi_hot_is_a_loop(mars):
    given = mars.make().mars.profiles
    rows = torch.tensor([5, 1, 9, 7])
    found = multi_hot(given, rows)
    for place, item in enumerate(rows.tolist()):
        assert found[place].nonzero().squeeze(1).tolist() == given.values[given.items == item].tolist()


def test_a_probe_finds_what_is_there_and_not_what_is_not():
    labels = random_labels(2000, (5,))
    truth = labels == torch.arange(5)
    directions = normal(5, 16)
    x = directions[labels[:, 0]] + 0.5 * normal(2000, 16, seed=1)
    assert held_out(x, truth)[0] > 0.9
    accuracy, majority = held_out(normal(2000, 16, seed=2), truth)
    assert accuracy == pytest.approx(0.2, abs=0.05)
    assert majority == pytest.approx(0.2, abs=0.05)
    skewed = (torch.arange(2000) % 10 == 0).long().unsqueeze(1) == torch.arange(2)
    assert held_out(normal(2000, 16, seed=3), skewed)[1] == pytest.approx(0.9, abs=0.03)
    few = truth.clone()
    few[label_probe.FEWEST :] = False
    assert all(value != value for value in held_out(x, few))  # not a number


def test_a_probe_does_not_see_the_items_that_it_is_asked_about():
    """Fifty items in four hundred dimensions: what is fitted is perfect, what is held out is chance."""
    truth = random_labels(400, (4,)) == torch.arange(4)
    assert held_out(normal(400, 400, seed=5), truth)[0] < 0.45


@pytest.mark.parametrize("pool", ["group", "free"])
@pytest.mark.parametrize("host", ["graph-bpr", "mask-ce"])
@torch.no_grad()
def test_under_its_own_groups_the_module_is_what_it_is(mars, host, pool):
    toy = mars.make(host, pool=pool, x="ids_content")
    table = normal(len(toy.mars.fusion.available), 16)
    truth = mars.slow(toy, table)
    rows = torch.tensor([3, 1, 9, 22, 7])
    found = under(toy.mars.fusion, toy.mars.fusion.groups, toy.mars.fusion.pool(table), rows, table[rows])
    torch.testing.assert_close(found.h.double(), truth.h[rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.output.double(), table[rows] + truth.h[rows], rtol=1e-4, atol=1e-4)


# -- the leak


@pytest.mark.parametrize("pool", ["group", "free"])
def test_the_leak_check_unmasks_labels_that_mean_nothing(mars, pool):
    """Labels at random: H and what is scored decode them, shuffled ones as well, and the backbone decodes neither."""
    n, sizes = 1500, (6, 5)
    given = labelled(random_labels(n, sizes), sizes)
    settings = mars.settings(structure="none", pool=pool)
    torch.manual_seed(0)
    module = MarsTable(settings=settings, profiles=given, n_rows=n + 1, width=32)
    found = evaluated(module, normal(n + 1, 32)).diagnostics()
    panel = found["probe"]
    assert panel.rows == ("backbone", "H", "scored")
    assert panel.columns == ("real labels", "shuffled labels", "largest class")
    (base, base_shuffled, majority), (h, h_shuffled, _), _ = panel.values.tolist()
    assert h > 0.9
    assert h_shuffled > 0.9
    assert base == pytest.approx(majority, abs=0.07)
    assert base_shuffled == pytest.approx(majority, abs=0.07)
    torch.testing.assert_close(panel.values, found["probe_by_factor"].mean(dim=2))


def test_the_leak_check_shows_what_the_backbone_knows(mars):
    """Rows made of the labels: found in the backbone, where shuffled labels are not."""
    n, sizes = 1500, (6, 5)
    labels = random_labels(n, sizes)
    given = labelled(labels, sizes)
    module = MarsTable(settings=mars.settings(structure="none"), profiles=given, n_rows=n + 1, width=32)
    rows = normal(6, 32, seed=1)[labels[:, 0]] + normal(n, 32, seed=2)
    found = evaluated(module, torch.cat([normal(1, 32), rows])).diagnostics()
    base = found["probe_by_factor"][0]
    assert base[0, 0] > 0.8
    assert base[1, 0] < 0.3
    assert base[0, 1] < 0.35  # the second factor is not in the rows


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ({}, True),
        ({"semantic_on": "fused"}, False),
        ({"lambda_semantic": 0.0}, False),
    ],
    ids=str,
)
def test_the_leak_check_says_where_rows_were_trained_on_their_labels(mars, small, values, warned):
    assert ("lambda_semantic 0" in host_diagnostics(mars.make(**values))["probe"].caption) is warned
