"""X, the gate and H against slow loops over items, factors, values and neighbours."""

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.contract import Modality
from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.mars.fusion import Gate
from recplug.plugins.testing.case import N_ITEMS

HOSTS = ["graph-bpr", "mask-ce", "nodes-bpr"]
ROWS = torch.tensor([4, 7, 0, 4, 22, 9, 1])


def ids_of(toy, seed=3):
    rows = len(toy.mars.fusion.available)
    return torch.randn(rows, toy.mars.width, generator=torch.Generator().manual_seed(seed))


def fast(toy, ids, rows=None):
    rows = torch.arange(len(ids)) if rows is None else rows
    return toy.mars.fusion(toy.mars.fusion.pool(ids), rows)


def close(found, truth, **tolerance):
    torch.testing.assert_close(found.double(), truth, **({"rtol": 1e-4, "atol": 1e-5} | tolerance))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"pool": "free"},
        {"pool": "none"},
        {"other": "group"},
        {"structure": "none"},
        {"structure": "cooccurrence"},
        {"gate": "uniform"},
        {"factor_weight": None},
        {"factor_weight": None, "gate": "uniform"},
        {"factor_weight": 0.7},
        {"strength": "root"},
        {"strength": "root", "pool": "free"},
        {"strength": "root", "x": "ids_content"},
        {"x": "ids_content", "neighbours": 3},
        {"x": "ids_content", "pool": "none"},
        {"x": "ids_content", "modalities": ()},
        {"x": "ids_content", "modalities": ("text",), "content_width": 3},
        {"x": "ids_content", "content_width": 4, "pool": "free"},
        {"x": "ids_content", "content_width": None, "content_scale": None},
        {"x": "ids_content", "content_width": 4, "content_scale": None},
        {"h": "x"},
        {"h": "x", "x": "ids_content", "content_scale": None},
        dict(get("mars").presets["paper"].settings),
    ],
    ids=str,
)
@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_h_is_a_slow_loop_over_items_factors_values_and_neighbours(mars, host, values):
    """The toy items have several values, 'other', one value, none; with and without content and neighbours."""
    toy = mars.make(host, **values)
    ids = ids_of(toy)
    truth = mars.slow(toy, ids)
    h, weights = fast(toy, ids)
    close(h, truth.h)
    if values.get("h") != "x":
        close(weights, truth.weights)
    close(fast(toy, ids, ROWS)[0], truth.h[ROWS])


