"""RecBole's graph models with fast products: the same outputs, losses and gradients, for every one of them."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from recbole.utils import init_seed

from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.graft import fast_products
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import Adjacency

GENERAL = {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"}}
CASES = {  # name: (model, its settings, what is replaced)
    "LightGCN": ("LightGCN", {"n_layers": 3}, {"norm_adj_matrix"}),
    "NCL": ("NCL", {"n_layers": 2, "hyper_layers": 1}, {"norm_adj_mat"}),
    "NGCF": ("NGCF", {"hidden_size_list": [16, 16], "node_dropout": 0.0}, {"norm_adj_matrix", "eye_matrix"}),
    "NGCF-dropout": ("NGCF", {"hidden_size_list": [16, 16], "node_dropout": 0.3}, {"norm_adj_matrix", "eye_matrix"}),
    "SpectralCF": ("SpectralCF", {"n_layers": 2}, {"A_hat"}),
    "GCMC-stack": (
        "GCMC",
        {"accum": "stack", "gcn_output_dim": 16, "dropout_prob": 0.3, "sparse_feature": True},
        {"Graph", "support[0]", "user_features", "item_features"},
    ),
    "GCMC-sum": (
        "GCMC",
        {"accum": "sum", "gcn_output_dim": 16, "dropout_prob": 0.3, "sparse_feature": False},
        {"Graph", "support[0]"},
    ),
    "DGCF": (
        "DGCF",
        {"n_factors": 2, "n_iterations": 2, "n_layers": 1},
        {"edge2head_mat", "head2edge_mat", "tail2edge_mat"},
    ),
    "SGL-ED": ("SGL", {"type": "ED", "n_layers": 2}, {"train_graph"}),
    "SGL-ND": ("SGL", {"type": "ND", "n_layers": 2}, {"train_graph"}),
    "SGL-RW": ("SGL", {"type": "RW", "n_layers": 2}, {"train_graph"}),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture
def pair(build, case):
    """The host twice, equal: as it is, and with fast products."""
    name, settings, replaced = case
    _, bare, train, *_ = build(name, None, **GENERAL, **settings)
    _, quick, *_ = build(name, None, **GENERAL, **settings)
    found = fast_products.use_fast_products(quick)
    assert sorted(found) == sorted(replaced)
    return bare, quick, train


def loss_of(model, batch):
    init_seed(4, True)  # views, dropout and sampled pairs are drawn while the loss is computed
    model.train()
    loss = model.calculate_loss(copy.deepcopy(batch))
    return sum(loss) if isinstance(loss, tuple) else loss


def gradients_of(model, batch):
    model.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def test_losses_and_gradients_are_the_hosts(pair, batch_of):
    bare, quick, train = pair
    batch = batch_of(train)
    expected, found = gradients_of(bare, batch), gradients_of(quick, batch)
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    assert any(grad is not None and grad.abs().max() > 1e-5 for grad in expected[1].values())
    for name, grad in expected[1].items():
        torch.testing.assert_close(found[1][name], grad, msg=lambda m, name=name: f"{name}: {m}", **CLOSE)


def test_scores_are_the_hosts(pair, batch_of):
    bare, quick, train = pair
    batch = batch_of(train)
    for model in (bare, quick):
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(quick.predict(batch), bare.predict(batch), **CLOSE)
        torch.testing.assert_close(quick.full_sort_predict(batch[:3]), bare.full_sort_predict(batch[:3]), **CLOSE)


@pytest.mark.parametrize(("name", "settings"), [("LightGCN", {"n_layers": 3}), ("SGL", {"type": "ED"})])
def test_the_mean_over_layers_in_one_pass_is_the_hosts(build, batch_of, name, settings):
    _, bare, train, *_ = build(name, None, **GENERAL, **settings)
    host = type(bare)
    faster = type(
        name,
        (host,),
        {"__module__": "elsewhere", "forward": lambda self, *a: fast_products.fast_forward(host)(self, *a)},
    )
    _, quick, *_ = build(name, None, **GENERAL, **settings)
    quick.__class__ = faster
    batch = batch_of(train)
    expected = gradients_of(bare, batch)
    untouched = gradients_of(quick, batch)  # no Adjacency yet: the host's own forward
    assert torch.equal(untouched[0], expected[0])
    assert fast_products.use_fast_products(quick)
    found = gradients_of(quick, batch)
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    for key, grad in expected[1].items():
        torch.testing.assert_close(found[1][key], grad, **CLOSE)


def test_another_class_keeps_its_forward(build):
    from recbole.model.general_recommender import NGCF, LightGCN

    class Own(LightGCN):
        def forward(self):
            raise NotImplementedError

    assert fast_products.fast_forward(NGCF) is NGCF.forward
    assert fast_products.fast_forward(Own) is Own.forward

    class Inherits(LightGCN):
        pass

    assert fast_products.fast_forward(Inherits) is not LightGCN.forward


def test_sgl_makes_its_views_without_sparse_tensors(build):
    _, model, *_ = build("SGL", None, **GENERAL, type="RW", n_layers=2)
    fast_products.use_fast_products(model)
    first = model.train().sub_graph1
    assert [type(graph) for graph in first] == [Adjacency, Adjacency]
    assert all(graph.symmetric for graph in first)


@pytest.mark.parametrize("name", ["LightGCN", "NGCF", "NCL", "GCMC", "SpectralCF"])
def test_the_matrix_is_the_hosts_to_the_bit(build, name):
    more = {"gcn_output_dim": 16} if name == "GCMC" else {}
    _, host, *_ = build(name, None, **GENERAL, **more)
    method = "get_laplacian_matrix" if name == "SpectralCF" else "get_norm_adj_mat"
    with recbole_compat():
        expected = getattr(host, method)()
    degrees = getattr(host, "diag", None)
    with fast_products.fast_adjacency_building():
        found = getattr(host, method)()
    if name == "SpectralCF":  # scipy leaves the columns of a row in no order
        found, expected = found.coalesce(), expected.coalesce()
    assert torch.equal(found._indices(), expected._indices())  # the order counts: NGCF's dropout draws by place
    assert torch.equal(found._values(), expected._values())
    if name == "NCL":
        torch.testing.assert_close(host.diag, degrees, rtol=1e-14, atol=0)


def test_an_edge_seen_twice_counts_once(build):
    _, host, *_ = build("LightGCN", None, **GENERAL)
    seen = host.interaction_matrix
    host.interaction_matrix = sp.coo_matrix(
        (np.tile(seen.data, 2), (np.tile(seen.row, 2), np.tile(seen.col, 2))), shape=seen.shape
    )
    with recbole_compat():
        expected = host.get_norm_adj_mat()
    with fast_products.fast_adjacency_building():
        assert torch.equal(host.get_norm_adj_mat().to_dense(), expected.to_dense())


def test_building_is_the_hosts_own_again_after_the_block():
    from recbole.model.general_recommender import NCL, LightGCN, SpectralCF

    before = LightGCN.get_norm_adj_mat, NCL.get_norm_adj_mat, SpectralCF.get_laplacian_matrix
    with fast_products.fast_adjacency_building():
        assert LightGCN.get_norm_adj_mat is not before[0]
    assert before == (LightGCN.get_norm_adj_mat, NCL.get_norm_adj_mat, SpectralCF.get_laplacian_matrix)


def test_copies_and_pickles_of_a_fast_model_score_alike(build, batch_of):
    _, model, train, *_ = build("SGL", None, **GENERAL, n_layers=2)
    fast_products.use_fast_products(model)
    batch = batch_of(train)
    expected = loss_of(model, batch)
    assert torch.equal(loss_of(copy.deepcopy(model), batch), expected)
    saved = {name: value for name, value in vars(model).items() if isinstance(value, Adjacency)}
    again = pickle.loads(pickle.dumps((saved, model.csr2tensor)))
    assert torch.equal(again[0]["train_graph"].dense(), model.train_graph.dense())


class Custom(torch.nn.Module):
    """A user's own model: a matrix under two names, one in a list, one that learns, one of integers."""

    def __init__(self):
        super().__init__()
        self.weights = torch.sparse_coo_tensor([[0, 1, 1], [1, 0, 2]], [1.0, 2.0, 3.0], (3, 3))
        self.alias = self.weights
        self.several = [self.weights, self.weights.transpose(0, 1).coalesce(), "a word"]
        self.inner = torch.nn.Module()
        self.inner.compressed = self.weights.to_sparse_csr()
        self.learned = self.weights.clone().requires_grad_()
        self.counts = torch.sparse_coo_tensor([[0], [1]], [4], (3, 3))
        self.dense = torch.ones(3, 3)


