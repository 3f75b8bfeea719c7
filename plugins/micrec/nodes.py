"""What stands around a trained MICRec, and nodes that training has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from recplug.plugins.micrec.module import Micrec
from recplug.plugins.micrec.neighbours import Content
from recplug.plugins.nn.knn import Neighbours

# (edges [2, m] of users and items, users [n_users, d], items [n_items, d]) -> (users, items), by the host's own rule
Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


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
        routes: ``[n]``: places in :data:`~recplug.plugins.micrec.routes.ROUTES`.
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
