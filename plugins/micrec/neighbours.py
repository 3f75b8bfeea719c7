"""Nearest neighbours by content, and nodes mixed with theirs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec.content import Content
from recplug.plugins.nn.knn import Neighbours
from recplug.plugins.nn.propagation import Adjacency

ROWS = 1024  # queries at once
WIDE = 2**24  # scores at once
MARGIN = 6  # candidates beyond k that are compared exactly
CHUNK = 64  # columns whose maximum stands for them


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


# -- nodes with their neighbours


def shares(neighbours: Neighbours) -> tuple[Tensor, Tensor]:
    """Weights of a node itself ``[n, 1]`` and of its neighbours ``[n, k]`` in what it is refined to.

    1 and the likeness a, none below 0, over 1 plus their sum. A node without neighbours is itself.
    """
    others = neighbours.weight.clamp(min=0.0) * neighbours.valid
    total = 1.0 + others.sum(dim=1, keepdim=True)
    return 1.0 / total, others / total


def refine(own: Tensor, pool: Tensor, neighbours: Neighbours) -> Tensor:
    r"""Nodes with their content neighbours, :math:`(h_x + \sum_y a_{xy} h_y) / (1 + \sum_y a_{xy})`.

    Args:
        own: ``[n, d]``.
        pool: ``[p, d]``, what the neighbours' rows name.
        neighbours: ``[n, k]``.
    """
    mine, others = shares(neighbours)
    return mine * own + torch.einsum("nk,nkd->nd", others, pool[neighbours.index])


def refining(neighbours: Neighbours) -> Adjacency:
    """:func:`refine` of a whole table as a constant matrix, ``[n, n]``."""
    mine, others = shares(neighbours)
    rows = torch.arange(len(mine), device=mine.device).unsqueeze(1)
    places = torch.stack([rows.expand_as(others)[others > 0], neighbours.index[others > 0]])
    itself = rows.squeeze(1).repeat(2, 1)
    values = torch.cat([mine.squeeze(1), others[others > 0]])
    return Adjacency.of(torch.cat([itself, places], dim=1), values, (len(mine), len(mine)), symmetric=False)


def borrowing(neighbours: Neighbours, isolated: Tensor) -> tuple[Tensor, Adjacency]:
    r"""Isolated nodes with neighbours, ``[q]``, and :math:`\sum_y a_{xy} r_y / \sum_y a_{xy}` for them, ``[q, n]``.

    Args:
        neighbours: ``[n, k]``, all of them nodes with interactions.
        isolated: ``[n]`` bool.
    """
    likeness = neighbours.weight.clamp(min=0.0) * neighbours.valid  # [n, k]
    rows = (isolated & (likeness.sum(dim=1) > 0)).nonzero().squeeze(1)  # [q]
    mine = likeness[rows] / likeness[rows].sum(dim=1, keepdim=True)
    at = torch.arange(len(rows), device=rows.device).unsqueeze(1).expand_as(mine)
    places = torch.stack([at[mine > 0], neighbours.index[rows][mine > 0]])
    return rows, Adjacency.of(places, mine[mine > 0], (len(rows), len(isolated)), symmetric=False)


def mean_of(rows: Tensor, near: Neighbours, *, weighted: bool) -> tuple[Tensor, Tensor]:
    """The mean of the neighbours' rows ``[n, w]``, by likeness or plain, and who has any ``[n]``."""
    weight = near.weight.clamp(min=0.0) * near.valid if weighted else near.valid.float()  # [n, k]
    total = weight.sum(dim=1, keepdim=True)
    share = weight / total.clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.einsum("nk,nkd->nd", share.to(rows.dtype), rows[near.index]), total.squeeze(1) > 0


def chosen(mask: Tensor, yes: Neighbours, no: Neighbours) -> Neighbours:
    """Neighbours of ``yes`` where ``mask [n]``, else of ``no``; as wide as the wider one."""
    width = max(yes.index.shape[1], no.index.shape[1])

    def pick(one: Tensor, other: Tensor) -> Tensor:
        one, other = (F.pad(each, (0, width - each.shape[1])) for each in (one, other))
        return torch.where(mask.unsqueeze(1), one, other)

    return Neighbours(pick(yes.index, no.index), pick(yes.weight, no.weight), pick(yes.valid, no.valid))


def nobody(n: int, device: torch.device) -> Neighbours:
    """No neighbours, ``[n, 0]``."""
    index = torch.zeros(n, 0, dtype=torch.int64, device=device)
    return Neighbours(index, index.float(), index.bool())
