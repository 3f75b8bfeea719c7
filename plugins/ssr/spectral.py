r"""Bands by projectors: on a graph's eigenvectors, or, as a control, on random directions.

For a bipartite graph with users first, :math:`\hat A = [0, R; R^T, 0]` and :math:`R = P \Sigma Q^T`: the eigenpairs
of L are :math:`(1 \mp \sigma_j, [p_j; \pm q_j]/\sqrt 2)`, and everything else has eigenvalue 1. So the smaller side's
Gram matrix is all that has to be diagonalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr import edges as band_edges

NEGLIGIBLE = 1e-4
"""Singular values below count as zero: no edge of a bipartite graph may stand that near 1."""


class SpectralEngine(nn.Module):
    r"""Bands are projectors on intervals of eigenvalues; modes that are not stored have eigenvalue 1.

    .. math:: B_m = h_m(1)\, x + V \big[h_m(\lambda) - h_m(1)\big] V^T x

    Args:
        graph: A_hat, symmetric and normalised, ``[N, N]``.
        split: number of user nodes where the graph is bipartite, users first; else None.
    """

    fixed: Tensor | None = None
    basis: Tensor
    values: Tensor

    def __init__(self, *, graph: Adjacency, split: int | None) -> None:
        super().__init__()
        self.bipartite = split is not None
        basis, values = eigenvectors(graph, split)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("values", values, persistent=False)

    def forward(self, x: Tensor, rows: Tensor | None, edges: Tensor) -> Tensor:
        """``x [N, F]``, float32 or float64, to ``[r, M, F]`` at ``rows [r]`` or everywhere; ``edges [M-1]``."""
        basis, values = self.basis.to(x.dtype), self.values.to(x.dtype)
        asked, back = (x, basis) if rows is None else (x[rows], basis[rows])  # [r, F], [r, k]
        default = inside(values.new_ones(1), edges)[:-1]  # [M-1, 1]
        gain = inside(values, edges)[:-1] - default  # [M-1, k]
        mixed = gain.unsqueeze(-1) * constant_product(basis.T, x)  # [M-1, k, F]
        moved = constant_product(back, mixed.transpose(0, 1).flatten(1))  # [r, (M-1)*F]
        kept = default.T.unsqueeze(-1) * asked.unsqueeze(1)  # [r, M-1, F]
        bands = kept + moved.view_as(kept)
        return torch.cat([bands, asked.unsqueeze(1) - bands.sum(dim=1, keepdim=True)], dim=1)

    def responses(self, eigenvalues: Tensor, edges: Tensor) -> Tensor:
        """``[M, n]``: 0 or 1, for a mode with ``eigenvalues [n]``."""
        return inside(eigenvalues, edges)

    @torch.no_grad()
    def estimate(self, signals: Sequence[Tensor], bands: int) -> Tensor:
        """``[M-1]``: edges of equal energy, each of ``signals [N, F_p]`` scaled to unit energy, then pooled."""
        pooled = torch.zeros(len(self.values) + 1, dtype=torch.float64, device=self.basis.device)
        for x in signals:
            found = (self.basis.to(x.dtype).T @ x).square().sum(dim=1, dtype=torch.float64)  # [k]
            total = x.square().sum(dtype=torch.float64)
            pooled += torch.cat([found, (total - found.sum()).clamp(min=0).view(1)]) / total
        return band_edges.of_spectrum(self._atoms(), pooled, bands, atom=self.bipartite)

    def snap(self, edges: Tensor) -> Tensor:
        """``[M-1]``: into gaps of the spectrum; off 1 on bipartite graphs."""
        return band_edges.into_gaps(edges, self._atoms(), atom=self.bipartite)

    def _atoms(self) -> Tensor:
        """Every eigenvalue that there is, ``[k+1]``: the modes', and 1."""
        return torch.cat([self.values, self.values.new_ones(1)])

    def describe(self) -> str:
        """How many modes."""
        return f"{len(self.values)} modes, sharp bands; everything else has eigenvalue 1"


