"""The semantic head against slow loops and closed forms."""

import itertools
import math

import pytest
import torch

from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.mars.semantic_head import SemanticHead, mean_over

D = 5


def profiles(*, n_items=12, most=2, seed=0, sizes=(4, 3)):
    """Up to ``most`` values an item and factor, some items without any; value 3 of the first factor is empty."""
    generator = torch.Generator().manual_seed(seed)
    pairs, start = set(), 0
    for k, size in enumerate(sizes):
        for item in range(1, n_items):
            drawn = torch.randperm(size - (k == 0), generator=generator)
            pairs |= {(item, start + int(v)) for v in drawn[: int(torch.randint(0, most + 1, (), generator=generator))]}
        start += size
    table = torch.tensor(sorted(pairs))
    factors = tuple(Factor(f"f{k}", tuple(f"v{v}" for v in range(size))) for k, size in enumerate(sizes))
    return FactorProfiles(factors, table[:, 0].contiguous(), table[:, 1].contiguous(), n_items)


def head_of(given, n_rows=14):
    torch.manual_seed(0)
    return SemanticHead(profiles=given, n_rows=n_rows, width=D)


def values_of(given, item):
    return given.values[given.items == item].tolist()


@torch.no_grad()
def test_the_loss_is_a_slow_loop_over_items_factors_and_values():
    given = profiles()
    head = head_of(given)
    ids = torch.tensor([3, 1, 0, 7, 3, 11, 5, 13])  # 0 is padding, 13 a row past the items
    vectors = torch.randn(len(ids), D, generator=torch.Generator().manual_seed(1))
    found, known = head.per_item(vectors, ids)
    logits = head(vectors).detach().double()
    for row, item in enumerate(ids.tolist()):
        expected, held = 0.0, values_of(given, item)
        for low, high in itertools.pairwise(given.offsets):
            mine = [v for v in held if low <= v < high]
            if not mine:
                continue
            for v in range(low, high):
                chance = 1 / (1 + math.exp(-float(logits[row, v])))
                expected -= math.log(chance if v in mine else 1 - chance)
        assert float(found[row]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert bool(known[row]) == bool(held)


def test_large_logits_are_no_infinities():
    given = profiles(most=1)
    head = head_of(given)
    vectors = torch.full((11, D), 1e4, requires_grad=True)
    each, _ = head.per_item(vectors, torch.arange(1, 12))
    each.sum().backward()
    assert each.isfinite().all()
    assert vectors.grad.isfinite().all()


def entropy(share):
    return -sum(p * math.log(p) for p in share if p > 0)


@torch.no_grad()
def test_the_start_costs_the_base_rates_entropy():
    """Without a word from the vectors, sum_v H(p_v)."""
    n, sizes = 20_001, (2, 4)
    items = torch.arange(1, n)
    first = (items % 4 == 0).long()  # 3/4 and 1/4
    second = 2 + torch.where(items % 8 < 4, 0, torch.where(items % 8 < 6, 1, torch.where(items % 8 == 6, 2, 3)))
    given = FactorProfiles(
        tuple(Factor(f"f{k}", tuple(map(str, range(size)))) for k, size in enumerate(sizes)),
        items.repeat_interleave(2),
        torch.stack([first, second], dim=1).reshape(-1),
        n,
    )
    each, known = head_of(given, n).per_item(torch.zeros(n - 1, D), items)
    factors = [(0.75, 0.25), (0.5, 0.25, 0.125, 0.125)]
    expected = sum(entropy((p, 1 - p)) for share in factors for p in share)
    assert known.all()
    assert float(each.mean()) == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def test_the_start_survives_values_that_nobody_or_everybody_has():
    given = FactorProfiles((Factor("f", ("all", "none")),), torch.arange(1, 9), torch.zeros(8).long(), 9)
    head = head_of(given)
    assert head.out.bias.isfinite().all()
    assert float(head.per_item(torch.zeros(8, D), torch.arange(1, 9))[0].mean()) < 0.4


def test_resetting_returns_to_the_base_rates():
    head = head_of(profiles())
    before = head.out.bias.clone()
    with torch.no_grad():
        head.out.bias.add_(3.0)
    head.reset_parameters()
    assert torch.equal(head.out.bias, before)


def test_the_head_is_in_single_precision_under_autocast():
    head = head_of(profiles())
    vectors = torch.randn(4, D, generator=torch.Generator().manual_seed(1))
    plain = head.per_item(vectors, torch.arange(1, 5))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head.per_item(vectors, torch.arange(1, 5))[0], plain)


def test_a_mean_over_nothing_is_zero():
    assert float(mean_over(torch.ones(3), torch.zeros(3).bool())) == 0.0
    assert float(mean_over(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([True, False, True]))) == 5.0
