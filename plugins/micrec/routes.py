"""How nodes that training has not seen come by a vector, and the parts that this takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec.module import Micrec
from recplug.plugins.micrec.neighbours import Content, content_vectors, nearest
from recplug.plugins.nn.knn import Neighbours

Route = Literal["warm", "support", "content", "cross_domain", "global"]
ROUTES: tuple[Route, ...] = ("warm", "support", "content", "cross_domain", "global")
SUPPORT, CONTENT, CROSS_DOMAIN, GLOBAL = (ROUTES.index(r) for r in ("support", "content", "cross_domain", "global"))


@dataclass(frozen=True)
class Explanation:
    """How a node came by its vector.

    Attributes:
        route: ``warm`` (trained), ``support`` (from its interactions), ``content`` (from its content neighbours),
            ``cross_domain`` (from the linked users nearest to it in the second domain) or ``global`` (as anyone's of
            whom nothing is known: one ranking for all, beside which popularity is the honest baseline).
        templates: how many templates it is made from.
        neighbours: rows of the same side, and how like they are.
    """

    route: Route
    templates: int
    neighbours: list[tuple[int, float]]


def new_content(known: Content, given: Mapping[str, Modality], n: int) -> Content:
    """Content of ``n`` new items in the terms of the known ones': their centres, their modalities, their order.

    Args:
        known: of the items that were trained.
        given: some or all of its modalities, ``n`` rows each; others are left out.
        n: rows.

    Raises:
        RecplugError: for vectors of another width, or for other rows.
    """
    modalities = []
    for name, centre in zip(known.names, known.centres, strict=True):
        empty = Modality(name, torch.zeros(n, len(centre)), torch.zeros(n, dtype=torch.bool))
        modality = given.get(name, empty)
        if modality.values.shape != empty.values.shape:
            raise RecplugError(
                f"{name} of new items is {list(modality.values.shape)}; beside the trained items it has to be "
                f"{list(empty.values.shape)}"
            )
        modalities.append(modality)
    weights = dict(zip(known.names, known.weights, strict=True))
    centres = dict(zip(known.names, known.centres, strict=True))
    return content_vectors(modalities, weights, n, centres=centres, device=known.values.device)


@torch.no_grad()
def across(micrec: Micrec, users: Tensor, source_users: Tensor, k: int) -> Neighbours | None:
    """The k linked users whose projected vectors are nearest to those of users of the second domain.

    Args:
        micrec: trained.
        users: ``[n_users, w]``: the target's users, as they are scored by.
        source_users: ``[n]`` ids of the second domain, 0 for someone whom it does not know either.
        k: how many.

    Returns:
        Rows of the target's users, and the cosine between a person's projection there and theirs here; None where
        the run had no second domain, or no contrast with it.
    """
    source, transfer = micrec.source, micrec.transfer
    if source is None or transfer is None:
        return None
    links = torch.cat([source.links, source.held_out]).to(users.device)  # [m, 2]
    source_users = source_users.to(users.device)
    ours, theirs = transfer.project(source.encode_users(source_users).float(), users[links[:, 1]].float())
    asked = F.normalize(ours, dim=1).masked_fill((source_users == 0).unsqueeze(1), 0.0)
    found = nearest(asked, F.normalize(theirs, dim=1), k)
    return replace(found, index=links[found.index, 1])


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


def listed(near: Neighbours, row: int) -> list[tuple[int, float]]:
    """One row's neighbours and their weights."""
    index, weight, valid = near.index[row], near.weight[row], near.valid[row]
    return list(zip(index[valid].tolist(), weight[valid].tolist(), strict=True))
