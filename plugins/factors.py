"""Factor profiles: the values of every item under named semantic factors, aligned with a host's items."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from recplug.plugins.errors import RecplugError

FactorSource = Literal["text", "image", "joint", "catalogue", "cluster", "control"]


@dataclass(frozen=True)
class Factor:
    """One semantic factor, such as the material or the use of a product.

    Attributes:
        name: ``"material"``, ...
        values: its closed vocabulary, in the schema's order; an item that has none of them is unknown.
        source: what its values were read from.
        other: the place in ``values`` of the one that means "something else", or None. Items that share it need have
            nothing in common.
    """

    name: str
    values: tuple[str, ...]
    source: FactorSource = "text"
    other: int | None = None

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) < len(self.values):
            raise RecplugError(f"factor {self.name!r} needs one or more values, each once; got {list(self.values)}")
        if self.source not in get_args(FactorSource):
            raise RecplugError(f"factor {self.name!r} is read from {self.source!r}; choose one of its known sources")
        if self.other is not None and not 0 <= self.other < len(self.values):
            raise RecplugError(f"factor {self.name!r} has no value number {self.other}; 'other' is a place in values")


@dataclass(frozen=True, eq=False)
class FactorProfiles:
    """K factors of all items, as pairs (item, value); values are numbered through all factors.

    Attributes:
        factors: the K >= 1 factors, of different names.
        items: ``[e]`` int64, host rows, ascending; row 0 is padding and has no values.
        values: ``[e]`` int64, from 0 to V - 1, ascending within an item; factor k owns ``offsets[k]`` up to
            ``offsets[k + 1]``.
        n_items: rows of the host's items, with padding.

    Raises:
        RecplugError: for pairs out of order or range.
    """

    factors: tuple[Factor, ...]
    items: Tensor
    values: Tensor
    n_items: int

    def __post_init__(self) -> None:
        names = [factor.name for factor in self.factors]
        if not names or len(set(names)) < len(names):
            raise RecplugError(f"factor profiles need one or more factors of different names; got {names}")
        items, values = self.items, self.values
        if items.dtype != torch.int64 or values.dtype != torch.int64 or items.dim() != 1 or items.shape != values.shape:
            raise RecplugError("factor profiles need items [e] and values [e] of one length, int64")
        if len(items):
            key = items * self.n_values + values
            inside = int(items.min()) > 0 and int(items.max()) < self.n_items
            inside = inside and int(values.min()) >= 0 and int(values.max()) < self.n_values
            if not inside or bool((key.diff() <= 0).any()):
                raise RecplugError(
                    f"factor profiles name items 1 to {self.n_items - 1} and values 0 to {self.n_values - 1}, sorted, "
                    "each pair once"
                )

    @property
    def n_values(self) -> int:
        """V: the values of all factors."""
        return self.offsets[-1]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Of K + 1: where each factor's values begin."""
        ends = [0]
        for factor in self.factors:
            ends.append(ends[-1] + len(factor.values))
        return tuple(ends)

    @cached_property
    def factor_of(self) -> Tensor:
        """``[V]`` int64: the factor of every value."""
        sizes = torch.tensor([len(factor.values) for factor in self.factors], device=self.items.device)
        return torch.repeat_interleave(torch.arange(len(self.factors), device=self.items.device), sizes)

    @cached_property
    def counts(self) -> Tensor:
        """``[n_items, K]`` int64: how many values each item has under each factor; 0 where it is unknown."""
        k = len(self.factors)
        place = self.items * k + self.factor_of[self.values]
        return torch.bincount(place, minlength=self.n_items * k).reshape(self.n_items, k)

    @property
    def known(self) -> Tensor:
        """``[n_items, K]`` bool: whether the item has a value."""
        return self.counts > 0

    def labels(self) -> Tensor:
        """``[n_items, K]`` int64: each item's value within its factor, -1 where unknown.

        Raises:
            RecplugError: where an item has several values of one factor.
        """
        if len(self.items) and int(self.counts.max()) > 1:
            raise RecplugError("an item has several values of one factor; labels need one")
        factor = self.factor_of[self.values]  # [e]
        found = torch.full((self.n_items, len(self.factors)), -1, device=self.items.device)
        found[self.items, factor] = self.values - torch.tensor(self.offsets[:-1], device=self.items.device)[factor]
        return found

    def to(self, device: torch.device | str) -> FactorProfiles:
        """The same on ``device``."""
        return FactorProfiles(self.factors, self.items.to(device), self.values.to(device), self.n_items)
