import copy
import io
import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from recplug.plugins import get
from recplug.plugins.contract import Context
from recplug.plugins.micrec import Micrec, MicrecNodes, MicrecSettings
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.step import Batch
from recplug.plugins.testing import ToyHost, ToyPropagation, ToySource
from recplug.plugins.testing.case import COLD_ITEM, LONELY_USER, N_ITEMS, N_USERS, step_loss, trained

GRAPHS = ["graph-bpr", "nodes-bpr", "decoder-sum"]
SEQUENCES = ["mean-ce", "gru-bpr", "mask-ce"]


def dense(edges, n, m):
    out = torch.zeros(n, m)
    out[tuple(edges)] = 1
    return out


def tables_of(host, training=False):
    """Users and items after the seam."""
    host.train(training)
    with torch.no_grad(), host.chain.asking() as step:
        users = step.table("users") if host.chain.user_table is not None else None
        return users, step.table("items")


# -- against dense algebra


@pytest.mark.parametrize("content", [True, False])
def test_nodes_are_those_of_dense_algebra(make, module_of, content):
    """R = 1/(L+1) sum_l A^l M diag(s^-p) F E, all of it dense."""
    case = make("nodes-bpr", neighbours=3 if content else 0, isolated="keep")
    host = trained(case.build(), case.batch())
    micrec = module_of(host)
    r = dense(case.edges(), N_USERS, N_ITEMS)
    e_users, e_items = host.backbone.users._parameters["weight"], host.backbone.items._parameters["weight"]
    p = 1 - micrec.templates.alpha / 2
    assert p > 0.5  # two epochs have been
    g = micrec.templates
    h_users = (r @ e_items + g.user_global) * (r.sum(dim=1, keepdim=True) + 1) ** -p
    h_items = (r.T @ e_users + g.item_global) * (r.sum(dim=0).unsqueeze(1) + 1) ** -p
    if content:
        m_users, m_items = (micrec._refine[side].dense() for side in ("users", "items"))
        for side, m in (("users", m_users), ("items", m_items)):
            found = micrec.neighbours[side]
            a = torch.zeros_like(m)
            for x in range(len(m)):
                for y, w, v in zip(found.index[x], found.weight[x], found.valid[x], strict=True):
                    a[x, y] += float(w.clamp(min=0)) * bool(v)
            expected = (torch.eye(len(m)) + a) / (1 + a.sum(dim=1, keepdim=True))
            assert torch.allclose(m, expected, atol=1e-6)
        h_users, h_items = m_users @ h_users, m_items @ h_items
    h_users = torch.cat([e_users[:1], h_users[1:]])
    h_items = torch.cat([e_items[:1], h_items[1:]])
    scale = [x.sum(dim=1).clamp(min=1) ** -0.5 for x in (r, r.T)]
    n = N_USERS + N_ITEMS
    a = torch.zeros(n, n)
    a[:N_USERS, N_USERS:] = scale[0].unsqueeze(1) * r * scale[1]
    a = a + a.T
    z = torch.cat([h_users, h_items])
    expected = (z + a @ z + a @ a @ z) / 3
    host.eval()
    with torch.no_grad(), host.chain.asking():
        users, items = host.backbone()
    assert torch.allclose(users, expected[:N_USERS], atol=1e-5)
    assert torch.allclose(items, expected[N_USERS:], atol=1e-5)


def test_sequential_items_come_from_a_table_of_template_users(make, module_of):
    case = make("mean-ce", neighbours=0, join="replace")
    host = case.build()
    micrec = module_of(host)
    assert micrec.template_users.shape == (N_USERS, 16)
    _, items = tables_of(host)
    r = dense(case.edges(), N_USERS, N_ITEMS)
    expected = (r.T @ micrec.template_users + micrec.templates.item_global) * (r.sum(dim=0).unsqueeze(1) + 1) ** -0.5
    assert torch.allclose(items[1:], expected[1:], atol=1e-6)


