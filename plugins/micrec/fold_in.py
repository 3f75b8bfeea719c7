"""Fold-in: vectors of users and items that training has not seen, which move nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from recplug.plugins.contract import Side
from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec.content import Content, user_content
from recplug.plugins.micrec.neighbours import chosen, mean_of, nearest, nobody, refine
from recplug.plugins.micrec.new_nodes import (
    CONTENT,
    CROSS_DOMAIN,
    GLOBAL,
    SUPPORT,
    Nodes,
    Trained,
)
from recplug.plugins.micrec.templates import SIDES, Templates
from recplug.plugins.nn.knn import Neighbours
from recplug.plugins.nn.propagation import Adjacency

OTHER: Mapping[Side, Side] = {"users": "items", "items": "users"}


class FoldIn:
    r"""New nodes beside a trained model (MICRec, arXiv 2510.21812), at the cost of their edges. Ours.

    .. math:: r_u = \frac{1}{L + 1} \Big[ \tilde h_u
        + \sum_{l=0}^{L-1} \sum_{i \in N(u)} \frac{z_i^{(l)}}{\sqrt{|N(u)| \, |N(i)|}} \Big], \quad \text{items alike}

    with Z of the layers that training left, and the N(i) of training.

    A node without interactions is the mean of its content neighbours' vectors (items; unless ``isolated`` is
    ``keep``), or that of the linked users nearest to it in the second domain (users), or what the global row gives.
    Only known nodes with training interactions are neighbours. Where representations are added to the host's rows, a
    new node has its neighbours' mean in the place of its own row, or the mean of all.

    Args:
        trained: the model.

    Raises:
        RecplugError: for a MICRec without templates, which has nothing to make new nodes from.
    """

    def __init__(self, trained: Trained) -> None:
        micrec = trained.micrec
        if micrec.templates is None:
            raise RecplugError("micrec.templates is off: there is nothing to make new users and items from")
        self.micrec, self.rule, self.n_layers = micrec, trained.rule, trained.layers
        self.templates: Templates = micrec.templates
        users = trained.users if trained.users is not None else micrec.template_users
        assert users is not None
        self.raw: dict[Side, Tensor] = {"users": users.detach(), "items": trained.items.detach()}
        self.nodes: dict[Side, Tensor | None] = dict(zip(SIDES, trained.nodes, strict=True))
        device = self.raw["items"].device
        self.edges = self.templates.edges.to(device)
        self.degrees: dict[Side, Tensor] = {side: micrec.degrees[side].to(device) for side in SIDES}
        self.added: dict[Side, list[Nodes]] = {"users": [], "items": []}
        with torch.no_grad():
            self.h: dict[Side, Tensor | None] = dict(
                zip(SIDES, micrec.represented(trained.users, trained.items), strict=True)
            )
            self.layers = self._layers(*micrec.tables(trained.users, trained.items))

    def _layers(self, users: Tensor | None, items: Tensor) -> dict[Side, list[Tensor]]:
        """Z of layers 0 to L - 1; of layer 0 alone where the host does not propagate, or by another rule."""
        rows: dict[Side, list[Tensor]] = {"users": [] if users is None else [users], "items": [items]}
        if users is None or not self.n_layers:
            return rows
        graph = Adjacency.bipartite(self.edges, n_users=len(users), n_items=len(items))
        z = torch.cat([users, items])  # [n_users + n_items, d]
        for _ in range(self.n_layers - 1):
            z = graph.matmul(z)
            rows["users"].append(z[: len(users)])
            rows["items"].append(z[len(users) :])
        return rows

    def size(self, side: Side) -> int:
        """Rows of one side, known and new."""
        return len(self.raw[side]) + sum(len(nodes.vectors) for nodes in self.added[side])

    # -- fold-in

    @torch.no_grad()
    def fold(
        self,
        side: Side,
        n: int,
        support: Tensor,
        *,
        content: Content | None = None,
        across: Neighbours | None = None,
    ) -> Nodes:
        """``n`` new nodes, of which nothing else learns.

        Args:
            side: what they are.
            n: how many.
            support: ``[2, m]`` (0 to n - 1, row of the other side, known or added before), each counted once.
            content: of new items (:func:`~recplug.plugins.micrec.content.new_content`); users have their items'.
            across: known users for new ones without support (:func:`~recplug.plugins.micrec.inductive.across`).
        """
        device = self.edges.device
        support = torch.unique(support.to(device), dim=1)
        degrees = torch.bincount(support[0], minlength=n)
        if side == "users":
            content = self._content_of_users(support, n)
        near = self._near(side, n, content)
        h, templates = self._represent(side, n, support)
        layers = [self._layer_0(side, h, near), *self._further_layers(side, n, support, degrees)]
        vectors = torch.stack(layers).mean(dim=0)  # [n, d]
        alone, known = degrees == 0, self.nodes[side]
        routes = torch.where(alone, torch.where(near.valid.any(dim=1), CONTENT, GLOBAL), SUPPORT)
        if across is not None:
            cross = (routes == GLOBAL) & across.valid.any(dim=1)
            routes[cross] = CROSS_DOMAIN
            near = chosen(cross, across, near)
        if known is not None and self.n_layers is not None:
            lent, found = self._lent(side, known, near, routes)
            vectors = torch.where((alone & found).unsqueeze(1), lent, vectors)
        kept = tuple(layers[: max(len(layers) - 1, 1)])
        both = support if side == "users" else support.flip(0)
        return Nodes(vectors, kept, degrees, templates, routes, near, content, both)

    def extend(self, side: Side, nodes: Nodes) -> None:
        """Keep folded nodes: they have the rows behind all others of their side, and later nodes may name them."""
        support = nodes.support.clone()
        support[SIDES.index(side)] += self.size(side)
        self.added[side].append(replace(nodes, support=support))

    def vectors(self, side: Side) -> Tensor:
        """``[size, w]``: what is scored by; known nodes' are the model's own.

        Raises:
            RecplugError: where there are new nodes and the host's rule is not LightGCN's.
        """
        known = self.nodes[side]
        assert known is not None
        if any(self.added.values()):
            self.check_fold_in()
        return torch.cat([known, *(nodes.vectors.to(known.dtype) for nodes in self.added[side])])

    def check_fold_in(self) -> None:
        """Whether fold-in is possible.

        Raises:
            RecplugError: where the host propagates by another rule than LightGCN's.
        """
        if self.n_layers is None:
            if self.rule is None:
                raise RecplugError(
                    "this backbone propagates by a rule that cannot be followed for new nodes; use BPR, LightGCN, NGCF "
                    "or a sequential backbone"
                )
            raise RecplugError("fold-in follows LightGCN's rule, and this backbone has another one; use mode='exact'")

    def _represent(self, side: Side, n: int, support: Tensor) -> tuple[Tensor, Tensor]:
        """h ``[n, d]`` and the number of templates ``[n]`` of nodes with ``support [2, m]``."""
        raw = self.raw[OTHER[side]]
        which = self.templates.item_templates if side == "users" else self.templates.user_templates
        support = support[:, support[1] < len(raw)]  # only what was trained is a template
        support = support[:, which[support[1]]]
        ones = torch.ones(support.shape[1], device=raw.device)
        counts = torch.bincount(support[0], minlength=n)
        sums = Adjacency.of(support, ones, (n, len(raw)), symmetric=False).matmul(raw)
        return self.templates.represent(sums, counts + 1, side), counts  # and the global row

    def _layer_0(self, side: Side, h: Tensor, near: Neighbours) -> Tensor:
        """Representations ``h [n, d]`` of new nodes with their neighbours', in the place of the host's rows."""
        pool, gate, rows = self.h[side], self.micrec.gate, self.raw[side]
        if pool is not None:
            h = refine(h, pool, near)
        if gate is None:
            return h
        lent, found = mean_of(rows, near, weighted=True)
        everyone = rows[self.degrees[side] > 0].mean(dim=0)
        return torch.where(found.unsqueeze(1), lent, everyone) + gate.detach()[SIDES.index(side)] * h

    def _further_layers(self, side: Side, n: int, support: Tensor, degrees: Tensor) -> list[Tensor]:
        other = OTHER[side]
        if not self.n_layers:
            return []
        # Without the new edge, which would be nearer to the exact mode: a new item is to be no shorter than a known one
        # of the same users, or it loses to all of them.
        theirs = torch.cat([self.degrees[other], *(nodes.degrees for nodes in self.added[other])]).clamp(min=1)
        weight = (degrees[support[0]] * theirs[support[1]]).float().rsqrt()
        graph = Adjacency.of(support, weight, (n, len(theirs)), symmetric=False)
        before = [
            torch.cat([known, *(nodes.layers[layer] for nodes in self.added[other])])
            for layer, known in enumerate(self.layers[other])
        ]
        return [graph.matmul(each) for each in before]

    def _lent(self, side: Side, known: Tensor, near: Neighbours, routes: Tensor) -> tuple[Tensor, Tensor]:
        """What nodes without interactions have from known ones ``[n, w]``, and who has it ``[n]``."""
        by_content = side == "items" and self.micrec.settings.isolated == "borrow"
        lent, found = mean_of(known, near, weighted=side == "items")
        return lent, found & (routes == (CONTENT if by_content else CROSS_DOMAIN))

    # -- content

    def _near(self, side: Side, n: int, content: Content | None) -> Neighbours:
        device = self.edges.device
        if content is None or side not in self.micrec.neighbours:
            return nobody(n, device)
        known = self.degrees[side] > 0
        pool = self.micrec.contents[side].values.to(device).masked_fill(~known.unsqueeze(1), 0.0)
        return nearest(content.values.to(device), pool, self.micrec.neighbours[side].index.shape[1])

    def _content_of_users(self, support: Tensor, n: int) -> Content | None:
        contents = self.micrec.contents
        if "users" not in contents or "items" not in contents:
            return None
        own = contents["users"]
        centres = dict(zip(own.names, own.centres, strict=True))
        return user_content(self._content_of_items().to(support.device), support, n, centres=centres)

    def _content_of_items(self) -> Content:
        """Of all items, known and new."""
        known = self.micrec.contents["items"]
        values = [known.values]
        for nodes in self.added["items"]:
            nothing = known.values.new_zeros(len(nodes.vectors), known.values.shape[1])
            values.append(nothing if nodes.content is None else nodes.content.values.to(nothing.device))
        stacked = torch.cat(values)
        return replace(known, values=stacked, present=(stacked != 0).any(dim=1))
