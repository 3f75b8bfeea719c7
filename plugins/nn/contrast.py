"""InfoNCE between two views of the same rows, and what it is made of."""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST = 1e-12  # a vector of smaller length has no direction


def info_nce(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float,
    ids: Tensor | None = None,
    valid: Tensor | None = None,
    within: bool = False,
) -> Tensor:
    r"""Symmetric InfoNCE of cosines: the same row of the other view is the positive.

    .. math::
        L = \frac{1}{2|V|} \sum_{i \in V} \big[\ell(a_i, b) + \ell(b_i, a)\big], \qquad
        \ell(a_i, b) = \log \sum_{j \in N(i)} e^{\cos(a_i, b_j) / \tau} - \cos(a_i, b_i) / \tau

    N(i) holds i itself and every other valid row with another id. ``within`` adds the other rows of the anchor's own
    view to the sum (SSR's bank), under the same rule; the anchor's similarity to itself never enters. Computed in
    float32 or wider, whatever autocast says. A vector of zeros has cosine 0 with everything, and no gradient.

    Args:
        a: ``[n, d]``.
        b: ``[n, d]``.
        temperature: tau > 0.
        ids: ``[n]`` integers; rows that share one are not each other's negatives. None: all differ. Each row is still
            an anchor; for a loss over distinct ids pass ``valid=first_of_each(ids)``.
        valid: ``[n]`` bool; other rows are neither anchors nor negatives, whatever they hold. None: all.
        within: whether the anchor's own view provides negatives too.

    Returns:
        A scalar; 0 where fewer than two rows are valid.
    """
    with torch.autocast(a.device.type, enabled=False):
        itself = torch.eye(len(a), dtype=torch.bool, device=a.device)  # [n, n]
        negative = ~itself
        if ids is not None:
            negative = negative & (ids != ids.unsqueeze(1))
        if valid is not None:
            a, b = (x.masked_fill(~valid.unsqueeze(1), 0.0) for x in (a, b))
            negative = negative & valid & valid.unsqueeze(1)
        a, b = unit(a), unit(b)
        weight = a.new_ones(len(a)) if valid is None else valid.to(a.dtype)  # [n]
        cross = a @ b.T / temperature  # [n, n]
        positive = cross.diagonal()  # [n]
        cross = cross.masked_fill(~(negative | itself), -torch.inf)
        banks = [cross, cross.T]
        if within:
            own = [(x @ x.T / temperature).masked_fill(~negative, -torch.inf) for x in (a, b)]
            banks = [torch.cat(pair, dim=1) for pair in zip(banks, own, strict=True)]  # [n, 2n]
        total = banks[0].logsumexp(dim=1) + banks[1].logsumexp(dim=1)  # [n]
        return ((total / 2 - positive) * weight).sum() / weight.sum().clamp(min=1.0)


def unit(x: Tensor) -> Tensor:
    """``[..., d]`` at unit length, in float32 or wider; zeros stay zeros and, unlike a quotient, get no gradient."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    square = x.square().sum(dim=-1, keepdim=True)  # [..., 1]
    directed = square > SHORTEST**2
    return torch.where(directed, x, 0.0) / torch.where(directed, square, 1.0).sqrt()


def first_of_each(ids: Tensor) -> Tensor:
    """``[n]`` bool: one occurrence, the first, of every id in ``ids [n]``; by sorting, so nothing waits for a count."""
    order = ids.argsort(stable=True)
    ranked = ids[order]
    new = torch.ones_like(ids, dtype=torch.bool)
    new[1:] = ranked[1:] != ranked[:-1]
    return torch.empty_like(new).scatter(0, order, new)