@pytest.mark.parametrize("host", ["mean-ce", "graph-bpr"])
def test_residual_adds_a_trained_multiple(make, module_of, host):
    replaced = make(host, neighbours=2, isolated="keep", join="replace").build()
    added = make(host, neighbours=2, isolated="keep", join="residual").build()
    with torch.no_grad():
        module_of(added).gate.fill_(0.3)
    assert module_of(replaced).gate is None
    for side, plain, h in zip(("users", "items"), tables_of(added), tables_of(replaced), strict=True):
        if plain is not None:
            raw = added.chain.table(side).raw
            assert torch.allclose(plain[1:], raw[1:] + 0.3 * h[1:], atol=1e-6)


@pytest.mark.parametrize("host", SEQUENCES + GRAPHS)
def test_parts_by_family(make, module_of, host):
    micrec = module_of(make(host, join=MicrecSettings().join).build())
    assert micrec.gate is not None
    assert (micrec.template_users is None) == (host in GRAPHS)
    assert type(micrec) is (MicrecNodes if host in ("nodes-bpr", "decoder-sum") else Micrec)


# -- items without interactions


def case_with_a_cold_item(make, host, **settings):
    """Item 11, which has content, loses its interactions."""
    case = make(host, **settings)
    edges = case.edges()
    return case, edges[:, edges[1] != 11]


@pytest.mark.parametrize("host", ["nodes-bpr", "graph-bpr", "mean-ce"])
def test_a_cold_item_borrows_final_vectors_without_a_gradient(make, module_of, host):
    case, edges = case_with_a_cold_item(make, host)
    built = case.build(edges=edges)
    micrec = module_of(built)
    assert 11 in micrec.cold.tolist()
    near = micrec.neighbours["items"]
    assert micrec.known["items"][near.index[11]].all()
    a = (near.weight[11].clamp(min=0) * near.valid[11]) / near.weight[11].clamp(min=0).sum()

    def items():
        if host == "nodes-bpr":
            return built.backbone()[1]
        return built.chain.current().table("items")

    built.eval()
    with torch.no_grad(), built.chain.asking():
        final = items()
        assert torch.allclose(final[11], a @ final[near.index[11]], atol=1e-6)
    built.train()
    with built.chain.step(case.batch(), whole_table=True, beyond_batch=True):
        items()[11].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in built.parameters())


def test_a_cold_item_may_keep_its_own(make, module_of):
    case, edges = case_with_a_cold_item(make, "nodes-bpr", isolated="keep")
    assert module_of(case.build(edges=edges)).cold is None


def test_one_without_content_has_the_global_row(make, module_of):
    built = make("graph-bpr").build()
    users, items = tables_of(built)
    assert torch.equal(items[COLD_ITEM], module_of(built).templates.item_global)
    assert torch.equal(users[LONELY_USER], module_of(built).templates.user_global)


# -- no test edge


@pytest.mark.parametrize("host", SEQUENCES + GRAPHS)
def test_nothing_is_made_of_interactions_that_are_not_given(make, module_of, host):
    """Every constant follows from the training edges: another edge changes them, the batch's ids do not."""
    case = make(host)
    one, other = case.build(), case.build(edges=torch.cat([case.edges(), torch.tensor([[3], [20]])], dim=1))
    micrec = module_of(one)
    step_loss(one, replace(case.batch(), positives=torch.tensor([20, 20, 20, 20])))
    pairs = {tuple(pair) for pair in case.edges().T.tolist()}
    assert {tuple(pair) for pair in micrec.templates.edges.T.tolist()} == pairs
    assert len(micrec.templates._sums["users"].values()) == len(pairs)
    assert module_of(other).templates.edges.shape[1] == len(pairs) + ((3, 20) not in pairs)
    if host in GRAPHS:
        had = micrec.contents["users"].present
        assert had.tolist() == [any(u == user for u, _ in pairs) for user in range(N_USERS)]


# -- losses


def test_the_self_enhanced_loss_reads_raw_rows(make, module_of):
    case = make("graph-bpr", lambda_self=0.5)
    host, batch = case.build(), case.batch()
    with host.chain.step(batch) as step:
        host.backbone.loss(batch)
        found = module_of(host).losses(step)
    assert set(found) == {"self"}
    users, items = (host.chain.table(side).raw for side in ("users", "items"))
    margin = (users[batch.users] * (items[batch.positives] - items[batch.negatives])).sum(dim=1)
    micrec = module_of(host)
    real = micrec.known["items"][batch.positives] & micrec.known["items"][batch.negatives]
    assert torch.allclose(found["self"], 0.5 * F.softplus(-margin)[real].mean())