@pytest.mark.parametrize("weight", [0.3, None])
@pytest.mark.parametrize("pool", ["group", "free"])
@torch.no_grad()
def test_gradients_are_the_slow_loop_s(mars, pool, weight):
    """Of the ids, the gate, the projections and the values' free vectors."""
    toy = mars.make(pool=pool, x="ids_content", strength="root", factor_weight=weight)
    ids = ids_of(toy).requires_grad_()
    parameters = [p for p in (ids, *toy.mars.fusion.parameters()) if p.requires_grad]
    upstream = torch.randn(len(ids), toy.mars.width, generator=torch.Generator().manual_seed(5))
    with torch.enable_grad():
        mine = torch.autograd.grad(fast(toy, ids)[0], parameters, upstream)
        theirs = torch.autograd.grad(mars.slow.__wrapped__(toy, ids).h, parameters, upstream.double())
    for one, other in zip(mine, theirs, strict=True):
        close(one, other.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weight", [0.3, None])
@pytest.mark.parametrize("pool", ["group", "free"])
@torch.no_grad()
def test_a_factor_that_nobody_knows_is_no_factor(mars, pool, weight):
    values = {"pool": pool, "factor_weight": weight, "lambda_semantic": 0.0}
    toy = mars.make(**values)
    profiles = toy.case.factors()
    low, high = profiles.offsets[1:3]
    kept = (profiles.values < low) | (profiles.values >= high)
    held = profiles.values[kept]
    unknown = FactorProfiles(profiles.factors, profiles.items[kept], held, N_ITEMS)
    fewer = FactorProfiles(
        (profiles.factors[0], profiles.factors[2]),
        profiles.items[kept],
        torch.where(held >= high, held - (high - low), held),
        N_ITEMS,
    )
    masked, without = mars.make(factors=unknown, **values), mars.make(factors=fewer, **values)
    state = masked.mars.fusion.state_dict()
    branches = torch.tensor([0, 1, 3])
    state["gate.weight"] = state["gate.weight"][branches if weight is None else [0, 2]]
    if pool == "free":
        state["free"] = torch.cat([state["free"][:low], state["free"][high:]])
    without.mars.fusion.load_state_dict(state)
    ids = ids_of(toy)
    (one, weights), (other, fewer_weights) = fast(masked, ids), fast(without, ids)
    assert torch.equal(weights[:, 2], torch.zeros(len(ids)))
    close(weights[:, branches], fewer_weights.double())
    close(one, other.double())


@torch.no_grad()
def test_without_any_value_there_are_the_backbone_and_the_structure(mars):
    none = FactorProfiles((Factor("colour", ("red",)),), torch.zeros(0).long(), torch.zeros(0).long(), N_ITEMS)
    toy = mars.make(factors=none, gate="uniform", x="ids_content")
    ids = ids_of(toy)
    x, _ = mars.slow_x(toy, ids)
    h, weights = fast(toy, ids)
    structure = toy.mars.fusion.structure.dense().double()
    close(h, structure @ x)
    assert torch.equal(weights[:, 0], (structure.sum(dim=1) > 0).float())
    bare = mars.make(factors=none, structure="none")
    h, weights = fast(bare, ids)
    assert not h.any()
    assert not weights.any()


@pytest.mark.parametrize("join", ["add", "replace"])
@torch.no_grad()
def test_the_score_is_the_sum_of_its_parts(mars, join):
    r"""<u, e> + sum_k <u, a_k M[l_k]> + structure."""
    toy = mars.make(join=join, x="ids_content")
    ids = ids_of(toy)
    truth = mars.slow(toy, ids)
    scored = toy.mars.fusion.join(ids, fast(toy, ids)[0])
    user = torch.randn(toy.mars.width, generator=torch.Generator().manual_seed(8)).double()
    for item in range(N_ITEMS):
        own = 0.0 if join == "replace" else float(user @ ids[item].double())
        parts = truth.weights[item] * (truth.branches[item] @ user)  # [K + 1]
        assert float(user @ scored[item].double()) == pytest.approx(own + float(parts.sum()), rel=1e-4, abs=1e-4)


@torch.no_grad()
def test_content_that_is_not_finite_but_absent_changes_nothing(mars):
    toy = mars.make(x="ids_content")
    broken = {}
    for name, modality in toy.case.modalities().items():
        values = modality.values.clone()
        values[~modality.present] = torch.nan
        broken[name] = Modality(name, values, modality.present)
    other = mars.make(content=broken, x="ids_content")
    ids = ids_of(toy)
    assert torch.equal(fast(toy, ids)[0], fast(other, ids)[0])


# -- the gate


def test_the_gate_is_uniform_at_the_start_and_learns_from_there():
    gate = Gate(width=4, branches=3, learned=True)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    available = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]]).bool()
    weights = gate(x, available)
    share = available.float()
    torch.testing.assert_close(weights, share / share.sum(dim=1, keepdim=True).clamp(min=1.0))
    (weights * torch.arange(15.0).reshape(5, 3)).sum().backward()
    assert gate.weight.grad.any()


@pytest.mark.parametrize("learned", [True, False])
def test_beside_the_factors_structure_has_its_own_weight_of_one(learned):
    gate = Gate(width=4, branches=4, learned=learned, share=0.5)
    if learned:
        with torch.no_grad():
            gate.weight.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    available = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    weights = gate(x, available)
    assert weights[:, 0].tolist() == [1, 0, 1, 0]
    torch.testing.assert_close(weights[:, 1:].sum(dim=1), torch.tensor([0.5, 0.5, 0, 0]))
    assert torch.equal(weights > 0, available)
    assert not learned or gate.weight.shape == (3, 4)


def test_the_gate_survives_large_logits_and_rows_without_branches():
    gate = Gate(width=2, branches=3, learned=True)
    with torch.no_grad():
        gate.weight.copy_(1e4 * torch.tensor([[1.0, 0], [0, 1.0], [-1.0, -1.0]]))
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]], requires_grad=True)
    available = torch.tensor([[True, False, True], [False, False, True], [False, False, False]])
    weights = gate(x, available)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 0]]))
    weights.square().sum().backward()
    assert x.grad.isfinite().all()
    assert gate.weight.grad.isfinite().all()


@torch.no_grad()
def test_autocast_keeps_averages_in_single_precision(mars):
    """Only the content's projections are rounded: without content, H is the same to the last bit."""
    toy = mars.make(content={}, structure="cooccurrence")
    ids = ids_of(toy)
    plain, weights = fast(toy, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_weights = fast(toy, ids)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    assert torch.equal(weights, cast_weights)
