"""The interaction signal in bands, against dense matrices."""

import copy
import io

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.nn.closed_form import ClosedForm
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.settings import parse_settings
from recplug.plugins.ssr.signal import EXPONENTS, GAINS, BandedSignal, leading, ranks
from recplug.plugins.testing import CHECKS, Case, cases

USERS, ITEMS = 60, 45


def form_of(content=True):
    generator = torch.Generator().manual_seed(0)
    edges = (torch.rand(USERS, ITEMS, generator=generator) < 0.15).nonzero().T
    edges = edges[:, (edges > 0).all(dim=0) & (edges[1] != ITEMS - 1)]  # the last item is cold
    alike = torch.rand(ITEMS, ITEMS, generator=generator) < 0.1
    alike = (alike | alike.T).float()
    alike[0] = alike[:, 0] = 0
    alike.fill_diagonal_(0)
    scale = alike.sum(dim=1).clamp(min=1).rsqrt()
    c = alike * scale * scale.unsqueeze(1)
    graph = Adjacency.of(c.nonzero().T, c[c > 0], (ITEMS, ITEMS), symmetric=True) if content else None
    return ClosedForm(edges, n_users=USERS, n_items=ITEMS, content=graph, order=2), edges, c if content else 0 * c


def dense(form, edges, c):
    """T^-x, S and T^q, in float64."""
    r = torch.zeros(USERS, ITEMS, dtype=torch.float64)
    r[edges[0], edges[1]] = 1
    d, u = r.sum(dim=0), r.sum(dim=1)
    e = (
        torch.eye(ITEMS, dtype=torch.float64)
        + EXPONENTS.heat * c.double()
        + (EXPONENTS.heat * c.double()) @ (EXPONENTS.heat * c.double()) / 2
    )
    power = lambda x, p: torch.where(x > 0, x.clamp(min=1e-9) ** p, 0.0)  # noqa: E731
    b = power(u, -EXPONENTS.users / 2)[:, None] * r * power(d, -EXPONENTS.items) @ e
    return (d + 1) ** -EXPONENTS.history, b.T @ b, (d + 1) ** EXPONENTS.popularity, r


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_it_is_the_sum_of_projections_times_their_gains(content, bands, monkeypatch):
    monkeypatch.setattr("recplug.plugins.ssr.signal.WIDEST", 40)
    form, edges, c = form_of(content)
    x, s, q, r = dense(form, edges, c)
    module = BandedSignal(form=form, bands=bands)
    assert len(module.gains) == len(module.edges) == bands - 1
    module.gains.copy_(torch.tensor([0.5, 2.0, 1.4, 0.7])[: bands - 1])
    values, vectors = torch.linalg.eigh(s)
    values, vectors = values.flip(0), vectors.flip(1)
    band = (torch.arange(ITEMS)[:, None] >= torch.tensor(module.edges, dtype=torch.long)).sum(dim=1)
    gain = torch.cat([module.gains.double(), torch.ones(1, dtype=torch.float64)])[band]
    expected = (r * x) @ (vectors * (gain * values)) @ vectors.T * q
    some = r.sum(dim=1) > 0
    expected[:, 0] = 0
    found = module(r.T.float()).T
    torch.testing.assert_close(found[some].double(), expected[some], rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
    nobody = module(torch.zeros(ITEMS, 1))[1:, 0]
    torch.testing.assert_close(nobody, q[1:].float())


def test_with_all_gains_1_it_is_the_closed_form():
    form, *_, r = (*form_of()[:1], *dense(*form_of()))
    module, history = BandedSignal(form=form, bands=3), r.T.float()
    some = history.any(dim=0)
    expected = form.scores(history, EXPONENTS)
    torch.testing.assert_close(module(history)[1:, some], expected[1:, some])


def test_leading_vectors_are_orthonormal_and_the_same_at_every_start():
    form = form_of()[0]
    basis, values = leading(form, 6, seed=0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(6), rtol=0, atol=1e-5)
    assert (values.diff() <= 0).all()
    assert basis[[0, 0]].abs().max() < 1e-6  # padding is alone
    other, others = leading(form, 6, seed=9)
    torch.testing.assert_close(values, others, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(basis @ basis.T, other @ other.T, rtol=0, atol=2e-2)


def test_bands_begin_at_ranks_in_equal_ratios():
    assert ranks(1, 5000) == []
    assert ranks(2, 5000) == [1]
    assert ranks(3, 5000) == [1, 32]
    assert ranks(4, 5000) == [1, 10, 102]
    assert ranks(4, 50) == [1, 10]


def test_the_control_deals_the_same_vectors_at_random():
    form = form_of()[0]
    one, other = (BandedSignal(form=form, bands=3, shuffled=shuffled) for shuffled in (False, True))
    assert torch.equal(one.basis, other.basis)
    assert one.band.sort().values.tolist() == other.band.sort().values.tolist()
    assert not torch.equal(one.band, other.band)


def test_nothing_is_fitted_that_validation_does_not_like():
    module = BandedSignal(form=form_of()[0], bands=3)
    assert module.fit(lambda users=None: 1.0 - float(module.weight))["weight"] == 0.0
    wanted = {"weight": 2.0, "gains": [0.7, 2.8]}

    def validate(users=None):
        own = [float(module.weight), *module.gains.tolist()]
        return -sum(abs(a - b) for a, b in zip(own, [2.0, 0.7, 2.8], strict=True))

    found = module.fit(validate)
    assert {name: found[name] for name in wanted} == wanted
    scores = found["validation"]
    assert scores["without"] < scores["whole"] < scores["bands"]
    assert 1.0 in GAINS
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    fresh = BandedSignal(form=form_of()[0], bands=3)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    assert torch.equal(fresh.gains, module.gains)
    assert set(module.state_dict()) == {"gains", "weight"}  # no eigenvectors
    assert copy.deepcopy(module).gains.tolist() == module.gains.tolist()


# -- as a part of SSR


def host_of(name, weight=1.0, **settings):
    plugin = get("ssr")
    host = Case(plugin, parse_settings("ssr", plugin.settings, {"signal": True, **settings}), name).build().eval()
    ssr = host.chain.augmentations()["ssr"]
    ssr.banded.weight.fill_(weight)
    return host, ssr


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", cases(get("ssr"), {"signal": True}, ("nodes-bpr", "mean-ce")), ids=str)
def test_contract(case, check):
    CHECKS[check](case)


@pytest.mark.parametrize("name", ["nodes-bpr", "graph-bpr", "mean-ce"])
def test_bands_and_weight_move_the_scores_and_0_moves_none(name):
    batch = Case(get("ssr"), get("ssr").settings(), name).batch()
    scores = {}
    for label, weight, gain in (("off", 0.0, 2.0), ("whole", 1.0, 1.0), ("bands", 1.0, 2.0)):
        host, ssr = host_of(name, weight)
        ssr.banded.gains.fill_(gain)
        scores[label] = host.scores(batch)
    plugin = get("ssr")
    bare = Case(plugin, plugin.settings(), name).build().eval().scores(batch)
    assert torch.equal(scores["off"], bare)
    spread = float(bare[bare.isfinite()].std())
    for one, other in (("off", "whole"), ("whole", "bands")):
        change = (scores[one] - scores[other]).abs()
        assert float(change[change.isfinite()].max()) > 1e-3 * spread


def test_what_is_fitted_is_reported():
    host, ssr = host_of("nodes-bpr", weight=0.0)
    found = ssr.after_training(lambda users=None: float(ssr.banded.weight))
    assert found["weight"] == 4.0
    with torch.no_grad(), host.chain.asking():
        panel = ssr.diagnostics()["signal"]
    assert panel.values.tolist() == [*ssr.banded.gains.tolist(), 1.0]
    assert panel.rows == ("band 1 (low)", "band 2 (high)")  # so few items have no rank 32
    assert "a weight of 4 " in panel.caption