@pytest.mark.parametrize("host", SEQUENCES + GRAPHS)
def test_every_parameter_that_should_learns(make, module_of, host):
    case = make(host, source=True)
    built = case.build()
    step_loss(built, case.batch()).backward()
    mine = {name: p for name, p in module_of(built).named_parameters() if p.requires_grad}
    silent = [name for name, p in mine.items() if p.grad is None or not p.grad.any()]
    assert not silent
    assert {name.partition(".")[0] for name in mine} >= {"templates", "self_enhanced", "transfer", "source_model"}
    rows = built.backbone.items._parameters["weight"]
    assert rows.grad is not None


def test_the_warm_up_of_the_contrast(make, module_of):
    case = make("graph-bpr", source=True, warm_up=4)
    host = case.build()
    micrec = module_of(host)
    shares = []
    for _ in range(6):
        step_loss(host, case.batch())  # train() begins an epoch
        shares.append(micrec.warmth().item())
    assert shares == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert module_of(make("graph-bpr", source=True, warm_up=0).build()).settings.warm_up == 0
    now = make("graph-bpr", source=True, warm_up=0).build()
    step_loss(now, case.batch())
    assert module_of(now).warmth() == 1


@pytest.mark.parametrize("host", ["mean-ce", "graph-bpr", "nodes-bpr", "decoder-sum"])
def test_gamma_nought_is_two_independent_runs(make, module_of, host):
    """To the last bit, loss by loss and parameter by parameter."""
    case, alone = make(host, source=True, gamma=0.0), make(host, gamma=0.0)
    both, target = case.build(), alone.build()
    source = case.source()
    torch.manual_seed(0)
    for built in (both, target):
        optimiser = torch.optim.Adam(built.parameters(), lr=0.1)
        for step in range(4):
            torch.manual_seed(step)
            optimiser.zero_grad()
            built.train().loss(case.batch()).backward()
            optimiser.step()
    optimiser = torch.optim.Adam(source.model.parameters(), lr=0.1)
    for _ in range(4):
        optimiser.zero_grad()
        source.model.train()
        source.loss().backward()
        optimiser.step()
    own = dict(both.named_parameters())
    for name, parameter in target.named_parameters():
        assert torch.equal(own[name], parameter), name
    exact = both.backbone.loss_reduction == "mean"  # a sum is divided, and multiplied again
    for name, parameter in source.model.named_parameters():
        found = own[f"chain.plugins.micrec.source_model.{name}"]
        assert torch.equal(found, parameter) if exact else torch.allclose(found, parameter, atol=1e-3), name
    assert module_of(both).transfer is None


def test_the_sources_loss_counts_once_where_the_host_sums(make):
    case = make("decoder-sum", source=True, gamma=0.0, lambda_self=0.0)
    both, alone, source = case.build(), make("decoder-sum", gamma=0.0, lambda_self=0.0).build(), case.source()
    source.model.train()
    difference = step_loss(both, case.batch()) - step_loss(alone, case.batch())
    assert difference.item() == pytest.approx(source.loss().item(), rel=1e-4)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_links_train_side_by_side(make, module_of, n, monkeypatch):
    case = make("graph-bpr", source=True)
    source = case.source()
    source.links = source.links[:n]
    monkeypatch.setattr(type(case), "source", lambda self: source)
    host = case.build()
    assert module_of(host).transfer is None
    with host.chain.step(case.batch()) as step:
        host.backbone.loss(case.batch())
        assert set(module_of(host).losses(step)) == {"self", "source"}


@pytest.mark.parametrize(("host", "anchors"), [("mean-ce", 256), ("graph-bpr", 1024)])
def test_a_step_contrasts_fewer_users_where_they_have_to_be_encoded(make, module_of, host, anchors, monkeypatch):
    case = make(host, source=True)
    source = case.source()
    source.links = torch.ones(3 * anchors, 2, dtype=torch.long)
    monkeypatch.setattr(type(case), "source", lambda self: source)
    assert len(module_of(case.build()).transfer.next_links()) == anchors


