"""Masks against their distribution, consistency against its formulas, the contrast against loops over pairs."""

import math

import pytest
import torch

from recplug.plugins.nn import Noise
from recplug.plugins.ssr.losses import BandMask, consistency, ridge, spectral_contrast

ROWS = 40_000
BANDS, WIDTH = 3, 4


def mask(rate, seed=0):
    return BandMask(rate=rate, noise=Noise(seed))


def like(rows, bands, blocks=2, dtype=torch.float32):
    return torch.zeros(rows, bands, blocks, 1, dtype=dtype)


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
@pytest.mark.parametrize("rate", [0.1, 0.4, 0.8])
def test_masks_have_their_distribution(bands, rate):
    """Every pattern of kept bands, against its probability: independent draws, the empty pattern shared out evenly."""
    found = mask(rate).draw(like(ROWS, bands), None)
    assert found.shape == (ROWS, bands, 1, 1)
    kept = found != 0
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / (1 - rate)))
    code = (kept[..., 0, 0] * 2 ** torch.arange(bands)).sum(dim=1)  # [rows]
    seen = torch.bincount(code, minlength=2**bands) / ROWS
    for pattern in range(2**bands):
        size = bin(pattern).count("1")
        share = (1 - rate) ** size * rate ** (bands - size) if size else 0.0
        share += rate**bands / bands if size == 1 else 0.0
        assert abs(seen[pattern] - share) < 4.5 * math.sqrt(share * (1 - share) / ROWS) + 1e-12
    expectation = 1 + rate**bands / (bands * (1 - rate))
    deviation = found.std().item() / math.sqrt(found.numel() / bands)
    assert abs(found.mean().item() - expectation) < 4.5 * deviation + 1e-6


def test_isolated_rows_keep_everything():
    isolated = torch.arange(200) % 3 == 0
    found = mask(0.6).draw(like(200, 4), isolated)
    assert (found[isolated] == 1).all()
    assert (found[~isolated] != 1).all()
    assert (found[~isolated] == 0).any()
    assert (found != 0).any(dim=1).all(), "some band is left"


@pytest.mark.parametrize("case", ["rate", "evaluation"])
def test_nothing_is_masked_or_drawn(case):
    masks = mask(0.0) if case == "rate" else mask(0.3).eval()
    found = masks.draw(like(5, 3), torch.ones(5, dtype=torch.bool))
    assert torch.equal(found, torch.ones(5, 3, 1, 1))
    assert masks.noise.get_extra_state()["device"] == "", "the stream has not begun"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_narrow_type_masks_the_same_bands(dtype):
    found = mask(0.1).draw(like(ROWS, 3, dtype=dtype), None)
    assert found.dtype is dtype
    assert torch.equal(found != 0, mask(0.1).draw(like(ROWS, 3), None) != 0)


def test_a_mask_is_not_made_on_the_default_device():
    bands = like(5, 3)
    with torch.device("meta"):
        assert mask(0.3).draw(bands, torch.ones(5, dtype=torch.bool, device="cpu")).device.type == "cpu"


# -- consistency


def view(seed, n=6, d=4):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))


def by_the_formula(full, masked, form):
    full = [part.detach() for part in full]
    if form == "repr_mse":
        squares = [
            (f[row, k] - m[row, k]) ** 2
            for f, m in zip(full, masked, strict=True)
            for row in range(len(f))
            for k in range(f.shape[1])
        ]
        return sum(squares) / len(squares)
    total = 0.0
    for row in range(len(full[0])):
        x, y = (u[row] @ (i[row] - j[row]) for u, i, j in (full, masked))
        p, q = (torch.distributions.Bernoulli(logits=z) for z in (x, y))
        total = total + torch.distributions.kl_divergence(p, q) / len(full[0])
    return total


@pytest.mark.parametrize("form", ["repr_mse", "score_kl"])
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


@pytest.mark.parametrize("left", [1, 2])
def test_representations_do_without_a_part(left):
    full, masked = (view(seed)[:left] for seed in (0, 1))
    torch.testing.assert_close(consistency(full, masked, "repr_mse"), by_the_formula(full, masked, "repr_mse"))


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


def test_half_precision_is_widened():
    full, masked = ([part.detach().half() for part in view(seed)] for seed in (0, 1))
    for form in ("repr_mse", "score_kl"):
        found = consistency(full, masked, form)
        assert found.dtype is torch.float32
        assert torch.equal(found, consistency([x.float() for x in full], [x.float() for x in masked], form))


def test_the_expected_gradient_under_a_linear_fusion_is_a_ridge():
    """Orthogonal bands, Y = their sum: E of the masked distance is rho / (1 - rho) times the energy."""
    bands, rate = 3, 0.2
    s = torch.diag(torch.tensor([1.0, 2.0, 0.5]))  # [M, d]
    rows = s.expand(ROWS, bands, 3)
    factors = mask(rate).draw(like(ROWS, bands), None)[..., 0]
    full, masked = rows.sum(dim=1), (rows * factors).sum(dim=1)
    # The forced survivor replaces, with probability rho^M / M, a squared error of 1 by (1/(1-rho) - 1)^2.
    per_band = rate / (1 - rate) + rate**bands / bands * ((1 / (1 - rate) - 1) ** 2 - 1)
    expected = per_band * s.square().sum().item() / 3
    assert consistency((full,), (masked,), "repr_mse").item() == pytest.approx(expected, rel=0.03)


