"""Values as tensors and Python's own plain types: reading them with ``torch.load(weights_only=True)`` runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

KIND = "recplug.kind"  # the key of a mapping that stands for something that torch.load(weights_only=True) cannot make
SIMPLE = frozenset({bool, int, float, str, type(None)})


class NotPlain(Exception):
    """A value of another kind."""


def packed(value: Any) -> Any:
    """A plain value as tensors and Python's own types alone.

    Raises:
        NotPlain: for anything else.
    """
    if type(value) in SIMPLE:
        return value
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return value.item()
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {KIND: "array", "values": torch.from_numpy(np.ascontiguousarray(value).copy())}
    if scipy.sparse.issparse(value) and value.dtype.kind in "biuf":
        rows = value.tocsr()
        parts = {name: packed(getattr(rows, name)) for name in ("data", "indices", "indptr")}
        return {KIND: "sparse", "class": type(value).__name__, "shape": tuple(map(int, value.shape)), **parts}
    if isinstance(value, torch.Generator):
        return {KIND: "generator", "device": str(value.device), "state": value.get_state()}
    if type(value) is list:
        return [packed(each) for each in value]
    if type(value) is tuple:
        return tuple(packed(each) for each in value)
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value) and KIND not in value:
        return {key: packed(each) for key, each in value.items()}
    raise NotPlain


def unpacked(value: Any) -> Any:
    """A copy of what :func:`packed` was given; a mapping of another type comes back as a ``dict``."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [unpacked(each) for each in value]
    if isinstance(value, tuple):
        return tuple(unpacked(each) for each in value)
    if not isinstance(value, dict):
        return value
    if value.get(KIND) == "array":
        return value["values"].numpy().copy()
    if value.get(KIND) == "sparse":
        as_csr = scipy.sparse.csr_array if value["class"].endswith("_array") else scipy.sparse.csr_matrix
        parts = (unpacked(value[name]) for name in ("data", "indices", "indptr"))
        return as_csr(tuple(parts), shape=value["shape"]).asformat(value["class"][:3])
    if value.get(KIND) == "generator":
        generator = torch.Generator(value["device"])
        generator.set_state(value["state"])
        return generator
    return {key: unpacked(each) for key, each in value.items()}
