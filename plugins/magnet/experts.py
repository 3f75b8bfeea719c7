"""The experts: fixed mixes of the sources (eqs. 12-15) and one small head each, computed together (eqs. 11, 20, 21)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.nn import Noise

Form = Literal["product", "concat"]

log = logging.getLogger("recplug")
KINDS = ("dominant", "balanced", "complementary")
EPSILON = 0.1  # eq. 14; the paper gives no number
CLOSE = 0.2  # two templates of different kinds with a smaller L1 distance hardly differ


@dataclass(frozen=True)
class Templates:
    """Mixes, one an expert.

    Attributes:
        weights: ``[E, M]`` float32; rows are not negative and sum to 1. Column 0 is behaviour.
        anchors: ``[E]`` int64, the source that an expert is built around: without it, it is not asked.
        names: one an expert, for example ``"image dominant"``.
        kinds: the index in :data:`KINDS`, one an expert; empty where experts have none.
    """

    weights: Tensor
    anchors: Tensor
    names: tuple[str, ...]
    kinds: tuple[int, ...] = ()

    @property
    def n_experts(self) -> int:
        """E."""
        return len(self.names)


def templates(
    sources: Sequence[str], *, alpha: float, beta: float, delta: float, epsilon: float = EPSILON
) -> Templates:
    r"""Three experts an anchor: E = 3M.

    With the pivot :math:`q = [1/2, 1/(2(M-1)), ...]` over [anchor, auxiliaries in the order of ``sources``]:

    .. math::
        \mathrm{Dom} &= (1-\alpha)\,q + \alpha\,[1, 0, ...] && \text{(12)} \\
        \mathrm{Bal} &= (1-\beta)\,\tfrac{1}{M} + \beta\,q && \text{(13)} \\
        \mathrm{Com} &= [\epsilon, (1-\epsilon)\,\delta_1, (1-\epsilon)\,\delta_2, ...] && \text{(14)}

    The paper has M = 3; epsilon and the order of the auxiliaries are not given there, other M are ours. With M = 2 the
    balanced experts coincide and one is kept (E = 5).

    Args:
        sources: M names, at least two, behaviour first.
        alpha, beta, epsilon: in [0, 1].
        delta: the first auxiliary's share, the rest in equal parts.
    """
    m = len(sources)
    shares = [1.0] if m == 2 else [delta, *[(1 - delta) / (m - 2)] * (m - 2)]
    pivot = [0.5, *[0.5 / (m - 1)] * (m - 1)]
    canonical = (
        [(1 - alpha) * q + alpha * (place == 0) for place, q in enumerate(pivot)],
        [(1 - beta) / m + beta * q for q in pivot],
        [epsilon, *((1 - epsilon) * share for share in shares)],
    )
    rows, anchors, names, kinds = [], [], [], []
    for anchor, name in enumerate(sources):
        order = [anchor, *(s for s in range(m) if s != anchor)]
        for kind, mix in enumerate(canonical):
            shared = m == 2 and kind == 1
            if shared and anchor:
                continue
            row = [0.0] * m
            for source, weight in zip(order, mix, strict=True):
                row[source] = weight
            rows.append(row)
            anchors.append(anchor)
            kinds.append(kind)
            names.append(KINDS[kind] if shared else f"{name} {KINDS[kind]}")
    found = Templates(
        torch.tensor(rows, dtype=torch.float32, device="cpu"),
        torch.tensor(anchors, device="cpu"),
        tuple(names),
        tuple(kinds),
    )
    _warn_of_twins(found)
    return found


def plain(sources: Sequence[str], n_experts: int) -> Templates:
    """Uniform mixes of all sources, without anchors: for the controls ``free`` and ``single``."""
    m = len(sources)
    names = ("single",) if n_experts == 1 else tuple(f"expert {e + 1}" for e in range(n_experts))
    weights = torch.full((n_experts, m), 1.0 / m, device="cpu")
    return Templates(weights, torch.zeros(n_experts, dtype=torch.long, device="cpu"), names)


def _warn_of_twins(found: Templates) -> None:
    """Name experts of different kinds whose mixes are nearly the same; balanced ones are alike by design."""
    distance = torch.cdist(found.weights, found.weights, p=1)
    pairs = [
        f"{found.names[a]} and {found.names[b]}"
        for a, b in torch.combinations(torch.arange(found.n_experts, device="cpu")).tolist()
        if found.kinds[a] != found.kinds[b] and distance[a, b] < CLOSE
    ]
    if pairs:
        log.warning("magnet: nearly the same mixes: %s; move alpha, beta or delta", "; ".join(pairs))


class Experts(nn.Module):
    r"""E heads with parameters of their own.

    .. math::
        s^e &= W_2^e\,\mathrm{GELU}(U^e x_u^e + V^e x_i^e + b^e) + c^e && \text{(11)} \\
        y &= \textstyle\sum_e \tilde\pi^e\, \langle v, s^e \rangle && \text{(20, 21)}

    This is ``concat``. Depth, width (d) and activation of the head and the form of the score are ours; the paper says
    "lightweight". As the score is linear, v is multiplied into the second layer, so that s is never made. ``product``,
    the default and ours, is :math:`\langle \theta^e \odot x_u, x_i \rangle`, a dot product whose columns each expert
    weighs anew. Without users (node mode) the mixture is the vector :math:`\sum_e \tilde\pi^e s^e`, with :math:`U^e`
    left out, or :math:`\sum_e \tilde\pi^e\, \theta^e \odot x_i`.

    Args:
        width: d.
        experts: E.
        form: see above.
        of_pairs: whether a user takes part.
        dropout: on the hidden layer, or on the product; one mask for all experts of a row.
        noise: the plugin's random stream.

    Shapes:
        ``user(x [r, E, d])`` and ``item(x [r, E, d])`` to ``[r, E, d]``; of these, ``pairs`` gives ``[r, E]``,
        ``block`` ``[E, u, n]`` and ``vector`` ``[r, d]``, all float32.
    """

    def __init__(self, *, width: int, experts: int, form: Form, of_pairs: bool, dropout: float, noise: Noise) -> None:
        super().__init__()
        self.form = form
        self.n_experts = experts
        self.p_dropout = dropout
        self.noise = noise
        deep = form == "concat"
        layer = experts, width, width
        self.scale = None if deep else nn.Parameter(torch.empty(experts, width))
        self.of_user = nn.Parameter(torch.empty(layer)) if of_pairs and deep else None
        self.of_item = nn.Parameter(torch.empty(layer)) if deep else None
        if deep:
            self.first_bias = nn.Parameter(torch.empty(experts, width))
            self.second = nn.Parameter(torch.empty(layer))
            self.second_bias = nn.Parameter(torch.empty(experts, width))
        self.readout = nn.Parameter(torch.empty(width)) if of_pairs and deep else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones for the columns' weights; layers as ``nn.Linear`` draws them, biases of the first at zero."""
        if self.scale is not None:
            nn.init.ones_(self.scale)
            return
        layers = [layer for layer in (self.of_user, self.of_item) if layer is not None]
        for tensor in layers:
            _uniform(tensor, tensor.shape[1] * len(layers))
        nn.init.zeros_(self.first_bias)
        _uniform(self.second, self.second.shape[1])
        nn.init.zeros_(self.second_bias)
        if self.readout is not None:
            _uniform(self.readout, len(self.readout))

    def user(self, x: Tensor) -> Tensor:
        """A user's part of the first layer."""
        if self.scale is not None:
            return x.float() * self.scale.float()
        assert self.of_user is not None
        return torch.einsum("red,edh->reh", x, self.of_user).float()

    def item(self, x: Tensor) -> Tensor:
        """An item's part of the first layer, with its bias."""
        if self.of_item is None:
            return x.float()
        first = torch.baddbmm(self.first_bias.unsqueeze(1), x.transpose(0, 1), self.of_item)  # [E, r, h]
        return first.float().transpose(0, 1)

    def pairs(self, user: Tensor, item: Tensor) -> Tensor:
        """``user [r, E, d]``, ``item [k, r, E, d]`` or ``[r, E, d]`` to scores ``[(k,) r, E]``."""
        if self.scale is not None:
            return self._dropped(user * item).sum(dim=-1)
        hidden = self._dropped(F.gelu(user + item))
        weights, bias = self._scoring()
        return torch.einsum("...reh,eh->...re", hidden, weights) + bias

    def block(self, user: Tensor, item: Tensor) -> Tensor:
        """``user [u, E, d]``, ``item [n, E, d]`` to ``[E, u, n]``, without dropout."""
        if self.scale is not None:
            return torch.bmm(user.transpose(0, 1), item.permute(1, 2, 0))
        hidden = F.gelu(user.unsqueeze(1) + item)  # [u, n, E, h]
        weights, bias = self._scoring()
        return ((hidden * weights).sum(dim=-1) + bias).movedim(-1, 0)

    def floats_a_pair(self) -> int:
        """How many numbers :meth:`block` holds at once for one pair."""
        return self.n_experts * (2 if self.scale is not None else 3 * self.second.shape[1] + 2)

    def _dropped(self, hidden: Tensor) -> Tensor:
        """Dropout of ``hidden [..., E, h]``, the same places in all experts of a row: one draw instead of E."""
        if not self.training or self.p_dropout == 0.0:
            return hidden
        return hidden * self.noise.dropout(torch.ones_like(hidden[..., :1, :]), self.p_dropout)

    def _scoring(self) -> tuple[Tensor, Tensor]:
        """The second layer and the score in one: ``[E, h]`` and ``[E]``."""
        assert self.readout is not None
        with torch.autocast(self.readout.device.type, enabled=False):
            return self.second @ self.readout, self.second_bias @ self.readout

    def vector(self, item: Tensor, kept: Tensor) -> Tensor:
        """``item [r, E, d]`` and weights ``kept [r, E]`` to the mixture of experts' vectors ``[r, d]``."""
        if self.scale is not None:
            return (self._dropped(item) * self.scale.float() * kept.unsqueeze(-1)).sum(dim=1)
        hidden = self._dropped(F.gelu(item))
        # Expert by expert, in the memory order of the first layer; side by side it would be copied back and forth.
        each = torch.einsum("reh,ehd->red", hidden * kept.unsqueeze(-1), self.second)
        return each.sum(dim=1).float() + kept @ self.second_bias

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return f"experts={self.n_experts}, form={self.form}, dropout={self.p_dropout}"


def _uniform(tensor: Tensor, fan_in: int) -> None:
    nn.init.uniform_(tensor, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
