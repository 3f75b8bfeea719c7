import pytest
import torch

from recplug.plugins.magnet.experts import Experts
from recplug.plugins.nn import Noise

E, D = 5, 4
FORMS = ["product", "concat"]


def made(form="concat", of_pairs=True, dropout=0.0):
    torch.manual_seed(1)
    experts = Experts(width=D, experts=E, form=form, of_pairs=of_pairs, dropout=dropout, noise=Noise(0))
    with torch.no_grad():
        for parameter in experts.parameters():  # biases too
            parameter.normal_()
    return experts


@pytest.mark.parametrize("form", FORMS)
def test_pairs_and_blocks_are_the_loop(form, slow_expert):
    experts = made(form)
    x_user, x_item = torch.randn(3, E, D), torch.randn(4, E, D)
    user, item = experts.user(x_user), experts.item(x_item)
    block = experts.block(user, item)
    assert block.shape == (E, 3, 4)
    pairs = experts.pairs(user, item[:3])
    for u in range(3):
        for e in range(E):
            for i in range(4):
                expected = slow_expert(experts, e, x_user[u, e], x_item[i, e])[1]
                assert torch.allclose(block[e, u, i], expected, atol=1e-4)
                if i == u:
                    assert torch.allclose(pairs[u, e], expected, atol=1e-4)


@pytest.mark.parametrize("form", ["product", "concat"])
def test_vector_is_the_loop(form, slow_expert):
    experts = made(form, of_pairs=False)
    x, kept = torch.randn(3, E, D), torch.rand(3, E)
    found = experts.vector(experts.item(x), kept)
    for r in range(3):
        expected = torch.zeros(D)
        for e in range(E):
            expected += kept[r, e] * slow_expert(experts, e, None, x[r, e])[0]
        assert torch.allclose(found[r], expected, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_moves_its_expert_only(form):
    experts = made(form)
    x_user, x_item = torch.randn(3, E, D), torch.randn(3, E, D)
    experts.pairs(experts.user(x_user), experts.item(x_item))[:, 2].sum().backward()
    for name, parameter in experts.named_parameters():
        moved = parameter.grad.abs().flatten(1).sum(dim=1) > 0 if parameter.dim() > 1 else parameter.grad.abs() > 0
        expected = [e == 2 for e in range(E)] if parameter.dim() > 1 else [True] * D
        assert moved.tolist() == expected, name


def test_experts_begin_differently_and_dropout_is_off_in_evaluation():
    experts = Experts(width=D, experts=E, form="concat", of_pairs=True, dropout=0.5, noise=Noise(0))
    assert not torch.equal(experts.of_user[0], experts.of_user[1])
    x = torch.randn(2, E, D)
    user, item = experts.user(x), experts.item(x)
    assert not torch.equal(experts.pairs(user, item), experts.pairs(user, item))
    dropped = experts._dropped(torch.ones(6, E, D))
    assert all(torch.equal(dropped[:, :1], dropped[:, e : e + 1]) for e in range(E))
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    experts.eval()
    assert torch.equal(experts.pairs(user, item), experts.pairs(user, item))
