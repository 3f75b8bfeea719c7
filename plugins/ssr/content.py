"""What SSR knows of content: item graphs, signals over the nodes, and their bands, all frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.contract import Modality
from recplug.plugins.nn.knn import Neighbours, item_graph, kneighbours
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr.decomposition import Decomposition


def modality_weights(names: Sequence[str], image: float) -> dict[str, float]:
    """Shares in the content graph: ``image`` for the modality of that name, the rest in equal parts."""
    others = [name for name in names if name != "image"]
    if len(others) in (0, len(names)):
        return dict.fromkeys(names, 1.0)
    return {"image": image, **dict.fromkeys(others, (1.0 - image) / len(others))}


def content_graph(
    modalities: Sequence[Modality],
    given: Mapping[str, Neighbours],
    *,
    n_rows: int,
    k: int,
    image_weight: float,
    symmetric: bool = False,
    cache: Path | None = None,
) -> Adjacency:
    """The frozen kNN graph of FREEDOM and of the authors' code, ``[n_rows, n_rows]``.

    Args:
        modalities: content, each row a row of the item table.
        given: neighbours that came with the data, which are not computed again; the item itself is added to them.
        n_rows: rows of the item table.
        k: neighbours an item, itself included.
        image_weight: see :func:`modality_weights`.
        symmetric: symmetrised and normalised on both sides, for a spectrum; else every row is a mean.
        cache: a folder for what was computed.
    """
    found = {}
    for modality in modalities:
        if modality.name in given:
            found[modality.name] = _with_itself(given[modality.name], modality.present, k)
        else:
            found[modality.name] = kneighbours(modality.values, modality.present, k, include_self=True, cache=cache)
    weights = modality_weights(list(found), image_weight)
    return item_graph(found, weights, n_rows=n_rows, normalise="symmetric" if symmetric else "row")


def _with_itself(given: Neighbours, present: Tensor, k: int) -> Neighbours:
    """The item itself and its ``k - 1`` nearest others."""
    rows = torch.arange(len(given.index), device=given.index.device).unsqueeze(1)  # [n, 1]
    others = given.valid & (given.index != rows)
    last = (~others).long().argsort(dim=1, stable=True)[:, : k - 1]  # others first, in their order
    own = present[: len(rows)].unsqueeze(1)
    return Neighbours(
        torch.cat([rows, given.index.gather(1, last)], dim=1),
        torch.cat([own.to(given.weight.dtype), given.weight.gather(1, last)], dim=1),
        torch.cat([own, others.gather(1, last)], dim=1),
    )


def principal(modality: Modality, n_rows: int, width: int) -> Tensor:
    """Content rows at unit length, ``[n_rows, c]``, c the smaller of ``width`` and their own width.

    Wider vectors are projected on their principal directions, not centred, so that absent rows stay zero.
    """
    rows = modality.values.new_zeros(n_rows, modality.width, dtype=torch.float32)
    rows[: len(modality.values)] = F.normalize(modality.values.float(), dim=-1)
    rows[: len(modality.present)].masked_fill_(~modality.present.unsqueeze(1), 0.0)
    if modality.width <= width:
        return rows
    wide = rows.double()
    directions = torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -width:]  # [d_m, width]
    return (wide @ directions).float()


class ContentBands(nn.Module):
    r"""Bands of frozen content, projected to the backbone's width.

    .. math:: s_{m,p} = h_m(L)\,(C_p W_p) = (h_m(L)\,C_p)\,W_p

    The bracket is computed once, and again where the edges move; a step projects the rows it needs. The authors' code
    trains copies of the vectors and runs them through an MLP, which would cost P - 1 decompositions a step.

    Args:
        signals: :math:`C_p` ``[N, c_p]`` by modality.
        present: ``[N, P-1]`` bool: whose content it is, not its neighbours'.
        width: d.
        scale: length of a projected unit vector at the start.

    Shapes:
        ``rows [r]`` or None to ``[M, P-1, r, d]``.
    """

    present: Tensor

    def __init__(self, *, signals: Mapping[str, Tensor], present: Tensor, width: int, scale: float) -> None:
        super().__init__()
        self.names = tuple(signals)
        self.width = width
        self.scale = scale
        self.register_buffer("present", present, persistent=False)
        for index, signal in enumerate(signals.values()):
            self.register_buffer(f"signal_{index}", signal, persistent=False)
            self.register_buffer(f"bands_{index}", signal.unsqueeze(0), persistent=False)
        self.project = nn.ModuleList(nn.Linear(s.shape[1], width, bias=False) for s in signals.values())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections anew; the content stays."""
        for linear in self.project:
            nn.init.normal_(linear.weight, std=self.scale * self.width**-0.5)  # type: ignore[arg-type]

    def signals(self) -> list[Tensor]:
        """``[N, c_p]`` each."""
        return [getattr(self, f"signal_{index}") for index in range(len(self.names))]

    @torch.no_grad()
    def refresh(self, decomposition: Decomposition) -> None:
        """Decompose the content anew."""
        for index, signal in enumerate(self.signals()):
            setattr(self, f"bands_{index}", decomposition(signal).transpose(0, 1).contiguous())  # [M, N, c_p]

    def forward(self, rows: Tensor | None) -> Tensor:
        """Bands at the nodes that are asked for."""
        projected = []
        for index, linear in enumerate(self.project):
            bands: Tensor = getattr(self, f"bands_{index}")
            projected.append(linear(bands if rows is None else bands.index_select(1, rows)))  # [M, r, d]
        return torch.stack(projected, dim=1)

    def plain(self, rows: Tensor | None) -> Tensor:
        """``[r, P-1, d]``: what the bands add up to."""
        signals = zip(self.signals(), self.project, strict=True)
        return torch.stack([linear(x if rows is None else x.index_select(0, rows)) for x, linear in signals], dim=1)

    def extra_repr(self) -> str:
        """Choices."""
        return f"modalities={list(self.names)}, width={self.width}, scale={self.scale}"
