"""MARS's losses: the semantic head (eqs. 9, 10) and the distance between views (eq. 12)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.factors import FactorProfiles
from recplug.plugins.nn.frozen import Frozen


class SemanticHead(Frozen):
    r"""Predicts an item's values from a vector of it (eqs. 9, 10).

    .. math:: L = \frac{1}{|B|} \sum_{i \in B} \sum_j \mathrm{BCE}(y_{ij}, \sigma(\psi(v_i)_j))

    A mean over items and a *sum* over values, as in the paper: a mean over V values would be V times weaker at the same
    weight. Values of a factor that the item does not know are left out of the sum. With ``loss="ce"`` one softmax a
    factor takes the place of its values' sigmoids; an item with several values then has equal shares of them. At the
    start the biases are the values' log-odds (or logarithms of their shares), so that nothing has to be learned for
    the base rates.

    Args:
        profiles: whose values are predicted.
        n_rows: rows of the item table.
        width: d.
        form: one linear layer, or two.
        loss: ``"bce"`` or ``"ce"``.

    Shapes:
        ``vectors [r, d]`` to logits ``[r, V]`` float32.
    """

    slots: Tensor
    factor_of: Tensor
    base: Tensor

    def __init__(
        self,
        *,
        profiles: FactorProfiles,
        n_rows: int,
        width: int,
        form: Literal["linear", "mlp"] = "linear",
        loss: Literal["bce", "ce"] = "bce",
    ) -> None:
        super().__init__()
        self.n_values = profiles.n_values
        self.n_factors = len(profiles.factors)
        self.loss = loss
        self.freeze("slots", _slots(profiles, n_rows))
        self.freeze("factor_of", profiles.factor_of)
        self.freeze("base", _base_rates(profiles, loss))
        self.hidden = nn.Linear(width, width) if form == "mlp" else None
        self.out = nn.Linear(width, self.n_values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights anew; the biases say the base rates."""
        if self.hidden is not None:
            self.hidden.reset_parameters()
        self.out.reset_parameters()
        with torch.no_grad():
            self.out.bias.copy_(self.base)

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits."""
        with torch.autocast(vectors.device.type, enabled=False):
            hidden = vectors.float()
            if self.hidden is not None:
                hidden = F.relu(self.hidden(hidden))
            return self.out(hidden)

    def per_item(self, vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of every item ``[r]``, in nats, and whether it knows any factor ``[r]``; ``ids [r]``."""
        logits = self(vectors)  # [r, V]
        truth = self.truth(ids)  # [r, V]
        counts = torch.zeros(len(ids), self.n_factors, device=ids.device)
        counts = counts.index_add(1, self.factor_of, truth)  # [r, K]
        known = (counts > 0).index_select(1, self.factor_of)  # [r, V]
        if self.loss == "bce":
            each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
        else:
            share = truth / counts.index_select(1, self.factor_of).clamp(min=1.0)
            each = -share * self.log_softmax(logits)
        return each.sum(dim=1), known.any(dim=1)

    def truth(self, ids: Tensor) -> Tensor:
        """``[r, V]`` float: 1 for each value of the items ``ids [r]``."""
        slots = self.slots.index_select(0, ids)  # [r, S]
        hot = torch.zeros(len(ids), self.n_values + 1, device=ids.device)  # the last takes the empty slots
        return hot.scatter(1, slots, 1.0)[:, : self.n_values]

    def log_softmax(self, logits: Tensor) -> Tensor:
        """``[r, V]``: logarithms of probabilities within each factor."""
        top = logits.new_full((len(logits), self.n_factors), -torch.inf)
        index = self.factor_of.expand(len(logits), -1)  # [r, V]
        top = top.scatter_reduce(1, index, logits.detach(), "amax")  # [r, K]
        shifted = logits - top.gather(1, index)
        sums = torch.zeros_like(top).scatter_add(1, index, shifted.exp())  # [r, K]
        return shifted - sums.log().gather(1, index)

    def extra_repr(self) -> str:
        """Choices."""
        return f"factors={self.n_factors}, values={self.n_values}, loss={self.loss}"


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of ``values [r]`` where ``chosen [r]``; 0 where nothing is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def view_distance(views: Tensor, valid: Tensor, once: Tensor, *, unit: bool) -> Tensor:
    r"""Squared distances between every two views, summed over d and over pairs, in the mean over items (eq. 12).

    Args:
        views: ``[n, r, d]``.
        valid: ``[n, r]`` bool: which views an item has; a pair that lacks one does not count.
        once: ``[r]`` bool: one occurrence of every item.
        unit: compare directions.
    """
    with torch.autocast(views.device.type, enabled=False):
        views = views.float()
        if unit:
            views = F.normalize(views, dim=-1)
        one, other = torch.triu_indices(len(views), len(views), offset=1, device=views.device)
        distance = (views[one] - views[other]).square().sum(dim=-1) * (valid[one] & valid[other])  # [pairs, r]
        return mean_over(distance.sum(dim=0), once)


def _slots(profiles: FactorProfiles, n_rows: int) -> Tensor:
    """``[n_rows, S]``: each item's values, V where there are fewer than the most."""
    items, values = profiles.items, profiles.values
    counts = torch.bincount(items, minlength=n_rows)  # [n_rows]
    first = counts.cumsum(0) - counts
    place = torch.arange(len(items), device=items.device) - first[items]
    slots = torch.full((n_rows, max(int(counts.max()), 1)), profiles.n_values, device=items.device)
    slots[items, place] = values
    return slots


def _base_rates(profiles: FactorProfiles, loss: Literal["bce", "ce"]) -> Tensor:
    """``[V]``: biases at which the head predicts every value's share of the items that know its factor."""
    had = torch.bincount(profiles.values, minlength=profiles.n_values).double()  # [V]
    known = profiles.known.sum(dim=0).double()[profiles.factor_of]
    share = ((had + 0.5) / (known + 1.0)).clamp(max=1 - 1e-6)  # never 0 or 1, whose log-odds are infinite
    return (share.log() if loss == "ce" else share.logit()).float()
