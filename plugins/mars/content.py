"""X: an item's row and its projected content (eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recplug.plugins.contract import Modality
from recplug.plugins.mars.groups import Groups
from recplug.plugins.nn.content import principal
from recplug.plugins.nn.frozen import Frozen
from recplug.plugins.nn.propagation import Adjacency


class Content(Frozen):
    r"""X of items (eq. 5), with :math:`W_0` as one block for the ids and one for each modality.

    .. math:: X = z^{id} W^{id} + \textstyle\sum_m z^m W^m, \qquad P_k z^m W^m = (P_k z^m) W^m

    Content is frozen. Averages commute with the projections, so that what is averaged of it over groups and neighbours
    is computed once (``pooled``, ``smooth``) and a step projects the rows it needs. ``W^id`` starts at the identity
    (our choice; the paper gives no start).

    Args:
        modalities: M >= 0 content sources.
        groups: whose means are taken, or None.
        structure: the structural graph ``[n_rows, n_rows]``, or None.
        n_rows: rows of the item table.
        width: d.
        project_ids: whether there is a ``W^id``.
        keep: principal components kept of wider vectors, or None: all of them.
        scale: vectors are at unit length, and this long when projected at the start; None: vectors as they are, under
            Xavier projections.
    """

    present: Tensor

    def __init__(
        self,
        *,
        modalities: Sequence[Modality],
        groups: Groups | None,
        structure: Adjacency | None,
        n_rows: int,
        width: int,
        project_ids: bool,
        keep: int | None,
        scale: float | None,
    ) -> None:
        super().__init__()
        self.names = tuple(m.name for m in modalities)
        self.width = width
        self.scale = scale
        present = torch.zeros(n_rows, len(modalities), dtype=torch.bool)
        for index, modality in enumerate(modalities):
            rows = principal(modality, n_rows, keep, unit=scale is not None)  # [n_rows, c_m]
            present[: len(modality.present), index] = modality.present
            self.freeze(f"rows_{index}", rows)
            if groups is not None:
                self.freeze(f"pooled_{index}", groups.heard(rows))  # [V, c_m]
            if structure is not None:
                self.freeze(f"smooth_{index}", structure.matmul(rows))  # [n_rows, c_m]
        self.freeze("present", present)
        self.of_ids = nn.Linear(width, width, bias=False) if project_ids else None
        self.project = nn.ModuleList(
            nn.Linear(getattr(self, f"rows_{i}").shape[1], width, bias=False) for i in range(len(modalities))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections anew; the content stays."""
        if self.of_ids is not None:
            nn.init.eye_(self.of_ids.weight)
        for linear in self.project:
            weight: Tensor = linear.weight  # type: ignore[assignment]
            if self.scale is None:
                nn.init.xavier_normal_(weight)
            else:
                nn.init.normal_(weight, std=self.scale * self.width**-0.5)

    def ids(self, rows: Tensor) -> Tensor:
        """``rows [r, d]`` of the item table, or means of them, under W^id."""
        return rows if self.of_ids is None else self.of_ids(rows)

    def blocks(self, kind: Literal["rows", "pooled", "smooth"], rows: Tensor | None = None) -> list[Tensor]:
        """``[r, d]`` for each modality: projected content of items, of their neighbours' mean, or of values."""
        found = []
        for index, linear in enumerate(self.project):
            frozen: Tensor = getattr(self, f"{kind}_{index}")
            found.append(linear(frozen if rows is None else frozen.index_select(0, rows)))
        return found

    def extra_repr(self) -> str:
        """Choices."""
        return f"modalities={list(self.names)}, width={self.width}, scale={self.scale}"
