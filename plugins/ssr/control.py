"""The control that separates frequencies from any grouping: bands without a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr.edges import equal_width
from recplug.plugins.ssr.engines import Engine
from recplug.plugins.ssr.spectrum import isolated


class RandomEngine(Engine):
    r"""The control: M orthogonal projectors of equal ranks that know nothing of the graph.

    :math:`B_m = D H E_m H D x` with random signs D, the Hartley transform H over the nodes that have a neighbour
    (symmetric, orthogonal, its own inverse, by one FFT) and :math:`E_m` a random share of its coordinates. Nodes
    without a neighbour go into the middle band.

    Args:
        graph: A_hat, for which nodes have a neighbour.
        bands: M.
        seed: of signs and shares.
    """

    active: Tensor
    sign: Tensor
    share: Tensor
    isolated: Tensor

    def __init__(self, *, graph: Adjacency, bands: int, seed: int) -> None:
        super().__init__()
        self.bands = bands
        self.fixed = equal_width(bands)
        alone = isolated(graph)
        active = (~alone).nonzero().squeeze(-1)
        generator = torch.Generator("cpu").manual_seed(seed)
        sign = 2.0 * torch.randint(0, 2, (len(active), 1), generator=generator, device="cpu") - 1
        share = torch.randperm(len(active), generator=generator, device="cpu") % bands
        for name, tensor in {"active": active, "sign": sign, "share": share, "isolated": alone}.items():
            self.register_buffer(name, tensor.to(graph.device), persistent=False)

    def forward(self, x: Tensor, rows: Tensor | None, edges: Tensor) -> Tensor:
        """``x [N, F]`` to ``[r, M, F]``."""
        sign = self.sign.to(x.dtype)
        band = torch.arange(self.bands, device=x.device)
        coordinates = hartley(sign * x[self.active])  # [n, F]
        chosen = self.share.unsqueeze(1) == band  # [n, M]
        parts = sign * hartley((chosen.unsqueeze(-1) * coordinates.unsqueeze(1)).flatten(1))  # [n, M*F]
        alone = self.isolated.unsqueeze(1) & (band == self.bands // 2)  # [N, M]
        whole = (alone.unsqueeze(-1) * x.unsqueeze(1)).index_copy(0, self.active, parts.unflatten(1, (self.bands, -1)))
        return whole if rows is None else whole[rows]

    def responses(self, eigenvalues: Tensor, edges: Tensor) -> Tensor:
        """The mean over draws, flat: no band prefers an eigenvalue."""
        ranks = torch.stack([(self.share == m).sum() for m in range(self.bands)]).to(eigenvalues.dtype)
        return (ranks / ranks.sum()).unsqueeze(1).expand(-1, len(eigenvalues))

    def describe(self) -> str:
        """What it is for."""
        return "a control: random orthogonal projectors of equal ranks, without a graph"


def hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform of the columns of ``x [n, F]``; its own inverse and transpose."""
    spectrum = torch.fft.fft(x, dim=0, norm="ortho")
    return spectrum.real - spectrum.imag
