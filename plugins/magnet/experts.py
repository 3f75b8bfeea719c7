"""The experts: one small head each, all of one form, computed together (eqs. 11, 20, 21)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from recplug.plugins.magnet.router import Activation, activate
from recplug.plugins.nn import Noise

Form = Literal["product", "concat", "concat_prod", "dot"]


class Experts(nn.Module):
    r"""E heads with parameters of their own.

    .. math::
        s^e &= W_2^e\,\sigma(U^e x_u^e + V^e x_i^e + b^e) + c^e && \text{(11)} \\
        y &= \textstyle\sum_e \tilde\pi^e\, \langle v, s^e \rangle && \text{(20, 21)}

    Depth, width and activation of the head and the form of the score are ours; the paper says "lightweight". As the
    score is linear, v is multiplied into the second layer, so that s is never made. ``concat_prod`` adds
    :math:`P^e (x_u \odot x_i)` to the hidden layer. The two forms without one are ours: ``product``, the default, is
    :math:`\langle \theta^e \odot x_u, x_i \rangle`, a dot product whose columns each expert weighs anew, and ``dot``
    is :math:`\langle U^e x_u, V^e x_i \rangle`. Without users (node mode) there are ``concat``, whose mixture is the
    vector :math:`\sum_e \tilde\pi^e s^e` with :math:`U^e` left out, and ``product``, :math:`\sum_e \tilde\pi^e\,
    \theta^e \odot x_i`.

    Args:
        width: d.
        hidden: h.
        experts: E.
        form: see above.
        of_pairs: whether a user takes part.
        activation: sigma.
        dropout: on the hidden layer, or on the product; one mask for all experts of a row.
        noise: the plugin's random stream.

    Shapes:
        ``user(x [r, E, d])`` and ``item(x [r, E, d])`` to ``[r, E, h]``; of these, ``pairs`` gives ``[r, E]``,
        ``block`` ``[E, u, n]`` and ``vector`` ``[r, d]``, all float32.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden: int,
        experts: int,
        form: Form,
        of_pairs: bool,
        activation: Activation,
        dropout: float,
        noise: Noise,
    ) -> None:
        super().__init__()
        self.form = form
        self.n_experts = experts
        self.hidden = width if form == "product" else hidden  # of what `user` and `item` give
        self.activation = activation
        self.p_dropout = dropout
        self.noise = noise
        self.scale = nn.Parameter(torch.empty(experts, width)) if form == "product" else None
        layer = experts, width, hidden
        self.of_user = nn.Parameter(torch.empty(layer)) if of_pairs and form != "product" else None
        self.of_item = nn.Parameter(torch.empty(layer)) if form != "product" else None
        self.of_product = nn.Parameter(torch.empty(layer)) if form == "concat_prod" else None
        if self.deep:
            self.first_bias = nn.Parameter(torch.empty(experts, hidden))
            self.second = nn.Parameter(torch.empty(experts, hidden, width))
            self.second_bias = nn.Parameter(torch.empty(experts, width))
        self.readout = nn.Parameter(torch.empty(width)) if of_pairs and self.deep else None
        self.reset_parameters()

    @property
    def deep(self) -> bool:
        """Whether a head has a hidden layer."""
        return self.form in ("concat", "concat_prod")

    def reset_parameters(self) -> None:
        """Ones for the columns' weights; layers as ``nn.Linear`` draws them, biases of the first at zero."""
        if self.scale is not None:
            nn.init.ones_(self.scale)
        layers = [layer for layer in (self.of_user, self.of_item, self.of_product) if layer is not None]
        for tensor in layers:
            _uniform(tensor, tensor.shape[1] * (len(layers) if self.deep else 1))
        if self.deep:
            nn.init.zeros_(self.first_bias)
            _uniform(self.second, self.hidden)
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
        if not self.deep:
            return torch.einsum("red,edh->reh", x, self.of_item).float()
        first = torch.baddbmm(self.first_bias.unsqueeze(1), x.transpose(0, 1), self.of_item)  # [E, r, h]
        return first.float().transpose(0, 1)

    def pairs(self, user: Tensor, item: Tensor, x_user: Tensor, x_item: Tensor) -> Tensor:
        """``user [r, E, h]``, ``item [k, r, E, h]`` or ``[r, E, h]`` (and x alike) to scores ``[(k,) r, E]``."""
        if not self.deep:
            return self._dropped(user * item).sum(dim=-1)
        first = user + item
        if self.of_product is not None:
            first = first + torch.einsum("...red,edh->...reh", x_user * x_item, self.of_product).float()
        hidden = self._dropped(activate(first, self.activation))
        weights, bias = self._scoring()
        return torch.einsum("...reh,eh->...re", hidden, weights) + bias

    def block(self, user: Tensor, item: Tensor, x_user: Tensor, x_item: Tensor) -> Tensor:
        """``user [u, E, h]``, ``item [n, E, h]`` (and x alike) to ``[E, u, n]``, without dropout."""
        if not self.deep:
            return torch.bmm(user.transpose(0, 1), item.permute(1, 2, 0))
        first = user.unsqueeze(1) + item  # [u, n, E, h]
        if self.of_product is not None:
            product = x_user.unsqueeze(1) * x_item  # [u, n, E, d]
            first += torch.einsum("uned,edh->uneh", product, self.of_product)
        hidden = activate(first, self.activation)
        weights, bias = self._scoring()
        return ((hidden * weights).sum(dim=-1) + bias).movedim(-1, 0)

    def floats_a_pair(self) -> int:
        """How many numbers :meth:`block` holds at once for one pair."""
        if not self.deep:
            return 2 * self.n_experts
        of_product = sum(self.of_product.shape[1:]) if self.of_product is not None else 0
        return self.n_experts * (3 * self.hidden + of_product + 2)

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
        """``item [r, E, h]`` and weights ``kept [r, E]`` to the mixture of experts' vectors ``[r, d]``."""
        if self.scale is not None:
            return (self._dropped(item) * self.scale.float() * kept.unsqueeze(-1)).sum(dim=1)
        hidden = self._dropped(activate(item, self.activation))
        # Expert by expert, in the memory order of the first layer; side by side it would be copied back and forth.
        each = torch.einsum("reh,ehd->red", hidden * kept.unsqueeze(-1), self.second)
        return each.sum(dim=1).float() + kept @ self.second_bias

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return (
            f"experts={self.n_experts}, hidden={self.hidden}, form={self.form}, activation={self.activation}, "
            f"dropout={self.p_dropout}"
        )


def _uniform(tensor: Tensor, fan_in: int) -> None:
    nn.init.uniform_(tensor, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
