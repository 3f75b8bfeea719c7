"""Content-induced user-item edges: items near, by content, to what a user had (eqs. 1-3)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import Neighbours, kneighbours

CACHE_FORMAT = "recplug.induced-cache/1"
CELLS = 2**24  # of one block of users times items


@torch.no_grad()
def induced_edges(
    modalities: Sequence[Modality],
    edges: Tensor,
    *,
    n_users: int,
    n_items: int,
    k: int,
    r: int,
    given: Mapping[str, Neighbours] | None = None,
    block: int | None = None,
    cache: Path | None = None,
) -> Tensor:
    r"""The r best candidates of every user, as edges that graphs of both kinds can hold.

    .. math::
        c_{uj} = \sum_{i \in I_u} \frac{1}{|M|} \sum_m s^m_{ij}, \qquad
        j \in \bigcup_{i \in I_u} \bigcup_m N^m(i) \setminus I_u

    with :math:`s^m_{ij}` the cosine and :math:`N^m(i)` the k nearest other items. The edges rank by c and do not keep
    it (eq. 4 counts neighbours only). Where neighbours are given (ours) :math:`s^m_{ij}` is 0 unless j is in
    :math:`N^m(i)`: content that was fitted to a graph has no other meaningful cosines. Scores are summed in float64 and
    compared as float32, equal ones by the lower id; never more than a block of users times items is held.

    Args:
        modalities: content, each row an item; an absent item is near to nothing.
        edges: ``[2, n]`` (user, item) *training* interactions; nothing else is ever looked at.
        n_users, n_items: counts with the padding rows.
        k: neighbours an item and modality.
        r: edges a user at most.
        given: neighbours that came with the data, by modality, which are not computed again.
        block: users at once; by default as many as ``CELLS`` allows.
        cache: a folder; the edges are kept there under a hash of all of the above.

    Returns:
        ``[2, m]`` int64 on the device of ``edges``, sorted by user, then best first; disjoint from ``edges``.

    Raises:
        RecplugError: the cache cannot be written.
    """
    if r == 0 or not edges.shape[1]:
        return edges.new_empty(2, 0)
    given = {m.name: given[m.name] for m in modalities if given and m.name in given}
    file = None
    if cache is not None:
        about = [CACHE_FORMAT, n_users, n_items, k, r]
        file = Path(cache) / f"induced-{_digest(about, modalities, edges, given)}.safetensors"
        if (kept := _load(file)) is not None:
            return kept.to(edges.device)
    modalities = [replace(m, values=m.values.to(edges.device), present=m.present.to(edges.device)) for m in modalities]
    near = {m.name: _neighbours(m, k, given.get(m.name), n_items, cache) for m in modalities}
    pairs = edges.cpu().numpy()
    history = sp.csr_matrix((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(n_users, n_items))
    history.data[:] = 1.0  # what comes twice counts once
    reach = sum(_support(near))
    size = block or max(1, CELLS // n_items)
    score_block = _neighbour_scores(near) if given else _full_scores(modalities, n_items)
    parts = []
    for start in range(0, n_users, size):
        mine = history[start : start + size]
        if mine.nnz:
            parts.append(_best(mine, reach, score_block(mine), start, r))
    found = torch.from_numpy(np.concatenate(parts, axis=1)) if parts else torch.empty(2, 0, dtype=torch.long)
    if file is not None:
        _store(file, found)
    return found.to(edges.device)


def _best(mine: Any, reach: Any, scores: np.ndarray[Any, Any], start: int, r: int) -> np.ndarray[Any, Any]:
    """``[2, m]``: the best candidates of the users whose histories are ``mine [b, n_items]``."""
    pool = mine @ reach  # counts of paths, so positive wherever there is one
    pool = (pool - pool.multiply(mine)).tocoo()  # not what the user had
    real = pool.data > 0
    row, column = pool.row[real], pool.col[real]
    value = scores[row, column].astype(np.float32) + np.float32(0.0)
    order = np.lexsort((column, -value, row))
    row, column = row[order], column[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)  # within the user
    kept = place < r
    return np.stack([row[kept] + start, column[kept]]).astype(np.int64)


def _full_scores(modalities: Sequence[Modality], n_items: int) -> Any:
    """By cosines with the whole history: a sum of unit vectors, times all unit vectors."""
    units = []
    for modality in modalities:
        rows = F.normalize(modality.values.double(), dim=-1).masked_fill(~modality.present.unsqueeze(1), 0.0)
        units.append(F.pad(rows, (0, 0, 0, n_items - len(rows))))
    rows = torch.cat(units, dim=1)[:n_items]  # [n_items, sum of d_m]
    left = rows.cpu().numpy()

    def scores(mine: Any) -> np.ndarray[Any, Any]:
        sums = torch.from_numpy(np.ascontiguousarray(mine @ left)).to(rows.device)  # [b, sum of d_m]
        return (sums @ rows.T / len(modalities)).cpu().numpy()

    return scores


def _neighbour_scores(near: Mapping[str, Any]) -> Any:
    """By cosines with those of the history of which it is a neighbour."""
    mean = sum(near.values()) / len(near)

    def scores(mine: Any) -> np.ndarray[Any, Any]:
        return (mine @ mean).toarray()

    return scores


def _neighbours(modality: Modality, k: int, given: Neighbours | None, n_items: int, cache: Path | None) -> Any:
    """``[n_items, n_items]`` sparse: the cosine with each of the k nearest other items, stored where it is 0 too."""
    found = given or kneighbours(modality.values, modality.present, k, cache=cache)
    found = found.to("cpu")
    rows = torch.arange(len(found.index)).unsqueeze(1)  # [n, 1]
    others = found.valid & (found.index != rows)
    others = others & (others.cumsum(dim=1) <= k)
    row, place = others.nonzero(as_tuple=True)
    values = found.weight[row, place].double().numpy()
    return sp.csr_matrix((values, (row.numpy(), found.index[row, place].numpy())), shape=(n_items, n_items))


def _support(near: Mapping[str, Any]) -> Iterator[Any]:
    """Each graph with ones for values."""
    for graph in near.values():
        ones = graph.copy()
        ones.data[:] = 1.0
        yield ones


# -- cache


def _digest(about: list[Any], modalities: Sequence[Modality], edges: Tensor, given: Mapping[str, Neighbours]) -> str:
    digest = hashlib.sha256(json.dumps(about).encode())
    tensors = [("edges", edges)]
    for modality in modalities:
        tensors += [(modality.name, modality.values), ("present", modality.present.bool())]
    for name, each in given.items():
        tensors += [(name, each.index), ("weight", each.weight), ("valid", each.valid)]
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:32]


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _load(file: Path) -> Tensor | None:
    """What the file holds; None where there is none or it is damaged, which is then replaced."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            found, expected = stored.get_tensor("edges"), (stored.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    whole = hashlib.sha256(_bytes(found)).hexdigest() == expected
    return found.long() if whole else None


def _store(file: Path, found: Tensor) -> None:
    small = found.int().contiguous()
    data = safetensors.torch.save(
        {"edges": small}, {"format": CACHE_FORMAT, "sha256": hashlib.sha256(_bytes(small)).hexdigest()}
    )
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RecplugError(f"cannot write the cache {file.parent}: {error.strerror}; choose another folder") from None
