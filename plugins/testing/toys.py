"""Toy backbones, small enough to read at once, and a toy host that binds augmentations to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.chain import Chain
from recplug.plugins.contract import Augmentation, Context, Family
from recplug.plugins.step import Batch
from recplug.plugins.table import ItemTable


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

    Only the item table is a seam here: propagated nodes and user rows are no part of the chain yet.

    Args:
        n_users, n_items: counts with the padding rows.
        width: d.
        dropout: on the user vectors.
    """

    family: ClassVar[Family] = "graph"
    mask_id: int | None = None
    loss_type = "bpr"

    def __init__(self, *, n_users: int, n_items: int, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        self.n_items = n_items
        self.users = nn.Embedding(n_users, width)
        self.items = nn.Embedding(n_items, width, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.items.weight, std=0.3)

    def encode(self, batch: Batch) -> Tensor:
        """``users [B]`` of a batch to ``[B, d]``."""
        return self.dropout(self.users(batch.users))

    def loss_of(self, encoded: Tensor, batch: Batch) -> Tensor:
        """The training loss of encoded users ``[B, d]``."""
        return bpr(encoded, self.items(batch.positives), self.items(batch.negatives))

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch."""
        return self.loss_of(self.encode(batch), batch)

    def scores(self, batch: Batch) -> Tensor:
        """``[B, n_items]``."""
        return self.encode(batch) @ self.items.weight[: self.n_items].T


def bpr(users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Bayesian personalised ranking: all ``[B, d]``, to ``[]``."""
    return -F.logsigmoid((users * (positives - negatives)).sum(dim=-1)).mean()


Toy = ToySequence | ToyGraph
# The toy backbones that a plugin is tested on, by name: from a number of users and of items.
HOSTS: dict[str, Callable[[int, int], Toy]] = {
    "mean-ce": lambda n_users, n_items: ToySequence(n_items=n_items),
    "gru-bpr": lambda n_users, n_items: ToySequence(n_items=n_items, encoder="gru", loss_type="bpr"),
    "mask-ce": lambda n_users, n_items: ToySequence(n_items=n_items, mask_row=True),
    "graph-bpr": lambda n_users, n_items: ToyGraph(n_users=n_users, n_items=n_items),
}


class ToyHost(nn.Module):
    """A toy backbone with augmentations grafted on: all that an adapter does, in a page.

    Args:
        backbone: the toy; its item table is turned into an :class:`ItemTable`.
        augmentations: by plugin name, in order.
        context: what they were built with.
    """

    backbone: Toy
    chain: Chain

    def __init__(self, backbone: Toy, augmentations: Mapping[str, Augmentation], context: Context) -> None:
        super().__init__()
        self.backbone = backbone
        self.chain = Chain(augmentations, context)
        ItemTable.graft(backbone.items, self.chain)

    def loss(self, batch: Batch) -> Tensor:
        """The backbone's training loss and the plugins'."""
        sequential = self.backbone.family == "sequential"
        with self.chain.step(batch, whole_table=self.backbone.loss_type == "ce", score_is_dot=sequential) as step:
            encode = partial(self.backbone.encode, batch)
            encoded = encode()  # [B, d]
            if sequential:
                step.encoder, step.encoded = encode, encoded
            host = self.backbone.loss_of(encoded, batch)
            total = self.chain.total_loss(step)
        return host if total is None else host + total

    def encode(self, batch: Batch) -> Tensor:
        """``[B, d]``, within a step that knows the whole batch; nothing is learned from it."""
        with torch.no_grad(), self.chain.step(batch):
            return self.backbone.encode(batch)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """``[B, n_items]``, as an evaluation computes them."""
        training = self.training
        self.eval()
        scores = self.backbone.scores(batch)
        self.train(training)
        return scores
