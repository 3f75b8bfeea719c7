import math

import pytest
import torch
import torch.multiprocessing as mp

from recplug.plugins.magnet.losses import coverage, usage, view_contrast, weights

E = 9
ON, OFF = torch.tensor(True), torch.tensor(False)


def routed(b=6, seed=0, e=E):
    logits = torch.randn(b, e, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return logits, logits.softmax(dim=-1)


def entropies(dense):
    return -(dense * dense.log()).sum(dim=-1)


def used(dense, entropy=None):
    return usage(dense, entropies(dense.detach()) if entropy is None else entropy, torch.ones_like(dense, dtype=bool))


def test_usage_is_the_loop():
    dense = routed()[1].detach()
    found = used(dense)
    mean = [sum(float(dense[b, e]) for b in range(6)) / 6 for e in range(E)]
    assert found.mean.tolist() == pytest.approx(mean, abs=1e-6)
    assert float(found.marginal) == pytest.approx(-sum(p * math.log(p) for p in mean) / math.log(E), abs=1e-6)
    each = [-sum(float(p) * math.log(float(p)) for p in row) for row in dense]
    assert float(found.conditional) == pytest.approx(sum(each) / 6 / math.log(E), abs=1e-6)


def test_coverage_and_entropy_at_their_ends():
    even = torch.full((4, E), 1 / E)
    found = used(even)
    assert float(coverage(even, found)) == pytest.approx(0, abs=1e-7)
    assert float(found.marginal) == pytest.approx(1.0)
    sharp = torch.eye(E)  # each row decided, all experts used
    found = used(sharp, torch.zeros(E))
    assert float(found.marginal) == pytest.approx(1.0)
    assert float(found.conditional) == 0.0
    one = torch.eye(E)[[0, 0]]
    assert float(coverage(one, used(one, torch.zeros(2)))) == pytest.approx((1 - 1 / E) ** 2 + (E - 1) / E**2)
    assert float(used(one, torch.zeros(2)).marginal) == 0.0


def test_where_content_is_missing_an_even_router_is_at_one():
    """Most items without an image: by ln E the entropy of the mean could not reach a threshold of 0.9."""
    asked = torch.ones(20, E, dtype=torch.bool)
    asked[:17, 3:6] = False
    even = asked / asked.sum(dim=1, keepdim=True)
    found = usage(even, torch.log(asked.sum(dim=1).float()), asked)
    assert float(found.marginal) == pytest.approx(1.0)
    assert float(found.conditional) == pytest.approx(1.0)
    assert float(coverage(even, found)) == pytest.approx(0.0, abs=1e-7)
    mean = even.mean(dim=0)
    assert float(-(mean * mean.log()).sum() / math.log(E)) < 0.9
    one = torch.zeros(20, E)
    one[:, 0] = 1.0
    assert float(usage(one, torch.zeros(20), asked).marginal) == 0.0


def test_coverage_has_the_gradient_of_its_equation():
    logits, dense = routed()
    loss = coverage(dense, used(dense))
    loss.backward()
    other = logits.detach().clone().requires_grad_()
    direct = (other.softmax(dim=-1).mean(dim=0) - 1 / E).square().sum()
    direct.backward()
    assert torch.allclose(loss, direct, atol=1e-7)
    assert torch.allclose(logits.grad, other.grad, atol=1e-7)


@pytest.mark.parametrize(
    ("weighting", "first", "later"),
    [("linear", 0.2, 0.8), ("quadratic", 0.04, 0.64), ("constant", 1.0, 1.0), ("reversed", 0.8, 0.2)],
)
def test_weights_of_both_stages(weighting, first, later):
    h = torch.tensor(0.8, requires_grad=True)
    before = weights(h, OFF, scale=0.3, weighting=weighting)
    after = weights(h, ON, scale=0.3, weighting=weighting)
    assert [float(w) for w in before] == pytest.approx([0.3 * first, 0.0])
    assert [float(w) for w in after] == pytest.approx([0.0, 0.3 * later])
    assert not any(w.requires_grad for w in (*before, *after))


def test_of_the_paper_only_one_weight_is_not_zero():
    for stage in (ON, OFF):
        found = weights(torch.tensor(0.7), stage, scale=0.3, weighting="linear")
        assert sum(float(w) > 0 for w in found) == 1


def slow_contrast(a, b, ids, tau):
    total, ids = 0.0, sorted(set(ids))
    for one, other in ((a, b), (b, a)):
        for i in ids:
            cosines = {j: float(torch.cosine_similarity(one[i], other[j], dim=0)) / tau for j in ids}
            total += math.log(sum(math.exp(c) for c in cosines.values())) - cosines[i]
    return total / len(ids) / 2


def test_view_contrast_is_the_loop_over_distinct_nodes():
    torch.manual_seed(0)
    views, ids = (torch.randn(7, 4), torch.randn(7, 4)), torch.tensor([1, 3, 1, 6, 3])
    found = view_contrast(*(view[ids] for view in views), ids=ids, temperature=0.5)
    assert float(found) == pytest.approx(slow_contrast(*views, ids.tolist(), 0.5), abs=1e-5)


def _rank(rank, file, sizes, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=len(sizes))
    logits = torch.randn(sum(sizes), E, generator=torch.Generator().manual_seed(3))
    mine = logits.split(sizes)[rank].clone().requires_grad_()
    dense = mine.softmax(dim=-1)
    found = used(dense)
    loss = coverage(dense, found)
    loss.backward()
    # DDP divides the sum of gradients by the number of ranks
    results[rank] = (float(loss.detach()), mine.grad / len(sizes), float(found.marginal), float(found.conditional))
    torch.distributed.destroy_process_group()


def test_two_ranks_are_one_with_both_batches(tmp_path):
    sizes = [5, 3]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (str(tmp_path / "rendezvous"), sizes, results), nprocs=2)
        ranks = [results[0], results[1]]
    logits = torch.randn(8, E, generator=torch.Generator().manual_seed(3)).requires_grad_()
    dense = logits.softmax(dim=-1)
    found = used(dense)
    loss = coverage(dense, found)
    loss.backward()
    assert ranks[0][2:] == ranks[1][2:]  # they decide alike
    assert ranks[0][0] == pytest.approx(float(loss.detach()), abs=1e-7) == pytest.approx(ranks[1][0])
    assert ranks[0][2:] == pytest.approx((float(found.marginal), float(found.conditional)), abs=1e-6)
    assert torch.allclose(torch.cat([ranks[0][1], ranks[1][1]]), logits.grad, atol=1e-7)
