"""InfoNCE against the formula, one anchor and one candidate at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.plugins.nn.contrast import first_of_each, info_nce, unit


def by_the_formula(a, b, temperature, ids=None, valid=None, within=False):
    n = len(a)
    ids = list(range(n)) if ids is None else ids.tolist()
    rows = [i for i in range(n) if valid is None or valid[i]]

    def similarity(x, y):
        return (x @ y) / (x.norm() * y.norm()) / temperature

    total = 0.0
    for own, other in ((a, b), (b, a)):
        for i in rows:
            positive = similarity(own[i], other[i])
            bank = positive.exp()
            for j in rows:
                if ids[j] != ids[i]:
                    bank = bank + similarity(own[i], other[j]).exp()
                    if within:
                        bank = bank + similarity(own[i], own[j]).exp()
            total = total + bank.log() - positive
    return total / (2 * max(len(rows), 1))


def views(n=7, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, d, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    return a, b


IDS = torch.tensor([3, 1, 3, 2, 1, 9, 3])
VALID = torch.tensor([True, True, False, True, True, False, True])


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("valid", [None, VALID])
@pytest.mark.parametrize("temperature", [0.2, 1.5])
def test_it_is_the_formula(within, ids, valid, temperature):
    a, b = views()
    options = {"ids": ids, "valid": valid, "within": within}
    found = info_nce(a, b, temperature=temperature, **options)
    expected = by_the_formula(a, b, temperature, **options)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(*(torch.autograd.grad(x, (a, b)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("within", [False, True])
def test_gradients_are_those_of_differences(within):
    a, b = views(n=5, d=3)
    options = {"temperature": 0.4, "ids": IDS[:5], "valid": VALID[:5], "within": within}
    assert torch.autograd.gradcheck(lambda x, y: info_nce(x, y, **options), (a, b))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_closed_forms(n):
    """Orthonormal rows, both views alike: cosines are 1 and 0."""
    a, temperature = 3 * torch.eye(n), 0.5
    e = math.exp(1 / temperature)
    cross = info_nce(a, a, temperature=temperature)
    assert cross.item() == pytest.approx(math.log((e + n - 1) / e), rel=1e-5)
    # The own view adds n - 1 cosines of 0; an anchor that were its own negative would add another e.
    assert info_nce(a, a, temperature=temperature, within=True).item() == pytest.approx(
        math.log((e + 2 * (n - 1)) / e), rel=1e-5
    )
    # The same vector everywhere tells nothing apart.
    same = torch.ones(n, 4)
    assert info_nce(same, same, temperature=temperature).item() == pytest.approx(math.log(n), rel=1e-5)


def test_three_by_three_by_hand():
    """Unit vectors at 0, 90, 180 degrees against 0, 90, 90; tau = 1."""
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    e = math.e
    forth = [math.log(e + 2) - 1, math.log(1 + 2 * e) - 1, math.log(1 / e + 2)]
    back = [math.log(e + 1 + 1 / e) - 1, math.log(e + 2) - 1, math.log(e + 2)]
    assert info_nce(a, b, temperature=1.0).item() == pytest.approx((sum(forth) + sum(back)) / 6, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=9), st.booleans())
def test_any_ids_and_any_valid_rows(rows, within):
    ids, valid = (torch.tensor(column) for column in zip(*rows, strict=True))
    options = {"ids": ids, "valid": valid, "within": within}
    a, b = views(n=len(rows))
    expected = torch.as_tensor(by_the_formula(a, b, 0.5, **options), dtype=torch.float64)
    torch.testing.assert_close(info_nce(a, b, temperature=0.5, **options), expected)


def test_rows_of_one_id_do_not_push_each_other():
    a, b = views(n=4)
    found = info_nce(a, b, temperature=0.2, ids=torch.full((4,), 6), within=True)
    assert found.item() == pytest.approx(0.0, abs=1e-12)
    assert not any(g.abs().gt(1e-12).any() for g in torch.autograd.grad(found, (a, b)))
    assert info_nce(a, b, temperature=0.2, within=True) > 0.1


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("garbage", [1e4, torch.nan, torch.inf])
def test_invalid_rows_reach_nothing(within, garbage):
    a, b = views()
    spoilt = a.detach().clone()
    spoilt[~VALID] = garbage
    spoilt.requires_grad_()
    found = info_nce(spoilt, b, temperature=0.2, valid=VALID, within=within)
    torch.testing.assert_close(found, info_nce(a[VALID], b[VALID], temperature=0.2, within=within))
    left, right = torch.autograd.grad(found, (spoilt, b))
    assert not left[~VALID].any()
    assert not right[~VALID].any()
    assert left[VALID].any(dim=1).all()


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(
    ("n", "valid"), [(1, None), (0, None), (4, torch.zeros(4, dtype=torch.bool)), (4, torch.arange(4) == 2)]
)
def test_fewer_than_two_rows_are_nothing_to_tell_apart(n, valid, within):
    a, b = views(n=n)
    found = info_nce(a, b, temperature=0.2, valid=valid, within=within)
    assert found.item() == pytest.approx(0.0, abs=1e-12)
    assert all(not g.abs().gt(1e-9).any() for g in torch.autograd.grad(found, (a, b)))


@pytest.mark.parametrize("within", [False, True])
def test_zero_vectors_have_cosine_zero_and_no_gradient(within):
    a = torch.eye(3)
    a[0] = 0.0
    a.requires_grad_()
    b = torch.eye(3)
    found = info_nce(a, b, temperature=1.0, within=within)
    e, more = math.e, 2 if within else 0
    forth = [math.log(3 + more), *[math.log(e + 2 + more) - 1] * 2]
    back = [math.log(3 + more), *[math.log(e + 2 + more) - 1] * 2]
    assert found.item() == pytest.approx((sum(forth) + sum(back)) / 6, rel=1e-6)
    (gradient,) = torch.autograd.grad(found, a)
    assert not gradient[0].any()
    assert gradient.isfinite().all()
    everything = torch.zeros(4, 3, requires_grad=True)
    info_nce(everything, everything, temperature=0.05, within=within).backward()
    assert not everything.grad.any()


def test_only_directions_count():
    a, b = views()
    stretch = torch.linspace(0.01, 100.0, len(a), dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(info_nce(a * stretch, b / stretch, temperature=0.2), info_nce(a, b, temperature=0.2))


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_precision_under_autocast(within, dtype):
    a, b = (x.detach().to(dtype) for x in views(n=50, d=16))
    options = {"temperature": 0.05, "within": within}
    expected = info_nce(a.float(), b.float(), **options)
    with torch.autocast("cpu", torch.bfloat16):
        found = info_nce(a, b, **options)
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)


def test_no_tensor_is_made_on_the_default_device():
    a, b = views()
    with torch.device("meta"):
        found = info_nce(a, b, temperature=0.2, ids=IDS, valid=first_of_each(IDS), within=True)
    assert found.device.type == "cpu"


def test_unit_has_length_one_and_the_gradient_of_a_direction():
    (x, _) = views()
    torch.testing.assert_close(unit(x).norm(dim=1), torch.ones(len(x), dtype=torch.float64))
    assert torch.autograd.gradcheck(unit, (x,))
    assert unit(torch.ones(2, dtype=torch.float16)).dtype is torch.float32


@given(st.lists(st.integers(-3, 5), max_size=12))
def test_first_of_each(ids):
    expected = [i not in ids[:place] for place, i in enumerate(ids)]
    assert first_of_each(torch.tensor(ids, dtype=torch.long)).tolist() == expected
