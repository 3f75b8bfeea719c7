"""Toy backbones, small enough to read at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.contract import BOTH_HALVES, Family, Half, Seam
from recplug.plugins.nn.propagation import Adjacency, lightgcn
from recplug.plugins.step import Batch


class ToySequence(nn.Module):
    """A sequential backbone: item table, encoder, dot-product scores.

    The padding row is not zero (RecBole's initialisers overwrite it too), and dropout is on, so that a shifted random
    sequence shows.

    Args:
        n_items: items with the padding row.
        width: d.
        encoder: ``"gru"`` or ``"mean"``, a masked mean.
        loss_type: ``"ce"`` over all items or ``"bpr"`` with one negative.
        mask_row: append a mask token to every history, as BERT4Rec does; its row is the table's last.
        dropout: on the encoder's input.
    """

    family: ClassVar[Family] = "sequential"
    loss_reduction: ClassVar[Literal["mean", "sum"]] = "mean"
    seams: ClassVar[frozenset[Seam]] = frozenset({"items", "tables", "score", "losses"})
    halves: ClassVar[frozenset[Half]] = frozenset({"ranking"})
    mask_id: int | None

    def __init__(
        self,
        *,
        n_items: int,
        width: int = 16,
        encoder: Literal["gru", "mean"] = "mean",
        loss_type: Literal["ce", "bpr"] = "ce",
        mask_row: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.n_items = n_items
        self.loss_type = loss_type
        self.mask_id = n_items if mask_row else None
        self.items = nn.Embedding(n_items + mask_row, width, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(width, width, batch_first=True) if encoder == "gru" else None
        self.out = nn.Linear(width, width)
        nn.init.normal_(self.items.weight, std=0.3)

    def encode(self, batch: Batch) -> Tensor:
        """``sequence [B, L]`` and ``lengths [B]`` of a batch to ``[B, d]``."""
        sequence, lengths = batch.sequence, batch.lengths
        assert sequence is not None
        assert lengths is not None
        if self.mask_id is not None:
            sequence = F.pad(sequence, (0, 1)).scatter(1, lengths.unsqueeze(1), self.mask_id)  # [B, L+1]
            lengths = lengths + 1
        hidden = self.dropout(self.items(sequence))  # [B, L, d]
        if self.gru is None:
            real = (sequence != 0).unsqueeze(-1)  # [B, L, 1]
            return self.out((hidden * real).sum(dim=1) / lengths.unsqueeze(1))
        states = self.gru(hidden)[0]  # [B, L, d]
        last = (lengths - 1).reshape(-1, 1, 1).expand(-1, 1, states.shape[-1])  # [B, 1, d]
        return self.out(states.gather(1, last).squeeze(1))

    def loss_of(self, encoded: Tensor, batch: Batch) -> Tensor:
        """The training loss of encoded users ``[B, d]``."""
        assert batch.positives is not None
        if self.loss_type == "ce":
            return F.cross_entropy(encoded @ self.items.weight[: self.n_items].T, batch.positives)
        return bpr(encoded, self.items(batch.positives), self.items(batch.negatives))

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch."""
        return self.loss_of(self.encode(batch), batch)

    def scores(self, batch: Batch) -> Tensor:
        """``[B, n_items]``."""
        return self.encode(batch) @ self.items.weight[: self.n_items].T


class ToyGraph(nn.Module):
    """A matrix factorisation: a user table and an item table, trained by BPR.

    The users' padding row is not zero either, and theirs is an embedding without ``padding_idx``, as in RecBole.

    Args:
        n_users, n_items: counts with the padding rows.
        width: d.
        dropout: on the user vectors.
    """

    family: ClassVar[Family] = "graph"
    seams: ClassVar[frozenset[Seam]] = frozenset({"items", "users", "tables", "score", "losses"})
    halves: ClassVar[frozenset[Half]] = BOTH_HALVES
    mask_id: int | None = None
    loss_type = "bpr"
    loss_reduction: ClassVar[Literal["mean", "sum"]] = "mean"

    def __init__(self, *, n_users: int, n_items: int, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        self.n_items = n_items
        self.users = nn.Embedding(n_users, width)
        self.items = nn.Embedding(n_items, width, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.pair_loss = PairLoss()
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)

    def encode(self, batch: Batch) -> Tensor:
        """``users [B]`` of a batch to ``[B, d]``."""
        return self.dropout(self.users(batch.users))

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch."""
        encoded = self.encode(batch)  # [B, d]
        return self.pair_loss(_dot(encoded, self.items(batch.positives)), _dot(encoded, self.items(batch.negatives)))

    def scores(self, batch: Batch) -> Tensor:
        """``[B, n_items]``."""
        return self.encode(batch) @ self.items.weight.T

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores ``[b]`` of ``users [b]`` with ``items [b]``."""
        return _dot(self.encode(Batch(users=users)), self.items(items))


class ToyPropagation(ToyGraph):
    """A :class:`ToyGraph` whose users and items are propagated before they are scored by their dot product (LightGCN).

    Called without arguments it gives its nodes: ``users [n_users, d]`` and ``items [n_items, d]``. A host may set
    ``propagates_over``, the graph, before it is called.

    Args:
        n_users, n_items: counts with the padding rows.
        edges: ``[2, n]`` training interactions (user, item).
        width: d.
        layers: of propagation.
        dropout: on the user table; on the nodes, whose width is free, a plugin would shift its draws.
    """

    seams: ClassVar[frozenset[Seam]] = ToyGraph.seams | {"graph", "propagated"}
    free_width: ClassVar[bool] = True

    def __init__(
        self,
        *,
        n_users: int,
        n_items: int,
        edges: Tensor,
        width: int = 16,
        layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(n_users=n_users, n_items=n_items, width=width, dropout=dropout)
        self.layers = layers
        self.adjacency = Adjacency.bipartite(edges, n_users=n_users, n_items=n_items)
        self.propagates_over = self.adjacency

    def forward(self) -> tuple[Tensor, Tensor]:
        """The nodes: ``[n_users, d]``, ``[n_items, d]``."""
        return lightgcn(self.propagates_over, self.dropout(self.users.weight), self.items.weight, self.layers)

    def encode(self, batch: Batch) -> Tensor:
        """``users [B]`` of a batch to ``[B, d]``."""
        users, _ = self()
        return users[batch.users]

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch."""
        users, items = self()
        encoded = users[batch.users]  # [B, d]
        return self.pair_loss(_dot(encoded, items[batch.positives]), _dot(encoded, items[batch.negatives]))

    def scores(self, batch: Batch) -> Tensor:
        """``[B, n_items]``."""
        users, items = self()
        return users[batch.users] @ items.T

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores ``[b]`` of ``users [b]`` with ``items [b]``."""
        all_users, all_items = self()
        return _dot(all_users[users], all_items[items])


class ToyDecoder(ToyPropagation):
    """A :class:`ToyPropagation` scored by a bilinear form, which fixes its nodes' width; its loss is a sum.

    No module compares its scores, so that nothing can change them in training.

    Args:
        n_users, n_items: counts with the padding rows.
        edges: ``[2, n]`` training interactions (user, item).
        width: d.
    """

    halves = frozenset({"ranking"})
    free_width = False
    loss_reduction = "sum"

    def __init__(self, *, n_users: int, n_items: int, edges: Tensor, width: int = 16) -> None:
        super().__init__(n_users=n_users, n_items=n_items, edges=edges, width=width)
        self.form = nn.Linear(width, width, bias=False)

    def encode(self, batch: Batch) -> Tensor:
        """``users [B]`` of a batch to ``[B, d]``."""
        return self.form(super().encode(batch))

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch."""
        assert batch.users is not None
        users, items = self()
        encoded = self.form(users[batch.users])  # [B, d]
        return len(encoded) * bpr(encoded, items[batch.positives], items[batch.negatives])

    def scores(self, batch: Batch) -> Tensor:
        """``[B, n_items]``."""
        users, items = self()
        return self.form(users[batch.users]) @ items.T

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores ``[b]`` of ``users [b]`` with ``items [b]``."""
        all_users, all_items = self()
        return _dot(self.form(all_users[users]), all_items[items])


class PairLoss(nn.Module):
    """Bayesian personalised ranking of given scores."""

    def forward(self, positive: Tensor, negative: Tensor) -> Tensor:
        """``[B]`` and ``[B]`` to ``[]``."""
        return -F.logsigmoid(positive - negative).mean()


def _dot(users: Tensor, items: Tensor) -> Tensor:
    """The scores ``[b]`` of rows ``[b, d]``."""
    return (users * items).sum(dim=-1)


def bpr(users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Bayesian personalised ranking: all ``[B, d]``, to ``[]``."""
    return -F.logsigmoid((users * (positives - negatives)).sum(dim=-1)).mean()


Toy = ToySequence | ToyGraph
# The toy backbones that a plugin is tested on, by name: from a number of users and of items, and the interactions.
HOSTS: dict[str, Callable[[int, int, Tensor], Toy]] = {
    "mean-ce": lambda n_users, n_items, edges: ToySequence(n_items=n_items),
    "gru-bpr": lambda n_users, n_items, edges: ToySequence(n_items=n_items, encoder="gru", loss_type="bpr"),
    "mask-ce": lambda n_users, n_items, edges: ToySequence(n_items=n_items, mask_row=True),
    "graph-bpr": lambda n_users, n_items, edges: ToyGraph(n_users=n_users, n_items=n_items),
    "nodes-bpr": lambda n_users, n_items, edges: ToyPropagation(n_users=n_users, n_items=n_items, edges=edges),
    "decoder-sum": lambda n_users, n_items, edges: ToyDecoder(n_users=n_users, n_items=n_items, edges=edges),
}
