"""The equation against dense products, and the graph that training sees. The contract is everyone's."""

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.nn import lightgcn
from recplug.plugins.nn.knn import item_graph, kneighbours
from recplug.plugins.nn.user_graph import like_users
from recplug.plugins.testing import cases
from recplug.plugins.testing.case import N_ITEMS, N_USERS

OFF = {"item_weight": 0.0, "user_weight": 0.0, "edge_dropout": 0.0}


def case_of(**settings):
    (case,) = cases(get("itemgraph"), settings, ["nodes-bpr"])
    return case


def test_it_is_the_equation():
    """Item by item: the mean of its neighbours' table rows in each modality, those that it has; users likewise."""
    case = case_of(item_weight=0.7, user_weight=1.5, item_neighbours=3, user_neighbours=2, image_weight=0.3)
    host = case.build()
    users, items = host.backbone.users.raw.detach(), host.backbone.items.raw.detach()
    expected_users, expected_items = (x.clone() for x in lightgcn(host.backbone.adjacency, users, items, 2))
    modalities = case.modalities()
    found = {m.name: kneighbours(m.values.float(), m.present, 3, include_self=True) for m in modalities.values()}
    weights = {"image": 0.3, "text": 0.7}
    for item in range(N_ITEMS):
        means = [
            (weights[name], items[near.index[item][near.valid[item]]].mean(0))
            for name, near in found.items()
            if near.valid[item].any()
        ]
        if means:
            expected_items[item] += 0.7 * sum(w * mean for w, mean in means) / sum(w for w, _ in means)
    like = like_users(
        case.edges(),
        list(modalities.values()),
        n_users=N_USERS,
        n_items=N_ITEMS,
        k=2,
        content=0.6,
        image_weight=0.3,
    )
    for user in range(N_USERS):
        if like.valid[user].any():
            expected_users[user] += 1.5 * users[like.index[user][like.valid[user]]].mean(0)
    with torch.no_grad():
        own_users, own_items = host.eval().backbone()
    torch.testing.assert_close(own_users, expected_users, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own_items, expected_items, atol=1e-5, rtol=1e-5)


def test_neighbours_weigh_alike():
    like = like_users(case_of().edges(), [], n_users=N_USERS, n_items=N_ITEMS, k=3, content=0.0, image_weight=0.1)
    values = item_graph({"users": like}, {"users": 1.0}, n_rows=N_USERS).values()
    assert set((1 / values).round().int().tolist()) <= {1, 2, 3}


def test_training_sees_fewer_edges_anew_every_epoch_and_evaluation_all_of_them():
    case = case_of(**{**OFF, "edge_dropout": 0.5})
    host, batch = case.build(), case.batch()
    whole, seen = host.backbone.adjacency, []
    for _ in range(3):
        host.train()
        for _ in range(2):
            host.loss(batch)
            seen.append(host.backbone.propagates_over)
        host.scores(batch)
        assert host.backbone.propagates_over is whole
    assert seen[0] is seen[1]
    assert seen[2] is seen[3]
    assert not torch.equal(seen[1].indices(), seen[2].indices())
    assert not torch.equal(seen[3].indices(), seen[4].indices())
    assert {graph.nnz for graph in seen} == {2 * int(whole.nnz / 2 * 0.5)}


@pytest.mark.parametrize("host", ["nodes-bpr", "decoder-sum"])
def test_without_dropout_it_does_not_ask_for_the_graph(host):
    (case,) = cases(get("itemgraph"), {"edge_dropout": 0.0}, [host])
    (augmentation,) = case.build().chain.augmentations().values()
    assert augmentation.seams() == {"propagated"} == case.plugin.requirements(case.settings).seams


def test_on_tables_of_another_width_it_reads_the_nodes():
    case = case_of(user_weight=0.0, edge_dropout=0.0, item_neighbours=3)
    (augmentation,) = case.build().chain.augmentations().values()
    augmentation.item_table = augmentation.user_table = False
    users, items = torch.randn(N_USERS, 40), torch.randn(N_ITEMS, 40)
    found = augmentation.propagated(users, items)
    torch.testing.assert_close(found[1], items + augmentation.item_graph.graph.dense() @ items)
    assert found[0] is users
