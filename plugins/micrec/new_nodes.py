"""New users and items: what a trained model is to them, what they become, and how they come by their vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from recplug.plugins.micrec.content import Content
from recplug.plugins.micrec.module import Micrec
from recplug.plugins.nn.knn import Neighbours

# (edges [2, m] of users and items, users [n_users, d], items [n_items, d]) -> (users, items), by the host's own rule
Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
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


@dataclass(frozen=True)
class Trained:
    """A trained MICRec and what stands around it.

    Attributes:
        micrec: in evaluation mode.
        users: ``[n_users, d]``, the host's raw table; None on a sequential host.
        items: ``[n_rows, d]``, the host's raw table.
        nodes: what the host scores by: ``[n_users, w]`` or None, ``[n_rows, w]``.
        layers: L, where the host propagates by LightGCN's rule; 0 where it does not propagate; None where its rule is
            another one.
        rule: the host's propagation on any graph, or None where that cannot be run.
    """

    micrec: Micrec
    users: Tensor | None
    items: Tensor
    nodes: tuple[Tensor | None, Tensor]
    layers: int | None = 0
    rule: Rule | None = None


@dataclass(frozen=True)
class Nodes:
    """Nodes of one side that training has not seen.

    Attributes:
        vectors: ``[n, d]``, what they are scored by.
        layers: ``[n, d]`` each: Z of layers 0 to L - 1, at least layer 0, for nodes that come later.
        degrees: ``[n]``: with how many nodes they have interacted.
        templates: ``[n]``: how many of these are templates.
        routes: ``[n]``: places in :data:`ROUTES`.
        near: the nearest known nodes of the same side by content, or through the second domain, ``[n, k]``.
        content: of these nodes, or None.
        support: ``[2, m]`` (user row, item row).
    """

    vectors: Tensor
    layers: tuple[Tensor, ...]
    degrees: Tensor
    templates: Tensor
    routes: Tensor
    near: Neighbours
    content: Content | None
    support: Tensor
