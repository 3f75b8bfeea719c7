"""Band-wise contrast against loops over pairs of (row, band)."""

import pytest
import torch

from recplug.plugins.nn import Noise
from recplug.plugins.ssr.contrast import spectral_contrast

BANDS, WIDTH = 3, 4


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


def test_no_tensor_is_made_on_the_default_device():
    arguments = bands(12)
    with torch.device("meta"):
        assert contrast(*arguments, anchors=9).device.type == "cpu"
