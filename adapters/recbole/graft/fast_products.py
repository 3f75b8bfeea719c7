"""RecBole's graph models with faster products: an :class:`Adjacency` in the place of every sparse tensor.

What happens to each of RecBole's models that multiply by a sparse matrix:

=============  =====================================  ============================================================
model          matrices                               what is done
=============  =====================================  ============================================================
LightGCN       ``norm_adj_matrix``                    products; the mean over layers in one pass (`fast_forward`)
SGL            ``train_graph``, two views an epoch    the same; views through ``csr2tensor``; "RW": products only
NCL            ``norm_adj_mat``                       products; its loss reads every layer
NGCF           ``norm_adj_matrix``                    products; node dropout draws as the host's, and zeroes values
SpectralCF     ``A_hat`` (not symmetric)              products
GCMC           ``Graph``, ``support``, the features   products; node dropout as in NGCF
DGCF           edges to nodes and back (three)        products; what it learns on edges is dense
DMF            made anew at every evaluation          nothing: once an evaluation
=============  =====================================  ============================================================

Other models of RecBole are left alone. In a user's own model every sparse attribute is replaced; one that is used in
another way than as the left side of a product says so at its first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from recbole.model.layers import SparseDropout
from torch import Tensor, nn

from recplug.adapters.recbole.compat.patching import replaced
from recplug.plugins.nn import Adjacency, lightgcn, propagate_mean

ANSWERED = frozenset({"LightGCN", "SGL", "NCL", "NGCF", "SpectralCF", "GCMC", "DGCF"})
EPSILON = 1e-7  # what RecBole adds to every degree


def use_fast_products(model: nn.Module) -> list[str]:
    """Replace the sparse tensors of a built model, and of its submodules, by :class:`Adjacency`.

    Call it after the host's constructor. Outputs, losses and gradients are the host's within float rounding.

    Args:
        model: a RecBole model, or a user's own.

    Returns:
        The names of what was replaced, for example ``["norm_adj_matrix"]``; empty where there is nothing to gain.
    """
    if not _answered(type(model)):
        return []
    found: list[str] = []
    made: dict[int, tuple[Tensor, Adjacency]] = {}  # by the tensor's id: hosts keep some under two names
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in list(vars(module).items()):
            if _replaceable(value):
                setattr(module, name, _adjacency(value, made))
                found.append(prefix + name)
            elif isinstance(value, list):
                for place, entry in enumerate(value):  # in place: GCMC shares its list with its encoder
                    if _replaceable(entry):
                        value[place] = _adjacency(entry, made)
                        found.append(f"{prefix}{name}[{place}]")
        for name, child in module.named_children():
            if type(child) is SparseDropout:
                setattr(module, name, AdjacencyDropout(1 - child.kprob))
    if _makes_views(model):
        model.csr2tensor = partial(_from_scipy, device=model.device)  # type: ignore[assignment,arg-type]
    return found


def fast_forward(model_class: type) -> Callable[..., Any]:
    """The class's ``forward``, or a faster one that returns the same where RecBole's own is known.

    What it returns falls back to the host's where the model's matrix is no :class:`Adjacency`.
    """
    from recbole.model.general_recommender import SGL, LightGCN

    known: dict[Any, Callable[..., Any]] = {LightGCN.forward: _lightgcn_forward, SGL.forward: _sgl_forward}
    own: Callable[..., Any] = model_class.forward  # type: ignore[attr-defined]
    return partial(known[own], own) if own in known else own


def _lightgcn_forward(host: Callable[..., Any], model: Any) -> Any:
    if not isinstance(model.norm_adj_matrix, Adjacency):
        return host(model)
    nodes = propagate_mean(model.norm_adj_matrix, model.get_ego_embeddings(), model.n_layers)  # [n, d]
    return nodes[: model.n_users], nodes[model.n_users :]


def _sgl_forward(host: Callable[..., Any], model: Any, graph: Any) -> Any:
    if not isinstance(graph, Adjacency):  # "RW" has a list of graphs, one a layer
        return host(model, graph)
    return lightgcn(graph, model.user_embedding.weight, model.item_embedding.weight, model.n_layers)


class AdjacencyDropout(SparseDropout):
    """RecBole's dropout of a sparse matrix's entries, with the same draws, for an :class:`Adjacency` too.

    What is dropped becomes an entry of zero: the matrix keeps its layout, and its transpose needs no sorting.

    Args:
        p: the probability of dropping an entry.
    """

    def forward(self, x: Any) -> Any:
        """Inverted dropout while training; the identity in evaluation."""
        if not isinstance(x, Adjacency):
            return super().forward(x)
        if not self.training:
            return x
        # The host draws on the CPU, whatever the device; so must we for the same entries.
        kept = (torch.rand(x.nnz, device="cpu") + self.kprob).floor().to(x.device)  # [nnz]
        return x.with_values(x.values() * kept * (1.0 / self.kprob))


@contextmanager
def fast_adjacency_building() -> Iterator[None]:
    """In this block RecBole's graph models build their matrix without a Python dictionary of edges, to the same bits.

    A subclass that builds its own is not touched.
    """
    from recbole.model.general_recommender import GCMC, NCL, NGCF, LightGCN, SpectralCF

    with ExitStack() as stack:
        for host in (LightGCN, NGCF, GCMC):
            stack.enter_context(replaced(host, get_norm_adj_mat=_normalised))
        stack.enter_context(replaced(NCL, get_norm_adj_mat=_normalised_with_degrees))
        stack.enter_context(replaced(SpectralCF, get_laplacian_matrix=_laplacian))
        yield


def _bipartite(model: Any) -> Adjacency:
    matrix = model.interaction_matrix
    edges = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))  # [2, n]
    return Adjacency.bipartite(edges, n_users=model.n_users, n_items=model.n_items, epsilon=EPSILON)


def _coo(indices: Tensor, values: Tensor, size: int) -> Tensor:
    return torch.sparse_coo_tensor(indices, values, (size, size), device=values.device, check_invariants=False)


def _normalised(model: Any) -> Tensor:
    """``D^-1/2 A D^-1/2``, as LightGCN, NGCF and GCMC build it."""
    matrix = _bipartite(model)
    return _coo(matrix.indices(), matrix.values(), matrix.shape[0])


def _normalised_with_degrees(model: Any) -> Tensor:
    """The same for NCL, which keeps the degrees to the power -1/2."""
    matrix = _bipartite(model)
    model.diag = torch.pow(_degrees(matrix), -0.5).to(model.device)  # [n]
    return _coo(matrix.indices(), matrix.values(), matrix.shape[0])


def _laplacian(model: Any) -> Tensor:
    """``I - D^-1 A``, as SpectralCF builds it."""
    matrix = _bipartite(model)
    size = matrix.shape[0]
    row = matrix.indices()[0]
    walk = torch.pow(_degrees(matrix), -1.0)[row].float()  # [nnz]
    return model.get_eye_mat(size) - _coo(matrix.indices(), walk, size)


def _degrees(matrix: Adjacency) -> Tensor:
    return torch.bincount(matrix.indices()[0], minlength=matrix.shape[0]).double() + EPSILON


def _answered(model_class: type) -> bool:
    """Whether every sparse matrix of the class is used in ways that an Adjacency answers, as far as can be known."""
    host = next(c for c in model_class.__mro__ if not c.__module__.startswith("recplug."))
    return host.__name__ in ANSWERED or not host.__module__.startswith("recbole.")


def _makes_views(model: nn.Module) -> bool:
    from recbole.model.general_recommender import SGL

    return getattr(type(model), "csr2tensor", None) is SGL.csr2tensor


def _replaceable(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout in (torch.sparse_coo, torch.sparse_csr)
        and value.dim() == 2
        and value.is_floating_point()
        and not value.requires_grad
    )


def _adjacency(matrix: Tensor, made: dict[int, tuple[Tensor, Adjacency]]) -> Adjacency:
    if id(matrix) not in made:
        coo = matrix.to_sparse_coo()
        shape = coo.shape[0], coo.shape[1]
        made[id(matrix)] = matrix, Adjacency.of(coo._indices(), coo._values(), shape)  # the tensor: its id stays taken
    return made[id(matrix)][1]


def _from_scipy(matrix: Any, *, device: torch.device | str) -> Adjacency:
    """What SGL's ``csr2tensor`` does, with an Adjacency as the result."""
    coo = matrix.tocoo()
    indices = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    values = torch.from_numpy(coo.data.astype(np.float32))
    return Adjacency.of(indices, values, coo.shape).to(device)
