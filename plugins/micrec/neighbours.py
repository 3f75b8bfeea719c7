"""Content as unit vectors whose products are likeness, and nearest neighbours by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import Neighbours
from recplug.plugins.nn.propagation import Adjacency

ROWS = 1024  # queries at once
WIDE = 2**24  # scores at once
MARGIN = 6  # candidates beyond k that are compared exactly
CHUNK = 64  # columns whose maximum stands for them
SHORTEST = 1e-6  # a unit vector that is no longer than this without the mean has no direction


@dataclass(frozen=True)
class Content:
    """What is known of users or items, as vectors whose inner products are their likeness.

    Attributes:
        values: ``[n, D]`` float32, the modalities side by side; of unit length, or zero where nothing is known.
        present: ``[n]`` bool, whether anything is.
        widths: of the modalities; they add up to D.
        weights: of the modalities.
        centres: ``[d_m]`` each: the means that were subtracted.
        names: of the modalities.
    """

    values: Tensor
    present: Tensor
    widths: tuple[int, ...]
    weights: tuple[float, ...]
    centres: tuple[Tensor, ...]
    names: tuple[str, ...]

    def blocks(self) -> list[Tensor]:
        """``[n, d_m]`` each: one modality at unit length, zero where it is missing."""
        return [F.normalize(block, dim=1) for block in self.values.split(self.widths, dim=1)]

    def to(self, device: torch.device | str) -> Content:
        """The same on ``device``."""
        centres = tuple(centre.to(device) for centre in self.centres)
        return Content(self.values.to(device), self.present.to(device), self.widths, self.weights, centres, self.names)


def text_first(names: Sequence[str], text: float) -> dict[str, float]:
    """Weights of modalities: ``text`` for the one of that name, the others share the rest; equal where that is all."""
    others = [name for name in names if name != "text"]
    if len(others) in (0, len(names)):
        return {name: 1.0 / len(names) for name in names}
    return {name: text if name == "text" else (1.0 - text) / len(others) for name in names}


@torch.no_grad()
def content_vectors(
    modalities: Sequence[Modality],
    weights: Mapping[str, float],
    n_rows: int,
    *,
    known: Tensor | None = None,
    centres: Mapping[str, Tensor] | None = None,
    device: torch.device | None = None,
) -> Content:
    r"""Content of items, stacked so that :math:`\hat x^\top \hat y = \sum_m w_m \cos(x_m, y_m)`.

    Vectors are brought to unit length, the mean of known items is subtracted, and they are brought to unit length
    again: means over many items point one way otherwise. An item that lacks a modality has a block of zeros there, and
    its other blocks weigh more (:math:`w_m / \sum_{m' \text{ present}} w_{m'}`), so that it stays at unit length.

    Args:
        modalities: content, aligned with the first rows of the item table.
        weights: w_m, one a modality; one of 0 leaves it out.
        n_rows: rows of the result.
        known: ``[n_rows]`` bool, the items whose mean is subtracted; None: all.
        centres: means by name that are subtracted in their place, for items that come later.
        device: where it is computed; None: where the content lies.
    """
    blocks, here, used, middles = [], [], [], []
    for modality in modalities:
        if weights[modality.name] <= 0:
            continue
        place = device or modality.values.device
        present = F.pad(modality.present.to(place), (0, n_rows - len(modality.present)))  # [n]
        values = F.normalize(modality.values.to(place).float(), dim=1)
        values = F.pad(values, (0, 0, 0, n_rows - len(values))).masked_fill(~present.unsqueeze(1), 0.0)
        given = None if centres is None else centres[modality.name].to(place)
        mask = present if known is None else present & known.to(place)
        values, present, centre = _centred(values, present, mask, given)
        blocks.append(values)
        here.append(present)
        middles.append(centre)
        used.append(modality.name)
    if not blocks:
        raise RecplugError("micrec: no modality has a weight above 0; raise micrec.text_weight or lower it from 1")
    return _stacked(blocks, here, [weights[name] for name in used], middles, used)


@torch.no_grad()
def user_content(
    content: Content, edges: Tensor, n_users: int, *, centres: Mapping[str, Tensor] | None = None
) -> Content:
    """Content of users: by modality, the mean of the unit vectors of their items, centred over users, at unit length.

    Args:
        content: of the items.
        edges: ``[2, n]`` training interactions (user, item), each once.
        n_users: rows of the result.
        centres: means by modality to subtract, for users that come later; None: these users' own.
    """
    members = Adjacency.of(edges, torch.ones_like(edges[0], dtype=torch.float32), (n_users, len(content.values)))
    blocks, here, middles = [], [], []
    for name, block in zip(content.names, content.blocks(), strict=True):
        count = members.matmul((block != 0).any(dim=1, keepdim=True).float())  # [n_users, 1]
        mean = members.matmul(block) / count.clamp(min=1.0)
        present = count.squeeze(1) > 0
        given = None if centres is None else centres[name].to(block.device)
        values, present, centre = _centred(mean, present, present, given)
        blocks.append(values)
        here.append(present)
        middles.append(centre)
    return _stacked(blocks, here, content.weights, middles, content.names)


def _centred(values: Tensor, present: Tensor, mask: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``values [n, d]`` less the mean at ``mask``, at unit length; which still have a direction; the mean."""
    if centre is None:
        centre = values[mask].double().mean(dim=0).float() if bool(mask.any()) else values.new_zeros(values.shape[1])
    values = values - centre
    length = torch.linalg.vector_norm(values, dim=1)  # [n]
    present = present & (length > SHORTEST)
    values = (values / length.clamp(min=SHORTEST).unsqueeze(1)).masked_fill(~present.unsqueeze(1), 0.0)
    return values, present, centre


