import io
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recplug.plugins.magnet import pairs
from recplug.plugins.magnet.router import route
from recplug.plugins.nn.knn import kneighbours
from recplug.plugins.nn.propagation import Adjacency, lightgcn
from recplug.plugins.testing.case import N_ITEMS, N_USERS, step_loss, trained

HOSTS = ["graph-bpr", "nodes-bpr"]
USERS, ITEMS = torch.arange(1, N_USERS), torch.arange(N_ITEMS)


def randomised(host, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in host.chain.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return host


def slow_scores(magnet, z_users, z_items, table, edges, content, slow_expert):
    """``[n_users, n_items, ...]``: MAGNET's own score of every pair, one pair, expert and source at a time."""
    histories = [[] for _ in range(N_USERS)]
    for u, i in sorted(set(map(tuple, edges.T.tolist()))):
        histories[u].append(i)
    units = [torch.nn.functional.normalize(m.values.float(), dim=1) for m in content]
    near = [kneighbours(m.values, m.present, magnet.settings.neighbours, include_self=True) for m in content]

    def source(m, i):
        if magnet.content is None:
            own = near[m].index[i][near[m].valid[i]]
            return table[own].mean(dim=0) if len(own) else None
        return magnet.content.maps[m](units[m][i]) if content[m].present[i] else None

    def profile(m, u):
        found = [source(m, i) for i in histories[u] if content[m].present[i]]
        return torch.stack(found).mean(dim=0) if found else None

    scores = torch.zeros(N_USERS, N_ITEMS)
    weights = magnet.mixes()
    for u in range(N_USERS):
        of_user = [z_users[u], *(profile(m, u) for m in range(len(content)))]
        if magnet.content is None:
            of_user = [z_users[u]] * len(of_user)
        for i in range(N_ITEMS):
            of_item = [z_items[i], *(source(m, i) for m in range(len(content)))]
            logits = magnet.router(magnet.router.user(z_users[u : u + 1]) + magnet.router.item(z_items[i : i + 1]))[0]
            lacks = torch.tensor([of_user[a] is None or of_item[a] is None for a in magnet.pool.anchors.tolist()])
            kept = route(logits, lacks, magnet.top_k).kept
            for e in range(len(weights)):
                x = []
                for sources in (of_user, of_item):
                    there = [(float(weights[e, s]), v) for s, v in enumerate(sources) if v is not None]
                    x.append(sum(w * v for w, v in there) / sum(w for w, _ in there))
                value = slow_expert(magnet.experts, e, *x)[1]
                scores[u, i] += kept[e] * value
    return scores


def behaviour(case, host, magnet):
    """z by eqs. 4-6, from dense matrices."""
    users, items = host.backbone.users.raw, host.backbone.items.raw

    def propagated(edges):
        graph = Adjacency.bipartite(edges, n_users=N_USERS, n_items=N_ITEMS).dense()
        x = torch.cat([users, items])
        mean = (x + graph @ x + graph @ graph @ x) / 3
        return mean[:N_USERS], mean[N_USERS:]

    observed = propagated(case.edges()) if case.host == "nodes-bpr" else (users, items)
    if magnet.induced is None:
        return observed
    both = magnet.induced.indices()
    both = both[:, both[0] < N_USERS]
    induced = propagated(torch.stack([both[0], both[1] - N_USERS]))
    assert set(map(tuple, case.edges().T.tolist())) < set(
        map(tuple, (both - torch.tensor([[0], [N_USERS]])).T.tolist())
    )
    return tuple((a + b) / 2 for a, b in zip(observed, induced, strict=True))


@pytest.mark.parametrize(
    ("host_name", "settings"),
    [
        ("nodes-bpr", {"induced": 3, "neighbours": 3, "expert_input": "concat"}),
        ("nodes-bpr", {"induced": 0, "top_k": 1, "expert_input": "product"}),
        ("nodes-bpr", {"induced": 2, "neighbours": 3, "expert_input": "channels"}),
        ("graph-bpr", {"induced": 0, "structure": "free", "top_k": 9, "expert_input": "product"}),
        ("graph-bpr", {"induced": 0, "structure": "single", "expert_input": "concat"}),
        ("graph-bpr", {"induced": 0, "modalities": ("text",)}),
    ],
    ids=["paper", "one expert", "channels", "free", "single", "one modality"],
)
def test_scores_are_the_slow_ones(make, module_of, slow_expert, host_name, settings):
    case = make(host_name, mode="pair", base="none", **settings)
    host = randomised(case.build()).eval()
    magnet, content = module_of(host), list(case.modalities().values())
    content = [m for m in content if m.name in magnet.sources]
    with torch.no_grad():
        z = behaviour(case, host, magnet)
        expected = slow_scores(magnet, *z, host.backbone.items.raw, case.edges(), content, slow_expert)
    batch = replace(case.batch(), users=USERS)
    scores = host.scores(batch)
    assert torch.allclose(scores, expected[1:], atol=1e-4)
    asked = host.pairs(USERS.repeat_interleave(N_ITEMS), ITEMS.repeat(len(USERS)))
    assert torch.allclose(asked.view_as(scores), expected[1:], atol=1e-4)


def test_residual_adds_gamma_times_it(make):
    settings = {"mode": "pair", "induced": 0}
    replaced, added = make("nodes-bpr", base="none", **settings), make("nodes-bpr", gamma=0.3, **settings)
    batch = added.batch()
    base = added.backbone().eval().scores(batch)
    own, both = replaced.build().scores(batch), added.build().scores(batch)
    assert torch.allclose(both, base + 0.3 * own, atol=1e-5)


@pytest.mark.parametrize("form", ["product", "concat"])
@pytest.mark.parametrize("host_name", HOSTS)
def test_tiles_do_not_matter(make, module_of, monkeypatch, host_name, form):
    case = make(host_name, mode="pair", expert_input=form)
    host = randomised(case.build())
    batch = replace(case.batch(), users=USERS)
    whole = host.scores(batch)
    for budget in (1, 7, 50):
        monkeypatch.setattr(module_of(host), "_budget", lambda budget=budget: budget)
        assert torch.allclose(host.scores(batch), whole, atol=1e-5)
    monkeypatch.setattr(module_of(host), "_whole", lambda items, step: None)
    assert torch.allclose(host.scores(batch), whole, atol=1e-5)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("form", ["product", "concat"])
def test_ranking_stays_within_its_memory(make, module_of, monkeypatch, form):
    monkeypatch.setattr(pairs, "CPU_BLOCK", 2**18)
    case = make("graph-bpr", mode="pair", induced=0, expert_input=form)
    host = case.build().eval()
    magnet = module_of(host)
    users, items = torch.arange(14).repeat(8), torch.arange(N_ITEMS).repeat(8)  # [112], [184]
    with torch.no_grad(), host.chain.asking() as step:
        magnet.behaviour(step)
        base = torch.zeros(len(users), len(items))
        with Largest() as watched:
            scores = magnet.score(base, users, items, step)
    blocks = magnet.experts.n_experts * (16 if form == "concat" else 1)
    assert len(users) * len(items) * blocks * 4 > 2**19  # all at once would not fit
    assert watched.bytes <= 2**18
    assert torch.allclose(scores[:14, :N_ITEMS], scores[14:28, N_ITEMS : 2 * N_ITEMS], atol=1e-5)


def test_without_induced_edges_there_is_one_view(make, module_of):
    none, single = make("nodes-bpr", mode="pair", induced=0), make("nodes-bpr", mode="pair", induced=0, lambda_view=0.0)
    batch = none.batch()
    one, other = none.build(), single.build()
    assert module_of(one).induced is None
    assert torch.equal(one.scores(batch), other.scores(batch))
    assert torch.equal(step_loss(one, batch), step_loss(other, batch))
    graph = Adjacency.bipartite(none.edges(), n_users=N_USERS, n_items=N_ITEMS)
    host = make("nodes-bpr", mode="pair").build().eval()
    module_of(host).induced = graph  # the same graph twice gives the same nodes
    assert torch.allclose(host.scores(batch), other.scores(batch), atol=1e-6)


@pytest.mark.parametrize("form", ["product", "concat"])
def test_every_expert_and_part_learns(make, module_of, form):
    case = make("nodes-bpr", mode="pair", induced=3, dropout=0.0, lambda_route=0.0, expert_input=form)
    host, batch = case.build(), case.batch()
    magnet = module_of(host)
    moved = torch.zeros(9, dtype=torch.bool)
    optimiser = torch.optim.Adam(host.parameters(), lr=0.02)
    for step in range(100):
        order = 1 + torch.randperm(N_ITEMS - 1, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        host.train().loss(replace(batch, positives=order[:4], negatives=order[4:8])).backward()
        own = magnet.experts.scale if form == "product" else magnet.experts.of_item
        moved |= own.grad.abs().flatten(1).sum(dim=1) > 0
        optimiser.step()
    assert moved.all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in magnet.named_parameters() if "maps" in n)
    assert all(p.grad is not None for p in magnet.parameters())


def test_leave_one_out_in_training_only(make, module_of):
    settings = {"mode": "pair", "induced": 0, "dropout": 0.0, "expert_input": "product"}
    plain, loo = (make("graph-bpr", leave_one_out=on, **settings) for on in (False, True))
    edges = plain.edges()[:, ::4][:, :4]  # one interaction each of the first users
    batch = replace(plain.batch(), users=edges[0], positives=edges[1])
    assert torch.equal(plain.build().scores(batch), loo.build().scores(batch))
    host = loo.build().train()
    with host.chain.step(batch) as step:
        host.backbone.loss(batch)
        found = step.memory["magnet.scores"]  # of positives and of negatives
        magnet = module_of(host)
        z_users, z_items = magnet.behaviour(step)
        parts = [magnet.user_part(z_users[batch.users], batch.users, w) for w in (batch.positives, None)]
        for scores, ids in zip(found, (batch.positives, batch.negatives), strict=True):
            item = magnet.item_part(z_items[ids], ids, step)
            shorter, whole = (magnet.routed(user, item)[0] for user in parts)
            assert torch.allclose(scores, shorter, atol=1e-6)
            assert not torch.allclose(scores, whole, atol=1e-6)


def test_nodes_of_another_width_are_replaced(make, module_of):
    """Where another plugin widens the host's nodes, or the host's are wider than its table."""
    case = make("nodes-bpr", mode="pair", induced=0)
    host = case.build().eval()
    magnet = module_of(host)
    users, items = host.backbone.users.raw, host.backbone.items.raw
    with torch.no_grad(), host.chain.asking() as step:
        step.propagated = users.repeat(1, 2), items.repeat(1, 2)
        found = magnet.behaviour(step)
    graph = Adjacency.bipartite(case.edges(), n_users=N_USERS, n_items=N_ITEMS)
    expected = lightgcn(graph, users, items, 2)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("steps", [1, 4], ids=["first stage", "second stage"])
def test_killed_and_resumed_it_takes_the_same_way(make, module_of, steps):
    case = make("nodes-bpr", mode="pair", trigger="paper", patience=3, threshold=0.5)
    batch = case.batch()

    def advance(host, optimiser, n):
        for _ in range(n):
            optimiser.zero_grad()
            step_loss(host, batch).backward()
            optimiser.step()

    whole = case.build()
    optimiser = torch.optim.Adam(whole.parameters(), lr=0.01)
    advance(whole, optimiser, steps)
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimiser": optimiser.state_dict()}, file)
    assert module_of(whole).trigger.state()["stage"] == (1 if steps < 3 else 2)
    advance(whole, optimiser, 4)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = case.build()
    resumed.load_state_dict(saved["model"])
    other = torch.optim.Adam(resumed.parameters(), lr=0.01)
    other.load_state_dict(saved["optimiser"])
    advance(resumed, other, 4)
    assert module_of(resumed).trigger.state() == module_of(whole).trigger.state()
    assert module_of(resumed).trigger.state()["switch_step"] == 3
    assert torch.equal(whole.scores(batch), resumed.scores(batch))


def test_the_literal_rule_fires_at_once_on_a_fresh_model(make, module_of):
    """A documented defect of the paper's rule: a fresh router is balanced, above every threshold of its table 3."""
    for trigger, expected in (("paper", 3), ("armed", -1)):
        host = make("nodes-bpr", mode="pair", trigger=trigger).build()
        for _ in range(5):
            step_loss(host, make("nodes-bpr").batch())
        assert module_of(host).trigger.state()["switch_step"] == expected


def test_evaluation_and_losses_without_training_leave_the_trigger(make, module_of):
    case = make("nodes-bpr", mode="pair", trigger="paper")
    host = trained(case.build(), case.batch())
    before = module_of(host).trigger.state()
    host.eval()
    host.loss(case.batch())
    host.scores(case.batch())
    assert module_of(host).trigger.state() == before
    assert before["step"] == 2


def test_losses_are_their_equations(make, module_of):
    """Both stages, from the routing that the step kept."""
    for trigger, stage in (("fixed@9", 1), ("fixed@0", 2)):
        case = make("nodes-bpr", mode="pair", trigger=trigger, induced=3)
        host, batch = randomised(case.build()).train(), case.batch()
        magnet = module_of(host)
        with host.chain.step(batch) as step:
            host.backbone.loss(batch)
            parts = magnet.losses(step)
            dense = step.memory["magnet.dense"].detach()
        mean = dense.mean(dim=0)
        h = -(mean * mean.log()).nansum() / torch.log(torch.tensor(9.0))
        spread = (mean - 1 / 9).square().sum()
        each = -torch.special.xlogy(dense, dense).sum(dim=1).mean()
        expected = (0.3 * (1 - h) * spread, 0.0 * each) if stage == 1 else (0.0 * spread, 0.3 * h * each)
        assert torch.allclose(parts["coverage"], expected[0], atol=1e-6)
        assert torch.allclose(parts["confidence"], expected[1], atol=1e-6)
        assert set(parts) == {"coverage", "confidence", "view"}


def test_contrast_takes_the_first_rows_alone(make, module_of, monkeypatch):
    found = {}
    for rows in (2, 4, 512):
        monkeypatch.setattr(pairs, "CONTRASTED", rows)
        case = make("nodes-bpr", mode="pair", induced=3, dropout=0.0)
        host = case.build().eval()
        with torch.no_grad(), host.chain.step(case.batch()) as step:
            host.backbone.loss(case.batch())
            found[rows] = float(module_of(host).losses(step)["view"])
    assert found[4] == found[512] != found[2]


def test_the_views_mean_takes_the_backbone_s_place_unless_told_otherwise(make, module_of):
    """With MAGNET's own part at nothing, what remains is the dot product of the behaviour vectors (eq. 6)."""
    still = {"mode": "pair", "gamma": 1e-30}
    views, backbone = make("nodes-bpr", **still), make("nodes-bpr", **still, base="backbone")
    batch = views.batch()
    model = views.build().eval()
    with torch.no_grad(), model.chain.asking() as step:
        scores = model.scores(batch)
        users, items = module_of(model).behaviour(step)
    assert torch.allclose(scores, users[batch.users] @ items.T, atol=1e-5)
    bare = make("nodes-bpr").backbone().eval().scores(batch)
    assert torch.allclose(backbone.build().eval().scores(batch), bare, atol=1e-6)
    assert not torch.allclose(scores, bare, atol=1e-2)
