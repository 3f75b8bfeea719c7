"""What SSR knows of content: frozen vectors, or encoders that are trained and propagated as in the authors' code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.contract import Modality
from recplug.plugins.nn.contrast import unit
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr.decomposition import Decomposition

LENGTH = 0.4
"""Of a projected unit vector at the start."""


class FrozenContent(nn.Module):
    r"""Frozen content over the nodes, projected to the backbone's width, whole or in bands.

    .. math:: s_{m,p} = h_m(L)\,(C_p W_p) = (h_m(L)\,C_p)\,W_p

    The bracket is computed once, and again where the edges move; a step projects the rows it needs. Users have free
    vectors of their own, which begin at zero. The authors' code trains copies of the vectors instead
    (:class:`ContentEncoders`), which costs P - 1 decompositions a step.

    Args:
        signals: :math:`C_p` ``[N, c_p]`` by modality.
        present: ``[N, P-1]`` bool: whose content it is, not its neighbours'.
        width: d.
    """

    present: Tensor

    def __init__(self, *, signals: Mapping[str, Tensor], present: Tensor, width: int) -> None:
        super().__init__()
        self.names = tuple(signals)
        self.width = width
        self.register_buffer("present", present, persistent=False)
        for index, signal in enumerate(signals.values()):
            self.register_buffer(f"signal_{index}", signal, persistent=False)
            self.register_buffer(f"bands_{index}", signal.unsqueeze(0), persistent=False)
        self.project = nn.ModuleList(nn.Linear(s.shape[1], width, bias=False) for s in signals.values())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections anew; the content stays."""
        for linear in self.project:
            nn.init.normal_(linear.weight, std=LENGTH * self.width**-0.5)  # type: ignore[arg-type]

    def signals(self) -> list[Tensor]:
        """``[N, c_p]`` each."""
        return [getattr(self, f"signal_{index}") for index in range(len(self.names))]

    @torch.no_grad()
    def refresh(self, decomposition: Decomposition) -> None:
        """Decompose the content anew."""
        for index, signal in enumerate(self.signals()):
            setattr(self, f"bands_{index}", decomposition(signal).transpose(0, 1).contiguous())  # [M, N, c_p]

    def bands(self, rows: Tensor | None) -> Tensor:
        """``[r, M, P-1, d]``, at ``rows [r]`` or everywhere."""
        projected = []
        for index, linear in enumerate(self.project):
            bands: Tensor = getattr(self, f"bands_{index}")
            projected.append(linear(bands if rows is None else bands.index_select(1, rows)))  # [M, r, d]
        return torch.stack(projected, dim=1).permute(2, 0, 1, 3)

    def forward(self, rows: Tensor | None) -> Tensor:
        """``[r, P-1, d]``: what the bands add up to."""
        signals = zip(self.signals(), self.project, strict=True)
        return torch.stack([linear(x if rows is None else x.index_select(0, rows)) for x, linear in signals], dim=1)

    def extra_repr(self) -> str:
        """Choices."""
        return f"modalities={list(self.names)}, width={self.width}"


class ContentEncoders(nn.Module):
    r"""One encoder a modality beside the backbone's vectors, propagated as they are: the authors' code.

    .. math::
        X_p = \mathrm{unit}\big([\mathrm{Pref}_p;\ W'_p\, \mathrm{lrelu}(W_p F_p)]\big), \qquad
        H_p = \textstyle\sum_{l=0}^{L} \hat A^l X_p

    :math:`F_p` are trained copies of the content vectors, whole; the hidden layer has 4d units. A user's vectors, the
    backbone's too, are weighed by free scalars :math:`w_{u,p}`, 1/P at the start. Where we deviate: the backbone takes
    the place of the id encoder, there are no biases, and an item without a vector of its own stays zero. L = 2 is that
    of the one configuration known in full. Without users (sequential hosts) nothing is propagated.

    Args:
        modalities: content, each row a row of the item table.
        graph: :math:`\hat A` over users and items, ``[N, N]``, or None without users.
        n_users, n_items: nodes of each kind.
        width: d.
        layers: L.

    Shapes:
        the backbone's vectors ``[N, d]`` to ``[N, P, d]``.
    """

    present: Tensor

    def __init__(
        self,
        *,
        modalities: Sequence[Modality],
        graph: Adjacency | None,
        n_users: int,
        n_items: int,
        width: int,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.names = tuple(m.name for m in modalities)
        self.graph, self.n_users, self.layers = graph, n_users, layers
        have = [F.pad(m.present, (0, n_items - len(m.present))) for m in modalities]
        values = [F.pad(m.values.float(), (0, 0, 0, n_items - len(m.values))) for m in modalities]
        self._given = [v * own.unsqueeze(1) for v, own in zip(values, have, strict=True)]
        self.features = nn.ParameterList(nn.Parameter(v.clone()) for v in self._given)
        owners = torch.stack(have, dim=1)  # [n_items, P-1]
        present = torch.cat([owners.new_ones(n_users, len(have)), owners])
        self.register_buffer("present", present, persistent=False)  # [N, P-1]
        self.first = nn.ModuleList(nn.Linear(m.width, 4 * width, bias=False) for m in modalities)
        self.second = nn.ModuleList(nn.Linear(4 * width, width, bias=False) for _ in modalities)
        self.preferences = nn.Parameter(torch.empty(n_users, len(modalities), width))
        self.balance = nn.Parameter(torch.empty(n_users, 1 + len(modalities)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Content as it came; the rest drawn anew."""
        for parameter, values in zip(self.features, self._given, strict=True):
            parameter.data.copy_(values)
        for linear in (*self.first, *self.second):
            linear.reset_parameters()
        users, _, width = self.preferences.shape
        nn.init.normal_(self.preferences, std=(2 / (users + width)) ** 0.5)
        nn.init.constant_(self.balance, 1 / self.balance.shape[1])

    def forward(self, nodes: Tensor) -> Tensor:
        """``nodes [N, d]`` to ``[N, P, d]``, the backbone's block first."""
        layers = zip(self.features, self.first, self.second, strict=True)
        encoded = [second(F.leaky_relu(first(values))) for values, first, second in layers]
        items = torch.stack(encoded, dim=1).to(nodes.dtype) * self.present[self.n_users :].unsqueeze(-1)
        layer = unit(torch.cat([self.preferences.to(items.dtype), items])).flatten(1)  # [N, (P-1)*d]
        total = layer
        if self.graph is not None:
            self.graph = self.graph.to(layer.device)
            for _ in range(self.layers):
                layer = self.graph.matmul(layer)
                total = total + layer
        both = torch.cat([nodes.unsqueeze(1), total.unflatten(1, (len(self.names), -1)).to(nodes.dtype)], dim=1)
        weight = self.balance.to(nodes.dtype).unsqueeze(-1)  # [n_users, P, 1]
        return torch.cat([both[: self.n_users] * weight, both[self.n_users :]])

    def extra_repr(self) -> str:
        """Choices."""
        return f"modalities={list(self.names)}, layers={self.layers}"