def _stacked(
    blocks: Sequence[Tensor],
    here: Sequence[Tensor],
    weights: Sequence[float],
    centres: Sequence[Tensor],
    names: Sequence[str],
) -> Content:
    present = torch.stack(list(here), dim=1)  # [n, M]
    share = present * torch.tensor(list(weights), device=present.device)
    share = share / share.sum(dim=1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    values = torch.cat([share[:, m : m + 1].sqrt() * block for m, block in enumerate(blocks)], dim=1)
    widths = tuple(block.shape[1] for block in blocks)
    return Content(values, present.any(dim=1), widths, tuple(weights), tuple(centres), tuple(names))


# -- search


@torch.no_grad()
def nearest(queries: Tensor, pool: Tensor, k: int, *, exclude: Tensor | None = None) -> Neighbours:
    """The k rows of ``pool`` with the largest inner product, exactly, a block at a time; equal ones by the lower row.

    Products in single precision propose candidates (on accelerators in double), which double precision compares as
    float32; where rounding leaves a doubt, the whole row is computed in double precision. The answer depends neither
    on the blocks nor on the machine.

    Args:
        queries: ``[q, D]``, rows of unit length, or of zeros, which have no neighbours.
        pool: ``[p, D]``, the same; rows of zeros are nobody's neighbours.
        k: at least 1.
        exclude: ``[q]``, a row of the pool that a query must not find (itself), or -1.

    Returns:
        Neighbours ``[q, k]``: rows of the pool; where there is none, the excluded row, or 0.
    """
    if queries.shape[1:] != pool.shape[1:] or k < 1:
        raise RecplugError(f"micrec: {k} neighbours of {list(queries.shape)} among {list(pool.shape)}; widths differ")
    device = queries.device
    without = torch.full((len(queries),), -1, device=device) if exclude is None else exclude
    index = without.clamp(min=0).unsqueeze(1).repeat(1, k)
    weight = torch.zeros(index.shape, device=device)
    rows = (pool != 0).any(dim=1).nonzero().squeeze(1)  # [m]
    asking = (queries != 0).any(dim=1).nonzero().squeeze(1)
    place = torch.full((len(pool) + 1,), -1, device=device)  # of a row among them; the last is of -1
    place[rows] = torch.arange(len(rows), device=device)
    packed = pool[rows].float()
    found = torch.zeros(index.shape, dtype=torch.bool, device=device)
    if len(rows):
        for mine in asking.split(max(1, min(ROWS, WIDE // len(rows)))):
            score, column = _best(queries[mine].float(), packed, k, place[without[mine]])
            real, width = score > -torch.inf, score.shape[1]
            index[mine, :width] = torch.where(real, rows[column], index[mine, :width])
            weight[mine, :width] = torch.where(real, score.clamp(-1.0, 1.0), 0.0)
            found[mine, :width] = real
    return Neighbours(index, weight, found)


def _best(left: Tensor, pool: Tensor, k: int, skip: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (float32) and places ``[b, <= k]`` of each row's best, best first; ``skip [b]`` is a place or -1."""
    exact = torch.float32 if left.device.type == "cpu" else torch.float64
    rough = left.to(exact) @ pool.to(exact).T  # [b, m]
    _skip(rough, skip)
    wide = min(len(pool), k + MARGIN)
    last, column = _largest(rough, wide)
    column = column.sort(dim=1).values  # a stable order by score then leaves equal ones by their place
    score = (pool[column].double() @ left.double().unsqueeze(-1)).squeeze(-1).float()  # [b, wide]
    score.masked_fill_(column == skip.unsqueeze(1), -torch.inf)
    score, order = score.sort(dim=1, descending=True, stable=True)
    score, column = score[:, :k], column.gather(1, order)[:, :k]
    if wide < len(pool):
        # Bounds the error of a single-precision product of unit vectors, and of the rounding of both sides.
        doubt = (left.shape[1] + 4) * 2.0**-23
        unsure = (last[:, -1] + doubt >= score[:, -1]).nonzero().squeeze(1)
        for some in unsure.split(max(1, ROWS // 4)):
            score[some], column[some] = _surely(left[some], pool, score.shape[1], skip[some])
    return score, column


def _largest(score: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """``topk`` of ``score [b, m]``: what is largest lies in the n chunks with the largest maxima, or in the rest."""
    chunks = score.shape[1] // CHUNK
    if chunks <= n:
        return score.topk(n, dim=1)
    whole = score[:, : chunks * CHUNK].unflatten(1, (chunks, CHUNK))  # [b, chunks, CHUNK]
    best = whole.amax(dim=2).topk(n, dim=1).indices  # [b, n]
    inside = torch.arange(CHUNK, device=score.device)
    column = (best.unsqueeze(2) * CHUNK + inside).flatten(1)  # [b, n * CHUNK]
    rest = torch.arange(chunks * CHUNK, score.shape[1], device=score.device)
    column = torch.cat([column, rest.expand(len(score), -1)], dim=1)
    found = score.gather(1, column).topk(n, dim=1)
    return found.values, column.gather(1, found.indices)


def _surely(left: Tensor, pool: Tensor, k: int, skip: Tensor) -> tuple[Tensor, Tensor]:
    """The same in double precision throughout."""
    score = (left.double() @ pool.double().T).float()  # [b, m]
    _skip(score, skip)
    last = score.topk(k, dim=1).values[:, -1:]
    above, equal = score > last, score == last
    taken = above | (equal & (equal.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
    column = taken.nonzero()[:, 1].reshape(len(left), k)
    best, order = score.gather(1, column).sort(dim=1, descending=True, stable=True)
    return best, column.gather(1, order)


def _skip(score: Tensor, skip: Tensor) -> None:
    row = (skip >= 0).nonzero().squeeze(1)
    score[row, skip[row]] = -torch.inf


def neighbourhood(content: Content, known: Tensor, k: int) -> Neighbours:
    """The k nearest known rows of every row with content, never itself: ``[n, k]``, rows of the table.

    Args:
        content: of the table's rows.
        known: ``[n]`` bool: the rows that may be neighbours, those with training interactions.
        k: how many.
    """
    rows = torch.arange(len(known), device=known.device)
    pool = content.values.masked_fill(~known.unsqueeze(1), 0.0)
    found = nearest(content.values, pool, k, exclude=rows)
    return Neighbours(torch.where(found.valid, found.index, rows.unsqueeze(1)), found.weight, found.valid)