def test_a_models_own_matrices_are_found_wherever_they_are():
    model, before = Custom(), Custom()
    found = fast_products.use_fast_products(model)
    assert found == ["weights", "alias", "several[0]", "several[1]", "inner.compressed"]
    assert model.alias is model.weights
    assert model.several[0] is model.weights
    x = torch.randn(3, 2)
    torch.testing.assert_close(torch.sparse.mm(model.weights, x), torch.sparse.mm(before.weights, x))
    torch.testing.assert_close(torch.mm(model.several[1], x), torch.mm(before.several[1], x))
    torch.testing.assert_close(model.inner.compressed @ x, before.inner.compressed @ x)
    with pytest.raises(RecplugError, match=r"not _sparse_sum; switch fast propagation off"):
        torch.sparse.sum(model.weights)
    assert fast_products.use_fast_products(model) == []


def test_other_models_of_recbole_are_left_alone(monkeypatch):
    monkeypatch.setattr(Custom, "__module__", "recbole.model.somewhere")
    assert fast_products.use_fast_products(Custom()) == []


def test_dropout_without_an_adjacency_is_the_hosts():
    from recbole.model.layers import SparseDropout

    matrix = Custom().weights
    torch.manual_seed(1)
    expected = SparseDropout(0.5)(matrix)
    torch.manual_seed(1)
    assert torch.equal(fast_products.AdjacencyDropout(0.5)(matrix).to_dense(), expected.to_dense())
