"""What SSR knows of content: signals over the nodes, and their bands, all frozen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recplug.plugins.ssr.decomposition import Decomposition


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
