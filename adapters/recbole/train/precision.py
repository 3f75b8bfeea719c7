"""What RecBole's ``enable_amp`` computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from recplug.plugins.errors import RecplugError, did_you_mean

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check(config: Any) -> None:
    """Compare a RecBole configuration's keys of mixed precision with each other.

    Raises:
        RecplugError: naming what to set.
    """
    kind = config["amp_dtype"]
    if kind is not None and kind not in DTYPES:
        hint = did_you_mean(str(kind), DTYPES) or f"; there are: {', '.join(DTYPES)}"
        raise RecplugError(f"no amp_dtype {kind!r}{hint}")
    if kind is not None and not config["enable_amp"]:
        raise RecplugError("amp_dtype says what enable_amp computes in; add --enable_amp true")
    if config["enable_scaler"] and config["clip_grad_norm"]:
        raise RecplugError(
            "RecBole clips gradients while enable_scaler has them scaled, to nearly nothing; leave one of "
            "clip_grad_norm and enable_scaler out (amp_dtype bf16 needs no scaler)"
        )


@contextmanager
def amp_dtype(config: Any) -> Iterator[None]:
    """Let autocast on the run's device compute in ``amp_dtype`` inside this block; RecBole leaves it torch's choice.

    That is float16 on CUDA and bfloat16 on the CPU.

    Args:
        config: RecBole's.
    """
    kind, device = config["amp_dtype"], config["device"].type
    if kind is None:
        yield
        return
    before = torch.get_autocast_dtype(device)
    torch.set_autocast_dtype(device, DTYPES[kind])
    try:
        yield
    finally:
        torch.set_autocast_dtype(device, before)