class RandomEngine(nn.Module):
    r"""The control that separates frequencies from any grouping: M orthogonal projectors without a graph.

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
        self.fixed = band_edges.equal_width(bands)
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


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        with torch.autocast(x.device.type, enabled=False):
            return matrix @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, constant_product(ctx.matrix.T, grads[0])


def constant_product(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x`` for a constant matrix, in full precision under autocast, backward too."""
    product: Tensor = _Product.apply(matrix, x)
    return product


def inside(eigenvalues: Tensor, edges: Tensor) -> Tensor:
    """``[M, n]``: 1 where an eigenvalue lies in [tau_m, tau_m+1), else 0."""
    band = torch.bucketize(eigenvalues, edges.to(eigenvalues.dtype), right=True)  # [n]
    return (band == torch.arange(len(edges) + 1, device=edges.device).unsqueeze(1)).to(eigenvalues.dtype)


# -- the solver


def eigenvectors(graph: Adjacency, split: int | None) -> tuple[Tensor, Tensor]:
    """Diagonalise ``L = I - A_hat`` in float64, on the graph's device.

    Args:
        graph: A_hat, symmetric, normalised.
        split: number of users where the graph is bipartite, users first; else None.

    Returns:
        Orthonormal eigenvectors ``[N, k]``, rows of isolated nodes zero, and eigenvalues of L ``[k]``, in the graph's
        precision. Every mode that is left out has eigenvalue 1.
    """
    row, col = graph.indices().cpu().numpy()
    active = (~isolated(graph)).nonzero().squeeze(-1).cpu().numpy()
    if split is None:
        vectors, values = _general(graph, row, col, active)
    else:
        vectors, values = _bipartite(graph, row, col, active, split)
    basis = np.zeros((graph.shape[0], len(values)))
    basis[active] = vectors
    found = (torch.from_numpy(part).to(graph.device, graph.dtype) for part in (basis, values.clip(0, 2)))
    return next(found), next(found)


def isolated(graph: Adjacency) -> Tensor:
    """``[N]`` bool: nodes without a neighbour."""
    row, _ = graph.indices()
    alone = torch.ones(graph.shape[0], dtype=torch.bool, device=graph.device)
    alone[row[graph.values() != 0]] = False
    return alone


def _matrix(graph: Adjacency, row: Any, col: Any) -> Any:
    from scipy.sparse import csr_array

    return csr_array((graph.values().cpu().double().numpy(), (row, col)), shape=graph.shape)


def _bipartite(graph: Adjacency, row: Any, col: Any, active: Any, split: int) -> tuple[Any, Any]:
    users, items = active[active < split], active[active >= split]
    block = _matrix(graph, row, col)[users][:, items]  # [u, i]
    swap = len(users) < len(items)
    tall = block.T.tocsr() if swap else block.tocsr()  # [large, small]
    squares, vectors = torch.linalg.eigh(torch.from_numpy((tall.T @ tall).toarray()).to(graph.device))
    sigma, small = squares.clamp(0, 1).sqrt().cpu().numpy(), vectors.cpu().numpy()
    kept = sigma > NEGLIGIBLE
    sigma, small = sigma[kept], small[:, kept]
    large = (tall @ small) / sigma
    p, q = (small, large) if swap else (large, small)
    both = np.concatenate([np.concatenate([p, p], axis=1), np.concatenate([q, -q], axis=1)]) / np.sqrt(2)
    return both, np.concatenate([1 - sigma, 1 + sigma])


def _general(graph: Adjacency, row: Any, col: Any, active: Any) -> tuple[Any, Any]:
    matrix = _matrix(graph, row, col)[active][:, active]
    mu, vectors = torch.linalg.eigh(torch.from_numpy(matrix.toarray()).to(graph.device))
    kept = mu.abs() > 1e-9
    return vectors[:, kept].cpu().numpy(), (1 - mu[kept]).cpu().numpy()
