"""Which experts answer: a distribution over all of them, of which the first K are kept (eqs. 16-19)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.nn import Noise

SMALL = 0.02  # of the last layer at the start: every pair is routed nearly evenly, without exact ties
HIDDEN = 16  # units of the hidden layer


class Routing(NamedTuple):
    """Weights of experts: ``dense [..., E]`` (pi), ``kept [..., E]`` (pi~); ``entropy [...]`` of the dense ones."""

    dense: Tensor
    kept: Tensor
    entropy: Tensor


class Router(nn.Module):
    r"""A hidden layer over behaviour vectors and one logit an expert.

    The query of a pair is :math:`[z_u; z_i]`, so the first layer is a sum of a user's and an item's part: both are
    computed once a node (:meth:`user`, :meth:`item`). The paper names no shape; hidden width, GELU and the small last
    layer are ours.

    Args:
        width: d, of a behaviour vector.
        experts: E.
        of_pairs: whether a user takes part.
        dropout: on the query.
        noise: the plugin's random stream.

    Shapes:
        ``user(z [r, d])`` and ``item(z [r, d])`` to ``[r, h]``; ``forward`` of their sum ``[..., h]`` to logits
        ``[..., E]`` float32.
    """

    def __init__(self, *, width: int, experts: int, of_pairs: bool, dropout: float, noise: Noise) -> None:
        super().__init__()
        self.p_dropout = dropout
        self.noise = noise
        self.of_user = nn.Linear(width, HIDDEN, bias=False) if of_pairs else None
        self.of_item = nn.Linear(width, HIDDEN)
        self.last = nn.Linear(HIDDEN, experts)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all layers anew."""
        for layer in (self.of_user, self.of_item):
            if layer is not None:
                layer.reset_parameters()
        nn.init.normal_(self.last.weight, std=SMALL)
        nn.init.zeros_(self.last.bias)

    def user(self, z: Tensor) -> Tensor:
        """A user's part of the first layer: ``[r, d]`` to ``[r, h]`` float32."""
        assert self.of_user is not None
        return self._first(self.of_user, z)

    def item(self, z: Tensor) -> Tensor:
        """An item's part of the first layer: ``[r, d]`` to ``[r, h]`` float32."""
        return self._first(self.of_item, z)

    def _first(self, layer: nn.Linear, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return layer(self.noise.dropout(z.float(), self.p_dropout))

    def forward(self, first: Tensor) -> Tensor:
        """The sum of the parts ``[..., h]`` to logits ``[..., E]``."""
        with torch.autocast(first.device.type, enabled=False):
            return self.last(F.gelu(first))

    def experts_first(self, first: Tensor) -> Tensor:
        """As :meth:`forward`, to ``[E, ...]`` in that memory order."""
        hidden = F.gelu(first).flatten(0, -2)  # [n, h]
        return torch.addmm(self.last.bias.unsqueeze(1), self.last.weight, hidden.T).view(-1, *first.shape[:-1])

    def extra_repr(self) -> str:
        """Choices."""
        return f"dropout={self.p_dropout}"


def keep(logits: Tensor, absent: Tensor, k: int) -> Tensor:
    """The kept weights pi~ (eqs. 18, 19) alone: ``[..., E]``; see :func:`route`."""
    logits = logits.masked_fill(absent, -torch.inf)
    if k < logits.shape[-1]:
        bound = logits.topk(k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < bound, -torch.inf)
    return logits.softmax(dim=-1)


def mixture(logits: Tensor, absent: Tensor, values: Tensor, k: int) -> Tensor:
    """``sum_e pi~_e values_e``, for rankings, where millions of pairs make ``topk`` the dearest part.

    The K best of a pair are found for all pairs at once, by K rounds of comparing neighbouring experts.

    Args:
        logits: ``[E, ...]``: experts first.
        absent: ``[E, ...]`` bool.
        values: ``[E, ...]``.
        k: K.

    Returns:
        ``[...]``.
    """
    logits = logits.masked_fill(absent, -torch.inf)
    if k >= len(logits):
        weights = logits.softmax(dim=0)
        return (weights * values).sum(dim=0)
    sorted_ = list(logits.unbind())
    for place in range(k):
        for e in range(len(sorted_) - 1, place, -1):
            above, below = sorted_[e - 1], sorted_[e]
            sorted_[e - 1], sorted_[e] = torch.maximum(above, below), torch.minimum(above, below)
    weights = (logits - sorted_[0]).exp_().masked_fill_(logits < sorted_[k - 1], 0.0)
    return (weights * values).sum(dim=0) / weights.sum(dim=0)


def route(logits: Tensor, absent: Tensor, k: int) -> Routing:
    """Softmax over the experts that can be asked, and over the K best of them, which renormalises (eqs. 17-19).

    Args:
        logits: ``[..., E]`` float32.
        absent: ``[..., E]`` bool: experts whose anchor is missing; at least one is not.
        k: K; where fewer experts can be asked, all of these are kept, and so are equals of the last.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_dense = logits.float().masked_fill(absent, -torch.inf).log_softmax(dim=-1)
        dense = log_dense.exp()
        entropy = -(dense * log_dense.masked_fill(absent, 0.0)).sum(dim=-1)
        return Routing(dense, keep(logits.float(), absent, k), entropy)
