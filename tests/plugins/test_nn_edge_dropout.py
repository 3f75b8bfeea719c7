"""Edges that are kept: how many, which, and how they are normalised; against torch's own draw and a loop."""

import pytest
import torch

from recplug.plugins.nn import Adjacency, Noise
from recplug.plugins.nn.edge_dropout import drop_edges

USERS, ITEMS = 6, 5


def graph(dtype=torch.float32):
    torch.manual_seed(0)
    edges = torch.stack([torch.randint(0, USERS, (40,)), torch.randint(0, ITEMS - 1, (40,))])  # the last item has none
    return Adjacency.bipartite(edges, n_users=USERS, n_items=ITEMS, dtype=dtype)


def edges_of(adjacency):
    row, col = adjacency.indices()
    return {(int(u), int(i) - USERS) for u, i in zip(row, col, strict=True) if u < USERS}


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8, 0.999])
def test_it_keeps_that_share_and_normalises_by_the_degrees_that_are_left(rate):
    whole = graph(torch.float64)
    kept = drop_edges(whole, n_users=USERS, rate=rate, noise=Noise(3))
    found, before = edges_of(kept), edges_of(whole)
    assert len(found) == max(int(len(before) * (1 - rate)), 1)
    assert found < before
    dense = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    for user, item in found:
        degrees = sum(u == user for u, _ in found) * sum(i == item for _, i in found)
        dense[user, USERS + item] = dense[USERS + item, user] = degrees**-0.5
    torch.testing.assert_close(kept.dense(), dense)
    assert kept.symmetric
    assert kept.dtype == torch.float64


def test_the_draw_is_weighed_by_degrees_as_torchs_own_draw_without_replacement():
    whole, noise, draws = graph(), Noise(1), 1500
    row, col = whole.indices()
    half = row < USERS
    names = list(zip(row[half].tolist(), (col[half] - USERS).tolist(), strict=True))
    counts = dict.fromkeys(names, 0)
    for _ in range(draws):
        for edge in edges_of(drop_edges(whole, n_users=USERS, rate=0.7, noise=noise)):
            counts[edge] += 1
    mine = torch.tensor([counts[edge] for edge in names]) / draws
    kept = int(len(names) * (1 - 0.7))
    generator = torch.Generator().manual_seed(5)
    weights = whole.values()[half].expand(draws, -1)
    drawn = torch.multinomial(weights, kept, replacement=False, generator=generator)
    theirs = torch.bincount(drawn.reshape(-1), minlength=len(names)) / draws
    assert (mine - theirs).abs().max() < 5 * (2 * 0.25 / draws) ** 0.5
    assert torch.corrcoef(torch.stack([mine, whole.values()[half]]))[0, 1] > 0.9  # not all the same


def test_draws_differ_and_begin_anew_with_the_seed():
    whole, noise = graph(), Noise(2)
    first, second = (edges_of(drop_edges(whole, n_users=USERS, rate=0.5, noise=noise)) for _ in range(2))
    assert first != second
    assert edges_of(drop_edges(whole, n_users=USERS, rate=0.5, noise=Noise(2))) == first


def test_nothing_to_drop_is_the_graph_itself():
    empty = Adjacency.bipartite(torch.empty(2, 0, dtype=torch.long), n_users=USERS, n_items=ITEMS)
    one = Adjacency.bipartite(torch.tensor([[1], [2]]), n_users=USERS, n_items=ITEMS)
    for whole, rate in [(graph(), 0.0), (empty, 0.8), (one, 0.8)]:
        assert drop_edges(whole, n_users=USERS, rate=rate, noise=Noise(0)) is whole
