"""Item graphs from content (cosine kNN) and from behaviour (co-occurrence), never as a dense item-item matrix."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import scipy.sparse as sp
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn_search import search
from recplug.plugins.nn.propagation import Adjacency

CACHE_FORMAT = "recplug.knn-cache/1"


@dataclass(frozen=True)
class Neighbours:
    """The nearest items of every item, nearest first.

    Attributes:
        index: ``[n, k]`` int64, the neighbour's row; an item's own row where there is no neighbour.
        weight: ``[n, k]`` float32, the cosine; 0 where there is no neighbour.
        valid: ``[n, k]`` bool, whether there is one.
    """

    index: Tensor
    weight: Tensor
    valid: Tensor

    def to(self, device: torch.device | str) -> Neighbours:
        """The same on ``device``."""
        return Neighbours(self.index.to(device), self.weight.to(device), self.valid.to(device))


@torch.no_grad()
def kneighbours(
    values: Tensor,
    present: Tensor,
    k: int,
    *,
    block: int = 1024,
    include_self: bool = False,
    cache: Path | None = None,
) -> Neighbours:
    """The k items of largest cosine for every item, exactly.

    Cosines are computed in float64 and compared as float32, equal ones by the lower row: the answer depends neither on
    the block nor on the machine. With faiss installed and ``values`` on the CPU, ``faiss.IndexFlatIP`` proposes
    candidates; the answer is the same. Memory beyond ``values`` and the answer: a few arrays of ``block`` times 4096.

    Args:
        values: ``[n, d]``, floating point; rows need no unit length.
        present: ``[n]`` bool. An item without content, or with a vector of zeros, has no neighbours and is nobody's.
        k: neighbours an item; where fewer items have content, the rest is not ``valid``.
        block: items whose neighbours are searched at once.
        include_self: every item with content is its own first neighbour, with weight 1, as in LATTICE's and FREEDOM's
            graphs; it counts among the k.
        cache: a folder. The answer is kept there under a hash of the content and the settings, and read the next time;
            a damaged file is computed again.

    Returns:
        Neighbours, on the device of ``values``.

    Raises:
        RecplugError: shapes or numbers out of range, content that is not finite, or a cache that cannot be written.
    """
    if values.dim() != 2 or not values.is_floating_point() or present.shape != values.shape[:1]:
        raise RecplugError(
            f"neighbours need float values [n, d] and a mask [n], not {list(values.shape)} and {list(present.shape)}"
        )
    if k < 1 or block < 1:
        raise RecplugError(f"neighbours need k and block of at least 1, not {k} and {block}")
    file = None
    if cache is not None:
        file = Path(cache) / f"knn-{_digest(values, present, k, include_self)}.safetensors"
        kept = _load(file, (len(values), k))
        if kept is not None:
            return kept.to(values.device)
    # float64 is what makes the answer exact; some accelerators lack it
    device = values.device if values.device.type in ("cpu", "cuda") else torch.device("cpu")
    found = _nearest(values.detach().to(device), present.to(device).bool(), k, block, include_self)
    if file is not None:
        _store(file, found)
    return found.to(values.device)


def item_graph(
    neighbours_by_name: Mapping[str, Neighbours],
    weights: Mapping[str, float],
    *,
    n_rows: int,
    normalise: Literal["row", "symmetric"] = "row",
    weighting: Literal["binary", "cosine"] = "binary",
) -> Adjacency:
    r"""One item-item graph from the neighbours in several modalities.

    .. math:: A = \sum_m \frac{w_m}{\sum_{m'} w_{m'}} D_m^{-1} A_m

    with :math:`A_m` the kNN graph of modality m; the sum over m' runs over the modalities in which the item has
    neighbours, so that an item without a picture is described by its text alone. FREEDOM's graph is 0.1 image and 0.9
    text, binary, of ``kneighbours(..., k=10, include_self=True)``.

    Args:
        neighbours_by_name: one or more modalities, of equal or fewer rows than ``n_rows``.
        weights: w_m, not negative, one for each.
        n_rows: rows of the host's item table; further rows have no edges.
        normalise: ``"row"``: A as above, every row sums to 1 or is empty; ``"symmetric"``: S = (A + A^T) / 2, then
            D^-1/2 S D^-1/2, with eigenvalues from -1 to 1.
        weighting: an edge weighs 1, or its cosine; with cosines, neighbours at or below 0 are left out.

    Returns:
        Adjacency ``[n_rows, n_rows]``, float32.

    Raises:
        RecplugError: a weight is missing, unknown or negative, all are 0, or ``n_rows`` is too small.
    """
    if not neighbours_by_name or neighbours_by_name.keys() != weights.keys():
        raise RecplugError(
            f"an item graph of {sorted(neighbours_by_name) or 'nothing'} was given weights for {sorted(weights)};"
            " give one for each modality"
        )
    if not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
        raise RecplugError(f"weights of an item graph are {dict(weights)}; give none below 0, and one above")
    for name, each in neighbours_by_name.items():
        if len(each.index) > n_rows:
            raise RecplugError(f"{name} has neighbours of {len(each.index)} rows, the item table {n_rows}; give all")
    device = next(iter(neighbours_by_name.values())).index.device
    share = torch.zeros(n_rows, dtype=torch.float64, device=device)
    parts = []
    for name, each in neighbours_by_name.items():
        each = each.to(device)
        edge = each.valid.double() if weighting == "binary" else each.weight.double().clamp(min=0) * each.valid  # [n,k]
        degree = edge.sum(dim=1, keepdim=True)  # [n, 1]
        edge = weights[name] * edge / degree.clamp(min=torch.finfo(torch.float64).tiny)
        share[: len(edge)] += weights[name] * (degree.squeeze(1) > 0)
        row, place = (edge > 0).nonzero(as_tuple=True)
        parts.append((row, each.index[row, place], edge[row, place]))
    rows, columns, mixed = (torch.cat(part) for part in zip(*parts, strict=True))  # [edges]
    places, mixed = torch.stack([rows, columns]), mixed / share[rows]
    if normalise == "row":
        return Adjacency.of(places, mixed.float(), (n_rows, n_rows))
    graph = Adjacency.of(places, mixed, (n_rows, n_rows))
    places, values = graph.indices(), graph.values()
    both = Adjacency.of(torch.cat([places, places.flip(0)], dim=1), values.repeat(2) / 2, graph.shape)
    return _symmetric(both.indices(), both.values(), n_rows)


def cooccurrence(edges: Tensor, n_rows: int, k: int, *, block: int = 1024) -> Adjacency:
    r"""Items bought by the same users: :math:`R^\top R` without its diagonal, pruned, :math:`D^{-1/2} C D^{-1/2}`.

    An entry is kept where one of its items is among the other's k nearest by the cosine of their columns of R; equal
    ones by the lower row. Entries stay counts of users. Sparse throughout, ``block`` items at once.

    Args:
        edges: ``[2, n]`` (user, item) training interactions; what comes twice counts once.
        n_rows: rows of the host's item table.
        k: nearest items that an item keeps.
        block: items at once.

    Returns:
        Adjacency ``[n_rows, n_rows]``, symmetric, float32, on the device of ``edges``.

    Raises:
        RecplugError: an id out of range, or ``k`` below 1.
    """
    if min(n_rows, k, block) < 1:
        raise RecplugError(f"co-occurrence needs n_rows, k and block of at least 1, not {n_rows}, {k} and {block}")
    users, items = edges.detach().cpu().numpy().astype(np.int64)
    if len(items) and not (users.min() >= 0 and 0 <= items.min() <= items.max() < n_rows):
        raise RecplugError(
            f"edges name items {items.min()} to {items.max()} and users from {users.min()}, but there are {n_rows}"
            " items; give n_rows with the padding row"
        )
    bought = sp.csr_matrix((np.ones(len(users)), (items, users)), shape=(n_rows, int(users.max(initial=0)) + 1))
    bought.data[:] = 1.0  # [items, users]
    buyers = bought.T.tocsr()
    degree = np.diff(bought.indptr)  # [items]
    parts = [_together(bought, buyers, degree, start, block, k) for start in range(0, n_rows, block)]
    row, column, count = (np.concatenate(part) for part in zip(*parts, strict=True))
    kept = sp.csr_matrix((count, (row, column)), shape=(n_rows, n_rows))
    both = kept.maximum(kept.T).tocoo()  # the counts are symmetric, only the choice is not
    places = torch.from_numpy(np.stack([both.row, both.col]).astype(np.int64)).to(edges.device)
    return _symmetric(places, torch.from_numpy(both.data).to(edges.device), n_rows)


def _nearest(values: Tensor, present: Tensor, k: int, block: int, include_self: bool) -> Neighbours:
    length = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)  # [n]
    broken = present & ~length.isfinite()
    if bool(broken.any()):
        raise RecplugError(f"{int(broken.sum())} items have content that is not finite; mark them absent or mend them")
    rows = (present & (length > 0)).nonzero().squeeze(1)  # [m]
    own = torch.arange(len(values), device=values.device).unsqueeze(1)  # [n, 1]
    index = own.repeat(1, k)
    weight = torch.zeros(index.shape, device=values.device)
    valid = torch.zeros(index.shape, dtype=torch.bool, device=values.device)
    for queries, cosines, places in search(values[rows], k, block=block, include_self=include_self):
        real = cosines > -math.inf  # [b, <= k]
        to, width = rows[queries], cosines.shape[1]
        index[to, :width] = torch.where(real, rows[places], to.unsqueeze(1))
        weight[to, :width] = torch.where(real, cosines.clamp(max=1.0), 0.0)
        valid[to, :width] = real
    return Neighbours(index, weight, valid)


# -- cache


def _digest(values: Tensor, present: Tensor, k: int, include_self: bool) -> str:
    about = [CACHE_FORMAT, str(values.dtype), list(values.shape), k, include_self]
    digest = hashlib.sha256(json.dumps(about).encode())
    digest.update(_bytes(values))
    digest.update(_bytes(present.bool()))
    return digest.hexdigest()[:32]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _sum(found: Neighbours) -> str:
    return hashlib.sha256(b"".join(map(_bytes, (found.index, found.weight, found.valid)))).hexdigest()


def _load(file: Path, shape: tuple[int, int]) -> Neighbours | None:
    """What the file holds; None where there is none or it is damaged, which :func:`kneighbours` then replaces."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            found = Neighbours(*(stored.get_tensor(name) for name in ("index", "weight", "valid")))
            expected = (stored.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    return found if found.index.shape == shape and _sum(found) == expected else None


def _store(file: Path, found: Neighbours) -> None:
    found = found.to("cpu")
    tensors = {"index": found.index, "weight": found.weight, "valid": found.valid}
    data = safetensors.torch.save(tensors, {"format": CACHE_FORMAT, "sha256": _sum(found)})
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


# -- graphs


def _together(
    bought: Any, buyers: Any, degree: np.ndarray[Any, Any], start: int, block: int, k: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows, columns and counts of the k nearest by co-occurrence, for the items from ``start`` on."""
    counts = (bought[start : start + block] @ buyers).tocoo()
    other = counts.row + start != counts.col
    row, column, count = counts.row[other], counts.col[other], counts.data[other]
    nearness = count * count / degree[column]  # orders a row as the cosine does, and equal cosines come out equal
    order = np.lexsort((column, -nearness, row))
    row, column, count = row[order], column[order], count[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)  # within the row
    near = place < k
    return row[near] + start, column[near], count[near]


def _symmetric(places: Tensor, values: Tensor, n_rows: int) -> Adjacency:
    """``D^-1/2 S D^-1/2`` of a symmetric S of positive entries, given by ``places [2, n]`` and ``values [n]``."""
    degree = torch.zeros(n_rows, dtype=torch.float64, device=values.device).index_add(0, places[0], values)
    scale = degree.clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    scaled = values * (scale[places[0]] * scale[places[1]])  # one product of the pair: exactly symmetric
    return Adjacency.of(places, scaled.float(), (n_rows, n_rows), symmetric=True)
