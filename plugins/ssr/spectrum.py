r"""Eigenvectors of a graph, all of them or the leading ones, kept on disk between runs where a folder is given.

For a bipartite graph with users first, :math:`\hat A = [0, R; R^T, 0]` and :math:`R = P \Sigma Q^T`: the eigenpairs
of L are :math:`(1 \mp \sigma_j, [p_j; \pm q_j]/\sqrt 2)`, and everything else has eigenvalue 1. So the smaller side's
Gram matrix is all that has to be diagonalised.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.propagation import Adjacency

logger = logging.getLogger("recplug")

NEGLIGIBLE = 1e-4
"""Singular values below count as zero: no edge of a bipartite graph may stand that near 1."""

_FORMAT = "recplug-spectrum-1"


@dataclass(frozen=True)
class Spectrum:
    """What is known of a graph's eigenvectors.

    Attributes:
        basis: ``[N, k]``, rows of isolated nodes are zero. Bipartite: ``[p_j; q_j]``, each half orthonormal;
            otherwise orthonormal eigenvectors.
        values: ``[k]``: singular values of R, or eigenvalues of L.
        rest: the eigenvalue that stands for every mode not in ``basis``; isolated nodes have 1.
    """

    basis: Tensor
    values: Tensor
    rest: float


def solve(graph: Adjacency, *, split: int | None, rank: int | None, cache: Path | None = None) -> Spectrum:
    """Diagonalise ``L = I - A_hat`` in float64, on the graph's device where the solver is dense.

    Args:
        graph: A_hat, symmetric, normalised.
        split: number of users where the graph is bipartite, users first; else None.
        rank: how many leading modes (largest sigma; smallest lambda), or None for all.
        cache: a folder; a file there that is damaged or belongs to something else is replaced.

    Returns:
        On the graph's device, in the graph's precision.

    Raises:
        RecplugError: the iterative solver did not converge.
    """
    found = None
    path = None if cache is None else cache / f"{_key(graph, split, rank)}.safetensors"
    if path is not None:
        found = _read(path, graph)
    if found is None:
        basis, values, rest = _bipartite(graph, split, rank) if split is not None else _general(graph, rank)
        found = Spectrum(torch.from_numpy(basis).to(graph.dtype), torch.from_numpy(values).to(graph.dtype), rest)
        if path is not None:
            _write(path, found)
    return Spectrum(found.basis.to(graph.device), found.values.to(graph.device), found.rest)


def isolated(graph: Adjacency) -> Tensor:
    """``[N]`` bool: nodes without a neighbour."""
    row, _ = graph.indices()
    alone = torch.ones(graph.shape[0], dtype=torch.bool, device=graph.device)
    alone[row[graph.values() != 0]] = False
    return alone


def _bipartite(graph: Adjacency, split: int, rank: int | None) -> tuple[Any, Any, float]:
    matrix, active = _scipy(graph)
    users, items = active[active < split], active[active >= split]
    block = matrix[users][:, items]  # [u, i]
    swap = len(users) < len(items)
    tall = block.T.tocsr() if swap else block.tocsr()  # [large, small]
    if rank is None or rank >= tall.shape[1]:
        gram = torch.from_numpy((tall.T @ tall).toarray()).to(graph.device)
        squares, vectors = torch.linalg.eigh(gram)  # ascending
        sigma = squares.clamp(0, 1).sqrt().flip(0).cpu().numpy()
        small = vectors.flip(1).cpu().numpy()
        kept = sigma > NEGLIGIBLE
        sigma, small = sigma[kept], small[:, kept]
        large = (tall @ small) / sigma
    else:
        large, sigma, small = _svds(tall, rank)
    basis = np.zeros((graph.shape[0], len(sigma)))
    basis[items if swap else users], basis[users if swap else items] = large, small
    return basis, sigma, 1.0


def _general(graph: Adjacency, rank: int | None) -> tuple[Any, Any, float]:
    matrix, active = _scipy(graph)
    matrix = matrix[active][:, active]
    count, rest = len(active), 1.0
    if rank is None or rank >= count:
        mu, vectors = torch.linalg.eigh(torch.from_numpy(matrix.toarray()).to(graph.device))
        values, vectors = (1 - mu.flip(0)).cpu().numpy(), vectors.flip(1).cpu().numpy()
        kept = np.abs(values - 1) > 1e-9  # the rest has eigenvalue 1
        values, vectors = values[kept], vectors[:, kept]
    else:
        values, vectors = _eigsh(matrix, rank)
        rest = float((count - matrix.diagonal().sum() - values.sum()) / (count - rank))  # the mean, from the trace
    basis = np.zeros((graph.shape[0], len(values)))
    basis[active] = vectors
    return basis, values.clip(0, 2), rest


def _svds(tall: Any, rank: int) -> tuple[Any, Any, Any]:
    """The largest singular triplets, descending."""
    from scipy.sparse.linalg import ArpackError, svds

    start = np.random.default_rng(0).standard_normal(min(tall.shape))
    try:
        left, sigma, right = svds(tall, k=rank, which="LM", v0=start)
    except ArpackError as error:
        raise _no_convergence(rank) from error
    order = np.argsort(-sigma)
    order = order[sigma[order] > NEGLIGIBLE]
    return left[:, order], sigma[order].clip(0, 1), right[order].T


def _eigsh(matrix: Any, rank: int) -> tuple[Any, Any]:
    """The smallest eigenvalues of L, ascending, as the largest of A_hat: inverting a shift would fill in."""
    from scipy.sparse.linalg import ArpackError, eigsh

    start = np.random.default_rng(0).standard_normal(matrix.shape[0])
    try:
        mu, vectors = eigsh(matrix, k=rank, which="LA", v0=start)
    except ArpackError as error:
        raise _no_convergence(rank) from error
    order = np.argsort(-mu)
    return 1 - mu[order], vectors[:, order]


def _no_convergence(rank: int) -> RecplugError:
    return RecplugError(f"the {rank} leading modes did not converge; use engine 'polynomial', or another rank")


def _scipy(graph: Adjacency) -> tuple[Any, Any]:
    """The matrix in float64, and the numbers of the nodes that have a neighbour."""
    from scipy.sparse import csr_array

    row, col = graph.indices().cpu().numpy()
    values = graph.values().cpu().double().numpy()
    return csr_array((values, (row, col)), shape=graph.shape), (~isolated(graph)).nonzero().squeeze(-1).cpu().numpy()


# -- files


def _key(graph: Adjacency, split: int | None, rank: int | None) -> str:
    digest = hashlib.sha256(repr((_FORMAT, graph.shape, split, rank, str(graph.dtype))).encode())
    for tensor in (graph.indices(), graph.values()):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _checksum(basis: Tensor, values: Tensor, rest: float) -> str:
    digest = hashlib.sha256(repr((tuple(basis.shape), rest)).encode())
    for tensor in (basis, values):
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _read(path: Path, graph: Adjacency) -> Spectrum | None:
    """The stored spectrum, or None where there is none that can be trusted."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})["spectrum"])
            basis, values = file.get_tensor("basis"), file.get_tensor("values")
        if len(basis) == graph.shape[0] and header["sha256"] == _checksum(basis, values, header["rest"]):
            return Spectrum(basis, values, header["rest"])
        reason = "its content does not match its checksum"
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
    logger.warning("the spectrum in %s is damaged (%s) and is computed again", path, reason)
    return None


def _write(path: Path, spectrum: Spectrum) -> None:
    """Written beside its place and moved there whole; a folder that cannot be written to costs the cache only."""
    tensors = {"basis": spectrum.basis, "values": spectrum.values}
    header = {"rest": spectrum.rest, "sha256": _checksum(**tensors, rest=spectrum.rest)}
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial, metadata={"spectrum": json.dumps(header)})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (SafetensorError, OSError) as error:
        logger.warning("the spectrum could not be stored in %s: %s", path, " ".join(str(error).split()))
