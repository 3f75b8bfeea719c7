"""SSR's losses: the masked view, the contrast of modalities, the length of content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.nn import Noise
from recplug.plugins.nn.contrast import first_of_each, info_nce

Form = Literal["repr_mse", "score_kl"]
NEGLIGIBLE = 1e-5  # of the row's largest band: float32 rounding of a decomposition stays below


class BandMask(nn.Module):
    r"""Factors that leave whole bands out while training.

    Each band of a node is kept, in all modalities, with probability :math:`1 - \rho`, and what is kept is divided by
    it. Where every band would go, one drawn uniformly stays (the authors' code always keeps the lowest). That survivor
    is not scaled differently, so a factor's expectation is :math:`1 + \rho^M / (M (1 - \rho))`: 1.0004 at rho 0.1 with
    three bands, and :math:`1 / (1 - \rho)` with a single band, which is never left out. Isolated nodes are exempt: they
    have all their energy at one eigenvalue, and would vanish with that band.

    Args:
        rate: rho, in [0, 1).
        noise: the plugin's random stream.
    """

    def __init__(self, *, rate: float, noise: Noise) -> None:
        super().__init__()
        self.rate = rate
        self.noise = noise

    def draw(self, bands: Tensor, isolated: Tensor | None) -> Tensor:
        """Factors for ``bands [r, M, P, d]``, to be multiplied with it.

        Args:
            bands: gives sizes, type and device.
            isolated: ``[r]`` bool, rows that keep every band unscaled; None: no row.

        Returns:
            ``[r, M, 1, 1]``; exactly 1 at ``rate`` 0 and in evaluation, where nothing is drawn.
        """
        shape = (bands.shape[0], bands.shape[1], 1, 1)
        if not self.training or self.rate == 0.0:
            return bands.new_ones(shape)
        u = self.noise.uniform(shape, bands.device)  # [r, M, 1, 1]
        # The largest draw is kept anyway unless all lie below the rate; then it is a uniform choice.
        kept = u >= u.amax(dim=1, keepdim=True).clamp(max=self.rate)
        factors = kept.to(bands.dtype) / (1.0 - self.rate)
        return factors if isolated is None else factors.masked_fill(isolated[:, None, None, None], 1.0)

    def extra_repr(self) -> str:
        """Choices."""
        return f"rate={self.rate}"


def consistency(full: Sequence[Tensor], masked: Sequence[Tensor], form: Form) -> Tensor:
    r"""How far the masked view is from the full one, which is the target and gets no gradient.

    ``repr_mse``, of the paper's last version and the authors' code, is the mean squared difference, averaged over the
    parts; with a linear fusion its expected gradient is that of a ridge on the bands. ``score_kl``, our reading of the
    first version's prediction consistency, acts on the margin :math:`x = \langle u, i^+ - i^- \rangle`:
    :math:`\mathrm{KL}(\mathrm{Bern}(\sigma(x)) \Vert \mathrm{Bern}(\sigma(\tilde x)))`, with :math:`\tilde x` the
    masked view's.

    Args:
        full: users, positives, negatives of the batch, ``[B, d]`` each; ``repr_mse`` takes what there is.
        masked: the same of the masked view.
        form: which distance.

    Returns:
        A scalar, in float32 or wider whatever autocast says.
    """
    pairs = [(_wide(f).detach(), _wide(m)) for f, m in zip(full, masked, strict=True)]
    if form == "repr_mse":
        return torch.stack([(f - m).square().mean() for f, m in pairs]).mean()
    (user, masked_user), (positive, masked_positive), (negative, masked_negative) = pairs
    x = (user * (positive - negative)).sum(dim=-1)  # [B]
    masked_x = (masked_user * (masked_positive - masked_negative)).sum(dim=-1)  # [B]
    # Logarithms of both probabilities from their own side: exact far out, where 1 - sigmoid rounds to 0.
    above = x.sigmoid() * (F.logsigmoid(x) - F.logsigmoid(masked_x))
    below = (-x).sigmoid() * (F.logsigmoid(-x) - F.logsigmoid(-masked_x))
    return (above + below).mean()


def spectral_contrast(
    image: Tensor, text: Tensor, ids: Tensor, valid: Tensor, *, temperature: float, anchors: int, noise: Noise
) -> Tensor:
    """Spectral contrastive regularisation: InfoNCE whose anchors are (row, band) pairs.

    The same band of the other modality is the positive; other items and other bands of the same item are negatives,
    from both modalities. Where we deviate from the authors' code: an anchor is not its own negative, an item that is
    asked for twice counts once, a band that holds nothing but rounding (an isolated node has a single band) is no
    anchor, and the pairs are capped by drawing rows.

    Args:
        image: ``[r, M, d]`` bands before fusion.
        text: ``[r, M, d]``.
        ids: ``[r]`` items (or users) of the rows.
        valid: ``[r]`` bool: rows with both modalities; a property of the id, so that equal ids have equal values.
        temperature: tau > 0.
        anchors: at most so many pairs enter, that is ``anchors // M`` rows (at least one).
        noise: the plugin's random stream, used only where there are more rows.

    Returns:
        A scalar, in float32 or wider; 0 where fewer than two pairs can be compared.
    """
    rows, bands = image.shape[:2]
    valid = valid & first_of_each(ids)
    kept = max(anchors // bands, 1)
    if rows > kept:
        late = noise.uniform((rows,), valid.device) + (~valid).float()  # valid rows first, in random order
        chosen = late.topk(kept, largest=False).indices  # [kept]
        image, text, valid = image[chosen], text[chosen], valid[chosen]
    paired = valid.unsqueeze(1) & _holds_something(image) & _holds_something(text)  # [kept, M]
    return info_nce(
        image.flatten(0, 1), text.flatten(0, 1), temperature=temperature, valid=paired.flatten(), within=True
    )


def ridge(content: Tensor, rows: Tensor | None) -> Tensor:
    """Half the mean squared length of ``content [r, P-1, d]``, all modalities together; every node counts once."""
    lengths = content.square().sum(dim=(1, 2))  # [r]
    if rows is None:
        return lengths.mean() / 2
    once = first_of_each(rows)  # [r]
    return (lengths * once).sum() / once.sum() / 2


def _holds_something(bands: Tensor) -> Tensor:
    """``[r, M, d]`` to ``[r, M]`` bool."""
    sizes = torch.linalg.vector_norm(bands.detach().float(), dim=-1)  # [r, M]
    return sizes > NEGLIGIBLE * sizes.amax(dim=1, keepdim=True)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
