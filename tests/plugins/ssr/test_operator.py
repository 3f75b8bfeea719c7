"""The cross-band operator against an explicit five-way tensor, entry by entry."""

import itertools
import math

import pytest
import torch

from recplug.plugins.ssr.operator import CrossBand

N, M, P, D, R = 5, 3, 2, 4, 3
FUSIONS = ["cp", "colsoftmax", "sum"]


def make(fusion="cp", gate=True, start=False, seed=0, **sizes):
    """In float64; unless at its start, with every parameter away from it."""
    torch.manual_seed(seed)
    sizes = {"bands": M, "blocks": P, "width": D, "rank": R, **sizes}
    module = CrossBand(**sizes, fusion=fusion, gate=gate).double()
    if not start:
        for parameter in module.parameters():
            parameter.data.copy_(torch.randn_like(parameter))
    return module


def signal(n=N, bands=M, blocks=P, width=D, seed=1):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(n, bands, blocks, width, generator=generator, dtype=torch.float64)
    context = torch.randn(n, blocks * width, generator=generator, dtype=torch.float64)
    return s.requires_grad_(), context.requires_grad_()


def five_way(mix, bands=M, blocks=P, width=D):
    """T[m, p, n, q, :] in plain loops."""
    t = torch.zeros(bands, blocks, bands, blocks, width, dtype=torch.float64)
    for m, p, n, q in itertools.product(range(bands), range(blocks), range(bands), range(blocks)):
        for r in range(mix.a.shape[1]):
            t[m, p, n, q] = t[m, p, n, q] + mix.a[m, r] * mix.c[p, r] * mix.b[n, r] * mix.e[q, r] * mix.v[r]
    return t


def softmax(values):
    exponents = [math.exp(v) for v in values]
    return [e / sum(exponents) for e in exponents]


def apply(t, s):
    y = []
    for row in s:
        for m, p in itertools.product(range(s.shape[1]), range(s.shape[2])):
            cells = itertools.product(range(s.shape[1]), range(s.shape[2]))
            y.append(row[m, p] + sum(t[m, p, n, q] * row[n, q] for n, q in cells))
    return torch.stack(y).view(s.shape)


def gated(gate, y, context, wanted):
    """Steps 4 and 5 of the authors' code, one node at a time: weights, then the length that ``wanted`` has."""
    out = []
    for row, x, old in zip(y, context, wanted, strict=True):
        seen = torch.cat([x, sum(row[m] for m in range(len(row))).flatten() / len(row)])
        hidden = gate.w3.weight @ seen
        w = 1 + gate.beta * torch.tanh(gate.w4.weight @ (hidden * (hidden > 0)))
        weighted = torch.stack([w[m] * row[m] for m in range(len(row))])
        out.append(weighted.sum(dim=0) * old.norm() / weighted.sum(dim=0).norm())
    return torch.stack(out)


@pytest.mark.parametrize(("bands", "blocks", "rank"), [(3, 2, 3), (1, 3, 2), (4, 1, 1), (2, 2, 16)])
def test_the_low_rank_operator_is_the_five_way_tensor(bands, blocks, rank):
    module = make(gate=False, bands=bands, blocks=blocks, rank=rank)
    s, context = signal(bands=bands, blocks=blocks)
    t = five_way(module.mix, bands, blocks)
    expected = apply(t, s)
    torch.testing.assert_close(module.mix(s, context), expected)
    length = s.sum(dim=1).flatten(1).norm(dim=1) / expected.sum(dim=1).flatten(1).norm(dim=1)
    torch.testing.assert_close(module(s, context), expected.sum(dim=1) * length[:, None, None])
    torch.testing.assert_close(module.penalty(), t.square().mean() + (module.mix.v - 1).square().mean())
    entries, strength = module.coupling()
    cells = bands * blocks
    torch.testing.assert_close(entries, t.square().mean(dim=-1).sqrt().view(cells, cells).detach())
    identity = torch.eye(cells, dtype=torch.float64).unsqueeze(-1).expand(-1, -1, D)
    assert strength.item() == pytest.approx((t.norm() / identity.norm()).item())


@pytest.mark.parametrize("fusion", ["cp", "colsoftmax"])
def test_the_gate_weighs_and_restores_the_length(fusion):
    with_gate, without = make(fusion), make(fusion, gate=False)
    without.mix.load_state_dict(with_gate.mix.state_dict())
    s, context = signal()
    mixed = without.mix(s, context)
    wanted = s.sum(dim=1) if fusion == "cp" else mixed.sum(dim=1)
    found = with_gate(s, context)
    torch.testing.assert_close(found, gated(with_gate.gate, mixed, context, wanted))
    assert not torch.allclose(found, without(s, context))
    torch.testing.assert_close(found.flatten(1).norm(dim=1), wanted.flatten(1).norm(dim=1))


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e6])
def test_at_the_start_it_is_the_sum_bit_by_bit(gate, dtype, size):
    module = make(gate=gate, start=True, width=64).to(dtype)
    s, context = (size * x.detach().to(dtype) for x in signal(50, width=64))
    assert torch.equal(module.mix(s, context), s)
    assert torch.equal(module(s, context), s.sum(dim=1))
    assert module.coupling()[1] == 0
    assert not module.coupling()[0].any()


