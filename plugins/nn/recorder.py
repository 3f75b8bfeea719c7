"""What an evaluation's forward pass used, kept for the pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recplug.plugins.step import Step

SAMPLE = 10_000  # histories


class Recorder:
    """Tensors that the latest evaluation used, by name: diagnostics show them and compute nothing anew.

    An evaluation that begins anew (another state of the model) drops those of the one before. They outlive the
    evaluation's step and are neither saved nor copied with the module.
    """

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def _opens(self, step: Step | None) -> bool:
        """Whether ``step`` is an evaluation's, which is recorded; one that was not seen before begins anew."""
        if step is None or step.kind != "evaluation" or torch.compiler.is_compiling():
            return False
        mark = f"recplug.recorded.{id(self)}"
        if mark not in step.memory:
            self.found = {}
            step.memory[mark] = torch.empty(0, device="cpu")
        return True

    def sample(self, step: Step | None, name: str, values: Tensor) -> None:
        """Append ``values [b, ...]``, one row a history, until there are enough."""
        if not self._opens(step):
            return
        before = self.found.get(name)
        if before is None or len(before) < SAMPLE:
            values = values.detach()
            self.found[name] = values.clone() if before is None else torch.cat([before, values])

    def rows(self, step: Step | None, name: str, ids: Tensor, values: Tensor, n_rows: int) -> None:
        """Keep ``values [r, ...]`` of rows ``ids [r]`` of a table; rows that nobody asked for are not a number."""
        if not self._opens(step):
            return
        before = self.found.get(name)
        if before is None:
            before = values.new_full((n_rows, *values.shape[1:]), torch.nan)
        self.found[name] = before.index_copy(0, ids, values.detach())

    def __getstate__(self) -> dict[str, Any]:
        return {"found": {}}
