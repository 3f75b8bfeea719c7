"""From a vector for each token or patch to one vector."""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = ("cls", "mean", "max", "last", "pooler")


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector for each row.

    Args:
        states: ``[b, t, d]``.
        mask: ``[b, t]``, 1 where there is a token; at least one in every row.
        pooling: ``cls``: of the first token; ``last``: of the last; ``mean`` and ``max``: over all.

    Returns:
        ``[b, d]``, float32.
    """
    states = states.float()
    there = mask.bool()
    if pooling == "mean":
        weights = there.unsqueeze(-1).to(states.dtype)  # [b, t, 1]
        return (states * weights).sum(dim=1) / weights.sum(dim=1)
    if pooling == "max":
        return states.masked_fill(~there.unsqueeze(-1), -torch.inf).amax(dim=1)
    places = torch.arange(states.shape[1], device=states.device)
    if pooling == "cls":
        at = torch.where(there, places, states.shape[1]).amin(dim=1)  # [b]
    else:
        at = torch.where(there, places, -1).amax(dim=1)  # [b]
    return states[torch.arange(len(states), device=states.device), at]
