"""An MLP on frozen content, beside the item's row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.contract import Augmentation, Modality, Role
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.content import principal
from recplug.plugins.nn.frozen import Frozen


class ContentMlp(Augmentation):
    r"""The control of equal capacity, for any method: no experts, no graphs, no losses.

    .. math:: \tilde e = e^{id} + s\, (W_2\, \mathrm{GELU}(W_1 x + b_1) + b_2)

    x is all content of the item side by side, at unit length, a missing modality zero; the leading principal
    components of it where they serve the number of parameters better. An item without content keeps its row.

    Args:
        modalities: content sources, aligned with the host's item rows.
        width: d, the host's item width.
        n_rows: rows of the host's item table.
        parameters: how many to match.
        scale: s.

    Shapes:
        ``rows [*ids.shape, d]`` to the same shape.
    """

    by_item = frozenset({"input", "candidate"})

    def __init__(
        self, *, modalities: Sequence[Modality], width: int, n_rows: int, parameters: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        if not modalities:
            raise RecplugError("the control mlp needs content; give it a feature table")
        self.scale = scale
        unit = [F.normalize(m.values.float(), dim=-1) * m.present.unsqueeze(1) for m in modalities]
        present = torch.stack([m.present for m in modalities]).any(dim=0)  # [n_items]
        together = Modality("all", torch.cat(unit, dim=1), present)  # [n_items, sum of widths]
        hidden, columns = sizes(parameters, content=together.width, width=width)
        content = principal(together, n_rows, columns) * math.sqrt(columns)  # [n_rows, columns], about 1 a column
        known = F.pad(present, (0, n_rows - len(present))).unsqueeze(1)  # [n_rows, 1]
        self.content = _Content(content, known)
        self.layers = nn.Sequential(nn.Linear(columns, hidden), nn.GELU(), nn.Linear(hidden, width))

    def items(self, rows: Tensor, ids: Tensor, *, role: Role, sequence: Tensor | None) -> Tensor:
        """The item seam: the same in both roles."""
        if self.scale == 0:
            return rows
        step = self.step
        added = self._added(ids.reshape(-1)).view_as(rows) if step is None else step.lookup("mlp", ids, self._added)[0]
        return rows + added

    def _added(self, ids: Tensor) -> Tensor:
        """``[r]`` ids to ``[r, d]``."""
        x, known = self.content(ids)
        return self.scale * self.layers(x.to(self.layers[2].bias.dtype)) * known


class _Content(Frozen):
    """``ids [r]`` to content ``[r, columns]``, and whether there is any ``[r, 1]``."""

    rows: Tensor
    known: Tensor

    def __init__(self, rows: Tensor, known: Tensor) -> None:
        super().__init__()
        self.freeze("rows", rows)
        self.freeze("known", known)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows[ids], self.known[ids]


def sizes(parameters: int, *, content: int, width: int) -> tuple[int, int]:
    """Hidden units h and content columns c with h (c + 1 + width) + width nearest to ``parameters``.

    All of the content where there are parameters enough, or else some hidden units more and fewer columns; columns are
    the finer measure, so that the number is met within h / 2.

    Args:
        parameters: to match; fewer than ``2 * width + 2`` cannot be.
        content: columns there are.
        width: d.
    """
    least = min(16, parameters // (2 * width))
    hidden = max(1, least, math.ceil((parameters - width) / (content + 1 + width)))
    columns = round((parameters - width) / hidden) - 1 - width
    return hidden, min(max(1, columns), content)
