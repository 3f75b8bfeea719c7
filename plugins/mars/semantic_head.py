"""The semantic head (eqs. 9, 10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.factors import FactorProfiles
from recplug.plugins.nn.frozen import Frozen


class SemanticHead(Frozen):
    r"""Predicts an item's values from a vector of it (eqs. 9, 10).

    .. math:: L = \frac{1}{|B|} \sum_{i \in B} \sum_j \mathrm{BCE}(y_{ij}, \sigma(\psi(v_i)_j))

    A mean over items and a *sum* over values, as in the paper: a mean over V values would be V times weaker at the same
    weight. Values of a factor that the item does not know are left out of the sum. The paper's psi is linear or an
    MLP; here it is linear. At the start the biases are the values' log-odds, so that nothing has to be learned for the
    base rates (ours).

    Args:
        profiles: whose values are predicted.
        n_rows: rows of the item table.
        width: d.

    Shapes:
        ``vectors [r, d]`` to logits ``[r, V]`` float32.
    """

    slots: Tensor
    factor_of: Tensor
    base: Tensor

    def __init__(self, *, profiles: FactorProfiles, n_rows: int, width: int) -> None:
        super().__init__()
        self.n_values = profiles.n_values
        self.n_factors = len(profiles.factors)
        self.freeze("slots", _slots(profiles, n_rows))
        self.freeze("factor_of", profiles.factor_of)
        self.freeze("base", _base_rates(profiles))
        self.out = nn.Linear(width, self.n_values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights anew; the biases say the base rates."""
        self.out.reset_parameters()
        with torch.no_grad():
            self.out.bias.copy_(self.base)

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self.out(vectors.float())

    def per_item(self, vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of every item ``[r]``, in nats, and whether it knows any factor ``[r]``; ``ids [r]``."""
        logits = self(vectors)  # [r, V]
        truth = self.truth(ids)  # [r, V]
        counts = torch.zeros(len(ids), self.n_factors, device=ids.device)
        counts = counts.index_add(1, self.factor_of, truth)  # [r, K]
        known = (counts > 0).index_select(1, self.factor_of)  # [r, V]
        each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
        return each.sum(dim=1), known.any(dim=1)

    def truth(self, ids: Tensor) -> Tensor:
        """``[r, V]`` float: 1 for each value of the items ``ids [r]``."""
        slots = self.slots.index_select(0, ids)  # [r, S]
        hot = torch.zeros(len(ids), self.n_values + 1, device=ids.device)  # the last takes the empty slots
        return hot.scatter(1, slots, 1.0)[:, : self.n_values]

    def extra_repr(self) -> str:
        """Choices."""
        return f"factors={self.n_factors}, values={self.n_values}"


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of ``values [r]`` where ``chosen [r]``; 0 where nothing is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def _slots(profiles: FactorProfiles, n_rows: int) -> Tensor:
    """``[n_rows, S]``: each item's values, V where there are fewer than the most."""
    items, values = profiles.items, profiles.values
    counts = torch.bincount(items, minlength=n_rows)  # [n_rows]
    first = counts.cumsum(0) - counts
    place = torch.arange(len(items), device=items.device) - first[items]
    slots = torch.full((n_rows, max(int(counts.max()), 1)), profiles.n_values, device=items.device)
    slots[items, place] = values
    return slots


def _base_rates(profiles: FactorProfiles) -> Tensor:
    """``[V]``: biases at which the head predicts every value's share of the items that know its factor."""
    had = torch.bincount(profiles.values, minlength=profiles.n_values).double()  # [V]
    known = profiles.known.sum(dim=0).double()[profiles.factor_of]
    return (
        ((had + 0.5) / (known + 1.0)).clamp(max=1 - 1e-6).logit().float()
    )  # never 0 or 1, whose log-odds are infinite
