"""Spectral band masking: a second view with bands left out, and what holds it to the full one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.nn import Noise
from recplug.plugins.nn.contrast import unit

Scope = Literal["node", "batch"]
Unit = Literal["band", "band_modality"]
Form = Literal["repr_mse", "repr_cos", "score_mse", "score_kl"]


class BandMask(nn.Module):
    r"""Factors that leave whole bands out while training.

    Each band is kept with probability :math:`1 - \rho`, and what is kept is divided by it. Where every band would go,
    one drawn uniformly stays (the authors' code always keeps the lowest). That survivor is not scaled differently, so
    a factor's expectation is :math:`1 + \rho^M / (M (1 - \rho))`: 1.0004 at the defaults' rho 0.1 with three bands,
    and :math:`1 / (1 - \rho)` with a single band, which is never left out. Isolated nodes are exempt: they have all
    their energy at one eigenvalue, and would vanish with that band.

    Args:
        rate: rho, in [0, 1).
        noise: the plugin's random stream.
        scope: ``"node"``, every row has a draw of its own, or ``"batch"``, all rows share one.
        unit: ``"band"``, all blocks lose the same bands, or ``"band_modality"``, each block has a draw (and a
            survivor) of its own.
    """

    def __init__(self, *, rate: float, noise: Noise, scope: Scope = "node", unit: Unit = "band") -> None:
        super().__init__()
        self.rate = rate
        self.noise = noise
        self.scope = scope
        self.unit = unit

    def draw(self, rows: int, bands: int, blocks: int, isolated: Tensor | None, like: Tensor) -> Tensor:
        """Factors for ``[rows, bands, blocks, d]``, to be multiplied with it.

        Args:
            rows: r.
            bands: M.
            blocks: P.
            isolated: ``[r]`` bool, rows that keep every band unscaled; None: no row.
            like: gives type and device.

        Returns:
            ``[r, M, P, 1]``, with 1 for r where all rows share them and for P where all blocks do; exactly 1 at
            ``rate`` 0 and in evaluation, where nothing is drawn.
        """
        shape = (rows if self.scope == "node" else 1, bands, blocks if self.unit == "band_modality" else 1, 1)
        if not self.training or self.rate == 0.0:
            return like.new_ones(shape)
        u = self.noise.uniform(shape, like.device)  # [r | 1, M, P | 1, 1]
        # The largest draw is kept anyway unless all lie below the rate; then it is a uniform choice.
        kept = u >= u.amax(dim=1, keepdim=True).clamp(max=self.rate)
        factors = kept.to(like.dtype) / (1.0 - self.rate)
        return factors if isolated is None else factors.masked_fill(isolated[:, None, None, None], 1.0)

    def extra_repr(self) -> str:
        """Choices."""
        return f"rate={self.rate}, scope={self.scope!r}, unit={self.unit!r}"


def consistency(full: Sequence[Tensor | None], masked: Sequence[Tensor | None], form: Form) -> Tensor:
    r"""How far the masked view is from the full one, which is the target and gets no gradient.

    ``repr_mse``, the authors' code's form, is the mean squared difference, averaged over the parts; ``repr_cos`` is
    half the squared distance of unit vectors, :math:`1 - \cos`, and 0 between two zero rows. With a linear fusion the
    expected gradient of ``repr_mse`` is that of a ridge on the bands. The score forms act on the margin
    :math:`x = \langle u, i^+ - i^- \rangle`: squared difference, or
    :math:`\mathrm{KL}(\mathrm{Bern}(\sigma(x)) \Vert \mathrm{Bern}(\sigma(\tilde x)))`, with :math:`\tilde x` the
    masked view's.

    Args:
        full: users, positives, negatives of the batch, ``[B, d]`` each; the representation forms leave out a part
            that is None (no users on a sequential host, no negatives under a full softmax); the score forms need all.
        masked: the same of the masked view.
        form: which distance.

    Returns:
        A scalar, in float32 or wider whatever autocast says.
    """
    pairs = [
        (_wide(f).detach(), _wide(m)) for f, m in zip(full, masked, strict=True) if f is not None and m is not None
    ]
    if form == "repr_mse":
        return torch.stack([(f - m).square().mean() for f, m in pairs]).mean()
    if form == "repr_cos":
        return torch.stack([(unit(f) - unit(m)).square().sum(dim=-1).mean() / 2 for f, m in pairs]).mean()
    (user, masked_user), (positive, masked_positive), (negative, masked_negative) = pairs
    x = (user * (positive - negative)).sum(dim=-1)  # [B]
    masked_x = (masked_user * (masked_positive - masked_negative)).sum(dim=-1)  # [B]
    if form == "score_mse":
        return (masked_x - x).square().mean()
    # Logarithms of both probabilities from their own side: exact far out, where 1 - sigmoid rounds to 0.
    above = x.sigmoid() * (F.logsigmoid(x) - F.logsigmoid(masked_x))
    below = (-x).sigmoid() * (F.logsigmoid(-x) - F.logsigmoid(-masked_x))
    return (above + below).mean()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
