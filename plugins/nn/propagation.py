"""Sparse products with a constant matrix, and LightGCN's propagation over a user-item graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.errors import RecplugError

INT32_MAX = 2**31 - 1


class Adjacency:
    """A constant sparse matrix with a fast product: coalesced, compressed by rows, its transpose cached.

    Neither a tensor nor a module: a host keeps it as a plain attribute in the place of a sparse tensor, and
    ``torch.sparse.mm``, ``torch.mm`` and ``torch.matmul`` with it on the left call :meth:`matmul`. As it never
    changes, copies share it.

    The constructor takes what it is given; use :meth:`of` or :meth:`bipartite`.

    Args:
        crow: ``[m + 1]``, where each row begins.
        col: ``[nnz]``, ascending within a row.
        values: ``[nnz]``, float32 or float64.
        shape: ``(m, n)``.
        symmetric: whether the matrix is its own transpose.
    """

    def __init__(self, crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int], *, symmetric: bool) -> None:
        index = torch.int32 if max(*shape, len(col)) <= INT32_MAX else torch.int64  # MKL computes with 32 bits
        self._crow = crow.to(index)
        self._col = col.to(index)
        self._values = values.detach()
        self.shape = (int(shape[0]), int(shape[1]))
        self.symmetric = symmetric
        self._csr: dict[torch.dtype, Tensor] = {}
        self._cast: dict[torch.dtype, Tensor] = {}
        self._transpose: Adjacency | None = None
        self._layout: list[tuple[Tensor, Tensor, Tensor]] = []  # the transpose's, shared by with_values()

    @classmethod
    def of(cls, indices: Tensor, values: Tensor, shape: tuple[int, int], *, symmetric: bool | None = None) -> Adjacency:
        """From coordinates in any order; what stands at one place twice is added.

        Args:
            indices: ``[2, nnz]`` (row, column).
            values: ``[nnz]``.
            shape: ``(m, n)``.
            symmetric: whether the matrix is its own transpose; None: look, exactly.
        """
        values = values.detach() if values.dtype == torch.float64 else values.detach().float()
        coo = torch.sparse_coo_tensor(indices, values, shape, device=values.device, check_invariants=True)
        coo = coo.coalesce()
        row, col = coo.indices()
        values = coo.values()
        if symmetric is None:
            symmetric = _is_symmetric(row, col, values, shape)
        return cls(_starts(row, shape[0]), col, values, shape, symmetric=symmetric)

    @classmethod
    def bipartite(
        cls, edges: Tensor, *, n_users: int, n_items: int, epsilon: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> Adjacency:
        r""":math:`D^{-1/2} A D^{-1/2}` of the user-item graph (LightGCN, eq. 8), items numbered after the users.

        An edge that comes twice counts once; a node without edges has an empty row.

        Args:
            edges: ``[2, n]`` (user, item).
            n_users, n_items: counts of nodes, with the padding row where the host has one.
            epsilon: added to every degree; RecBole adds 1e-7.
            dtype: of the values, which are computed in float64.

        Raises:
            RecplugError: an id lies outside its range.
        """
        users, items = edges.long()
        for name, ids, count in (("user", users, n_users), ("item", items, n_items)):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < count:
                raise RecplugError(
                    f"edges name {name} ids {int(ids.min())} to {int(ids.max())}, but there are {count}; "
                    f"give n_{name}s with the padding row"
                )
        keys = torch.unique(users * n_items + items)  # [E], ascending
        users, items = keys // max(n_items, 1), keys % max(n_items, 1)
        user_scale, item_scale = (
            (torch.bincount(ids, minlength=count).double() + epsilon).pow(-0.5)
            for ids, count in ((users, n_users), (items, n_items))
        )
        values = user_scale[users] * item_scale[items]  # [E]
        by_item = torch.argsort(items, stable=True)
        row = torch.cat([users, items[by_item] + n_users])  # [2E], ascending
        col = torch.cat([items + n_users, users[by_item]])
        size = n_users + n_items
        values = torch.cat([values, values[by_item]]).to(dtype)
        return cls(_starts(row, size), col, values, (size, size), symmetric=True)

    # -- what it is

    @property
    def nnz(self) -> int:
        """How many entries are stored."""
        return len(self._values)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self._values.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored values."""
        return self._values.dtype

    def indices(self) -> Tensor:
        """``[2, nnz]`` (row, column), int64, sorted."""
        crow = self._crow.long()
        rows = torch.arange(self.shape[0], device=self.device)
        row = torch.repeat_interleave(rows, crow[1:] - crow[:-1], output_size=self.nnz)
        return torch.stack([row, self._col.long()])

    def values(self) -> Tensor:
        """``[nnz]``, in the order of :meth:`indices`; not to be changed."""
        return self._values

    def dense(self) -> Tensor:
        """``[m, n]``, for tests and small graphs."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device).index_put(
            tuple(self.indices()), self._values
        )

    def transpose(self) -> Adjacency:
        """The transpose, computed once; itself where symmetric."""
        if self.symmetric:
            return self
        if self._transpose is None:
            crow, col, order = self._transposed_layout()
            shape = self.shape[1], self.shape[0]
            self._transpose = Adjacency(crow, col, self._values[order], shape, symmetric=False)
            self._transpose._transpose = self
        return self._transpose

    def _transposed_layout(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transpose's rows and columns, and the order in which it takes the values; sorted once."""
        if not self._layout:
            row, col = self.indices()
            order = torch.argsort(col, stable=True)
            self._layout.append((_starts(col[order], self.shape[1]), row[order], order))
        return self._layout[0]

    def with_values(self, values: Tensor) -> Adjacency:
        """Other values ``[nnz]`` at the same places, for edges dropped or weighed anew; nothing is sorted again."""
        if values.shape != self._values.shape:
            raise RecplugError(f"with_values needs [{self.nnz}] values, not {list(values.shape)}")
        other = Adjacency(self._crow, self._col, values, self.shape, symmetric=False)
        other._layout = self._layout
        return other

    def to(self, device: torch.device | str) -> Adjacency:
        """The same matrix on ``device``; itself where it already lies there."""
        values = self._values.to(device)
        if values.device == self.device:
            return self
        crow, col = self._crow.to(device), self._col.to(device)
        return Adjacency(crow, col, values, self.shape, symmetric=self.symmetric)

    def csr(self, dtype: torch.dtype) -> Tensor:
        """The matrix as a torch CSR tensor of ``dtype``, made once."""
        if dtype not in self._csr:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                self._csr[dtype] = torch.sparse_csr_tensor(
                    self._crow,
                    self._col,
                    self._values.to(dtype),
                    size=self.shape,
                    device=self.device,
                    check_invariants=False,
                )
        return self._csr[dtype]

    def bags(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Where rows begin ``[m + 1]``, columns ``[nnz]`` and values ``[nnz]`` of ``dtype``."""
        if dtype != self.dtype:
            self._cast.setdefault(dtype, self._values.to(dtype))
        return self._crow, self._col, self._cast.get(dtype, self._values)

    # -- products

    def matmul(self, x: Tensor) -> Tensor:
        """``x [n, d]`` to ``[m, d]``, differentiable in ``x``.

        Computed and returned in float32, under autocast too, or in float64 where ``x`` is.

        Raises:
            RecplugError: the shapes do not match.
        """
        product: Tensor = _Product.apply(self, self._fit(x))
        return product

    __matmul__ = matmul

    @torch.no_grad()
    def times(self, x: Tensor) -> Tensor:
        """``x [n, d]``, float32 or float64, to ``[m, d]``, without a gradient.

        On the CPU a row is a weighted bag of ``x``'s rows, for which torch's kernel is several times as fast as MKL's
        product.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.contiguous()
            if x.device.type != "cpu":
                return torch.mm(self.csr(x.dtype), x)
            crow, col, values = self.bags(x.dtype)
            return F.embedding_bag(col, x, crow, mode="sum", include_last_offset=True, per_sample_weights=values)

    def _fit(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[0] != self.shape[1]:
            raise RecplugError(
                f"a product of an adjacency {list(self.shape)} with a tensor {list(x.shape)}; give [{self.shape[1]}, d]"
            )
        return x if x.dtype == torch.float64 else x.float()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Answer torch's products with an adjacency on the left; refuse every other function by name."""
        if func in _PRODUCTS and len(args) == 2 and not kwargs and isinstance(args[0], cls):
            return args[0].matmul(args[1])
        name = getattr(func, "__name__", None) or repr(func)
        raise RecplugError(
            f"an Adjacency answers products with it on the left only, not {name}; switch fast propagation off here"
        )

    # -- copies

    def __copy__(self) -> Adjacency:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Adjacency:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_csr": {}, "_cast": {}, "_transpose": None, "_layout": []}

    def __repr__(self) -> str:
        return f"Adjacency(shape={self.shape}, nnz={self.nnz}, symmetric={self.symmetric}, device='{self.device}')"


_PRODUCTS = frozenset({torch.sparse.mm, torch.mm, torch.matmul})


def propagate_mean(adjacency: Adjacency, x: Tensor, layers: int) -> Tensor:
    r"""The mean of layers 0 to L, :math:`\frac{1}{L + 1} \sum_{k=0}^{L} A^k x` (LightGCN, eqs. 7, 8).

    By Horner's rule, L products and nothing kept: backward is the same sum with the transpose.

    Args:
        adjacency: ``[n, n]``.
        x: ``[n, d]``.
        layers: L >= 0.

    Returns:
        ``[n, d]``, float32 or float64.

    Raises:
        RecplugError: the matrix is not square, or the shapes do not match.
    """
    if adjacency.shape[0] != adjacency.shape[1]:
        raise RecplugError(f"propagation needs a square adjacency, not {list(adjacency.shape)}")
    mean: Tensor = _Mean.apply(adjacency, adjacency._fit(x), layers)
    return mean


def lightgcn(adjacency: Adjacency, users: Tensor, items: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """LightGCN's rule on any user-item graph.

    Args:
        adjacency: ``[n_users + n_items, n_users + n_items]``, for example :meth:`Adjacency.bipartite`.
        users: ``[n_users, d]``.
        items: ``[n_items, d]``.
        layers: L >= 0.

    Returns:
        ``[n_users, d]``, ``[n_items, d]``.
    """
    nodes = propagate_mean(adjacency, torch.cat([users, items]), layers)  # [n_users + n_items, d]
    return nodes[: len(users)], nodes[len(users) :]


class _Product(torch.autograd.Function):
    """``A x``; the gradient is ``A^T g``, again a product that can be differentiated."""

    @staticmethod
    def forward(ctx: Any, adjacency: Adjacency, x: Tensor) -> Tensor:
        ctx.adjacency = adjacency
        return adjacency.times(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.adjacency.transpose().matmul(grads[0])


class _Mean(torch.autograd.Function):
    """The mean over layers, in two buffers."""

    @staticmethod
    def forward(ctx: Any, adjacency: Adjacency, x: Tensor, layers: int) -> Tensor:
        ctx.adjacency, ctx.layers = adjacency, layers
        if layers == 0:
            return x.clone()
        total = x
        for _ in range(layers):
            total = adjacency.times(total).add_(x)  # [n, d]
        return total.div_(layers + 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, propagate_mean(ctx.adjacency.transpose(), grads[0], ctx.layers), None


def _starts(row: Tensor, m: int) -> Tensor:
    """``[m + 1]``: where each row begins in the ascending ``row [nnz]``."""
    return torch.searchsorted(row.contiguous(), torch.arange(m + 1, device=row.device))


def _is_symmetric(row: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> bool:
    if shape[0] != shape[1]:
        return False
    order = torch.argsort(col, stable=True)  # the transpose, sorted by rows
    return torch.equal(col[order], row) and torch.equal(row[order], col) and torch.equal(values[order], values)
