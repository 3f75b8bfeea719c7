"""What objects carry from one epoch to the next besides their ``state_dict``: counters, flags, tensors, generators.

An attribute counts if it is not what it was when the training was built, and is plain: None, a number, a text, a dense
tensor, a NumPy array, a ``torch.Generator``, or a list, tuple or mapping of these. Anything else (a step, a graph, a
function) is made anew by the constructor, or in the step that needs it.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recplug.adapters.recbole.compat.plain_values import KIND, SIMPLE, NotPlain, packed, unpacked
from recplug.adapters.recbole.graft.general import CACHES

# Torch's own attributes, but for the mode; parameters and buffers are in the state_dict.
OF_MODULES = frozenset(vars(nn.Module())) - {"training"}
# An evaluation's own: what a host keeps between two batches, and for which parameters; it is dropped when it trains.
PASSING = (CACHES, "_recplug_seen")


class Carried:
    """Finds out which attributes have changed since it was made, and puts them back in another process.

    Args:
        model: whose modules are looked at, the buffers that are in no ``state_dict`` too.
        others: further objects by name.
    """

    def __init__(self, model: nn.Module, **others: Any) -> None:
        self._model, self._others = model, others
        self._built = {place: _mark(value) for place, value in self._attributes()}

    def read(self) -> dict[str, Any]:
        """Packed values by ``OWNER:ATTRIBUTE``."""
        found = {}
        for place, value in self._attributes():
            mark = _mark(value)
            if mark is None or mark == self._built.get(place):
                continue
            found[place] = packed(value)
        return found

    def write(self, values: Mapping[str, Any]) -> None:
        """Set the attributes that another process has read; what is no longer there is left out."""
        owners = dict(self._owners())
        for place, value in values.items():
            owner, _, name = place.partition(":")
            if owner not in owners:
                continue
            found = owners[owner]
            if isinstance(found, nn.Module) and name in found._buffers:
                found._buffers[name] = unpacked(value)
            else:
                vars(found)[name] = unpacked(value)

    def _owners(self) -> Iterable[tuple[str, Any]]:
        yield from self._others.items()
        for path, module in self._model.named_modules():
            yield f"model.{path}" if path else "model", module

    def _attributes(self) -> Iterable[tuple[str, Any]]:
        for name, owner in self._owners():
            values = dict(vars(owner))
            if isinstance(owner, nn.Module):
                values = {k: v for k, v in values.items() if k not in OF_MODULES and not k.startswith(PASSING)}
                values |= {k: owner._buffers[k] for k in owner._non_persistent_buffers_set}
            for key, value in values.items():
                yield f"{name}:{key}", value


class _Same:
    """A tensor as it is now: equal as long as it is the same object, and nothing was written to it."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        self._version = 0 if tensor.is_inference() else tensor._version

    def __eq__(self, other: object) -> bool:
        mine = self._tensor()
        same = isinstance(other, _Same) and mine is not None and mine is other._tensor()
        return same and self._version == other._version  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]


def _mark(value: Any) -> Any:
    """Something by which a change is seen; None for a value that is not plain."""
    try:
        return _plain_mark(value)
    except NotPlain:
        return None


def _plain_mark(value: Any) -> tuple[Any, ...]:
    if type(value) in SIMPLE or isinstance(value, np.generic):
        return "value", type(value), repr(value)  # NaN is itself
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return "tensor", _Same(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return "array", value.shape, value.dtype.str, zlib.crc32(value.tobytes())
    if isinstance(value, torch.Generator):
        return "generator", zlib.crc32(value.get_state().numpy().tobytes())
    if type(value) in (list, tuple):
        return type(value).__name__, [_plain_mark(each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value) and KIND not in value:
        return "mapping", {key: _plain_mark(each) for key, each in value.items()}
    raise NotPlain
