"""Exact propagation over factor graphs, as means over the groups of items that share a value."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.nn.frozen import Frozen
from recplug.plugins.nn.propagation import INT32_MAX

Other = Literal["isolate", "group"]
Strength = Literal["mean", "root"]

CHUNK = 512  # rows summed in one go: a group of 50,000 must not be one thread's serial, inexact sum


class Groups(Frozen):
    r"""Who shares which value, laid out for group sums and gathers (MARS, eqs. 3, 4 and 6).

    A factor graph joins items of equal value, so it is a set of cliques, and :math:`D^{-1/2} A_k D^{-1/2} X` is exactly
    the mean of the item's group, itself included. More layers change nothing. No graph is ever built: :meth:`heard`
    makes one row per value, :meth:`mix` gathers and weighs them. Both cost two passes over the items' values and need
    no tensor of shape [items, factors, d].

    The paper has one value per factor. Where an item has several (our extension), it hears the mean of its groups'
    means: with B the incidence [items, values], n the groups' sizes and Q = 1 / (values of the item),
    :math:`Q B n^{-1} B^T`, whose rows sum to 1.

    Nothing of it is saved or broadcast; it follows the module that holds it to a device.

    Args:
        profiles: the items' values.
        n_rows: rows of the item table; those past the profiles' items (a mask row) have no values.
        other: ``"isolate"``: items that share a factor's `other` value do not form a group; ``"group"``: they do.
        strength: ``"mean"``: groups are heard by their means, as in the paper; ``"root"``: by these times the root of
            their size. The mean of n unlike rows is that much shorter than a row, and so is the gradient that it hands
            to each of them.

    Raises:
        RecplugError: for fewer rows than the profiles have items.
    """

    counts: Tensor  # [n_rows, K] a row's readable values under each factor
    sizes: Tensor  # [V] items of each value; 0 for an isolated `other`
    slots: Tensor  # [n_rows, S] a row's values, factor by factor, V where there are none; S = K for single values
    columns: Tensor  # [S] the factor of each slot
    order: Tensor  # [e] places in the flat slots, value after value
    rows: Tensor  # [e] their rows
    starts: Tensor  # [V] where a value begins in `order`
    numbers: Tensor  # [V + 1]

    def __init__(
        self, profiles: FactorProfiles, *, n_rows: int, other: Other = "isolate", strength: Strength = "mean"
    ) -> None:
        super().__init__()
        if n_rows < profiles.n_items:
            raise RecplugError(f"{n_rows} rows are fewer than the profiles' {profiles.n_items} items; give all rows")
        self.n_rows, self.n_values, self.strength = n_rows, profiles.n_values, strength
        device, k, v = profiles.items.device, len(profiles.factors), profiles.n_values
        item, value = profiles.items, profiles.values  # [e] each, e pairs
        if other == "isolate":
            starts = zip(profiles.factors, profiles.offsets[:-1], strict=True)
            alone = [start + factor.other for factor, start in starts if factor.other is not None]
            kept = ~torch.isin(value, torch.tensor(alone, dtype=torch.int64, device=device))
            item, value = item[kept], value[kept]
        factor = profiles.factor_of[value]
        cell = item * k + factor  # [e]
        counts = torch.bincount(cell, minlength=n_rows * k)  # [n_rows * K]

        # A factor's slots stand side by side, as many as the most values that one row has of it.
        widths = counts.reshape(n_rows, k).amax(0).clamp(min=1)  # [K]
        first = counts.cumsum(0) - counts  # [n_rows * K] where a row's values of a factor begin
        n_slots = int(widths.sum())
        rank = torch.arange(len(item), device=device) - first[cell]
        place = item * n_slots + (widths.cumsum(0) - widths)[factor] + rank
        index = torch.int32 if max(n_rows * n_slots, v) < INT32_MAX else torch.int64
        slots = torch.full((n_rows * n_slots,), v, dtype=index, device=device).index_copy_(0, place, value.to(index))
        by_value = torch.argsort(value, stable=True)
        self.single = n_slots == k
        self.freeze("counts", counts.reshape(n_rows, k))
        self.freeze("sizes", torch.bincount(value, minlength=v))
        self.freeze("slots", slots.reshape(n_rows, n_slots))
        self.freeze("columns", torch.repeat_interleave(torch.arange(k, device=device), widths))
        self.freeze("order", place[by_value].to(index))
        self.freeze("rows", item[by_value].to(index))
        self.freeze("starts", torch.searchsorted(value[by_value], torch.arange(v, device=device)).to(index))
        self.freeze("numbers", torch.arange(v + 1, dtype=index, device=device))

    @property
    def available(self) -> Tensor:
        """``[n_rows, K]`` bool: whether a row has something to read under a factor; if not, its weight is idle."""
        return self.counts > 0

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return f"rows={self.n_rows}, factors={self.counts.shape[1]}, values={self.n_values}, strength={self.strength}"

    def means(self, x: Tensor) -> Tensor:
        """Every group's mean row.

        Args:
            x: ``[n_rows, d]``.

        Returns:
            ``[V, d]``, 0 for a value that nobody has. Float32 at least, under autocast too.
        """
        if x.dim() != 2 or x.shape[0] != self.n_rows:
            raise RecplugError(f"means are over [{self.n_rows}, d] rows, not {list(x.shape)}")
        found: Tensor = _Means.apply(self, _exact(x).contiguous())
        return found

    def heard(self, x: Tensor) -> Tensor:
        """``[V, d]``: :meth:`means`, as loud as ``strength`` makes them."""
        means = self.means(x)
        return means if self.strength == "mean" else means * self.sizes.to(means.dtype).sqrt().unsqueeze(1)

    def mix(self, table: Tensor, weights: Tensor, rows: Tensor | None = None) -> Tensor:
        """The factors' rows under weights: the fusion (eq. 7) without its structural branch.

        Args:
            table: ``[V, d]``: :meth:`heard`, or any other vectors of values.
            weights: ``[r, K]``, one row per row asked for.
            rows: ``[r]`` rows of the item table, repeated or not; None: all of them.

        Returns:
            ``[r, d]``; 0 for rows that have nothing to read. Of several values of a factor, the mean.
        """
        r = self.n_rows if rows is None else len(rows)
        if table.dim() != 2 or len(table) != self.n_values or weights.shape != (r, self.counts.shape[1]):
            raise RecplugError(
                f"a mix of {r} rows needs a table [{self.n_values}, d] and weights [{r}, {self.counts.shape[1]}], "
                f"not {list(table.shape)} and {list(weights.shape)}"
            )
        table = _exact(table)
        slots = self.slots if rows is None else self.slots.index_select(0, rows)  # [r, S]
        weights = weights.to(table.dtype)
        if not self.single:
            counts = self.counts if rows is None else self.counts.index_select(0, rows)
            weights = (weights / counts.clamp(min=1)).index_select(1, self.columns)  # [r, S]
        mixed = _bag(_with_zero(table.detach()), slots, None, weights)  # torch's own gradient for the weights
        found: Tensor = _TableGradient.apply(mixed, table, weights.detach(), slots, self, rows is None)
        return found

    def sums(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """``[V, d]``: sums of the rows of x over the groups, with ``weights [n_rows, S]`` or without."""
        if weights is not None:
            weights = weights.reshape(-1).index_select(0, self.order)
        return group_sum(x, self.rows, self.starts, weights)

    def over_sizes(self, table: Tensor) -> Tensor:
        """``table [V, d]`` over the groups' sizes."""
        return table / self.sizes.clamp(min=1).to(table.dtype).unsqueeze(1)


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
        return groups.over_sizes(groups.sums(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        groups: Groups = ctx.groups
        return None, _bag(_with_zero(groups.over_sizes(grads[0])), groups.slots, None, None)


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
            return grads[0], groups.sums(gradient, weights), None, None, None, None
        value, order = slots.reshape(-1).sort(stable=True)  # [r * S], empty slots last
        starts = torch.searchsorted(value, groups.numbers, out_int32=value.dtype == torch.int32)
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
