"""The closed form against dense matrices, written out."""

import copy
import pickle

import pytest
import torch

from recplug.plugins import Modality
from recplug.plugins.filter import ClosedForm, Exponents
from recplug.plugins.nn.content import similarity_graph
from recplug.plugins.nn.knn import Neighbours

N_USERS, N_ITEMS = 30, 20
BABY = Exponents(heat=0.7, users=0.3, history=0.1, items=0.4, popularity=0.4)
OTHER = Exponents(heat=1.3, users=0.7, history=-0.2, items=0.0, popularity=0.9)


def edges():
    """Interactions, some twice; user 29 and item 7 have none."""
    generator = torch.Generator().manual_seed(0)
    users = torch.arange(1, N_USERS - 1).repeat_interleave(5)
    items = torch.randint(1, N_ITEMS - 1, (len(users),), generator=generator)
    items = items + (items >= 7)
    return torch.stack([torch.cat([users, users[:6]]), torch.cat([items, items[:6]])])


def modalities():
    generator = torch.Generator().manual_seed(1)
    found = []
    for name, absent in (("image", [0, 3]), ("text", [0, 3, 5])):
        present = torch.ones(N_ITEMS, dtype=torch.bool)
        present[absent] = False
        found.append(Modality(name, torch.randn(N_ITEMS, 6, generator=generator), present))
    return found


def graph(k=4, image=0.1):
    return similarity_graph(modalities(), {}, n_rows=N_ITEMS, k=k, image_weight=image)


def form(order=2, content=None):
    content = graph() if content is None else content
    return ClosedForm(edges(), n_users=N_USERS, n_items=N_ITEMS, content=content, order=order)


def slow(history, exponents, order, content):
    """``[n_items, u]`` in dense double precision, the formula as it stands."""
    interactions = torch.zeros(N_USERS, N_ITEMS, dtype=torch.float64)
    for user, item in edges().T.tolist():
        interactions[user, item] = 1.0

    def power(degree, exponent):
        return torch.diag(torch.where(degree > 0, degree.clamp(min=1) ** exponent, 0.0))

    d, u = interactions.sum(0), interactions.sum(1)
    kernel, term = torch.eye(N_ITEMS, dtype=torch.float64), torch.eye(N_ITEMS, dtype=torch.float64)
    for k in range(1, order + 1):
        term = term @ (exponents.heat * content.dense().double()) / k
        kernel = kernel + term
    scores = history.T.double() @ power(d + 1, -exponents.history) @ kernel @ power(d, -exponents.items)
    scores = scores @ interactions.T @ power(u, -exponents.users) @ interactions
    return (scores @ power(d, -exponents.items) @ kernel @ power(d + 1, exponents.popularity)).T


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("exponents", [BABY, OTHER])
def test_scores_are_the_formula(order, exponents):
    history = torch.rand(N_ITEMS, 7, generator=torch.Generator().manual_seed(2))
    found = form(order).scores(history, exponents)
    wanted = slow(history, exponents, order, graph())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.max()))


def test_without_content_the_kernel_is_the_identity():
    history = torch.rand(N_ITEMS, 3, generator=torch.Generator().manual_seed(2))
    bare = ClosedForm(edges(), n_users=N_USERS, n_items=N_ITEMS, content=None, order=2)
    torch.testing.assert_close(bare.scores(history, BABY), form(0).scores(history, BABY))


def test_rows_are_each_users_training_items():
    users = torch.tensor([3, 29, 28, 3])
    place, items = form().rows(users)
    known = {(user, item) for user, item in edges().T.tolist()}
    found = [(int(users[at]), item) for at, item in zip(place.tolist(), items.tolist(), strict=True)]
    assert sorted(found) == sorted([*(pair for pair in known if pair[0] == 28), *2 * [p for p in known if p[0] == 3]])


def test_copies_share_what_is_constant_and_pickles_score_the_same():
    one = form()
    history = torch.rand(N_ITEMS, 2)
    assert copy.deepcopy(one) is one
    scores = one.scores(history, BABY)
    again = pickle.loads(pickle.dumps(one))
    assert torch.equal(again.scores(history, BABY), scores)
    assert again.digest() == one.digest()
    assert form(order=3).digest() != one.digest()


def test_the_graph_of_similar_items_is_the_formula():
    k, shares = 4, {"image": 0.1, "text": 0.9}
    wanted, share = torch.zeros(N_ITEMS, N_ITEMS), torch.zeros(N_ITEMS)
    for modality in modalities():
        unit = torch.nn.functional.normalize(modality.values, dim=1)
        like = unit @ unit.T
        near = torch.zeros(N_ITEMS, N_ITEMS)
        rows = modality.present.nonzero().squeeze(1).tolist()
        for row in rows:
            others = sorted((other for other in rows if other != row), key=lambda other: -float(like[row, other]))
            near[row, others[:k]] = 1.0
        near = torch.maximum(near, near.T)
        degree = near.sum(1)
        scale = torch.where(degree > 0, degree, 1.0).rsqrt()
        wanted += shares[modality.name] * scale[:, None] * near * scale
        share += shares[modality.name] * (degree > 0)
    scale = torch.where(share > 0, share, 1.0).rsqrt()  # item 5 has an image alone
    wanted = scale[:, None] * wanted * scale
    found = graph(k)
    torch.testing.assert_close(found.dense(), wanted)
    assert torch.equal(found.dense(), found.dense().T)
    assert torch.linalg.eigvalsh(wanted).abs().max() <= 1 + 1e-5


def test_neighbours_that_came_with_the_data_are_taken_without_the_item_itself():
    index = torch.tensor([[0, 0, 0], [2, 1, 3], [1, 2, 3], [3, 1, 2]])
    valid = torch.tensor([[False] * 3, [True, True, True], [True, True, False], [True, True, True]])
    given = {"text": Neighbours(index, valid.float(), valid)}
    content = [Modality("text", torch.zeros(4, 2), torch.ones(4, dtype=torch.bool))]
    found = similarity_graph(content, given, n_rows=4, k=1, image_weight=0.1).dense()
    edges_of = {(row, column) for row, column in found.nonzero().tolist()}
    assert edges_of == {(1, 2), (2, 1), (3, 1), (1, 3)}
