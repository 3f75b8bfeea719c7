"""Constant tensors of a module that are no buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self


class Frozen(nn.Module):
    """A module with constant tensors, attributes that follow it to a device and to a precision.

    They are neither saved nor broadcast: of a buffer, which may be as large as the item table,
    ``DistributedDataParallel`` sends a copy to every process at each step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: tuple[str, ...] = ()

    def freeze(self, name: str, value: Tensor) -> None:
        """Hold ``value`` as the attribute ``name``; no gradient reaches what it was made from."""
        setattr(self, name, value.detach())
        self._frozen = (*self._frozen, name)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        super()._apply(fn, *args, **kwargs)
        for name in self._frozen:
            setattr(self, name, fn(getattr(self, name)))
        return self
