"""The interaction losses against the paper's equations, written out with loops."""

import math

import pytest
import torch

from recplug.plugins.nn import Noise
from recplug.plugins.prism import losses
from recplug.plugins.prism.losses import stand_ins, valid_first

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def interaction_losses(full, masked, **options):
    """Those of all experts, the uniqueness losses stacked."""
    names = [f"m{m}" for m in range(masked.shape[2])]
    unique = [f"unique_{name}" for name in names]
    found = losses.interaction_losses(
        full, masked, experts=(*unique, "synergy", "redundancy"), modalities=names, **options
    )
    return {"unique": torch.stack([found.pop(name) for name in unique]), **found}


def distance(a, b, kind):
    if kind == "cosine":
        return 1 - (a @ b) / (a.norm() * b.norm())
    return (a - b).norm()


def by_the_equations(full, masked, valid, kind, margin):
    """Eqs. (5)-(8), one row, one expert and one masked modality at a time.

    ``masked[n, j, m]`` is the output with modality m masked. The paper's y^img (text masked) is ``masked[:, :, 1]``
    and its y^txt (image masked) ``masked[:, :, 0]``.
    """
    modalities = masked.shape[2]
    rows = [n for n in range(len(full)) if valid[n]]
    unique = []
    for m in range(modalities):
        total = 0.0
        for n in rows:
            others = [o for o in range(modalities) if o != m]
            for o in others:
                positive = distance(full[n, m], masked[n, m, o], kind)
                negative = distance(full[n, m], masked[n, m, m], kind)
                total = total + max(0.0, margin + positive - negative) / len(others)
        unique.append(total / len(rows))
    cosines = {}
    for j, name in ((modalities, "synergy"), (modalities + 1, "redundancy")):
        total = 0.0
        for n in rows:
            for m in range(modalities):
                total = total + (1 - distance(full[n, j], masked[n, j, m], "cosine")) / modalities
        cosines[name] = total / len(rows)
    return {"unique": torch.stack(unique), "synergy": cosines["synergy"], "redundancy": 1 - cosines["redundancy"]}


