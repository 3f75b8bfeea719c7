"""Band masks against their distribution, consistency against its formulas."""

import math

import pytest
import torch

from recplug.plugins.nn import Noise
from recplug.plugins.ssr.masking import BandMask, consistency

ROWS = 40_000
LIKE = torch.empty(0)


def mask(rate, scope="node", unit="band", seed=0):
    return BandMask(rate=rate, scope=scope, unit=unit, noise=Noise(seed))


@pytest.mark.parametrize("unit", ["band", "band_modality"])
@pytest.mark.parametrize("bands", [1, 2, 3, 5])
@pytest.mark.parametrize("rate", [0.1, 0.4, 0.8])
def test_masks_have_their_distribution(unit, bands, rate):
    """Every pattern of kept bands, against its probability: independent draws, the empty pattern shared out evenly."""
    blocks = 2
    found = mask(rate, unit=unit).draw(ROWS, bands, blocks, None, LIKE)
    assert found.shape == (ROWS, bands, 1 if unit == "band" else blocks, 1)
    kept = found != 0
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / (1 - rate)))
    code = (kept.squeeze(-1) * 2 ** torch.arange(bands).view(1, -1, 1)).sum(dim=1)  # [rows, P | 1]
    for block in range(code.shape[1]):
        seen = torch.bincount(code[:, block], minlength=2**bands) / ROWS
        for pattern in range(2**bands):
            size = bin(pattern).count("1")
            share = (1 - rate) ** size * rate ** (bands - size) if size else 0.0
            share += rate**bands / bands if size == 1 else 0.0
            assert abs(seen[pattern] - share) < 4.5 * math.sqrt(share * (1 - share) / ROWS) + 1e-12
    expectation = 1 + rate**bands / (bands * (1 - rate))
    deviation = found.std().item() / math.sqrt(found[..., 0, 0].numel() / bands)
    assert abs(found.mean().item() - expectation) < 4.5 * deviation + 1e-6


def test_blocks_have_draws_of_their_own():
    kept = mask(0.4, unit="band_modality").draw(ROWS, 3, 2, None, LIKE)[..., 0] != 0
    correlation = torch.corrcoef(kept.flatten(1).float().T)
    for band in range(3):  # the same band in two blocks
        assert abs(correlation[2 * band, 2 * band + 1]) < 4.5 / math.sqrt(ROWS)


@pytest.mark.parametrize("scope", ["node", "batch"])
@pytest.mark.parametrize("unit", ["band", "band_modality"])
def test_isolated_rows_keep_everything(scope, unit):
    isolated = torch.arange(200) % 3 == 0
    found = mask(0.6, scope, unit).draw(200, 4, 3, isolated, LIKE)
    assert found.shape == (200, 4, 1 if unit == "band" else 3, 1)
    assert (found[isolated] == 1).all()
    assert (found[~isolated] != 1).all()
    assert (found[~isolated] == 0).any()
    assert (found != 0).any(dim=1).all(), "some band is left in every block"


@pytest.mark.parametrize("unit", ["band", "band_modality"])
def test_a_batch_shares_one_draw(unit):
    masks = mask(0.5, "batch", unit)
    draws = [masks.draw(10, 3, 2, None, LIKE) for _ in range(50)]
    assert draws[0].shape == (1, 3, 1 if unit == "band" else 2, 1)
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) > 4, "drawn anew each step"
    rows = mask(0.5, "batch", unit).draw(10, 3, 2, torch.arange(10) == 9, LIKE)
    assert torch.equal(rows[:9], draws[0].expand_as(rows[:9]))


@pytest.mark.parametrize("case", ["rate", "evaluation"])
def test_nothing_is_masked_or_drawn(case):
    masks = mask(0.0) if case == "rate" else mask(0.3).eval()
    assert torch.equal(masks.draw(5, 3, 2, torch.ones(5, dtype=torch.bool), LIKE), torch.ones(5, 3, 1, 1))
    assert masks.noise.get_extra_state()["device"] == "", "the stream has not begun"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_narrow_type_masks_the_same_bands(dtype):
    found = mask(0.1).draw(ROWS, 3, 1, None, torch.empty(0, dtype=dtype))
    assert found.dtype is dtype
    assert torch.equal(found != 0, mask(0.1).draw(ROWS, 3, 1, None, LIKE) != 0)


def test_no_tensor_is_made_on_the_default_device():
    with torch.device("meta"):
        assert mask(0.3).draw(5, 3, 2, torch.ones(5, dtype=torch.bool, device="cpu"), LIKE).device.type == "cpu"


# -- consistency


def view(seed, n=6, d=4):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))


