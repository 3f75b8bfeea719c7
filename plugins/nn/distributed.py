"""Numbers on which the processes of one training agree, where there are several."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """How many processes train this model; 1 for a process that is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a constant over all processes, the same bits in each; itself where there is one process.

    What decides (a stage, a threshold) must be made of such means, or the processes part ways. Every process has to
    ask, in the same order.

    Args:
        value: of any shape, the same in each process; no gradient passes.

    Returns:
        Of its shape, type and device.
    """
    value = value.detach()
    if (count := ranks()) == 1:
        return value
    # NCCL sends nothing that is not on its accelerator.
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else value.device
    total = value.to(device, copy=True)
    dist.all_reduce(total)
    return (total / count).to(value.device, value.dtype)
