"""Like users, by what they had and by what that looks and reads like; frozen, and never a dense user-user matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.content import modality_weights
from recplug.plugins.nn.knn import Neighbours
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.nn.smoothing import row_means


def histories(edges: Tensor, *, n_users: int, n_items: int) -> Adjacency:
    """``[n_users, n_items]``: 1 where a user had an item, however often.

    Raises:
        RecplugError: an id lies outside its range.
    """
    users, items = edges.long()
    if len(users) and not (0 <= int(users.min()) <= int(users.max()) < n_users and int(items.max()) < n_items):
        raise RecplugError(f"edges name users or items beyond {n_users} and {n_items}; give counts with padding rows")
    keys = torch.unique(users * n_items + items)
    ones = torch.ones(len(keys), device=edges.device)
    return Adjacency.of(torch.stack([keys // n_items, keys % n_items]), ones, (n_users, n_items), symmetric=False)


def mean_content(history: Adjacency, modalities: Sequence[Modality], *, image_weight: float) -> Tensor:
    r"""``[n_users, sum of d_m]``, whose dot products are :math:`\sum_m w_m \cos(\bar x_{um}, \bar x_{vm})`.

    :math:`\bar x_{um}` is the mean of the history's content vectors of modality m at unit length, and w_m is
    :func:`modality_weights`; a user whose history has no content has zeros.

    Args:
        history: ``[n_users, n_items]``, as from :func:`histories`.
        modalities: content, each row a row of the item table.
        image_weight: the share of the modality 'image'.
    """
    mean = row_means(history)
    parts = []
    for modality in modalities:
        values, present = modality.values.to(history.device), modality.present.to(history.device)
        unit = F.normalize(values.float(), dim=-1).masked_fill(~present.unsqueeze(1), 0.0)
        unit = F.pad(unit, (0, 0, 0, history.shape[1] - len(unit)))  # [n_items, d_m]
        parts.append(F.normalize(mean.matmul(unit), dim=-1))
    weights = modality_weights([modality.name for modality in modalities], image_weight)
    shares = torch.tensor([weights[modality.name] for modality in modalities])
    return torch.cat([part * float(w.sqrt()) for part, w in zip(parts, shares / shares.sum(), strict=True)], dim=1)


@torch.no_grad()
def like_users(
    edges: Tensor,
    modalities: Sequence[Modality],
    *,
    n_users: int,
    n_items: int,
    k: int,
    content: float,
    image_weight: float,
    block: int = 1024,
) -> Neighbours:
    r"""The k users that are most alike, for every user with a history.

    .. math:: s_{uv} = c\, \bar x_u \cdot \bar x_v + (1 - c)\, \frac{|I_u \cap I_v|}{\sqrt{|I_u||I_v|}}

    with the :func:`mean_content` of the history I_u. Memory: ``block`` times ``n_users``.

    Args:
        edges: ``[2, n]`` training interactions (user, item).
        modalities: content, each row a row of the item table; none: users are alike by common items alone.
        n_users, n_items: counts with the padding rows.
        k: neighbours of a user; a user of likeness 0 or less is nobody's.
        content: c, from 0 to 1.
        image_weight: see :func:`mean_content`.
        block: users at once.

    Returns:
        Neighbours, the weights s, on the device of ``edges``.
    """
    history = histories(edges, n_users=n_users, n_items=n_items)
    if not modalities:
        content = 0.0
    vectors = mean_content(history, modalities, image_weight=image_weight) if content else None
    row, col = history.indices().cpu().numpy()
    degree = np.maximum(np.bincount(row, minlength=n_users), 1)
    unit = sp.csr_matrix((degree[row] ** -0.5, (row, col)), shape=history.shape, dtype=np.float32)
    by_item = unit.T.tocsr()  # [n_items, n_users]
    width = min(k, n_users)
    index = torch.arange(n_users).unsqueeze(1).repeat(1, k)
    weight = torch.zeros(n_users, k)
    for start in range(0, n_users, block):
        stop = min(start + block, n_users)
        if vectors is None:
            like = torch.zeros(stop - start, n_users)
        else:
            like = content * (vectors[start:stop] @ vectors.T).cpu()  # [b, n_users]
        common = (unit[start:stop] @ by_item).tocoo()
        places = torch.from_numpy(common.row.astype(np.int64)), torch.from_numpy(common.col.astype(np.int64))
        like.index_put_(places, (1 - content) * torch.from_numpy(common.data), accumulate=True)
        like[torch.arange(stop - start), torch.arange(start, stop)] = 0.0
        best = like.topk(width, dim=1)
        index[start:stop, :width] = torch.where(best.values > 0, best.indices, index[start:stop, :width])
        weight[start:stop, :width] = best.values.clamp(min=0.0)
    return Neighbours(index, weight, weight > 0).to(edges.device)
