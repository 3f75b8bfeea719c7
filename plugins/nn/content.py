"""Frozen content of items: their kNN graphs over all modalities, and vectors of unit length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import Neighbours, item_graph, kneighbours
from recplug.plugins.nn.propagation import Adjacency


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
    """The frozen kNN graph of FREEDOM, ``[n_rows, n_rows]``.

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


def similarity_graph(
    modalities: Sequence[Modality],
    given: Mapping[str, Neighbours],
    *,
    n_rows: int,
    k: int,
    image_weight: float,
    cache: Path | None = None,
) -> Adjacency:
    r"""Which items are alike, :math:`C = \sum_m w_m D_m^{-1/2} \max(A_m, A_m^\top) D_m^{-1/2}`, symmetric.

    :math:`A_m` is the binary kNN graph of one modality, without the items themselves. Where an item has neighbours in
    some modalities only, its edges there are scaled up, by the root of the share that both of an edge's items have.

    Args:
        modalities: content, each row a row of the item table.
        given: neighbours that came with the data, which are not computed again; at most ``k`` of them count.
        n_rows: rows of the item table; further rows than content has no edges.
        k: neighbours an item.
        image_weight: see :func:`modality_weights`.
        cache: a folder for what was computed.

    Returns:
        Adjacency ``[n_rows, n_rows]``, float32, eigenvalues from -1 to 1 where every item has every modality.
    """
    weights = modality_weights([m.name for m in modalities], image_weight)
    parts, share = [], None
    for modality in modalities:
        near = given.get(modality.name) or kneighbours(modality.values, modality.present, k, cache=cache)
        own = torch.arange(len(near.index), device=near.index.device).unsqueeze(1)  # [n, 1]
        valid = near.valid & (near.index != own)
        valid &= valid.cumsum(dim=1) <= k
        row, place = valid.nonzero(as_tuple=True)
        edges = torch.stack([row, near.index[row, place]])  # [2, e]
        keys = torch.unique(torch.cat([edges[0] * n_rows + edges[1], edges[1] * n_rows + edges[0]]))
        edges = torch.stack([keys // n_rows, keys % n_rows])
        degree = torch.bincount(edges[0], minlength=n_rows)  # [n_rows]
        scale = degree.double().clamp(min=1).rsqrt()
        parts.append((edges, weights[modality.name] * scale[edges[0]] * scale[edges[1]]))
        known = weights[modality.name] * (degree > 0).double()
        share = known if share is None else share + known
    if share is None:
        raise RecplugError("a graph of similar items needs content; give a feature table")
    edges, values = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
    scale = torch.where(share > 0, share, 1.0).rsqrt()
    values = values * scale[edges[0]] * scale[edges[1]]
    return Adjacency.of(edges, values.float(), (n_rows, n_rows), symmetric=True)


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


def directions(modality: Modality, width: int) -> Tensor | None:
    """``[d_m, width]``: the principal directions of content at unit length, or None where it is no wider.

    Not centred, so that an absent row, which is zero, stays zero.
    """
    if modality.width <= width:
        return None
    rows = _unit_rows(modality).double()
    return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -width:].float()


def principal(modality: Modality, n_rows: int, width: int | None, *, unit: bool = True) -> Tensor:
    """Content rows ``[n_rows, c]``, zero where there is no vector.

    Args:
        modality: the content.
        n_rows: rows of the result; those past the content's are zero.
        width: principal components kept of wider vectors (:func:`directions`); None: vectors stay as wide as they are.
        unit: whether vectors are brought to unit length first.
    """
    rows = _unit_rows(modality) if unit else modality.values.float().masked_fill(~modality.present.unsqueeze(1), 0.0)
    along = None if width is None else directions(modality, width)
    if along is not None:
        rows = (rows.double() @ along.double()).float()
    return F.pad(rows, (0, 0, 0, n_rows - len(rows)))


def _unit_rows(modality: Modality) -> Tensor:
    """``[n_items, d_m]`` at unit length, zero where there is no vector."""
    rows = F.normalize(modality.values.float(), dim=-1)
    return rows.masked_fill(~modality.present.unsqueeze(1), 0.0)
