"""PRISM's interaction losses (eqs. 3-9), for any number of modalities and at any level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.nn import Noise

TINY = 1e-8


def stand_ins(p: Tensor, kind: str, noise: Noise, valid: Tensor) -> Tensor:
    """What replaces a masked modality (r in eqs. 3, 4), shared by all experts and redrawn at every call.

    The paper draws r "in the same space"; the authors' code uses standard normal values, some 50 times larger than
    its signal, which the losses can satisfy by detecting noise. Our default matches each dimension's mean and
    deviation over the batch.

    Args:
        p: ``[n, M, d]`` projections.
        kind: ``"matched"``, ``"gaussian"``, ``"shuffle"``, ``"mean"`` or ``"zero"``.
        noise: the plugin's random stream.
        valid: ``[n]`` bool, the rows whose statistics count.

    Returns:
        ``[n, M, d]``, without gradient.
    """
    p = p.detach()
    if kind == "zero":
        return torch.zeros_like(p)
    if kind == "gaussian":
        return noise.normal(p)
    if kind == "shuffle":
        place = (valid.cumsum(0) - 1).clamp(min=0)  # the k-th valid row takes the k-th of their random order
        return p[valid_first(valid, noise)[place]]
    weight = valid.to(p.dtype)[:, None, None]  # [n, 1, 1]
    total = weight.sum().clamp(min=1.0)
    mean = (p * weight).sum(dim=0, keepdim=True) / total  # [1, M, d]
    if kind == "mean":
        return mean.expand_as(p)
    deviation = (((p - mean) ** 2 * weight).sum(dim=0, keepdim=True) / total).sqrt()  # [1, M, d]
    return mean + deviation * noise.normal(p)


def valid_first(valid: Tensor, noise: Noise) -> Tensor:
    """``[n]``: a random order of the rows in which those of ``valid [n]`` come first."""
    order = noise.permutation(len(valid), valid.device)
    return order[torch.argsort((~valid[order]).to(torch.uint8), stable=True)]


def interaction_losses(
    full: Tensor,
    masked: Tensor,
    *,
    experts: Sequence[str],
    modalities: Sequence[str],
    valid: Tensor,
    triplet: str,
    margin: float,
    gram: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Uniqueness, synergy and redundancy losses (eqs. 5-8), unweighted, each a mean over the valid rows.

    With M modalities, the expert of one is drawn to its outputs in which *another* modality is masked and away from
    the one in which its own is masked (averaged over the others: the paper has M = 2).

    Given ``gram`` :math:`G = E^\top E` of the candidate table, the vectors stand for whole score vectors
    :math:`y = E h`: :math:`y \cdot y' = h^\top G h'`, exactly, without a ``[n, items]`` tensor.

    Args:
        full: ``[n, J, d]``.
        masked: ``[n, J, M, d]``, entry m with modality m masked.
        experts: J names: some of ``unique_MODALITY`` in the order of the modalities, then ``synergy``, ``redundancy``.
        modalities: M names.
        valid: ``[n]`` bool; other rows do not count.
        triplet: ``"cosine"`` or ``"l2"`` distance for the uniqueness losses.
        margin: m of eqs. (5), (6).
        gram: ``[d, d]`` or None.

    Returns:
        ``[]`` in float32 by expert.
    """
    full, masked = full.float(), masked.float()
    weight = valid.float() / valid.float().sum().clamp(min=1.0)  # [n]
    cosine = _cosine(full, masked, gram)  # [n, J, M]
    found: dict[str, Tensor] = {}
    own = [at for at, name in enumerate(modalities) if f"unique_{name}" in experts]
    if own:
        first = slice(0, len(own))
        distance = 1.0 - cosine[:, first] if triplet == "cosine" else _l2(full[:, first], masked[:, first], gram)
        every = torch.eye(len(modalities), dtype=torch.bool, device=full.device)  # [modality, masked modality]
        itself = torch.stack([every[m] for m in own])  # [U, M]
        negative = (distance * itself).sum(dim=-1, keepdim=True)  # [n, U, 1]: the expert's own modality masked
        hinge = F.relu(margin + distance - negative).masked_fill(itself, 0.0)  # [n, U, M]
        unique = hinge.sum(dim=-1) / max(len(modalities) - 1, 1)  # [n, U]
        means = (unique * weight.unsqueeze(-1)).sum(dim=0)  # [U]
        found = {f"unique_{modalities[m]}": means[at] for at, m in enumerate(own)}
    mean = cosine.mean(dim=-1)  # [n, J]
    if "synergy" in experts:
        found["synergy"] = (mean[:, experts.index("synergy")] * weight).sum()
    if "redundancy" in experts:
        found["redundancy"] = ((1.0 - mean[:, experts.index("redundancy")]) * weight).sum()
    return found


def _inner(a: Tensor, b: Tensor, gram: Tensor | None) -> Tensor:
    return ((a if gram is None else a @ gram) * b).sum(dim=-1)


def _cosine(full: Tensor, masked: Tensor, gram: Tensor | None) -> Tensor:
    """``[n, J, d]`` and ``[n, J, M, d]`` to ``[n, J, M]``."""
    if gram is not None:
        gram = gram.float()
    dot = _inner(full.unsqueeze(2), masked, gram)
    lengths = (_inner(full, full, gram).unsqueeze(2) * _inner(masked, masked, gram)).clamp(min=TINY**2).sqrt()
    return dot / lengths


def _l2(full: Tensor, masked: Tensor, gram: Tensor | None) -> Tensor:
    difference = full.unsqueeze(2) - masked
    # The square root's slope is infinite at 0, where a mask changes nothing.
    return _inner(difference, difference, gram).clamp(min=TINY).sqrt()
