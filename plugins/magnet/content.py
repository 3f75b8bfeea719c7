"""Content of items and of users' histories, as experts mix it (eqs. 7, 8, 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.contract import Modality
from recplug.plugins.nn.content import principal
from recplug.plugins.nn.propagation import Adjacency


class Content(nn.Module):
    r"""One linear map a modality: :math:`h_i^m = W_m x_i^m + b_m`, and a user's mean of it over the history.

    As the map is linear and x is frozen, the mean is taken of x, once. Ours: vectors at unit length; an absent vector,
    or a history without any, has zeros and is marked.

    Args:
        modalities: content, each row an item.
        n_rows: rows of the item table.
        n_users: with the padding row; 0 where users need none.
        edges: ``[2, n]`` (user, item) training interactions; what comes twice counts once.
        width: d, of the result.
        content_width: principal components kept of wider vectors; 0 for all columns.

    Shapes:
        ``items(ids [r])`` and ``users(ids [r])`` to cues ``[r, M-1, d]`` float32 and whether they are there,
        ``[r, M-1]`` bool.
    """

    present: Tensor
    counts: Tensor

    def __init__(
        self,
        *,
        modalities: Sequence[Modality],
        n_rows: int,
        n_users: int,
        edges: Tensor,
        width: int,
        content_width: int,
    ) -> None:
        super().__init__()
        self.names = tuple(m.name for m in modalities)
        self.width = width
        self.maps = nn.ModuleList()
        history = _history(edges, n_users, n_rows) if n_users else None
        present, counts = [], []
        for index, modality in enumerate(modalities):
            features = principal(modality, n_rows, content_width or modality.width).to(edges.device)  # [n_rows, c]
            there = F.pad(modality.present.to(edges.device), (0, n_rows - len(modality.present)))  # [n_rows]
            self.register_buffer(f"items_{index}", features, persistent=False)
            present.append(there)
            if history is not None:
                count = history.matmul(there.float().unsqueeze(1))  # [n_users, 1]
                mean = history.matmul(features) / count.clamp(min=1.0)
                self.register_buffer(f"users_{index}", mean, persistent=False)
                counts.append(count.squeeze(1))
            self.maps.append(nn.Linear(features.shape[1], width))
        self.register_buffer("present", torch.stack(present, dim=1), persistent=False)  # [n_rows, M-1]
        if counts:
            self.register_buffer("counts", torch.stack(counts, dim=1), persistent=False)  # [n_users, M-1]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for the maps, zeros for their biases."""
        for layer in self.maps:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def items(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of items ``ids [r]``."""
        there = self.present[ids]  # [r, M-1]
        rows = [self.get_buffer(f"items_{m}").index_select(0, ids) for m in range(len(self.names))]
        return self._project(rows, there), there

    def users(self, ids: Tensor, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of users ``ids [r]``; with ``without [r]``, an item of each one's history, as if that were not there."""
        n = self.counts[ids]  # [r, M-1]
        rows = [self.get_buffer(f"users_{m}").index_select(0, ids) for m in range(len(self.names))]
        if without is not None:
            own = self.present[without].to(n.dtype)  # [r, M-1]
            left = n - own
            for m, mean in enumerate(rows):
                item = self.get_buffer(f"items_{m}").index_select(0, without)  # zero where absent
                rows[m] = (mean * n[:, m : m + 1] - item) / left[:, m : m + 1].clamp(min=1.0)
            n = left
        there = n > 0.5
        return self._project(rows, there), there

    def _project(self, rows: list[Tensor], there: Tensor) -> Tensor:
        mapped = [layer(row).float() for layer, row in zip(self.maps, rows, strict=True)]
        # Modality by modality in memory, as `mix` reads them.
        return (torch.stack(mapped) * there.T.unsqueeze(-1)).transpose(0, 1)  # [r, M-1, d]

    def extra_repr(self) -> str:
        """Names and width."""
        return f"modalities={list(self.names)}, width={self.width}"


def mix(z: Tensor, cues: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    r"""The experts' inputs :math:`x^e = \sum_m w^e_m r^m` (eq. 10), weights renormalised over the sources that exist.

    Args:
        z: ``[r, d]``, behaviour, which always exists.
        cues: ``[r, M-1, d]``, zeros where absent.
        present: ``[r, M-1]`` bool.
        weights: ``[E, M]``.

    Returns:
        ``[r, E, d]`` float32, expert by expert in memory; zeros where an expert weighs nothing that exists.
    """
    with torch.autocast(z.device.type, enabled=False):
        sources = torch.cat([z.float().unsqueeze(0), cues.float().transpose(0, 1)])  # [M, r, d]; zeros where absent
        total = weights @ F.pad(present, (1, 0), value=True).to(weights.dtype).T  # [E, r]
        mixed = (weights @ sources.flatten(1)).unflatten(1, z.shape)  # [E, r, d]
        return (mixed / total.clamp(min=torch.finfo(weights.dtype).tiny).unsqueeze(-1)).transpose(0, 1)


def _history(edges: Tensor, n_users: int, n_rows: int) -> Adjacency:
    keys = torch.unique(edges[0] * n_rows + edges[1])
    pairs = torch.stack([keys // n_rows, keys % n_rows])
    ones = torch.ones(pairs.shape[1], device=pairs.device)
    return Adjacency.of(pairs, ones, (n_users, n_rows), symmetric=False)
