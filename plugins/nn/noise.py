"""A random stream of a plugin's own, so that its noise never shifts the host's dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Noise(nn.Module):
    """Draws from a saved ``torch.Generator`` on the device of the tensors it is asked for.

    The stream's position is part of ``state_dict`` and of copies; loaded on another kind of device, where positions
    mean nothing, the stream begins anew from the seed.

    Args:
        seed: where the stream begins.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self._generator: torch.Generator | None = None

    def restart(self, seed: int) -> None:
        """Begin anew at another seed: each of several processes has a stream of its own."""
        self.seed, self._generator = seed, None

    def generator(self, device: torch.device) -> torch.Generator:
        """The stream on ``device``."""
        if self._generator is None or self._generator.device.type != device.type:
            self._generator = torch.Generator(device=device).manual_seed(self.seed)
        return self._generator

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal values of ``like``'s shape, type and device."""
        generator = self.generator(like.device)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Uniform values in [0, 1) in float32: half precision has too few of them to compare with a small rate."""
        return torch.rand(tuple(shape), generator=self.generator(device), dtype=torch.float32, device=device)

    def permutation(self, n: int, device: torch.device) -> Tensor:
        """``[n]``: a random order."""
        return torch.randperm(n, generator=self.generator(device), device=device)

    def dropout(self, x: Tensor, p: float) -> Tensor:
        """Inverted dropout while training; the identity in evaluation and at ``p = 0``."""
        if not self.training or p == 0.0:
            return x
        keep = torch.rand(x.shape, generator=self.generator(x.device), dtype=x.dtype, device=x.device) >= p
        return x * keep / (1.0 - p)

    def get_extra_state(self) -> dict[str, Any]:
        """The stream's position."""
        if self._generator is None:
            return {"device": "", "state": torch.empty(0, dtype=torch.uint8, device="cpu")}
        return {"device": self._generator.device.type, "state": self._generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Return to a saved position."""
        self._generator = None
        if state["device"] and (state["device"] != "cuda" or torch.cuda.is_available()):
            self._generator = torch.Generator(device=state["device"])
            self._generator.set_state(state["state"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_generator": self.get_extra_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_generator": None})
        self.set_extra_state(state["_generator"])

    def extra_repr(self) -> str:
        """The seed."""
        return f"seed={self.seed}"
