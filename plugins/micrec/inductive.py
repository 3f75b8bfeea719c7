"""Users and items that training has not seen: folded in, or everything anew with them; and how each got its vector."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Side
from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec.fold_in import FoldIn
from recplug.plugins.micrec.module import Micrec
from recplug.plugins.micrec.neighbours import nearest
from recplug.plugins.micrec.new_nodes import CROSS_DOMAIN, ROUTES, Explanation, Nodes, Route
from recplug.plugins.micrec.templates import SIDES
from recplug.plugins.nn.knn import Neighbours


class Inductive(FoldIn):
    """Fold-in, and beside it the *exact* mode of INMO (arXiv 2107.05247): counts, representations and graph anew with
    all edges, where everything moves."""

    @torch.no_grad()
    def exact(self, more: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Everything anew with every edge.

        Which known nodes are content neighbours stays as training found it.

        Args:
            more: ``[2, m]`` (user row, item row): further interactions, of known nodes too.

        Returns:
            What users (None on a sequential host) and items are scored by, known and new, ``[size, w]``.

        Raises:
            RecplugError: where the host's rule cannot be run on another graph.
        """
        new = [nodes.support for side in SIDES for nodes in self.added[side]]
        edges = torch.cat([self.edges, *new, *([] if more is None else [more.to(self.edges.device)])], dim=1)
        edges = torch.unique(edges, dim=1)
        users = None if self.h["users"] is None else self._table("users", edges)
        items = self._table("items", edges.flip(0))
        if users is not None and self.n_layers != 0:
            if self.rule is None:
                self.check_fold_in()
                raise RecplugError("the backbone's propagation cannot be run on another graph; use mode='fold_in'")
            users, items = self.rule(edges, users, items)
        if users is not None:
            users = self._all_lent("users", users, edges[0])
        return users, self._all_lent("items", items, edges[1])

    def _table(self, side: Side, edges: Tensor) -> Tensor:
        """Layer 0 of one side, known and new ``[size, d]``, with ``edges [2, m]`` (its row, the other side's)."""
        gate, n = self.micrec.gate, len(self.raw[side])
        h, _ = self._represent(side, self.size(side), edges)
        before, self.h[side] = self.h[side], h[:n]
        pair = (h[:n], self.raw["items"]) if side == "users" else (None, h[:n])
        known = self.micrec.refined(*pair)[SIDES.index(side)]
        assert known is not None
        parts = [known if gate is None else self.raw[side] + gate.detach()[SIDES.index(side)] * known]
        start = n
        for nodes in self.added[side]:
            near = nodes.near if bool((nodes.routes != CROSS_DOMAIN).all()) else self._by_content(nodes)
            parts.append(self._layer_0(side, h[start : start + len(nodes.vectors)], near))
            start += len(nodes.vectors)
        self.h[side] = before
        return torch.cat(parts)

    def _by_content(self, nodes: Nodes) -> Neighbours:
        """Without those found through the second domain."""
        return replace(nodes.near, valid=nodes.near.valid & (nodes.routes != CROSS_DOMAIN).unsqueeze(1))

    def _all_lent(self, side: Side, vectors: Tensor, ends: Tensor) -> Tensor:
        """``vectors [size, w]`` in which nodes that no edge ends at have what is lent to them."""
        alone = (torch.bincount(ends, minlength=len(vectors)) == 0).unsqueeze(1)  # [size, 1]
        start = len(self.raw[side])
        known = vectors[:start]
        parts = [torch.where(alone[:start], self.micrec.lend(known), known) if side == "items" else known]
        for nodes in self.added[side]:
            rows = slice(start, start + len(nodes.vectors))
            lent, found = self._lent(side, known, nodes.near, nodes.routes)
            parts.append(torch.where(alone[rows] & found.unsqueeze(1), lent, vectors[rows]))
            start = rows.stop
        return torch.cat(parts)

    def explain(self, side: Side, row: int) -> Explanation:
        """How one row of a side, known or new, came by its vector.

        Raises:
            RecplugError: where there is no such row.
        """
        known = start = len(self.raw[side])
        if not 0 <= row < self.size(side):
            raise RecplugError(f"micrec has no row {row} of {side}; there are {self.size(side)}")
        if row >= known:
            for nodes in self.added[side]:
                if row < start + len(nodes.vectors):
                    at = row - start
                    return Explanation(ROUTES[int(nodes.routes[at])], int(nodes.templates[at]), _listed(nodes.near, at))
                start += len(nodes.vectors)
        counts = self.templates.user_counts if side == "users" else self.templates.item_counts
        near = _listed(self.micrec.neighbours[side], row) if side in self.micrec.neighbours else []
        route: Route = "warm" if int(self.degrees[side][row]) else "content" if near else "global"
        return Explanation(route, int(counts[row] - 1), near)


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
    if source is None or transfer is None or micrec.links is None:
        return None
    links = torch.cat([micrec.links, source.held_out]).to(users.device)  # [m, 2]
    source_users = source_users.to(users.device)
    ours, theirs = transfer.project(source.encode_users(source_users).float(), users[links[:, 1]].float())
    asked = F.normalize(ours, dim=1).masked_fill((source_users == 0).unsqueeze(1), 0.0)
    found = nearest(asked, F.normalize(theirs, dim=1), k)
    return replace(found, index=links[found.index, 1])


def _listed(near: Neighbours, row: int) -> list[tuple[int, float]]:
    """One row's neighbours and their weights."""
    index, weight, valid = near.index[row], near.weight[row], near.valid[row]
    return list(zip(index[valid].tolist(), weight[valid].tolist(), strict=True))
