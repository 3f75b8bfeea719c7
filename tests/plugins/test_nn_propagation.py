"""Sparse products against dense ones, normalisation against loops, gradients against differences."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import Adjacency, lightgcn, propagate_mean, propagation

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]
EDGES = torch.tensor([[0, 1, 1, 1, 3, 3], [0, 1, 1, 2, 0, 2]])  # (1, 1) twice; user 2 and item 3 have none


@st.composite
def matrices(draw):
    """Coordinates in any order, some twice, with the dense matrix they mean."""
    m, n = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    places = draw(st.lists(st.tuples(st.integers(0, m - 1), st.integers(0, n - 1)), max_size=20))
    values = draw(st.lists(st.integers(-4, 4), min_size=len(places), max_size=len(places)))
    dense = torch.zeros(m, n, dtype=torch.float64)
    for (row, col), value in zip(places, values, strict=True):
        dense[row, col] += value
    indices = torch.tensor(places, dtype=torch.long).reshape(-1, 2).t()
    return indices, torch.tensor(values, dtype=torch.float64), (m, n), dense


def graph(dtype=torch.float64):
    return Adjacency.bipartite(EDGES, n_users=4, n_items=4, dtype=dtype)


def lopsided():
    """Neither square nor symmetric."""
    return Adjacency.of(
        torch.tensor([[0, 0, 2, 1], [1, 4, 0, 1]]), torch.tensor([1.0, 2.0, 3.0, -1.0], dtype=torch.float64), (3, 5)
    )


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(1, 3))
def test_products_are_the_dense_ones(matrix, width):
    indices, values, shape, dense = matrix
    adjacency = Adjacency.of(indices, values, shape)
    x = torch.randn(shape[1], width, dtype=torch.float64)
    y = torch.randn(shape[0], width, dtype=torch.float64)
    assert torch.equal(adjacency.dense(), dense)
    assert torch.equal(adjacency.transpose().dense(), dense.t())
    torch.testing.assert_close(adjacency @ x, dense @ x)
    torch.testing.assert_close(adjacency.transpose() @ y, dense.t() @ y)
    is_symmetric = shape[0] == shape[1] and torch.equal(dense, dense.t())
    assert is_symmetric or not adjacency.symmetric
    if adjacency.nnz == dense.count_nonzero():  # else zeros are stored, perhaps on one side only
        assert adjacency.symmetric == is_symmetric


def test_duplicates_are_stored_once_and_sorted():
    adjacency = Adjacency.of(torch.tensor([[2, 0, 2], [1, 3, 1]]), torch.tensor([1.0, 2.0, 4.0]), (3, 4))
    assert adjacency.nnz == 2
    assert adjacency.indices().tolist() == [[0, 2], [3, 1]]
    assert adjacency.values().tolist() == [2.0, 5.0]


def test_a_told_symmetry_is_believed_and_shares_the_transpose():
    indices, values = torch.tensor([[0, 1], [1, 0]]), torch.tensor([2.0, 2.0])
    assert Adjacency.of(indices, values, (2, 2), symmetric=False).transpose() is not None
    told = Adjacency.of(indices, values, (2, 2), symmetric=True)
    assert told.transpose() is told
    other = Adjacency.of(indices, values, (2, 2), symmetric=False)
    assert other.transpose() is not other
    assert other.transpose().transpose() is other


@pytest.mark.parametrize("epsilon", [0.0, 1e-7, 0.5])
def test_bipartite_is_the_definition(epsilon):
    pairs = {(int(u), int(i)) for u, i in EDGES.t()}
    users = [sum(u == user for u, _ in pairs) for user in range(4)]
    items = [sum(i == item for _, i in pairs) for item in range(4)]
    expected = torch.zeros(8, 8, dtype=torch.float64)
    for u, i in pairs:
        expected[u, 4 + i] = expected[4 + i, u] = 1 / math.sqrt((users[u] + epsilon) * (items[i] + epsilon))
    found = Adjacency.bipartite(EDGES, n_users=4, n_items=4, epsilon=epsilon, dtype=torch.float64)
    torch.testing.assert_close(found.dense(), expected)
    assert torch.equal(found.dense(), found.dense().t())
    assert found.symmetric
    order = found.indices()[0] * 8 + found.indices()[1]
    assert (order.diff() > 0).all()


def test_the_largest_eigenvalue_of_a_graph_is_one():
    generator = torch.Generator().manual_seed(0)
    edges = torch.stack(
        [torch.randint(30, (200,), generator=generator), torch.randint(20, (200,), generator=generator)]
    )
    values = torch.linalg.eigvalsh(Adjacency.bipartite(edges, n_users=30, n_items=20, dtype=torch.float64).dense())
    torch.testing.assert_close(values[[0, -1]], torch.tensor([-1.0, 1.0], dtype=torch.float64))


def test_a_graph_without_edges_is_zero():
    empty = Adjacency.bipartite(torch.empty(2, 0, dtype=torch.long), n_users=1, n_items=1)
    assert empty.nnz == 0
    x = torch.randn(2, 3, requires_grad=True)
    assert torch.equal(empty @ x, torch.zeros(2, 3))
    propagate_mean(empty, x, 2).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize(("edges", "word"), [([[4], [0]], "user ids 4 to 4"), ([[0, 1], [2, -1]], "item ids -1 to 2")])
def test_ids_out_of_range_are_named(edges, word):
    with pytest.raises(RecplugError, match=f"{word}, but there are 4"):
        Adjacency.bipartite(torch.tensor(edges), n_users=4, n_items=4)


@pytest.mark.parametrize("make", [graph, lopsided])
def test_gradients_of_the_product(make):
    adjacency = make()
    x = torch.randn(adjacency.shape[1], 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(adjacency.matmul, x)
    assert torch.autograd.gradgradcheck(adjacency.matmul, x)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_the_mean_over_layers_is_the_mean_over_layers(layers):
    square = Adjacency.of(
        torch.tensor([[0, 1, 2, 2], [1, 2, 0, 2]]), torch.tensor([0.5, 2.0, 1.0, -1.0]).double(), (3, 3)
    )
    for adjacency in (graph(), square):
        x = torch.randn(adjacency.shape[0], 2, dtype=torch.float64, requires_grad=True)
        powers = [torch.linalg.matrix_power(adjacency.dense(), k) @ x for k in range(layers + 1)]
        torch.testing.assert_close(propagate_mean(adjacency, x, layers), torch.stack(powers).mean(dim=0))
        assert torch.autograd.gradcheck(lambda x, a=adjacency: propagate_mean(a, x, layers), x)
        assert torch.autograd.gradgradcheck(lambda x, a=adjacency: propagate_mean(a, x, layers), x)
        before = x.detach().clone()
        propagate_mean(adjacency, x, layers)
        assert torch.equal(x.detach(), before)


def test_lightgcn_splits_users_and_items():
    adjacency = graph()
    users, items = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    found = lightgcn(adjacency, users, items, 2)
    expected = propagate_mean(adjacency, torch.cat([users, items]), 2)
    assert torch.equal(torch.cat(found), expected)
    assert [len(part) for part in found] == [4, 4]


@pytest.mark.parametrize("product", [torch.sparse.mm, torch.mm, torch.matmul, lambda a, x: a @ x, Adjacency.matmul])
def test_it_stands_in_for_a_sparse_tensor(product):
    adjacency = lopsided()
    x = torch.nn.Parameter(torch.randn(5, 2, dtype=torch.float64))
    found = product(adjacency, x)
    torch.testing.assert_close(found, adjacency.dense() @ x)
    found.sum().backward()
    torch.testing.assert_close(x.grad, adjacency.dense().sum(dim=0)[:, None].expand(5, 2))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (torch.relu, "relu"),
        (lambda a: torch.mm(torch.ones(2, 3), a), "mm"),
        (lambda a: torch.ones(2, 3) @ a, "matmul"),
        (lambda a: torch.add(a, 1), "add"),
    ],
)
def test_every_other_function_is_refused_by_name(call, name):
    with pytest.raises(RecplugError, match=f"not {name}; switch fast propagation off"):
        call(lopsided())


@pytest.mark.parametrize("shape", [(3, 2), (5,), (5, 2, 2)])
def test_shapes_that_do_not_match_are_refused(shape):
    with pytest.raises(RecplugError, match=r"\[3, 5\].*give \[5, d\]"):
        lopsided() @ torch.ones(shape)


def test_only_a_square_matrix_propagates():
    with pytest.raises(RecplugError, match=r"square adjacency, not \[3, 5\]"):
        propagate_mean(lopsided(), torch.ones(5, 1), 2)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_under_autocast_forwards_and_backwards(device):
    adjacency = graph(torch.float32).to(device)
    x = torch.randn(8, 4, device=device, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        low = (x * 1).bfloat16()
        for found in (adjacency @ low, propagate_mean(adjacency, low, 2)):
            assert found.dtype == torch.float32
        product = adjacency @ low
        propagate_mean(adjacency, x, 3).square().sum().backward()
    torch.testing.assert_close(product, adjacency.dense() @ low.float(), rtol=1e-6, atol=1e-6)
    grad = x.grad.clone()
    x.grad = None
    propagate_mean(adjacency, x, 3).square().sum().backward()
    torch.testing.assert_close(grad, x.grad)


def test_float64_rows_give_float64():
    adjacency = graph(torch.float32)
    x = torch.randn(8, 2, dtype=torch.float64)
    torch.testing.assert_close(adjacency @ x, adjacency.dense().double() @ x, rtol=1e-12, atol=1e-12)
    assert (adjacency @ x.float()).dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_it_moves_and_computes_there(device):
    here, there = graph(torch.float32), graph(torch.float32).to(device)
    assert there.device.type == device
    assert there.to(device) is there
    x = torch.randn(8, 3)
    moved = x.to(device).requires_grad_()
    torch.testing.assert_close(there.matmul(moved).cpu(), here @ x)
    propagate_mean(there, moved, 2).sum().backward()
    assert moved.grad.device.type == device


def test_nothing_is_made_on_the_default_device():
    x = torch.randn(8, 2, requires_grad=True)
    edges = EDGES.clone()
    with torch.device("meta"):
        for adjacency in (
            Adjacency.bipartite(edges, n_users=4, n_items=4),
            Adjacency.of(graph().indices(), graph().values(), (8, 8), symmetric=False),
        ):
            found = [adjacency @ x, propagate_mean(adjacency, x, 2), adjacency.dense(), adjacency.indices()]
            found += torch.autograd.grad(adjacency.with_values(adjacency.values()).matmul(x).sum(), x)
            assert {tensor.device.type for tensor in found} == {"cpu"}


def test_copies_share_and_pickles_hold_the_matrix(tmp_path):
    adjacency = lopsided()
    x = torch.randn(5, 2, dtype=torch.float64)
    expected = adjacency @ x
    adjacency.transpose()
    holder = torch.nn.Linear(2, 2)
    holder.graph = adjacency
    assert copy.deepcopy(holder).graph is adjacency
    assert copy.copy(adjacency) is adjacency
    torch.save({"graph": adjacency}, tmp_path / "saved.pt")
    for again in (
        pickle.loads(pickle.dumps(adjacency)),
        torch.load(tmp_path / "saved.pt", weights_only=False)["graph"],
    ):
        assert torch.equal(again @ x, expected)
        assert torch.equal(again.transpose().dense(), adjacency.dense().t())
    assert list(holder.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("make", [graph, lopsided])
def test_other_values_at_the_same_places(make):
    adjacency = make()
    values = torch.randn(adjacency.nnz, dtype=torch.float64)
    other = adjacency.with_values(values)
    again = Adjacency.of(adjacency.indices(), values, adjacency.shape)
    assert torch.equal(other.dense(), again.dense())
    assert torch.equal(other.transpose().dense(), again.dense().t())
    assert torch.equal(adjacency.dense(), make().dense())
    x = torch.randn(adjacency.shape[1], 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(other.matmul, x)
    with pytest.raises(RecplugError, match="values"):
        adjacency.with_values(values[1:])


def test_a_matrix_too_large_for_32_bits_counts_with_64(monkeypatch):
    monkeypatch.setattr(propagation, "INT32_MAX", 4)
    adjacency = lopsided()
    assert adjacency.csr(torch.float64).col_indices().dtype == torch.int64
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(adjacency @ x, adjacency.dense() @ x)


def test_rows_that_are_not_contiguous():
    adjacency = graph()
    x = torch.randn(2, 8, dtype=torch.float64).t()
    torch.testing.assert_close(adjacency @ x, adjacency.dense() @ x)
    torch.testing.assert_close(propagate_mean(adjacency, x, 1), (x + adjacency.dense() @ x) / 2)
    flat = x.contiguous().requires_grad_()
    (adjacency @ flat).sum().backward()  # the gradient is one number, expanded
    torch.testing.assert_close(flat.grad, adjacency.dense().sum(dim=0)[:, None].expand(8, 2))


def test_a_first_use_in_inference_does_not_spoil_training():
    adjacency = lopsided()
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        adjacency @ x
        adjacency.transpose() @ torch.ones(3, 2, dtype=torch.float64)
    (adjacency @ x).sum().backward()
    torch.testing.assert_close(x.grad, adjacency.dense().sum(dim=0)[:, None].expand(5, 2))


def test_what_it_says_of_itself():
    assert repr(lopsided()) == "Adjacency(shape=(3, 5), nnz=4, symmetric=False, device='cpu')"
