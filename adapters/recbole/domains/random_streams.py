"""Random streams that stand in for the process's own, so that two trainings in one process do not shift each other."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor

from recplug.adapters.recbole.compat.plain_values import packed, unpacked


class RandomState:
    """Random streams of torch (CUDA's too), numpy and Python that stand in for the process's own while in use.

    Args:
        seed: of all of them.
        device: whose generator is among them.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._held: tuple[Any, ...] | None = None
        self._numpy = np.random.MT19937()
        self._shuffles: torch.Generator | None = None
        self._order: Tensor | None = None
        self._in_use = False

    def restart(self) -> None:
        """Begin anew at the seed."""
        self._held = None

    def hold(self, shuffles: torch.Generator) -> None:
        """Count a loader's generator among the streams: copies of a domain share their loaders."""
        self._shuffles, self._order = shuffles, shuffles.get_state()

    def state(self) -> dict[str, Any]:
        """Where the streams are."""
        return {"held": self._held, "numpy": packed(self._numpy.state), "order": self._order}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was asked."""
        self._held, self._order = state["held"], state["order"]
        self._numpy.state = unpacked(state["numpy"])

    def __deepcopy__(self, memo: dict[int, Any]) -> RandomState:
        memo[id(self)] = other = copy.copy(self)  # what it holds is replaced, never changed, but for numpy's
        other._in_use, other._numpy = False, np.random.MT19937()
        other._numpy.state = self._numpy.state
        return other

    @contextmanager
    def used(self) -> Iterator[None]:
        """Draw from these streams inside of the block, and from the process's own after it, where they were."""
        if self._in_use:
            yield
            return
        self._in_use, outer, of_numpy = True, self._read(), mtrand.get_bit_generator()
        # RecBole draws from numpy's global stream; its whole generator changes places, which is quicker than its state.
        mtrand.set_bit_generator(self._numpy)
        if self._held is None:
            self._begin()
        else:
            self._write(self._held)
        if self._shuffles is not None and self._order is not None:
            self._shuffles.set_state(self._order)
        try:
            yield
        finally:
            self._in_use, self._held = False, self._read()
            if self._shuffles is not None:
                self._order = self._shuffles.get_state()
            mtrand.set_bit_generator(of_numpy)
            self._write(outer)

    def _begin(self) -> None:
        random.seed(self._seed)
        np.random.seed(self._seed)
        torch.default_generator.manual_seed(self._seed)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(self._seed)

    def _read(self) -> tuple[Any, ...]:
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        return torch.get_rng_state(), cuda, random.getstate()

    def _write(self, states: tuple[Any, ...]) -> None:
        cpu, cuda, of_python = states
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self._device)
        random.setstate(of_python)
