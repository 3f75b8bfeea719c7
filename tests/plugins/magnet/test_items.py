import io
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from recplug.plugins.errors import RecplugError
from recplug.plugins.magnet import MagnetNodes, MagnetTable
from recplug.plugins.magnet.router import route
from recplug.plugins.testing.case import N_ITEMS, step_loss

HOSTS = ["mean-ce", "mask-ce", "graph-bpr", "nodes-bpr"]


def slow(magnet, z, content, slow_expert):
    """``[n_items, d]``: every item's mixture, one expert and source at a time; and its dense routing."""
    units = [F.normalize(m.values.float(), dim=1) for m in content]
    out, dense = torch.zeros_like(z), torch.zeros(len(z), magnet.pool.n_experts)
    for i in range(len(z)):
        sources = [z[i]]
        for m, layer in enumerate(magnet.content.maps):
            there = i < N_ITEMS and bool(content[m].present[i])
            sources.append(layer(units[m][i]) if there else None)
        lacks = torch.tensor([sources[a] is None for a in magnet.pool.anchors.tolist()])
        found = route(magnet.router(magnet.router.item(z[i : i + 1]))[0], lacks, magnet.top_k)
        dense[i] = found.dense
        for e in range(magnet.pool.n_experts):
            there = [(float(w), v) for w, v in zip(magnet.mixes()[e], sources, strict=True) if v is not None]
            x = sum(w * v for w, v in there) / sum(w for w, _ in there)
            out[i] += found.kept[e] * slow_expert(magnet.experts, e, None, x)[0]
    return out, dense


@pytest.mark.parametrize("form", ["product", "concat"])
@pytest.mark.parametrize("host_name", HOSTS)
def test_rows_are_the_slow_ones(make, module_of, slow_expert, host_name, form):
    case = make(host_name, mode="node", gamma=0.4, expert_input=form)
    host, batch = case.build().eval(), case.batch()
    magnet, content = module_of(host), list(case.modalities().values())
    with torch.no_grad(), host.chain.asking() as step:
        if host_name == "nodes-bpr":
            assert isinstance(magnet, MagnetNodes)
            z_users, z = case.backbone().eval()()
            found_users, found = host.backbone()
            assert torch.equal(found_users, z_users)
        else:
            assert isinstance(magnet, MagnetTable)
            z, found = step.table("items"), host.backbone.items.weight
        expected = z + 0.4 * slow(magnet, z, content, slow_expert)[0]
        assert torch.allclose(found[1:N_ITEMS], expected[1:N_ITEMS], atol=1e-4)
    if host_name == "nodes-bpr":
        assert torch.allclose(host.scores(batch), z_users[batch.users] @ found.T, atol=1e-4)


@pytest.mark.parametrize("host_name", HOSTS)
def test_training_reads_the_same_rows_and_weighs_items_as_they_come(make, module_of, slow_expert, host_name):
    case = make(host_name, mode="node", dropout=0.0)
    host, batch = case.build().train(), case.batch()
    positives = torch.tensor([4, 4, 4, 9])
    batch = replace(batch, positives=positives)
    magnet, content = module_of(host), list(case.modalities().values())
    whole = host.backbone.loss_type == "ce"
    with torch.no_grad(), host.chain.step(batch, whole_table=whole) as step:
        host.backbone.dropout.p = 0.0
        host.backbone.loss(batch)
        parts = magnet.losses(step)
        z = case.backbone().train()()[1] if host_name == "nodes-bpr" else step.table("items")
        dense = slow(magnet, z, content, slow_expert)[1][positives]
    mean = dense.mean(dim=0)
    h = -torch.special.xlogy(mean, mean).sum() / torch.log(torch.tensor(9.0))
    expected = 0.3 * (1 - h) * (mean - 1 / 9).square().sum()
    assert torch.allclose(parts["coverage"], expected, atol=1e-7)
    assert float(parts["confidence"]) == 0.0  # the first stage


def test_a_batch_with_repeated_items_changes_each_once(make, module_of, monkeypatch):
    """On an accelerator the batch's ids are taken as they stand."""
    case = make("nodes-bpr", mode="node", dropout=0.0)
    host, batch = case.build().train(), replace(case.batch(), positives=torch.tensor([4, 4, 4, 9]))
    magnet = module_of(host)
    host.backbone.dropout.p = 0.0
    with torch.no_grad(), host.chain.step(batch):
        single = host.backbone()[1]
    monkeypatch.setattr(magnet, "_rows", lambda step, items: torch.cat(step.batch.items()))
    with torch.no_grad(), host.chain.step(batch):
        repeated = host.backbone()[1]
    assert torch.allclose(single, repeated, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4], ids=["first stage", "second stage"])
def test_killed_and_resumed_it_takes_the_same_way(make, module_of, steps):
    case = make("mean-ce", trigger="paper", threshold=0.5)
    batch = case.batch()

    def advance(host, n):
        for _ in range(n):
            host.zero_grad()
            step_loss(host, batch).backward()
            with torch.no_grad():
                for parameter in host.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad

    whole, resumed = case.build(), case.build()
    advance(whole, steps)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for host in (whole, resumed):
        advance(host, 4)
    assert module_of(whole).trigger.state() == module_of(resumed).trigger.state()
    assert module_of(whole).trigger.state()["switch_step"] == 3
    assert torch.equal(whole.scores(batch), resumed.scores(batch))


def test_nodes_need_a_step(make, module_of):
    magnet = module_of(make("nodes-bpr", mode="node").build())
    with pytest.raises(RecplugError, match="within a step"):
        magnet.propagated(torch.zeros(14, 16), torch.zeros(23, 16))