# -- length of content


def test_the_ridge_counts_every_node_once():
    content = torch.randn(4, 2, 3, dtype=torch.float64)
    rows = torch.tensor([7, 2, 7, 5])
    content[2] = content[0]
    expected = sum(float(content[k].square().sum()) for k in (0, 1, 3)) / 3 / 2
    assert float(ridge(content, rows)) == pytest.approx(expected)
    assert float(ridge(content[:2], None)) == pytest.approx(float(content[:2].square().sum()) / 2 / 2)


# -- contrast


def by_the_definition(image, text, ids, valid, temperature):
    """Every anchor, every candidate, one at a time; each id once, through its first row."""
    rows = [r for r in range(len(ids)) if valid[r] and ids[r] not in ids[:r]]
    pairs = [(r, m) for r in rows for m in range(image.shape[1]) if image[r, m].any() and text[r, m].any()]
    total = 0.0
    for own, other in ((image, text), (text, image)):
        for anchor in pairs:
            x = own[anchor] / own[anchor].norm()
            bank = 0.0
            for pair in pairs:
                bank = bank + (x @ other[pair] / other[pair].norm() / temperature).exp()
                if pair != anchor:
                    bank = bank + (x @ own[pair] / own[pair].norm() / temperature).exp()
            total = total + bank.log() - x @ other[anchor] / other[anchor].norm() / temperature
    return total / (2 * len(pairs))


def bands(rows, seed=0):
    """Rows of one id are equal."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(2, 20, BANDS, WIDTH, generator=generator, dtype=torch.float64)
    ids = torch.randint(1, 20, (rows,), generator=generator)
    valid = ids % 4 != 0
    return *(side[ids].requires_grad_() for side in table), ids, valid


def contrast(image, text, ids, valid, anchors=10_000, noise=None):
    return spectral_contrast(image, text, ids, valid, temperature=0.2, anchors=anchors, noise=noise or Noise(0))


def test_it_is_the_definition():
    image, text, ids, valid = bands(12)
    assert len(ids.unique()) < 12
    found = contrast(image, text, ids, valid)
    expected = by_the_definition(image, text, ids.tolist(), valid, 0.2)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(*(torch.autograd.grad(x, (image, text)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_band_without_energy_is_no_anchor():
    """Isolated nodes have all their energy in one band and rounding in the others."""
    image, text, ids, valid = (x.detach() for x in bands(8))
    clean = image.clone()
    clean[2:5, 1:] = 0.0
    expected = by_the_definition(clean, text, ids.tolist(), valid, 0.2)
    rounding = clean.clone()
    rounding[2:5, 1:] = 1e-8 * image[2:5, 1:]
    rounding.requires_grad_()
    found = contrast(rounding, text, ids, valid)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, rounding)
    assert not gradient[2:5, 1:].any()


def test_the_cap_draws_valid_rows_evenly():
    image, text, ids, valid = bands(60)
    unique = [r for r in range(60) if valid[r] and ids[r] not in ids[:r]]
    assert len(unique) > 10
    noise, counts = Noise(0), torch.zeros(60)
    for _ in range(600):
        (gradient,) = torch.autograd.grad(contrast(image, text, ids, valid, anchors=16, noise=noise), image)
        touched = gradient.abs().sum(dim=(1, 2)) > 0
        assert touched.sum() == 16 // BANDS
        counts += touched
    assert sorted(counts.nonzero().flatten().tolist()) == unique
    expected = 600 * (16 // BANDS) / len(unique)
    assert ((counts[unique] - expected).abs() < 4.5 * expected**0.5).all()


def test_a_cap_above_the_valid_rows_loses_none():
    image, text, ids, valid = bands(60)
    unique = sum(bool(valid[r]) and ids[r] not in ids[:r] for r in range(60))
    found = contrast(image, text, ids, valid, anchors=BANDS * unique)
    torch.testing.assert_close(found, contrast(image, text, ids, valid))


def test_nothing_is_drawn_without_need():
    noise = Noise(0)
    contrast(*bands(4), anchors=4 * BANDS, noise=noise)
    assert noise.get_extra_state()["device"] == ""
    contrast(*bands(5), anchors=4 * BANDS, noise=noise)
    assert noise.get_extra_state()["device"] == "cpu"


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("anchors", [1, 100])
def test_small_and_empty_batches_are_finite(rows, anchors):
    image, text, ids, valid = bands(rows)
    for mask in (valid, torch.zeros_like(valid)):
        found = contrast(image, text, ids, mask, anchors=anchors)
        assert found.isfinite()
        assert mask.any() or found == 0
        assert all(g.isfinite().all() for g in torch.autograd.grad(found, (image, text)))


def test_full_precision_under_autocast():
    image, text, ids, valid = (x.detach() for x in bands(12))
    expected = contrast(image.float(), text.float(), ids, valid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrast(image.float(), text.float(), ids, valid), expected)


def test_the_contrast_is_not_made_on_the_default_device():
    arguments = bands(12)
    with torch.device("meta"):
        assert contrast(*arguments, anchors=9).device.type == "cpu"
