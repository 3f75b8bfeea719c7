"""PRISM's parts against the formulas, one expert and one modality at a time."""

import pytest
import torch
import torch.nn.functional as F

from recplug.plugins import Modality
from recplug.plugins.nn import Noise
from recplug.plugins.prism.fusion import Content, Experts, Gate

D, HIDDEN, N = 6, 10, 9
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def modality(name="image", width=5, n=N, absent=(0,), dtype=torch.float32):
    present = torch.ones(n, dtype=torch.bool)
    present[list(absent)] = False
    values = torch.randn(n, width, generator=torch.Generator().manual_seed(width))
    return Modality(name, (values * present.unsqueeze(1)).to(dtype), present)


def make(modalities, experts=None):
    torch.manual_seed(modalities)
    return Experts(experts=experts or modalities + 2, modalities=modalities, width=D, hidden=HIDDEN)


def expert(experts, j, p):
    """Eq. (1) as the paper has it: a two-layer network of its own on the concatenated modalities ``p [M, d]``."""
    weight = experts.w1.unflatten(-1, (experts.n_experts, HIDDEN))[:, :, j].flatten(0, 1)  # [M*d, h]
    hidden = F.gelu(F.linear(torch.cat(list(p)), weight.T, experts.b1[j]))
    return F.linear(hidden, experts.w2[j].T, experts.b2[j])


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_experts_are_separate_networks(modalities):
    experts, p = make(modalities, experts=modalities + 1), torch.randn(4, modalities, D)
    expected = torch.stack([torch.stack([expert(experts, j, row) for j in range(modalities + 1)]) for row in p])
    torch.testing.assert_close(experts(p), expected, **TOLERANCE)
    torch.testing.assert_close(experts(p.reshape(2, 2, modalities, D)), expected.reshape(2, 2, -1, D), **TOLERANCE)


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_masking_is_running_each_expert_on_exchanged_inputs(modalities):
    experts = make(modalities)
    p, z = torch.randn(4, modalities, D), torch.randn(4, modalities, D)
    full, masked = experts.masked(p, z)
    assert masked.shape == (4, modalities + 2, modalities, D)
    torch.testing.assert_close(full, experts(p), **TOLERANCE)
    for n in range(4):
        for m in range(modalities):
            exchanged = p[n].clone()
            exchanged[m] = z[n, m]
            for j in range(modalities + 2):
                torch.testing.assert_close(masked[n, j, m], expert(experts, j, exchanged), **TOLERANCE)


def test_no_expert_shares_a_weight_with_another():
    experts, p = make(2), torch.randn(4, 2, D)
    for j in range(4):
        gradients = torch.autograd.grad(experts(p)[:, j].sum(), list(experts.parameters()))
        touched = [g.unflatten(-1, (4, HIDDEN)).abs().sum(dim=(0, 1, 3)) if g.dim() == 3 and g.shape[0] == 2 else
                   g.reshape(4, -1).abs().sum(dim=1) for g in gradients]  # fmt: skip
        for per_expert in touched:
            assert per_expert[j] > 0
            assert per_expert.sum() == per_expert[j]


def test_initial_weights_are_those_of_linear_layers():
    torch.manual_seed(0)
    experts = Experts(experts=4, modalities=2, width=64, hidden=128)
    for mine, reference in (
        (experts.w1, torch.nn.Linear(128, 512).weight),
        (experts.b1, torch.nn.Linear(128, 512).bias),
        (experts.w2, torch.nn.Linear(128, 512).weight),
        (experts.b2, torch.nn.Linear(128, 256).bias),
    ):
        assert mine.abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.02)
        assert mine.std().item() == pytest.approx(reference.std().item(), rel=0.1)


@pytest.mark.parametrize("experts", [3, 4, 5])
def test_the_gates_split_form_is_one_layer_on_everything(experts):
    torch.manual_seed(0)
    gate = Gate(experts=experts, width=D, temperature=0.7, dropout=0.3, noise=Noise(0)).eval()
    e, c = torch.randn(8, experts, D), torch.randn(8, D)
    weight = torch.cat([gate.of_experts.weight, gate.of_context.weight], dim=1)  # [2d, (J+1)d]
    hidden = F.gelu(F.linear(torch.cat([e.flatten(1), c], dim=1), weight, gate.of_experts.bias))
    expected = torch.softmax(gate.out(hidden) / 0.7, dim=-1)
    found = gate(gate.items(e) + gate.contexts(c))
    torch.testing.assert_close(found, expected, **TOLERANCE)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(8))


def test_a_low_temperature_decides():
    gates = []
    for temperature in (0.01, 100.0):
        torch.manual_seed(0)
        gates.append(Gate(experts=4, width=D, temperature=temperature, dropout=0.0, noise=Noise(0)))
    first = torch.randn(50, 2 * D)
    sharp, flat = (gate(first) for gate in gates)
    assert sharp.max(dim=-1).values.mean() > 0.95
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_content_is_normalised_projected_and_normed(dtype):
    torch.manual_seed(0)
    image, text = modality("image", 5, dtype=dtype), modality("text", 7, absent=(0, 4))
    content = Content(modalities=[image, text], width=D, n_rows=N)
    assert content.rows(0).dtype is dtype
    ids = torch.tensor([1, 4, 8, 1])
    found = content(ids)
    for row, item in enumerate(ids.tolist()):
        for m, source in enumerate((image, text)):
            expected = content.absent[m]
            if source.present[item]:
                vector = source.values[item].float()
                hidden = content.project[m](vector / vector.norm())
                expected = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(found[row, m], expected, rtol=1e-3, atol=2e-3)
    assert content.complete(ids).tolist() == [True, False, True, True]


def test_rows_beyond_the_features_are_absent():
    content = Content(modalities=[modality()], width=D, n_rows=N + 1)
    assert torch.equal(content(torch.tensor([N]))[0, 0], content.absent[0])
    assert not content.complete(torch.tensor([N]))


def test_garbage_in_absent_rows_reaches_nothing():
    image = modality(absent=(0, 3))
    image.values[3] = torch.nan
    torch.manual_seed(0)
    content = Content(modalities=[image], width=D, n_rows=N)
    content(torch.tensor([1, 3])).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in content.parameters())


def test_content_vectors_are_frozen_and_not_saved_unless_tuned():
    frozen = Content(modalities=[modality()], width=D, n_rows=N)
    assert not any("rows" in name or "tuned" in name for name in frozen.state_dict())
    tuned = Content(modalities=[modality(dtype=torch.float16)], width=D, n_rows=N, tune=True)
    assert tuned.tuned[0].dtype is torch.float32
    tuned(torch.tensor([2])).square().sum().backward()
    assert tuned.tuned[0].grad[2].any()


def test_reset_draws_anew_and_keeps_the_content():
    torch.manual_seed(0)
    content = Content(modalities=[modality()], width=D, n_rows=N)
    before, rows = content.project[0].weight.clone(), content.rows(0).clone()
    content.reset_parameters()
    assert not torch.equal(before, content.project[0].weight)
    assert torch.equal(rows, content.rows(0))