def test_at_the_start_the_host_gets_the_gradient_of_the_sum_and_the_operator_one_of_its_own():
    module = make(start=True)
    s, context = signal()
    weights = torch.randn(N, P, D, dtype=torch.float64)
    (module(s, context) * weights).sum().backward()
    torch.testing.assert_close(s.grad, weights.unsqueeze(1).expand_as(s))
    assert not context.grad.any()
    assert module.mix.a.grad.any()
    assert module.gate.w4.weight.grad.any()
    assert len({tuple(column.tolist()) for column in module.mix.a.grad.T}) == R, "no two ranks move together"


def test_the_start_has_the_documented_spread():
    torch.manual_seed(0)
    module = CrossBand(bands=4, blocks=3, width=4000, rank=3000)
    for tensor, mean, deviation in (
        (module.mix.b, 0.0, 12**-0.5),
        (module.mix.e, 0.0, 12**-0.5),
        (module.mix.v[:5], 1.0, 0.1),
    ):
        assert tensor.mean().item() == pytest.approx(mean, abs=5 * deviation / tensor.numel() ** 0.5)
        assert tensor.std().item() == pytest.approx(deviation, rel=5 / (2 * tensor.numel()) ** 0.5)


# -- the authors' code's operator


def test_colsoftmax_is_its_three_steps():
    module = make("colsoftmax", gate=False)
    mix, (s, context) = module.mix, signal()
    kappa = [[sum(mix.q[m, r] * mix.k[n, r] for r in range(R)).item() / R**0.5 for n in range(M)] for m in range(M)]
    columns = [softmax([kappa[m][n] for m in range(M)]) for n in range(M)]  # columns[n][m]
    alpha = softmax(mix.alpha.tolist())
    v = sum(alpha[r] * torch.exp(0.1 * torch.tanh(mix.g[r])) for r in range(R))
    for row in range(N):
        hidden = mix.w1.weight @ context[row]
        z = 1 / (1 + torch.exp(-(mix.w2.weight @ (hidden * (hidden > 0)))))
        for m in range(M):
            mixed = sum(columns[n][m] * s[row, n] for n in range(M))
            torch.testing.assert_close(module.mix(s, context)[row, m], mixed * (z * v).view(P, D))
    penalty = sum(value**2 for line in kappa for value in line) / M**2 + mix.g.square().mean()
    torch.testing.assert_close(module.penalty(), penalty)
    assert sum(columns[0]) == pytest.approx(1.0)
    torch.testing.assert_close(mix.columns().sum(dim=0), torch.ones(M, dtype=torch.float64))


def test_the_columns_of_colsoftmax_are_inert_in_the_sum():
    """Whatever Pi is, the sum of the bands is z v times the sum of the inputs; it acts through the gate alone."""
    module, (s, context) = make("colsoftmax", gate=False), signal()
    with_gate = make("colsoftmax")
    before, gated_before, bands_before = module(s, context), with_gate(s, context), module.mix(s, context)
    for changed in (module, with_gate):
        changed.mix.q.data.mul_(-2)
    torch.testing.assert_close(module(s, context), before)
    assert not torch.allclose(module.mix(s, context), bands_before)
    assert not torch.allclose(with_gate(s, context), gated_before)
    gradients = torch.autograd.grad(module(s, context).square().sum(), (module.mix.q, module.mix.k))
    assert all(g.abs().max() < 1e-10 for g in gradients)


