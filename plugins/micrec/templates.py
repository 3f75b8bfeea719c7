"""Representations of users from template items, and of items from template users (INMO, arXiv 2107.05247)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from recplug.plugins.contract import Side
from recplug.plugins.nn import Noise
from recplug.plugins.nn.propagation import Adjacency

SIDES: tuple[Side, Side] = ("users", "items")


class Templates(nn.Module):
    r"""A node as the sum of its templates, divided by a power of their number.

    .. math::
        h_u = s_u^{-p} \Big( g_U + \sum_{i \in N(u) \cap I_T} e_i \Big), \qquad
        h_i = s_i^{-p} \Big( g_I + \sum_{u \in N(i) \cap U_T} e_u \Big), \qquad p = 1 - \alpha / 2

    s counts the templates and the global row g. :math:`\alpha` begins at 1 and shrinks after each epoch, so that the
    division by a root becomes a mean; it is saved, as the templates are. In training a share of the templates is left
    out of each sum, and the others are scaled up.

    Where we deviate from INMO: e are rows of given tables; g begins as long as a row by Xavier's rule of its table is,
    and is never left out, for nodes without templates have nothing else.

    Args:
        edges: ``[2, n]`` training interactions (user, item); what comes twice counts once.
        n_users: rows of the user table.
        n_rows: rows of the item table.
        width: d.
        share: of the users and of the items with interactions that are templates, in (0, 1].
        annealing: factor of alpha after an epoch.
        dropout: share of the templates left out of each sum in training.
        of_users: whether users are represented at all; else their global row is not trained.
        seed: of the dropout.
    """

    alpha: Tensor
    edges: Tensor
    user_templates: Tensor
    item_templates: Tensor
    user_counts: Tensor
    item_counts: Tensor

    def __init__(
        self,
        *,
        edges: Tensor,
        n_users: int,
        n_rows: int,
        width: int,
        share: float = 1.0,
        annealing: float = 0.99,
        dropout: float = 0.0,
        of_users: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_users, self.n_rows, self.width = n_users, n_rows, width
        self.share = share
        self.annealing, self.dropout = annealing, dropout
        self.noise = Noise(seed)
        keys = torch.unique(edges[0] * n_rows + edges[1])
        edges = torch.stack([keys // n_rows, keys % n_rows])
        self.register_buffer("edges", edges, persistent=False)
        # Saved by node, so that a model that numbers nodes otherwise keeps its templates.
        self.register_buffer("user_templates", choose(edges, n_users, share))
        self.register_buffer("item_templates", choose(edges.flip(0), n_rows, share))
        self.register_buffer("alpha", torch.ones((), device=edges.device))
        self.register_buffer("user_counts", edges.new_zeros(n_users, dtype=torch.float32), persistent=False)
        self.register_buffer("item_counts", edges.new_zeros(n_rows, dtype=torch.float32), persistent=False)
        self.user_global = nn.Parameter(torch.empty(width), requires_grad=of_users)
        self.item_global = nn.Parameter(torch.empty(width))
        self._sums: dict[Side, Adjacency] = {}
        self._scaled: dict[Side, tuple[tuple[object, ...], Adjacency, Tensor]] = {}
        self._rebuild()
        self.register_load_state_dict_post_hook(_rebuild_loaded)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the global rows anew."""
        for row, n in ((self.user_global, self.n_users), (self.item_global, self.n_rows)):
            # The host's tables are not at hand; RecBole's graph models draw theirs by this rule.
            nn.init.normal_(row, std=math.sqrt(2.0 / (n + self.width)))

    def _rebuild(self) -> None:
        """The sums and counts that follow from the templates."""
        self._scaled = {}
        users, items = self.edges
        kept = self.item_templates[items]
        by_user = self.edges[:, kept]
        self._sums["users"] = _ones(by_user, (self.n_users, self.n_rows))
        self.user_counts = torch.bincount(by_user[0], minlength=self.n_users).float() + 1.0
        if bool(kept.all()) and bool(self.user_templates[users].all()):
            by_item = self.edges.flip(0)
            self._sums["items"] = self._sums["users"].transpose()
        else:
            by_item = self.edges[:, self.user_templates[users]].flip(0)
            self._sums["items"] = _ones(by_item, (self.n_rows, self.n_users))
        self.item_counts = torch.bincount(by_item[0], minlength=self.n_rows).float() + 1.0

    def exponent(self) -> Tensor:
        """``[]``: p."""
        return 1.0 - self.alpha / 2

    def advance(self, begun: Tensor) -> None:
        """An epoch begins; ``begun []`` bool says whether one has been before."""
        self.alpha.mul_(torch.where(begun, self.annealing, 1.0))

    def represent(self, sums: Tensor, counts: Tensor, side: Side) -> Tensor:
        """The formula, for any node, known or new.

        Args:
            sums: ``[n, d]``, of the rows of each node's templates.
            counts: ``[n]``, how many these are, and one more for the global row.
            side: what the nodes are.

        Returns:
            ``[n, d]``.
        """
        row = self.user_global if side == "users" else self.item_global
        return (sums + row) * counts.clamp(min=1.0).pow(-self.exponent()).unsqueeze(1)

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Raw tables ``[n_users, d]`` and ``[n_rows, d]`` to the representations of both."""
        return self.make("users", items), self.make("items", users)

    def make(self, side: Side, raw: Tensor) -> Tensor:
        """The representations of one side from the other side's raw table: ``[n_users, d]`` or ``[n_rows, d]``."""
        averaging, scale = self._averaging(side, raw.device)
        if self.training and self.dropout > 0.0:
            keep = 1.0 - self.dropout
            kept = self.noise.uniform((averaging.nnz,), raw.device) < keep
            averaging = averaging.with_values(averaging.values() * (kept / keep))
        means = averaging.matmul(raw)
        row = self.user_global if side == "users" else self.item_global
        with torch.autocast(raw.device.type, enabled=False):  # which would take addr in half precision
            return torch.addr(means, scale.to(means.dtype), row.to(means.dtype))

    def _averaging(self, side: Side, device: torch.device) -> tuple[Adjacency, Tensor]:
        """The sums with :math:`s^{-p}` in their entries, and that itself ``[n]``; made when alpha has changed."""
        key = device, self.alpha._version, self.alpha.data_ptr(), self.alpha.dtype
        if side not in self._scaled or self._scaled[side][0] != key:
            self._sums[side] = summing = self._sums[side].to(device)
            counts = self.user_counts if side == "users" else self.item_counts
            with torch.no_grad():
                scale = counts.clamp(min=1.0).pow(-self.exponent())  # [n]
                self._scaled[side] = key, summing.with_values(scale[summing.indices()[0]]), scale
        return self._scaled[side][1:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scaled": {}}  # its key is of this process

    def extra_repr(self) -> str:
        """Choices."""
        which = "all" if self.share == 1.0 else f"{self.share} by error-sort"
        return f"templates={which}, annealing={self.annealing}, dropout={self.dropout}"


def choose(edges: Tensor, n: int, share: float) -> Tensor:
    r"""``[n]`` bool: a share of the nodes that have edges, by INMO's error-sort.

    Those with the largest :math:`\sum_{y \in N(x)} 1 / |N(y)|`, a degree in which a neighbour that many others have
    counts little; equal ones by the lower row.

    Args:
        edges: ``[2, m]`` (node, its neighbour on the other side), each once.
        n: rows.
        share: in (0, 1], rounded up.
    """
    nodes, others = edges
    active = torch.bincount(nodes, minlength=n) > 0
    if share == 1.0:
        return active
    crowd = torch.bincount(others).double()[others]  # [m]
    score = torch.zeros(n, dtype=torch.float64, device=edges.device).index_add(0, nodes, 1.0 / crowd)
    best = torch.where(active, score, -torch.inf).argsort(descending=True, stable=True)
    wanted = math.ceil(share * int(active.sum()) - 1e-9)
    return torch.zeros_like(active).index_fill(0, best[:wanted], True)


def _ones(places: Tensor, shape: tuple[int, int]) -> Adjacency:
    return Adjacency.of(places, torch.ones(places.shape[1], device=places.device), shape, symmetric=False)


def _rebuild_loaded(module: nn.Module, incompatible: object) -> None:
    """Sums follow the templates that were loaded."""
    assert isinstance(module, Templates)
    module._rebuild()
