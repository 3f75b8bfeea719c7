"""Spectral contrastive regularisation: one item's image and text agree band by band."""

from __future__ import annotations

import torch
from torch import Tensor

from recplug.plugins.nn import Noise
from recplug.plugins.nn.contrast import first_of_each, info_nce

NEGLIGIBLE = 1e-5  # of the row's largest band: float32 rounding of a decomposition stays below


def spectral_contrast(
    image: Tensor, text: Tensor, ids: Tensor, valid: Tensor, *, temperature: float, anchors: int, noise: Noise
) -> Tensor:
    """InfoNCE whose anchors are (row, band) pairs: the same band of the other modality is the positive.

    Other items and other bands of the same item are negatives, from both modalities. Where we deviate from the
    authors' code: an anchor is not its own negative, an item that is asked for twice counts once, a band that holds
    nothing but rounding (an isolated node has a single band) is no anchor, and the pairs are capped by drawing rows.

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


def _holds_something(bands: Tensor) -> Tensor:
    """``[r, M, d]`` to ``[r, M]`` bool."""
    sizes = torch.linalg.vector_norm(bands.detach().float(), dim=-1)  # [r, M]
    return sizes > NEGLIGIBLE * sizes.amax(dim=1, keepdim=True)