def test_the_low_rank_operator_is_not_inert():
    module, (s, context) = make(gate=False), signal()
    weight = torch.randn(N, P, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = torch.autograd.grad((module(s, context) * weight).sum(), list(module.mix.parameters()))
    assert all(g.abs().max() > 1e-3 for g in gradients)


def test_coupling_of_colsoftmax_is_read_off_its_answers():
    """Unit signals in, differences from the identity out; a context of zeros makes z one half."""
    module = make("colsoftmax", gate=False)
    entries, strength = module.coupling()
    probes = torch.eye(M * P * D, dtype=torch.float64).view(-1, M, P, D)
    answers = 2 * module.mix(probes, torch.zeros(len(probes), P * D, dtype=torch.float64)) - probes
    # [n, q, channel, m, p, channel]: the operator is diagonal in the channels.
    table = answers.view(M, P, D, M, P, D).diagonal(dim1=2, dim2=5)  # [n, q, m, p, D]
    expected = table.square().mean(-1).sqrt().permute(2, 3, 0, 1).reshape(M * P, M * P)
    torch.testing.assert_close(entries, expected.detach())
    assert strength.item() == pytest.approx((answers.norm() / probes.norm()).item())


# -- both


@pytest.mark.parametrize("fusion", FUSIONS)
def test_zero_rows_stay_zero_and_finite(fusion):
    module = make(fusion)
    s, context = signal()
    s.data[1] = 0.0
    context.data[1] = 0.0
    s.data[2] = 0.0  # a context without a signal
    found = module(s, context)
    assert not found[1:3].any()
    found.square().sum().backward()
    for tensor in (s, context, *module.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


def test_bands_that_cancel():
    """Before the gate: the sum has no length to restore. After it: no direction to restore it in."""
    module, (s, context) = make(bands=2), signal(bands=2)
    module.mix.a.data.zero_()
    s.data[:, 1] = -s.data[:, 0]
    assert module.gate(s, context).diff(dim=1).abs().max() > 0.1, "the weighted bands no longer cancel"
    found = module(s, context)
    assert not found.any()
    found.sum().backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in (s, context, *module.parameters()))

    s = signal(bands=2)[0].detach()
    s[:, 1] = s[:, 0]
    module.gate.w3.weight.data.fill_(1.0)
    module.gate.w4.weight.data.fill_(100.0)  # tanh of it is 1, and with beta -1 every band is closed
    module.gate.beta.data.fill_(-1.0)
    s.requires_grad_()
    found = module(s, torch.ones_like(context))
    assert not found.any()
    found.sum().backward()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("gate", [False, True])
def test_gradients_are_those_of_differences(fusion, gate):
    module, (s, context) = make(fusion, gate), signal(2)
    names = [name for name, _ in module.named_parameters()]

    def run(s, context, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (s, context))

    assert torch.autograd.gradcheck(run, (s, context, *module.parameters()))


@pytest.mark.parametrize("fusion", ["cp", "colsoftmax"])
def test_the_penalty_can_be_trained_away(fusion):
    module = make(fusion)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        module.penalty().backward()
        optimizer.step()
    assert module.penalty() < 1e-3
    if fusion == "cp":
        assert module.coupling()[1] < 0.1, "back at the identity"


def test_the_sum_is_a_sum():
    module, (s, context) = make("sum"), signal()
    assert not list(module.parameters())
    assert module.gate is None
    assert torch.equal(module(s, context), s.sum(dim=1))
    assert module.penalty() == 0
    assert module.coupling()[0].shape == (M * P, M * P)
    assert module.coupling()[1] == 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_rows_do_not_see_each_other(fusion):
    module, (s, context) = make(fusion), signal()
    order = torch.tensor([3, 1, 4])
    torch.testing.assert_close(module(s[order], context[order]), module(s, context)[order])
    assert module(s[:0], context[:0]).shape == (0, P, D)


def test_one_band_is_the_backbone():
    """The length is restored, so that a gate over a single band does nothing."""
    module = make(bands=1)
    module.mix.a.data.zero_()
    module.gate.beta.data.fill_(0.1)
    s, context = signal(bands=1)
    torch.testing.assert_close(module(s, context), s[:, 0])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_reset_goes_back_to_the_start(fusion):
    torch.manual_seed(0)
    fresh = CrossBand(bands=M, blocks=P, width=D, fusion=fusion)
    used = CrossBand(bands=M, blocks=P, width=D, fusion=fusion)
    for parameter in used.parameters():
        parameter.data.fill_(7.0)
    used.reset_parameters()
    for (name, mine), theirs in zip(used.named_parameters(), fresh.parameters(), strict=True):
        constant = name in {"mix.a", "mix.c", "mix.alpha", "gate.w4.weight", "gate.beta"}
        assert torch.equal(mine, theirs) == constant, name
        assert constant or not (mine == 7.0).any()


@pytest.mark.parametrize("gate", [False, True])
def test_under_autocast_the_start_is_still_the_sum(gate):
    module = CrossBand(bands=M, blocks=P, width=D, gate=gate)
    s, context = (x.detach().float() for x in signal())
    with torch.autocast("cpu", torch.bfloat16):
        found = module(s, context)
    assert found.dtype is torch.float32
    assert torch.equal(found, s.sum(dim=1))


@pytest.mark.parametrize("fusion", ["cp", "colsoftmax"])
def test_the_penalty_is_full_precision_under_autocast(fusion):
    module = make(fusion).float()
    expected = (module.penalty(), *module.coupling())
    with torch.autocast("cpu", torch.bfloat16):
        found = (module.penalty(), *module.coupling())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_tensor_is_made_on_the_default_device(fusion):
    module, (s, context) = make(fusion), signal()
    with torch.device("meta"):
        tensors = (module(s, context), module.penalty(), *module.coupling())
    assert all(tensor.device.type == "cpu" for tensor in tensors)


def test_no_tensor_grows_with_the_square_of_the_cells():
    """The widest thing a step makes is the signal's own size."""
    bands = blocks = 6
    module = make(bands=bands, blocks=blocks, gate=False)
    s, context = signal(40, bands, blocks)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(x))
            return out

    with Watch():
        module(s, context).sum().backward()
    assert max(sizes) == s.numel()
    assert len(sizes) < 160, "and no loop over ranks, bands or blocks"