# -- state


def test_a_state_dict_keeps_alpha_and_epochs(make, module_of):
    case = make("nodes-bpr", source=True)
    host = trained(case.build(), case.batch())
    file = io.BytesIO()
    torch.save(host.state_dict(), file)
    file.seek(0)
    other = case.build()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert module_of(other).templates.alpha.item() == pytest.approx(0.99)
    assert module_of(other).epochs.item() == 2
    step_loss(other, case.batch())
    assert module_of(other).templates.alpha.item() == pytest.approx(0.99**2)


def test_a_source_that_is_augmented_itself(make, module_of):
    """As an adapter builds it: both domains have MICRec, and a copy has models of its own."""
    case = make("nodes-bpr")
    plain = case.build()
    links = torch.tensor([[1, 2], [2, 1], [3, 4]])
    source = ToySource(plain, [case.batch()], links=links, held_out=links[:0], name="other")
    context = Context(
        host="nodes-bpr",
        family="graph",
        n_users=N_USERS,
        n_items=N_ITEMS,
        n_rows={"users": N_USERS, "items": N_ITEMS},
        width={"users": 16, "items": 16, "propagated": 16},
        edges=case.edges(),
        source=source,
    )
    backbone = ToyPropagation(n_users=N_USERS, n_items=N_ITEMS, edges=case.edges())
    host = ToyHost(backbone, {"micrec": get("micrec").build(MicrecSettings(), context)}, context)
    twin = copy.deepcopy(host)
    inner, micrec = module_of(plain), module_of(host)
    step_loss(host, case.batch()).backward()
    assert inner.templates.user_global.grad is not None
    assert inner.epochs == micrec.epochs == 1
    other = module_of(twin)
    assert other.source.model is other.source_model
    assert other.source_model is not plain
    assert module_of(other.source_model).epochs == 0


def test_one_domain_says_so_once(make, caplog):
    case = make("graph-bpr")
    host = case.build()
    caplog.clear()  # building says more, where another test has raised the level
    with caplog.at_level(logging.INFO, "recplug"):
        for _ in range(3):
            step_loss(host, case.batch())
    assert [r.message for r in caplog.records] == [
        "micrec: one domain, so nothing is transferred; name a second with --micrec.source=DATASET"
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "recplug"):
        step_loss(make("graph-bpr", source=True).build(), case.batch())
        step_loss(case.at_identity().build(), case.batch())
    assert "one domain" not in caplog.text


def test_settings_that_change_nothing_read_nothing(make, module_of):
    case = make("graph-bpr").at_identity()
    host = case.build()
    users, items = tables_of(host)
    assert torch.equal(users, host.chain.table("users").raw)
    assert torch.equal(items, host.chain.table("items").raw)
    assert not list(module_of(host).parameters())


def test_content_alone_refines_the_hosts_rows(make, module_of):
    host = make("graph-bpr", templates=False, isolated="keep").build()
    users, items = tables_of(host)
    micrec = module_of(host)
    raw = host.chain.table("items").raw
    assert torch.allclose(items[1:], (micrec._refine["items"].dense() @ raw)[1:], atol=1e-6)
    assert not [name for name, _ in micrec.named_parameters()]
    assert users is not None


def test_nothing_but_batches_and_constants_of_edge_size_is_kept(make, module_of):
    """No matrix of users by items, or of items by items, is ever dense."""
    micrec = module_of(make("nodes-bpr").build())
    big = [v for v in vars(micrec).values() if isinstance(v, torch.Tensor) and v.numel() >= N_ITEMS * N_USERS]
    assert not big
    assert all(isinstance(m, Adjacency) for m in (*micrec._refine.values(), *micrec.templates._sums.values()))
    assert all(m.nnz <= 4 * len(m.dense()) for m in micrec._refine.values())


def test_the_batch_of_a_source_is_its_own(make):
    case = make("graph-bpr", source=True)
    source = case.source()
    assert isinstance(source.next_batch(), Batch)
    assert source.share_seen() == 1.0
