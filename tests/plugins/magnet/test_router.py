import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recplug.plugins.magnet.router import Router, keep, mixture, route
from recplug.plugins.nn import Noise


def slow(logits, absent, k):
    """Softmax first, then the K largest, then renormalised."""
    weights = [0.0 if a else math.exp(x) for x, a in zip(logits, absent, strict=True)]
    dense = [w / sum(weights) for w in weights]
    best = sorted(range(len(dense)), key=lambda e: -dense[e])[:k]
    total = sum(dense[e] for e in best)
    kept = [dense[e] / total if e in best else 0.0 for e in range(len(dense))]
    return dense, kept, -sum(p * math.log(p) for p in dense if p)


@given(st.integers(0, 10_000), st.sampled_from([1, 4, 9]))
def test_softmax_then_best_is_best_then_softmax(seed, k):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, 9, generator=generator)
    absent = torch.rand(6, 9, generator=generator) < 0.5
    absent[:, 0] = False
    absent[0, 1:] = True  # one expert left
    found = route(logits, absent, k)
    for i in range(6):
        dense, kept, entropy = slow(logits[i].tolist(), absent[i].tolist(), k)
        assert found.dense[i].tolist() == pytest.approx(dense, abs=1e-5)
        assert found.kept[i].tolist() == pytest.approx(kept, abs=1e-5)
        assert float(found.entropy[i]) == pytest.approx(entropy, abs=1e-5)
    assert torch.equal(keep(logits, absent, k), found.kept)
    values = torch.randn(6, 9, generator=generator)
    mixed = mixture(logits.T.contiguous(), absent.T, values.T, k)
    assert torch.allclose(mixed, (found.kept * values).sum(dim=1), atol=1e-5)


def test_equals_of_the_last_are_kept_whatever_their_place():
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0, 3.0]])
    nobody = torch.zeros(2, 5, dtype=torch.bool)
    assert (keep(logits, nobody, 2) > 0).tolist() == [[True, True, True, False, True], [False, True, True, True, True]]
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]).expand(2, 5)
    expected = (keep(logits, nobody, 2) * values).sum(dim=1)
    assert torch.allclose(mixture(logits.T, nobody.T, values.T, 2), expected)


def test_gradients_are_finite_where_experts_are_absent():
    logits = torch.randn(4, 5, requires_grad=True)
    absent = torch.tensor([False, True, True, True, True])
    found = route(logits, absent, 2)
    (found.entropy.sum() + found.kept.square().sum() + found.dense.square().sum()).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 1:] == 0).all()


def test_first_layer_is_a_sum_of_both_sides():
    torch.manual_seed(0)
    router = Router(width=4, experts=5, of_pairs=True, dropout=0.0, noise=Noise(0))
    users, items = torch.randn(3, 4), torch.randn(3, 4)
    found = router(router.user(users) + router.item(items))
    joined = torch.cat([router.of_user.weight, router.of_item.weight], dim=1)
    first = torch.cat([users, items], dim=1) @ joined.T + router.of_item.bias
    expected = torch.nn.functional.gelu(first) @ router.last.weight.T + router.last.bias
    assert torch.allclose(found, expected, atol=1e-6)
    pairs = router.user(users).unsqueeze(1) + router.item(items)  # [3, 3, h]
    first = router.experts_first(pairs)
    assert first.shape == (5, 3, 3)
    assert first.is_contiguous()
    assert torch.allclose(first.movedim(0, -1), router(pairs), atol=1e-6)
    assert found.abs().max() < 0.5  # nearly even at the start
    assert found.std() > 0


def test_dropout_in_training_only():
    router = Router(width=64, experts=3, of_pairs=False, dropout=0.5, noise=Noise(0))
    z = torch.ones(2, 64)
    assert not torch.equal(router.item(z)[0], router.item(z)[1])
    router.eval()
    assert torch.equal(router.item(z)[0], router.item(z)[1])
