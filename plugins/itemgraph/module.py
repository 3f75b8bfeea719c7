"""A frozen item graph, a frozen user graph and edge dropout, on a backbone that propagates."""

from __future__ import annotations

from torch import Tensor

from recplug.plugins.contract import Augmentation
from recplug.plugins.nn import Adjacency, Noise
from recplug.plugins.nn.edge_dropout import drop_edges
from recplug.plugins.nn.smoothing import Smoothing


class ItemGraph(Augmentation):
    r"""Means over like items and like users, added to what the backbone propagates; nothing of it is trained.

    .. math::
        \hat h_i = h_i + w_I \sum_j S_{ij}\, e_j, \qquad
        \hat h_u = h_u + w_U \sum_v T_{uv}\, e_v

    h are the propagated nodes and e the backbone's tables, or h again where these are of another width (NGCF). S is the
    frozen item graph of FREEDOM (arXiv 2211.06924, eqs. 6 to 10) in the form that its authors' code has: every item has
    k neighbours, so that normalising on both sides is a mean. T has the form of DRAGON's user graph (arXiv 2309.05273);
    likeness by content and the weights that are not trained are ours. FREEDOM's losses on content are left out.

    Args:
        items: S, ``[n_items, n_items]`` with its weight, or None.
        users: T, ``[n_users, n_users]`` with its weight, or None.
        item_table, user_table: whether the backbone has such a table, as wide as its nodes.
    """

    def __init__(self, *, items: Smoothing | None, users: Smoothing | None, item_table: bool, user_table: bool) -> None:
        super().__init__()
        self.item_graph = items
        self.user_graph = users
        self.item_table = item_table
        self.user_table = user_table

    def propagated(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """``[n_users, w]``, ``[n_items, w]``."""
        step = self.step
        own_users, own_items = users, items
        if step is not None and self.user_table:
            own_users = step.table("users")
        if step is not None and self.item_table:
            own_items = step.table("items")[: len(items)]  # a mask row is no node
        if self.user_graph is not None:
            users = users + self.user_graph(own_users).to(users.dtype)
        if self.item_graph is not None:
            items = items + self.item_graph(own_items).to(items.dtype)
        return users, items


class DroppedEdges(ItemGraph):
    """An :class:`ItemGraph` whose backbone propagates over other edges in every epoch of training.

    Args:
        n_users: user nodes.
        rate: the share of edges that an epoch lacks.
        seed: of the draws.
        **graphs: as for :class:`ItemGraph`.
    """

    def __init__(self, *, n_users: int, rate: float, seed: int, **graphs: object) -> None:
        super().__init__(**graphs)  # type: ignore[arg-type]
        self.n_users = n_users
        self.rate = rate
        self.noise = Noise(seed)
        self._drawn: Adjacency | None = None

    def on_epoch_start(self, epoch: int) -> None:
        """Other edges from now on."""
        self._drawn = None

    def graph(self, graph: Adjacency) -> Adjacency:
        """This epoch's graph, ``[n_users + n_items, n_users + n_items]``."""
        if self._drawn is None:
            self._drawn = drop_edges(graph, n_users=self.n_users, rate=self.rate, noise=self.noise)
        return self._drawn.to(graph.device)

    def extra_repr(self) -> str:
        """The share that is dropped."""
        return f"rate={self.rate}"
