import pytest
import torch
import torch.nn.functional as F

from recplug.plugins.magnet.experts import Experts
from recplug.plugins.nn import Noise

E, D, H = 5, 4, 6


def made(form="concat", activation="gelu", of_pairs=True, dropout=0.0):
    torch.manual_seed(1)
    experts = Experts(
        width=D,
        hidden=H,
        experts=E,
        form=form,
        of_pairs=of_pairs,
        activation=activation,
        dropout=dropout,
        noise=Noise(0),
    )
    with torch.no_grad():
        for parameter in experts.parameters():  # biases too
            parameter.normal_()
    return experts


def slow(experts, e, x_user, x_item):
    """One expert, one pair: its vector s and its score."""
    if experts.form == "dot":
        return None, (x_user @ experts.of_user[e]) @ (x_item @ experts.of_item[e])
    weight = [experts.of_user[e], experts.of_item[e]]
    given = [x_user, x_item]
    if experts.form == "concat_prod":
        weight, given = [*weight, experts.of_product[e]], [*given, x_user * x_item]
    act = F.gelu if experts.activation == "gelu" else F.relu
    hidden = act(torch.cat(given) @ torch.cat(weight) + experts.first_bias[e])
    s = hidden @ experts.second[e] + experts.second_bias[e]
    return s, s @ experts.readout


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("form", ["concat", "concat_prod", "dot"])
def test_pairs_and_blocks_are_the_loop(form, activation):
    experts = made(form, activation)
    x_user, x_item = torch.randn(3, E, D), torch.randn(4, E, D)
    user, item = experts.user(x_user), experts.item(x_item)
    block = experts.block(user, item, x_user, x_item)
    assert block.shape == (3, 4, E)
    pairs = experts.pairs(user, item[:3], x_user, x_item[:3])
    for u in range(3):
        for e in range(E):
            for i in range(4):
                expected = slow(experts, e, x_user[u, e], x_item[i, e])[1]
                assert torch.allclose(block[u, i, e], expected, atol=1e-4)
                if i == u:
                    assert torch.allclose(pairs[u, e], expected, atol=1e-4)


def test_vector_is_the_loop():
    experts = made(of_pairs=False)
    x, kept = torch.randn(3, E, D), torch.rand(3, E)
    found = experts.vector(experts.item(x), kept)
    for r in range(3):
        expected = torch.zeros(D)
        for e in range(E):
            hidden = F.gelu(x[r, e] @ experts.of_item[e] + experts.first_bias[e])
            expected += kept[r, e] * (hidden @ experts.second[e] + experts.second_bias[e])
        assert torch.allclose(found[r], expected, atol=1e-4)


@pytest.mark.parametrize("form", ["concat", "concat_prod", "dot"])
def test_every_parameter_moves_its_expert_only(form):
    experts = made(form)
    x_user, x_item = torch.randn(3, E, D), torch.randn(3, E, D)
    experts.pairs(experts.user(x_user), experts.item(x_item), x_user, x_item)[:, 2].sum().backward()
    for name, parameter in experts.named_parameters():
        moved = parameter.grad.abs().flatten(1).sum(dim=1) > 0 if parameter.dim() > 1 else parameter.grad.abs() > 0
        expected = [e == 2 for e in range(E)] if parameter.dim() > 1 else [True] * D
        assert moved.tolist() == expected, name


def test_experts_begin_differently_and_dropout_is_off_in_evaluation():
    experts = Experts(
        width=D, hidden=H, experts=E, form="concat", of_pairs=True, activation="relu", dropout=0.5, noise=Noise(0)
    )
    assert not torch.equal(experts.of_user[0], experts.of_user[1])
    x = torch.randn(2, E, D)
    user, item = experts.user(x), experts.item(x)
    assert not torch.equal(experts.pairs(user, item, x, x), experts.pairs(user, item, x, x))
    dropped = experts._dropped(torch.ones(6, E, H))
    assert all(torch.equal(dropped[:, :1], dropped[:, e : e + 1]) for e in range(E))
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    experts.eval()
    assert torch.equal(experts.pairs(user, item, x, x), experts.pairs(user, item, x, x))
