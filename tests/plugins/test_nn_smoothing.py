"""Means over a frozen graph, against dense products."""

import copy

import torch

from recplug.plugins.nn import Adjacency
from recplug.plugins.nn.smoothing import Smoothing, row_means


def graph():
    places = torch.tensor([[0, 0, 2, 3, 3], [1, 2, 0, 3, 1]])
    return Adjacency.of(places, torch.tensor([1.0, 3.0, 2.0, 1.0, -1.0]), (4, 4))


def test_rows_become_means():
    dense = graph().dense()
    sums = dense.sum(dim=1, keepdim=True)
    expected = torch.where(sums == 0, 0.0, dense / sums)
    expected[3] = torch.tensor([0.0, -1.0, 0.0, 1.0])  # adds up to 0: as it was
    torch.testing.assert_close(row_means(graph()).dense(), expected)


def test_it_is_the_product_and_so_is_its_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    smooth = Smoothing(graph(), weight=0.5, layers=2)
    dense = 0.5 * graph().dense() @ graph().dense()
    torch.testing.assert_close(smooth(x), dense @ x)
    (gradient,) = torch.autograd.grad(smooth(x).pow(2).sum(), x)
    torch.testing.assert_close(gradient, 2 * dense.T @ (dense @ x.detach()))
    assert smooth(x.bfloat16()).dtype == torch.bfloat16


def test_nothing_of_it_is_saved_and_copies_share_it():
    smooth = Smoothing(graph())
    assert not smooth.state_dict()
    assert copy.deepcopy(smooth).graph is smooth.graph