def by_the_formula(full, masked, form):
    full = [part.detach() for part in full]
    n = len(full[0])
    total = 0.0
    for row in range(n):
        if form.startswith("repr"):
            for f, m in zip(full, masked, strict=True):
                one = (
                    sum((f[row, k] - m[row, k]) ** 2 for k in range(f.shape[1])) / f.shape[1]
                    if form == "repr_mse"
                    else 1 - f[row] @ m[row] / (f[row].norm() * m[row].norm())
                )
                total = total + one / (n * len(full))
            continue
        x, y = (u[row] @ i[row] - u[row] @ j[row] for u, i, j in (full, masked))
        if form == "score_mse":
            total = total + (x - y) ** 2 / n
        else:
            p, q = (torch.distributions.Bernoulli(logits=z) for z in (x, y))
            total = total + torch.distributions.kl_divergence(p, q) / n
    return total


@pytest.mark.parametrize("form", ["repr_mse", "repr_cos", "score_mse", "score_kl"])
def test_consistency_is_its_formula_and_the_full_view_a_target(form):
    full, masked = view(0), view(1)
    found, expected = (f(full, masked, form) for f in (consistency, by_the_formula))
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, (*full, *masked), allow_unused=True)
    assert all(g is None for g in gradients[:3])
    for mine, theirs in zip(gradients[3:], torch.autograd.grad(expected, masked), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert torch.autograd.gradcheck(lambda *parts: consistency(full, parts, form), masked)
    assert consistency(full, full, form).item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("form", ["repr_mse", "repr_cos"])
@pytest.mark.parametrize("gone", [[2], [0, 2]])
def test_representation_forms_do_without_a_part(form, gone):
    full, masked = ([None if k in gone else part for k, part in enumerate(view(seed))] for seed in (0, 1))
    found = consistency(full, masked, form)
    left = [[part for part in parts if part is not None] for parts in (full, masked)]
    torch.testing.assert_close(found, by_the_formula(*left, form))


@pytest.mark.parametrize(("x", "y"), [(50, -50), (-50, 50), (50, 50), (-50, 49), (50, 0), (0, 50), (0.3, 0.3001)])
def test_the_divergence_is_exact_far_out(x, y):
    """In float32, against the definition in Python's double precision with log1p."""
    one = torch.ones(1, 1)
    item = torch.tensor([[float(y)]], requires_grad=True)
    found = consistency((one, torch.tensor([[float(x)]]), 0 * one), (one, item, 0 * one), "score_kl")

    def log_sigmoid(z):
        return min(z, 0.0) - math.log1p(math.exp(-abs(z)))

    p, q = (math.exp(log_sigmoid(z)) for z in (x, -x))
    expected = p * (log_sigmoid(x) - log_sigmoid(y)) + q * (log_sigmoid(-x) - log_sigmoid(-y))
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    found.backward()
    assert item.grad.item() == pytest.approx(math.exp(log_sigmoid(y)) - p, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("form", ["repr_mse", "repr_cos"])
def test_rows_of_zeros_cost_nothing(form):
    """Padding rows: zero in both views."""
    full, masked = torch.randn(4, 3), torch.randn(4, 3)
    full[0] = masked[0] = 0.0
    masked.requires_grad_()
    found = consistency((None, full, None), (None, masked, None), form)
    torch.testing.assert_close(found, consistency((full[1:],), (masked[1:],), form) * 3 / 4)
    (gradient,) = torch.autograd.grad(found, masked)
    assert not gradient[0].any()
    assert gradient.isfinite().all()


def test_half_precision_is_widened():
    full, masked = ([part.detach().half() for part in view(seed)] for seed in (0, 1))
    for form in ("repr_mse", "repr_cos", "score_mse", "score_kl"):
        found = consistency(full, masked, form)
        assert found.dtype is torch.float32
        assert torch.equal(found, consistency([x.float() for x in full], [x.float() for x in masked], form))


def test_the_expected_gradient_under_a_linear_fusion_is_a_ridge():
    """Orthogonal bands, Y = their sum: E of the masked distance is rho / (1 - rho) times the energy."""
    bands, rate = 3, 0.2
    s = torch.diag(torch.tensor([1.0, 2.0, 0.5]))  # [M, d]
    rows = s.expand(ROWS, bands, 3)
    factors = mask(rate).draw(ROWS, bands, 1, None, LIKE)[..., 0]
    full, masked = rows.sum(dim=1), (rows * factors).sum(dim=1)
    # The forced survivor replaces, with probability rho^M / M, a squared error of 1 by (1/(1-rho) - 1)^2.
    per_band = rate / (1 - rate) + rate**bands / bands * ((1 / (1 - rate) - 1) ** 2 - 1)
    expected = per_band * s.square().sum().item() / 3
    assert consistency((full,), (masked,), "repr_mse").item() == pytest.approx(expected, rel=0.03)
