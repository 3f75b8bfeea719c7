"""Exact propagation over factor graphs, as means over the groups of items that share a value."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.nn.propagation import INT32_MAX

Multi = Literal["mean", "hyper", "count"]
Other = Literal["isolate", "group"]
Strength = Literal["mean", "root"]

CHUNK = 512  # rows summed in one go: a group of 50,000 must not be one thread's serial, inexact sum


class Groups:
    r"""Who shares which value, laid out for group sums and gathers (MARS, eqs. 3, 4 and 6).

    A factor graph joins items of equal value, so it is a set of cliques, and for single-valued factors
    :math:`D^{-1/2} A_k D^{-1/2} X` is exactly the mean of the item's group, itself included. More layers change
    nothing. No graph is ever built: :meth:`means` makes one row per value, :meth:`mix` gathers and weighs them. Both
    cost two passes over the items' values and need no tensor of shape [items, factors, d].

    The paper has one value per factor. Where an item has several (our extension), factor k's matrix is, with B its
    incidence [items, values], n the sizes of the groups and Q = 1 / (values of the item):

    * ``mean``: :math:`Q B n^{-1} B^T`, the mean of the item's group means; its rows sum to 1.
    * ``hyper``: :math:`Q^{1/2} B n^{-1} B^T Q^{1/2}`, symmetric, largest eigenvalue 1.
    * ``count``: :math:`D^{-1/2} B B^T D^{-1/2}`, an edge as heavy as the values shared. A value counts as often as it
      has items, so frequent ones drown rare ones.

    Without the self-loop, a group's mean is over its other items, in all modes: n becomes n - 1 in ``mean`` and
    ``hyper``, the diagonal of :math:`B B^T` becomes 0 in ``count``, and a value that nobody else has is not read (nor
    counted in Q).

    Neither a tensor nor a module: nothing of it is saved or broadcast. As it never changes, copies share it. The
    constructor takes what it is given; use :meth:`of`.

    Attributes:
        n_rows, n_values: rows of the item table, and V.
    """

    def __init__(self, tensors: dict[str, Tensor | None], *, n_values: int, self_loop: bool) -> None:
        self._tensors = tensors
        self._cast: dict[tuple[str, torch.dtype], Tensor] = {}
        self.n_values = n_values
        self.self_loop = self_loop
        self.n_rows = len(self.available)

    @classmethod
    def of(
        cls,
        profiles: FactorProfiles,
        *,
        n_rows: int,
        multi: Multi = "mean",
        self_loop: bool = True,
        other: Other = "isolate",
        contributors: Tensor | None = None,
        strength: Strength = "mean",
    ) -> Groups:
        """Lay out the groups, on the profiles' device.

        Args:
            profiles: the items' values.
            n_rows: rows of the item table; those past the profiles' items (a mask row) have no values.
            multi: how several values of one factor are read.
            self_loop: whether an item is part of the groups it reads.
            other: ``"isolate"``: items that share a factor's `other` value do not form a group; ``"group"``: they do.
            contributors: ``[n_rows]`` bool, the rows that enter the means, for example items seen in training. All
                others read, and n and D count contributors only. None: all enter.
            strength: ``"mean"``: groups are heard by their means, as in the paper; ``"root"``: by these times the root
                of their size. The mean of n unlike rows is that much shorter than a row, and so is the gradient that
                it hands to each of them.

        Raises:
            RecplugError: for fewer rows than the profiles have items, or contributors of another shape.
        """
        if multi not in get_args(Multi) or other not in get_args(Other):
            raise RecplugError(f"multi {multi!r}, other {other!r}: choose of {get_args(Multi)} and {get_args(Other)}")
        if n_rows < profiles.n_items:
            raise RecplugError(f"{n_rows} rows are fewer than the profiles' {profiles.n_items} items; give all rows")
        if contributors is not None and (contributors.shape != (n_rows,) or contributors.dtype != torch.bool):
            raise RecplugError(f"contributors are [{n_rows}] bool, not {list(contributors.shape)} {contributors.dtype}")
        device, k, v = profiles.items.device, len(profiles.factors), profiles.n_values
        item, value = profiles.items, profiles.values  # [e] each, e pairs
        enters = torch.ones_like(item, dtype=torch.bool) if contributors is None else contributors.to(device)[item]
        grouped = torch.ones(v, dtype=torch.bool, device=device)
        if other == "isolate":
            starts = zip(profiles.factors, profiles.offsets[:-1], strict=True)
            grouped[[start + factor.other for factor, start in starts if factor.other is not None]] = False
        sizes = torch.bincount(value[enters], minlength=v) * grouped  # [V]
        kept = sizes[value] > 0
        item, value, enters = item[kept], value[kept], enters[kept].double()
        factor = profiles.factor_of[value]
        size = sizes[value].double()
        others = size if self_loop else size - enters  # whom the row reads under this value
        cell = item * k + factor  # [e]
        read = torch.bincount(cell[others > 0], minlength=n_rows * k)  # [n_rows * K] values with somebody to read
        degree = torch.zeros(n_rows * k, dtype=torch.float64, device=device).index_add_(0, cell, others)
        values_read, degree = read.clamp(min=1)[cell].double(), degree.clamp(min=1)[cell]

        # Factor k's matrix is take * (sums of give * x, over the group) / size; a pool has no groups to weigh.
        pool = (others > 0) / values_read
        if multi == "count":
            take, give = (others > 0) * (size / degree).sqrt(), enters * (size / degree).sqrt()
        else:
            power = 1.0 if multi == "mean" else 0.5
            take = (others > 0) * size / others.clamp(min=1) / values_read**power
            give = enters / values_read ** (1 - power)

        loud = (
            sizes.clamp(min=1).double().sqrt()
            if strength == "root"
            else torch.ones(v, dtype=torch.float64, device=device)
        )
        take = take * loud[value]

        # A factor's slots stand side by side, as many as the most values that one row has of it.
        counts = torch.bincount(cell, minlength=n_rows * k)
        widths = counts.reshape(n_rows, k).amax(0).clamp(min=1)  # [K]
        first = counts.cumsum(0) - counts  # [n_rows * K] where a row's values of a factor begin
        n_slots = int(widths.sum())
        rank = torch.arange(len(item), device=device) - first[cell]
        place = item * n_slots + (widths.cumsum(0) - widths)[factor] + rank
        index = torch.int32 if max(n_rows * n_slots, v) < INT32_MAX else torch.int64
        slots = torch.full((n_rows * n_slots,), v, dtype=index, device=device).index_copy_(0, place, value.to(index))

        def spread(weights: Tensor) -> Tensor | None:
            """``[n_rows, S]``, 0 in empty slots; None where all that is in a slot weighs 1."""
            if bool((weights == 1).all()):
                return None
            whole = torch.zeros(n_rows * n_slots, dtype=torch.float64, device=device)
            return whole.index_copy_(0, place, weights).reshape(n_rows, n_slots)

        by_value = torch.argsort(value, stable=True)
        own = torch.zeros(n_rows * k, dtype=torch.float64, device=device).index_add_(0, cell, take * give / size)
        columns = torch.repeat_interleave(torch.arange(k, device=device), widths)
        tensors = {
            "available": (read > 0).reshape(n_rows, k),
            "factor_of": profiles.factor_of,
            "strength": loud,
            "slots": slots.reshape(n_rows, n_slots),
            "columns": None if n_slots == k else columns,
            "scale": sizes.clamp(min=1).double().reciprocal()[:, None] * (sizes > 0)[:, None],  # [V, 1]
            "give": spread(give),
            "take": spread(take),
            "pool": spread(pool),
            "own": None if self_loop else own.reshape(n_rows, k),
            "order": place[by_value].to(index),  # [e] slots by value
            "rows": item[by_value].to(index),  # [e]
            "starts": torch.searchsorted(value[by_value], torch.arange(v, device=device)).to(index),  # [V]
            "numbers": torch.arange(v + 1, dtype=index, device=device),
        }
        return cls(tensors, n_values=v, self_loop=self_loop)

    # -- what it is

    @property
    def available(self) -> Tensor:
        """``[n_rows, K]`` bool: whether a row has something to read under a factor; if not, its weight is idle."""
        return self._tensor("available")

    @property
    def strength(self) -> Tensor:
        """``[V]`` float64: by what :meth:`mix` multiplies each value's mean."""
        return self._tensor("strength")

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.available.device

    def to(self, device: torch.device | str) -> Groups:
        """The same on ``device``; itself where it already lies there."""
        if self.available.to(device).device == self.device:
            return self
        moved = {name: tensor if tensor is None else tensor.to(device) for name, tensor in self._tensors.items()}
        return Groups(moved, n_values=self.n_values, self_loop=self.self_loop)

    def __copy__(self) -> Groups:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Groups:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cast": {}}

    def __repr__(self) -> str:
        n, k = self.available.shape
        return f"Groups({n} rows, {k} factors, {self.n_values} values, self_loop={self.self_loop})"

    # -- propagation

    def means(self, x: Tensor) -> Tensor:
        """Sum every group's rows.

        Args:
            x: ``[n_rows, d]``.

        Returns:
            ``[V, d]`` for :meth:`mix`, 0 for a value without contributors: a single-valued factor's means, and weighted
            ones where ``hyper`` or ``count`` meets several values. Float32 at least, under autocast too.
        """
        if x.dim() != 2 or x.shape[0] != self.n_rows:
            raise RecplugError(f"means are over [{self.n_rows}, d] rows, not {list(x.shape)}")
        found: Tensor = _Means.apply(self, _exact(x).contiguous())
        return found

    def mix(
        self,
        means: Tensor,
        weights: Tensor,
        rows: Tensor | None = None,
        x: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Sum the factors' propagated rows with weights: the fusion (eq. 7) without its structural branch.

        Args:
            means: ``[V, d]``, from :meth:`means`.
            weights: ``[r, K]``, one row per row asked for.
            rows: ``[r]`` rows of the item table, repeated or not; None: all of them.
            x: ``[r, d]``, the vectors of these rows; needed without a self-loop.
            scale: ``[K, d]``, by which each factor's rows are multiplied, or None.

        Returns:
            ``[r, d]``; 0 for rows that have nothing to read.
        """
        table = means if scale is None else means * scale.index_select(0, self._tensor("factor_of"))
        mixed = self._gather(table, weights, rows, "take")  # [r, d]
        if self.self_loop:
            return mixed
        if x is None:
            raise RecplugError("without a self-loop, mix() takes the rows' own vectors back out; give x")
        own = self._at("own", mixed.dtype, rows) * weights.to(mixed.dtype)  # [r, K]
        if scale is None:
            return mixed - own.sum(1, keepdim=True) * x.to(mixed.dtype)
        with torch.autocast(mixed.device.type, enabled=False):  # else the product is in half precision
            return mixed - (own @ scale.to(mixed.dtype)) * x.to(mixed.dtype)

    def mix_pooled(
        self, table: Tensor, weights: Tensor, rows: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Like :meth:`mix`, from any vectors of values: each factor gives the mean over the item's values.

        Args:
            table: ``[V, d]``, for example a free embedding of every value.
            weights: ``[r, K]``.
            rows: ``[r]``, or None for all.
            scale: as in :meth:`mix`.

        Returns:
            ``[r, d]``.
        """
        table = table if scale is None else table * scale.index_select(0, self._tensor("factor_of"))
        return self._gather(table, weights, rows, "pool")

    def branches(self, means: Tensor, rows: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        """``[r, K, d]``, every factor's propagated rows apart; for pictures and tests, not for training."""
        r, k = self.n_rows if rows is None else len(rows), self.available.shape[1]
        one = torch.eye(k, dtype=means.dtype, device=means.device)
        return torch.stack([self.mix(means, one[j].expand(r, k), rows, x) for j in range(k)], 1)

    def _gather(self, table: Tensor, weights: Tensor, rows: Tensor | None, inner: str) -> Tensor:
        r = self.n_rows if rows is None else len(rows)
        if table.dim() != 2 or len(table) != self.n_values or weights.shape != (r, self.available.shape[1]):
            raise RecplugError(
                f"a mix of {r} rows needs a table [{self.n_values}, d] and weights [{r}, {self.available.shape[1]}], "
                f"not {list(table.shape)} and {list(weights.shape)}"
            )
        table = _exact(table)
        slots = self._tensor("slots") if rows is None else self._tensor("slots").index_select(0, rows)  # [r, S]
        weights = weights.to(table.dtype)
        if self._tensors["columns"] is not None:
            weights = weights.index_select(1, self._tensor("columns"))  # [r, S]
        if self._tensors[inner] is not None:
            weights = weights * self._at(inner, table.dtype, rows)
        mixed = _bag(_with_zero(table.detach()), slots, None, weights)  # torch's own gradient for the weights
        found: Tensor = _TableGradient.apply(mixed, table, weights.detach(), slots, self, rows is None)
        return found

    # -- parts

    def _tensor(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        assert tensor is not None
        return tensor

    def _at(self, name: str, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
        """Constant weights in a dtype, cast once, at rows."""
        if (name, dtype) not in self._cast:
            with torch.inference_mode(False):  # training cannot use what inference mode made
                self._cast[name, dtype] = self._tensor(name).to(dtype)
        whole = self._cast[name, dtype]
        return whole if rows is None else whole.index_select(0, rows)

    def _sums(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """``[V, d]``: sums of the rows of x over the groups, with ``weights [n_rows, S]`` or without."""
        if weights is not None:
            weights = weights.reshape(-1).index_select(0, self._tensor("order"))
        return group_sum(x, self._tensor("rows"), self._tensor("starts"), weights)


def group_sum(x: Tensor, rows: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
    """Sum rows group by group, in chunks of at most ``CHUNK`` whose sums are then summed.

    Args:
        x: ``[n, d]``.
        rows: ``[e]``, which rows, group after group.
        starts: ``[G]`` of the same dtype, where each group begins in ``rows``; the first begins at 0.
        weights: ``[e]`` in x's dtype, or None.

    Returns:
        ``[G, d]``.
    """
    cuts = torch.arange(0, len(rows), CHUNK, dtype=starts.dtype, device=starts.device)
    begins = torch.cat([starts, cuts]).sort().values  # [G + chunks]: a chunk ends where its group does
    parts = _bag(x, rows, begins, weights)  # [G + chunks, d]
    numbers = torch.arange(len(begins), dtype=starts.dtype, device=starts.device)
    return _bag(parts, numbers, torch.searchsorted(begins, starts, out_int32=starts.dtype == torch.int32), None)


class _Means(torch.autograd.Function):
    """Group sums one way, a gather the other."""

    @staticmethod
    def forward(ctx: Any, groups: Groups, x: Tensor) -> Tensor:
        ctx.groups = groups
        give = None if groups._tensors["give"] is None else groups._at("give", x.dtype)
        return groups._sums(x, give) * groups._at("scale", x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        groups: Groups = ctx.groups
        table = _with_zero(grads[0] * groups._at("scale", grads[0].dtype))
        give = None if groups._tensors["give"] is None else groups._at("give", table.dtype)
        return None, _bag(table, groups._tensor("slots"), None, give)


class _TableGradient(torch.autograd.Function):
    """Leaves a mix as it is and adds the table's gradient, group sums: torch's own walks the values one by one."""

    @staticmethod
    def forward(
        ctx: Any, mixed: Tensor, table: Tensor, weights: Tensor, slots: Tensor, groups: Groups, whole: bool
    ) -> Tensor:
        ctx.save_for_backward(weights, slots)
        ctx.groups, ctx.whole = groups, whole
        return mixed.view_as(mixed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        if not ctx.needs_input_grad[1]:
            return grads[0], None, None, None, None, None
        weights, slots = ctx.saved_tensors
        groups: Groups = ctx.groups
        gradient = grads[0].contiguous()
        if ctx.whole:
            return grads[0], groups._sums(gradient, weights), None, None, None, None
        value, order = slots.reshape(-1).sort(stable=True)  # [r * S], empty slots last
        starts = torch.searchsorted(value, groups._tensor("numbers"), out_int32=value.dtype == torch.int32)
        rows = torch.div(order, slots.shape[1], rounding_mode="floor").to(value.dtype)
        sums = group_sum(gradient, rows, starts, weights.reshape(-1).index_select(0, order))
        return grads[0], sums[:-1], None, None, None, None


def _bag(table: Tensor, index: Tensor, begins: Tensor | None, weights: Tensor | None) -> Tensor:
    """Sums of bags of rows: ``index [r, S]``, or ``index [e]`` with the bags' beginnings."""
    return F.embedding_bag(index, table, begins, mode="sum", per_sample_weights=weights)


def _with_zero(table: Tensor) -> Tensor:
    """``[V + 1, d]``: a row of zeros after the others, for empty slots."""
    return F.pad(table, (0, 0, 0, 1))


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
