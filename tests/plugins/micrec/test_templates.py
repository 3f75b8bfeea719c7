import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.plugins.micrec.templates import Templates, choose

D = 5


def naive(edges, own_n, other_raw, row, p, templates, flip=False):
    """H by a loop over nodes and interactions."""
    pairs = sorted({(int(a), int(b)) for a, b in (edges.flip(0) if flip else edges).T})
    out = []
    for node in range(own_n):
        mine = [b for a, b in pairs if a == node and templates[b]]
        total = row + sum((other_raw[b] for b in mine), torch.zeros(D))
        out.append(total / (len(mine) + 1) ** p)
    return torch.stack(out)


@pytest.fixture
def made(edges, sizes):
    def make(**settings):
        torch.manual_seed(0)
        return Templates(edges=edges, width=D, **sizes, **settings)

    return make


@pytest.fixture
def raw(sizes):
    torch.manual_seed(1)
    return torch.randn(sizes["n_users"], D), torch.randn(sizes["n_rows"], D)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("epochs", [0, 3])
def test_h_is_the_loops(made, raw, edges, sizes, share, epochs):
    templates = made(share=share)
    for _ in range(epochs):
        templates.advance(torch.tensor(True))
    users, items = templates(*raw)
    p = 1 - 0.99**epochs / 2
    expected = naive(edges, sizes["n_users"], raw[1], templates.user_global, p, templates.item_templates)
    assert torch.allclose(users, expected, atol=1e-6)
    expected = naive(edges, sizes["n_rows"], raw[0], templates.item_global, p, templates.user_templates, flip=True)
    assert torch.allclose(items, expected, atol=1e-6)


def test_a_node_without_templates_has_the_global_row(made, raw):
    templates = made()
    users, items = templates(*raw)
    assert torch.equal(users[5], templates.user_global)
    assert torch.equal(items[4], templates.item_global)


def test_what_comes_twice_counts_once(raw, edges, sizes):
    torch.manual_seed(0)
    once = Templates(edges=edges, width=D, **sizes)
    torch.manual_seed(0)
    twice = Templates(edges=torch.cat([edges, edges.flip(1)], dim=1), width=D, **sizes)
    assert all(torch.equal(a, b) for a, b in zip(once(*raw), twice(*raw), strict=True))


@pytest.mark.parametrize(("epochs", "p"), [(0, 0.5), (50, 1 - 0.99**50 / 2), (100, 1 - 0.99**100 / 2)])
def test_the_exponent_by_epoch(made, epochs, p):
    templates = made()
    templates.advance(torch.tensor(False))  # the first epoch
    for _ in range(epochs):
        templates.advance(torch.tensor(True))
    assert templates.exponent().item() == pytest.approx(p, abs=1e-5)
    assert templates.exponent().item() == pytest.approx({0: 0.5, 50: 0.70, 100: 0.82}[epochs], abs=5e-3)


def test_the_state_dict_keeps_alpha_and_templates(made, raw):
    templates, other = made(share=0.4), made(share=0.8)
    for _ in range(7):
        templates.advance(torch.tensor(True))
    assert not all(torch.equal(a, b) for a, b in zip(templates(*raw), other(*raw), strict=True))
    file = io.BytesIO()
    torch.save(templates.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.alpha.item() == pytest.approx(0.99**7)
    assert all(torch.equal(a, b) for a, b in zip(templates(*raw), other(*raw), strict=True))


def test_in_half_precision_they_are_computed_in_full(made, raw):
    templates = made()
    with torch.autocast("cpu", torch.bfloat16):
        low = templates(*raw)
    assert all(torch.equal(a, b) for a, b in zip(low, templates(*raw), strict=True))


def test_represent_is_what_forward_gives_known_nodes(made, raw, edges):
    templates = made()
    users, _ = templates(*raw)
    items = edges[1][edges[0] == 4]
    one = templates.represent(raw[1][items].sum(dim=0, keepdim=True), torch.tensor([len(items) + 1.0]), "users")
    assert torch.allclose(one[0], users[4], atol=1e-6)


def test_numbering_otherwise_changes_nothing(raw, edges, sizes):
    n_users, n_rows = sizes.values()
    users, items = torch.randperm(n_users), torch.randperm(n_rows)
    torch.manual_seed(0)
    plain = Templates(edges=edges, width=D, **sizes)
    torch.manual_seed(0)
    moved = Templates(edges=torch.stack([users[edges[0]], items[edges[1]]]), width=D, **sizes)
    h = plain(*raw)
    other = moved(torch.empty_like(raw[0]).index_copy(0, users, raw[0]), raw[1].index_copy(0, items, raw[1]))
    assert torch.allclose(other[0][users], h[0], atol=1e-6)
    assert torch.allclose(other[1][items], h[1], atol=1e-6)


# -- dropout


def test_dropout_keeps_the_mean_and_leaves_evaluation_alone(made, raw):
    templates = made(dropout=0.3)
    plain = made()(*raw)
    assert all(torch.equal(a, b) for a, b in zip(templates.eval()(*raw), plain, strict=True))
    templates.train()
    with torch.no_grad():
        draws = [templates(*raw) for _ in range(3000)]
    for side in (0, 1):
        mean = torch.stack([draw[side] for draw in draws]).mean(dim=0)
        assert torch.allclose(mean, plain[side], atol=0.15)
    assert all(torch.equal(draw[0][5], templates.user_global) for draw in draws)  # which is never left out


def test_dropout_draws_from_its_own_stream(made, raw):
    templates = made(dropout=0.3).train()
    before = torch.get_rng_state()
    templates(*raw)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_has_the_right_gradient(made, raw):
    templates = made(dropout=0.5).double().train()
    users, items = (rows.double().requires_grad_() for rows in raw)

    def run(users, items):
        templates.noise._generator = None  # the same draw
        return torch.cat(templates(users, items))

    assert torch.autograd.gradcheck(run, (users, items))


# -- selection


def test_selection_by_hand():
    # node 0 has neighbours 0, 1, 2; node 1 has 0 and 1; node 2 has 3 and 4, which nobody else has; node 3 has none
    edges = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 3, 4]])
    # 1/2 + 1/2 + 1 = 2, 1/2 + 1/2 = 1, 1 + 1 = 2: fewer interactions, of a kind that nobody else has, count more
    assert choose(edges, 4, 0.3).tolist() == [True, False, False, False]
    assert choose(edges, 4, 0.6).tolist() == [True, False, True, False]
    assert choose(edges, 4, 1.0).tolist() == [True, True, True, False]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.01, 1.0))
def test_selection_takes_the_share_of_those_with_interactions(seed, share):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.unique(torch.randint(0, 12, (2, 20), generator=generator), dim=1)
    chosen = choose(edges, 12, share)
    active = torch.zeros(12, dtype=torch.bool).index_fill(0, edges[0], True)
    assert not (chosen & ~active).any()
    wanted = share * int(active.sum())
    assert wanted - 1e-6 <= int(chosen.sum()) < wanted + 1
