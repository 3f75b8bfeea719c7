"""MAGNET's losses: coverage, confidence and their weights (eqs. 22-24, 29-31), and the views' contrast (eq. 28)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from recplug.plugins.nn.contrast import first_of_each, info_nce

Weighting = Literal["linear", "quadratic", "constant", "reversed"]


class Usage(NamedTuple):
    """How a batch was routed, over all ranks; without gradients.

    ``mean [E]`` is the mean dense routing (eq. 22), ``marginal`` its normalised entropy (eqs. 23, 24), ``conditional``
    the mean normalised entropy of single routings, ``share`` what the sum over a rank's batch is multiplied by to be
    its part of the mean, times the number of ranks.
    """

    mean: Tensor
    marginal: Tensor
    conditional: Tensor
    share: Tensor


@torch.no_grad()
def usage(dense: Tensor, entropy: Tensor) -> Usage:
    """Of routings ``dense [b, E]`` and their entropies ``[b]``: one all-reduce of E + 2 numbers where there are ranks.

    All ranks then hold the same numbers, and decide alike.
    """
    count = torch.full_like(entropy[:1], len(entropy))
    total = torch.cat([dense.sum(dim=0), entropy.sum().reshape(1), count])  # [E + 2]
    ranks = 1
    if dist.is_available() and dist.is_initialized():
        ranks = dist.get_world_size()
        dist.all_reduce(total)
    most = math.log(max(dense.shape[1], 2))
    mean = total[:-2] / total[-1]
    marginal = -torch.special.xlogy(mean, mean).sum() / most
    return Usage(mean, marginal, total[-2] / total[-1] / most, ranks / total[-1])


def coverage(dense: Tensor, found: Usage) -> Tensor:
    r""":math:`\sum_e (\bar\pi_e - 1/E)^2` (eq. 29) of the global batch.

    The gradient passes through this rank's part of the mean, so that the average over ranks of these gradients, which
    DDP takes, is that of the loss on all ranks' batches joined.
    """
    off = found.mean - 1.0 / dense.shape[1]  # [E]
    local = dense.sum(dim=0) * found.share  # [E]
    through = (2 * off * local).sum()
    return off.square().sum() + through - through.detach()


def weights(
    marginal: Tensor, second: Tensor, *, scale: float, weighting: Weighting, floor: float
) -> tuple[Tensor, Tensor]:
    """What coverage and confidence are multiplied by (eq. 31).

    The entropy carries no gradient here: through it the confidence loss would push the mean routing together. It does
    so anyway: the confidence loss is least where every pair goes to one and the same expert, and stage 2 as printed has
    nothing against that. These losses alone take a fresh router of nine experts to 1.1 in use within 700 steps; a floor
    of 0.1 does not change that, and one of 0.5 leaves two.

    Args:
        marginal: normalised entropy, a scalar.
        second: whether this is stage 2, a scalar bool.
        scale: lambda_r.
        weighting: the paper's, or one of its three controls.
        floor: share of ``scale`` that coverage keeps in stage 2 (ours; 0 in the paper).
    """
    h = marginal.detach()
    forms = {
        "linear": (1 - h, h),
        "quadratic": ((1 - h).square(), h.square()),
        "constant": (torch.ones_like(h), torch.ones_like(h)),
        "reversed": (h, 1 - h),
    }
    first, later = forms[weighting]
    return (
        scale * torch.where(second, torch.full_like(h, floor), first),
        scale * torch.where(second, later, torch.zeros_like(h)),
    )


def view_contrast(observed: Tensor, induced: Tensor, *, ids: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE between two views of a batch's users, or of its items (eq. 28), each node once.

    Args:
        observed: ``[b, d]`` from the training graph.
        induced: ``[b, d]``, the same nodes from the graph with content-induced edges.
        ids: ``[b]`` of the nodes.
        temperature: tau.
    """
    return info_nce(observed, induced, temperature=temperature, ids=ids, valid=first_of_each(ids))
