"""MAGNET's losses: coverage, confidence and their weights (eqs. 22-24, 29-31), and the views' contrast (eq. 28)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from recplug.plugins.nn.contrast import first_of_each, info_nce

Weighting = Literal["linear", "quadratic", "constant", "reversed"]


class Usage(NamedTuple):
    """How a batch was routed, over all ranks; without gradients.

    ``mean [E]`` is the mean dense routing (eq. 22) and ``even [E]`` what it would be if every pair asked all experts
    that it can alike: 1/E where no content is missing. ``marginal`` is the entropy of the mean over that of ``even``
    (eqs. 23, 24), at most 1, and ``conditional`` that of single routings, likewise. ``share`` is what the sum over a
    rank's batch is multiplied by to be its part of the mean, times the number of ranks.
    """

    mean: Tensor
    even: Tensor
    marginal: Tensor
    conditional: Tensor
    share: Tensor


@torch.no_grad()
def usage(dense: Tensor, entropy: Tensor, asked: Tensor) -> Usage:
    """Of a batch's routings: one all-reduce of 2 E + 3 numbers where there are ranks.

    All ranks then hold the same numbers, and decide alike. Entropies are normalised by what an even router reaches, not
    by ln E: where most items lack a modality, the experts anchored on it stay idle however even the routing is, and the
    printed ratio would never come near a threshold of 0.9.

    Args:
        dense: ``[b, E]``.
        entropy: ``[b]``, of its rows.
        asked: ``[b, E]`` bool: the experts whose anchor is there.
    """
    asked = asked.to(dense.dtype)
    n_asked = asked.sum(dim=1, keepdim=True)  # [b, 1]
    ends = torch.stack([entropy.sum(), n_asked.log().sum(), torch.full_like(entropy[0], len(entropy))])
    total = torch.cat([dense.sum(dim=0), (asked / n_asked).sum(dim=0), ends])  # [2 E + 3]
    ranks = 1
    if dist.is_available() and dist.is_initialized():
        ranks = dist.get_world_size()
        dist.all_reduce(total)
    mean, even = (total[:-3] / total[-1]).chunk(2)
    least = torch.finfo(total.dtype).tiny
    marginal = (_entropy(mean) / _entropy(even).clamp(min=least)).clamp(max=1.0)
    return Usage(mean, even, marginal, total[-3] / total[-2].clamp(min=least), ranks / total[-1])


def coverage(dense: Tensor, found: Usage) -> Tensor:
    r""":math:`\sum_e (\bar\pi_e - 1/E)^2` (eq. 29) of the global batch, with :attr:`Usage.even` for 1/E.

    The gradient passes through this rank's part of the mean, so that the average over ranks of these gradients, which
    DDP takes, is that of the loss on all ranks' batches joined.
    """
    off = found.mean - found.even  # [E]
    local = dense.sum(dim=0) * found.share  # [E]
    through = (2 * off * local).sum()
    return off.square().sum() + through - through.detach()


def weights(marginal: Tensor, second: Tensor, *, scale: float, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """What coverage and confidence are multiplied by (eq. 31).

    The entropy carries no gradient here: through it the confidence loss would push the mean routing together. It does
    so anyway: the confidence loss is least where every pair goes to one and the same expert, and stage 2 as printed has
    nothing against that. These losses alone take a fresh router of nine experts to 1.1 in use within 700 steps.

    Args:
        marginal: normalised entropy, a scalar.
        second: whether this is stage 2, a scalar bool.
        scale: lambda_r.
        weighting: the paper's, or one of its three controls.
    """
    h = marginal.detach()
    forms = {
        "linear": (1 - h, h),
        "quadratic": ((1 - h).square(), h.square()),
        "constant": (torch.ones_like(h), torch.ones_like(h)),
        "reversed": (h, 1 - h),
    }
    first, later = forms[weighting]
    none = torch.zeros_like(h)
    return scale * torch.where(second, none, first), scale * torch.where(second, later, none)


def view_contrast(observed: Tensor, induced: Tensor, *, ids: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE between two views of a batch's users, or of its items (eq. 28), each node once.

    Args:
        observed: ``[b, d]`` from the training graph.
        induced: ``[b, d]``, the same nodes from the graph with content-induced edges.
        ids: ``[b]`` of the nodes.
        temperature: tau.
    """
    return info_nce(observed, induced, temperature=temperature, ids=ids, valid=first_of_each(ids))


def _entropy(weights: Tensor) -> Tensor:
    return -torch.special.xlogy(weights, weights).sum()