def outputs(modalities, n=7, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(n, modalities + 2, d, generator=generator, dtype=torch.float64)
    masked = torch.randn(n, modalities + 2, modalities, d, generator=generator, dtype=torch.float64)
    valid = torch.rand(n, generator=generator) < 0.7
    return full.requires_grad_(), masked.requires_grad_(), valid


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("kind", ["cosine", "l2"])
@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_losses_are_the_equations(modalities, kind, margin):
    full, masked, valid = outputs(modalities)
    assert 1 < valid.sum() < len(valid)
    found = interaction_losses(full, masked, valid=valid, triplet=kind, margin=margin)
    expected = by_the_equations(full, masked, valid, kind, margin)
    assert found["unique"].shape == (modalities,)
    weights = torch.randn(modalities, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for terms in (found, expected):
        total = (terms["unique"] * weights).sum() + 2 * terms["synergy"] + 3 * terms["redundancy"]
        gradients.append(torch.autograd.grad(total, (full, masked)))
    for name in found:
        torch.testing.assert_close(found[name].double(), expected[name], **TOLERANCE)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


def test_the_pairs_by_hand():
    """M = 2, one row, d = 2: only the image's expert keeps its output when the text is masked."""
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    full = one.expand(1, 4, 2)
    masked = torch.stack([torch.stack([other, one]), torch.stack([other, one]), torch.stack([one, one]), -full[0, :2]])
    found = interaction_losses(full, masked[None], valid=torch.tensor([True]), triplet="cosine", margin=0.2)
    # Expert 0 (image): near its text-masked output (0), far from its image-masked one (1): 0.2 + 0 - 1 < 0.
    # Expert 1 (text) the other way round: 0.2 + 1 - 0.
    torch.testing.assert_close(found["unique"], torch.tensor([0.0, 1.2]))
    torch.testing.assert_close(found["synergy"], torch.tensor(1.0))
    torch.testing.assert_close(found["redundancy"], torch.tensor(2.0))


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_the_gram_matrix_stands_for_whole_score_vectors(modalities, kind):
    """y = E h for every item, against h with G = E'E."""
    full, masked, valid = outputs(modalities)
    table = torch.randn(40, full.shape[-1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    options = {"valid": valid, "triplet": kind, "margin": 0.5}
    with_gram = interaction_losses(full, masked, gram=(table.T @ table).float(), **options)
    explicit = interaction_losses(full @ table.T, masked @ table.T, **options)
    gradients = []
    for terms in (with_gram, explicit):
        total = terms["unique"].sum() + 2 * terms["synergy"] + 3 * terms["redundancy"]
        gradients.append(torch.autograd.grad(total, (full, masked)))
    for name in explicit:
        torch.testing.assert_close(with_gram[name], explicit[name], **TOLERANCE)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_outputs_that_no_mask_changes_have_finite_gradients(kind):
    full = torch.randn(3, 4, 5, requires_grad=True)
    for masked in (full.unsqueeze(2).expand(-1, -1, 2, -1), torch.zeros(3, 4, 2, 5)):
        found = interaction_losses(full, masked, valid=torch.ones(3, dtype=torch.bool), triplet=kind, margin=0.2)
        (gradient,) = torch.autograd.grad(found["unique"].sum() + found["synergy"], full, allow_unused=True)
        assert gradient is None or gradient.isfinite().all()


def test_without_valid_rows_there_is_nothing():
    full, masked, valid = outputs(2)
    found = interaction_losses(full, masked, valid=torch.zeros_like(valid), triplet="cosine", margin=0.2)
    assert not any(term.any() for term in found.values())


# -- stand-ins


def projections(n=20_000):
    generator = torch.Generator().manual_seed(3)
    p = torch.randn(n, 2, 3, generator=generator) * torch.tensor([0.1, 1.0, 5.0]) + torch.tensor([2.0, -1.0, 0.5])
    p[:, 1] *= 3
    valid = torch.rand(n, generator=generator) < 0.5
    p[~valid] = 100.0  # what must not count
    return p.requires_grad_(), valid


def test_matched_noise_has_the_mean_and_deviation_of_the_valid_rows():
    p, valid = projections()
    z = stand_ins(p, "matched", Noise(0), valid)
    n = len(p)
    mean, deviation = p[valid].mean(dim=0), p[valid].std(dim=0, correction=0)
    assert ((z.mean(dim=0) - mean).abs() < 5 * deviation / math.sqrt(n)).all()
    assert ((z.std(dim=0) / deviation - 1).abs() < 5 / math.sqrt(2 * n)).all()
    # Independent of the row that it replaces, and across dimensions.
    correlation = torch.corrcoef(torch.cat([z[valid].flatten(1), p[valid].flatten(1)], dim=1).T)
    assert (correlation[:6, 6:].abs() < 5 / math.sqrt(n / 2)).all()
    assert (correlation[:6, :6].fill_diagonal_(0).abs() < 5 / math.sqrt(n / 2)).all()


def test_the_other_kinds():
    p, valid = projections()
    gaussian = stand_ins(p, "gaussian", Noise(0), valid)
    assert (gaussian.mean(dim=0).abs() < 5 / math.sqrt(len(p))).all()
    assert ((gaussian.std(dim=0) - 1).abs() < 5 / math.sqrt(2 * len(p))).all()
    torch.testing.assert_close(stand_ins(p, "mean", Noise(0), valid)[7], p[valid].mean(dim=0), rtol=1e-3, atol=1e-3)
    assert not stand_ins(p, "zero", Noise(0), valid).any()


def test_shuffling_deals_the_valid_rows_out_to_each_other():
    p, valid = projections(50)
    z = stand_ins(p, "shuffle", Noise(0), valid)
    assert torch.equal(z[valid].flatten(1).sort(dim=0).values, p[valid].flatten(1).sort(dim=0).values)
    assert not torch.equal(z[valid], p[valid])
    assert (z < 99).all(), "no row gets the content of one that does not count"
    # A whole item's modalities stay together: the stand-in is another item, not a mixture.
    assert all((z[row] == p).all(dim=(1, 2)).any() for row in range(len(z)))


@pytest.mark.parametrize("kind", ["matched", "gaussian", "shuffle", "mean", "zero"])
def test_stand_ins_carry_no_gradient_and_survive_an_empty_batch(kind):
    p, valid = projections(10)
    z = stand_ins(p, kind, Noise(0), valid)
    assert z.shape == p.shape
    assert not z.requires_grad
    assert stand_ins(p, kind, Noise(0), torch.zeros_like(valid)).isfinite().all()


@pytest.mark.parametrize("kind", ["matched", "gaussian", "shuffle"])
def test_stand_ins_are_drawn_anew(kind):
    p, valid = projections(50)
    noise = Noise(0)
    first, second = (stand_ins(p, kind, noise, valid) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, stand_ins(p, kind, Noise(0), valid))


def test_valid_rows_come_first_in_random_order():
    valid = torch.tensor([True, False] * 20)
    noise, firsts = Noise(0), []
    for _ in range(400):
        order = valid_first(valid, noise)
        assert sorted(order.tolist()) == list(range(40))
        assert valid[order[:20]].all()
        firsts.append(int(order[0]))
    counts = torch.bincount(torch.tensor(firsts), minlength=40)[::2]
    assert ((counts - 20.0) ** 2 / 20).sum() < 43.8, "uniform: chi-square with 19 degrees of freedom, p = 0.001"
