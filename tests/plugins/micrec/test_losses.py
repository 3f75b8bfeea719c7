import pytest
import torch
import torch.nn.functional as F

from recplug.plugins.micrec.losses import SelfEnhanced
from recplug.plugins.step import Batch

D = 4


@pytest.fixture
def made(edges, sizes):
    ordered = torch.unique(edges, dim=1)
    return SelfEnhanced(edges=ordered, n_rows=sizes["n_rows"], width=D, seed=0)


@pytest.fixture
def raw(sizes):
    torch.manual_seed(0)
    return torch.randn(sizes["n_users"], D), torch.randn(sizes["n_rows"], D)


def ones(sizes):
    return {
        "user_templates": torch.ones(sizes["n_users"], dtype=torch.bool),
        "item_templates": torch.ones(sizes["n_rows"], dtype=torch.bool),
    }


def test_the_batchs_triples_by_hand(made, raw, sizes):
    users, items = raw
    batch = Batch(users=torch.tensor([1, 4]), positives=torch.tensor([2, 6]), negatives=torch.tensor([3, 2]))
    with torch.no_grad():
        made.scale.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    expected = 0
    for u, i, j in ((1, 2, 3), (4, 6, 2)):
        score = users[u] * made.scale
        expected = expected + F.softplus(score @ items[j] - score @ items[i]) / 2
    assert torch.allclose(made(*raw, batch, **ones(sizes)), expected)


def test_only_templates_count(made, raw, sizes):
    batch = Batch(users=torch.tensor([1, 4, 2]), positives=torch.tensor([2, 6, 3]), negatives=torch.tensor([3, 2, 5]))
    templates = ones(sizes)
    templates["item_templates"][6] = False
    templates["user_templates"][2] = False
    one = Batch(users=torch.tensor([1]), positives=torch.tensor([2]), negatives=torch.tensor([3]))
    assert torch.allclose(made(*raw, batch, **templates), made(*raw, one, **templates))
    templates["user_templates"][:] = False
    assert made(*raw, batch, **templates) == 0


@pytest.mark.parametrize(
    "batch",
    [
        Batch(users=torch.tensor([1] * 500), positives=torch.tensor([2] * 500)),
        Batch(sequence=torch.ones(500, 3, dtype=torch.long), lengths=torch.full((500,), 3)),
        Batch(
            users=torch.tensor([1] * 500),
            positives=torch.tensor([2] * 500),
            negatives=torch.tensor([2] * 500),
            labels=torch.ones(500),
        ),
    ],
    ids=["cross-entropy", "histories alone", "pointwise"],
)
def test_drawn_triples_are_interactions_with_items_not_had(made, edges, batch):
    pairs = set(zip(*edges.tolist(), strict=True))
    before = torch.get_rng_state()
    users, liked, others, valid = made.triples(batch)
    assert torch.equal(before, torch.get_rng_state())
    drawn = list(zip(users.tolist(), liked.tolist(), strict=True))
    assert set(drawn) == pairs  # 500 draws of 9
    wrong = [pair in pairs for pair in zip(users.tolist(), others.tolist(), strict=True)]
    assert [not v for v in valid.tolist()] == wrong
    assert set(others.tolist()) == set(edges[1].tolist())


def test_without_interactions_there_is_no_loss(raw, sizes):
    empty = SelfEnhanced(edges=torch.empty(2, 0, dtype=torch.long), n_rows=sizes["n_rows"], width=D, seed=0)
    assert empty(*raw, Batch(users=torch.tensor([1]), positives=torch.tensor([2])), **ones(sizes)) == 0


def test_in_half_precision_it_is_computed_in_full(made, raw, sizes):
    batch = Batch(users=torch.tensor([1, 4]), positives=torch.tensor([2, 6]), negatives=torch.tensor([3, 2]))
    with torch.autocast("cpu", torch.bfloat16):
        low = made(*raw, batch, **ones(sizes))
    assert torch.equal(low, made(*raw, batch, **ones(sizes)))
