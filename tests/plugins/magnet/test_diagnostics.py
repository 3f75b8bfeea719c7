import logging

import pytest
import torch

from recplug.plugins.contract import Panel
from recplug.plugins.magnet.diagnostics import groups_of
from recplug.plugins.testing.case import step_loss


def diagnosed(host, module_of):
    host.eval()
    with torch.no_grad(), host.chain.serving():
        if hasattr(host.backbone, "adjacency"):
            host.backbone()
        return module_of(host).diagnostics()


@pytest.mark.parametrize("mode", ["pair", "node"])
@pytest.mark.parametrize("host_name", ["nodes-bpr", "graph-bpr"])
def test_pictures_show_the_routing_of_training_pairs(make, module_of, host_name, mode):
    case = make(host_name, mode=mode, trigger="paper")
    host = case.build()
    for _ in range(4):
        step_loss(host, case.batch())
    found = diagnosed(host, module_of)
    magnet = module_of(host)
    with torch.no_grad(), host.eval().chain.serving():
        if host_name == "nodes-bpr":
            host.backbone()
        dense, kept, _ = magnet.sampled_routing(*case.edges())
    use = found["utilisation"].values
    assert use.shape == (3, 3)
    assert float(use.sum()) == pytest.approx(1.0, abs=1e-5)
    for expert, name in enumerate(magnet.pool.names):
        source, kind = name.split()
        row, column = magnet.sources.index(source), ["dominant", "balanced", "complementary"].index(kind)
        assert float(use[row, column]) == pytest.approx(float(dense[:, expert].mean()), abs=1e-5)
    assert torch.allclose(found["sources"].values, kept.mean(dim=0) @ magnet.templates, atol=1e-5)
    assert float(found["slots"].sum()) == pytest.approx(1.0, abs=0.05)
    assert found["routing"].values.shape == (len(found["routing"].rows), 9)
    assert all(isinstance(v, (Panel, torch.Tensor)) for v in found.values())
    assert "step 3, in epoch 2 (trigger paper)" in found["entropy"].caption
    assert found["entropy"].values.shape == (5, 4)


def test_one_modality_shares_its_balanced_expert(make, module_of):
    host = make("nodes-bpr", modalities=("image",)).build()
    use = diagnosed(host, module_of)["utilisation"].values
    assert use.shape == (2, 3)
    assert float(use.sum()) == pytest.approx(1.0, abs=1e-5)
    assert use[0, 1] == use[1, 1]


def test_before_any_step_and_without_nodes_there_are_the_mixes_alone(make, module_of):
    found = module_of(make("nodes-bpr").build()).diagnostics()
    assert set(found) == {"templates", "gamma"}


def test_groups_are_the_loop():
    generator = torch.Generator().manual_seed(0)
    n_users, n_items = 40, 101
    users = torch.cat([torch.full((n,), u) for u, n in enumerate([0, *range(1, 40)])])
    items = torch.randint(1, 60, (len(users),), generator=generator)
    edges = torch.stack([users, items])
    names, cells = groups_of(edges, n_users, n_items, users, items)
    degree = torch.bincount(users, minlength=n_users).tolist()
    popularity = torch.bincount(items, minlength=n_items).tolist()
    ranked = sorted(range(1, n_items), key=lambda i: (popularity[i], i))
    for u, i, cell in zip(users.tolist(), items.tolist(), cells.tolist(), strict=True):
        activity = "1-5" if degree[u] <= 5 else "6-10" if degree[u] <= 10 else "11-20" if degree[u] <= 20 else ">20"
        place = ranked.index(i) + 1  # of 100
        popular = "tail" if place <= 80 else "middle" if place <= 95 else "head"
        assert names[cell] == f"user {activity}, {popular}"


def test_the_log_says_when_and_why_it_switched_and_warns_of_the_first_epoch(make, module_of, caplog):
    case = make("nodes-bpr", trigger="paper")
    host = case.build().train()
    with caplog.at_level(logging.INFO, "recplug"):
        for _ in range(4):
            host.loss(case.batch())
        host.chain.on_evaluation_end(0, 0.1)
        host.chain.on_evaluation_end(1, 0.1)
    assert caplog.text.count("stage 2 since step 3 of epoch 0 (trigger paper)") == 1
    assert caplog.text.count("fired inside the first epoch, at step 3") == 1
    assert "of 9 experts in use" in caplog.text


def test_a_later_switch_is_no_warning(make, module_of, caplog):
    case = make("nodes-bpr", trigger="fixed@2")
    host = case.build()
    with caplog.at_level(logging.INFO, "recplug"):
        for _ in range(4):  # epochs of one step
            step_loss(host, case.batch())
    assert "stage 1, entropy" in caplog.text
    assert "stage 2 since step 2 of epoch 2 (trigger fixed@2)" in caplog.text
    assert module_of(host).diagnostics()["entropy"].marks == ((2.0, "second stage, trigger fixed@2"),)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
