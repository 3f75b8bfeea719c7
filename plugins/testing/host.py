"""A toy host: a toy backbone with augmentations grafted on, which is all that an adapter does, in a page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from recplug.plugins.chain import Chain
from recplug.plugins.contract import Augmentation, Context
from recplug.plugins.step import Batch
from recplug.plugins.table import ItemTable, UserTable
from recplug.plugins.testing.toys import Toy, ToyGraph, ToyPropagation, ToySequence


class ToyHost(nn.Module):
    """A toy backbone with augmentations grafted on.

    Args:
        backbone: the toy; its tables are grafted, and its nodes and scores pass through the augmentations.
        augmentations: by plugin name, in order.
        context: what they were built with.
    """

    backbone: Toy
    chain: Chain
    histories: Tensor

    def __init__(self, backbone: Toy, augmentations: Mapping[str, Augmentation], context: Context) -> None:
        super().__init__()
        self.backbone = backbone
        self.chain = Chain(augmentations, context)
        ItemTable.graft(backbone.items, self.chain, role="candidate" if backbone.family == "graph" else None)
        if isinstance(backbone, ToyGraph):
            UserTable.graft(backbone.users, self.chain)
            if "training" in backbone.halves:
                backbone.pair_loss.__dict__["chain"] = self.chain
                backbone.pair_loss.register_forward_pre_hook(_through_scores)
        if isinstance(backbone, ToySequence):
            self.register_buffer("histories", histories_of(context.edges, context.n_users), persistent=False)
            self.chain.vectors = self._encoded
        if isinstance(backbone, ToyPropagation):
            self.chain.vectors = self._propagated
            # Past nn.Module.__setattr__: the chain is no child of the backbone.
            backbone.__dict__["chain"] = self.chain
            backbone.register_forward_pre_hook(_over_graph)
            backbone.register_forward_hook(_through_chain)

    def loss(self, batch: Batch) -> Tensor:
        """The backbone's training loss and the plugins'."""
        backbone = self.backbone
        sequential = isinstance(backbone, ToySequence)
        # A propagating backbone reads its whole tables in every step.
        beyond_batch, whole_table = isinstance(backbone, ToyPropagation), backbone.loss_type == "ce"
        with self.chain.step(
            batch, whole_table=whole_table, beyond_batch=beyond_batch, score_is_dot=sequential
        ) as step:
            if isinstance(backbone, ToySequence):
                step.encoder = partial(backbone.encode, batch)
                step.encoded = step.encoder()  # [B, d]
                host = backbone.loss_of(step.encoded, batch)
            else:
                host = backbone.loss(batch)
            total = self.chain.total_loss(step)
        return host if total is None else host + total

    def _encoded(self, users: Tensor) -> Tensor:
        """``users [b]`` to encodings ``[b, d]`` of their whole histories."""
        assert isinstance(self.backbone, ToySequence)
        sequence = self.histories[users]  # [b, L]
        lengths = (sequence != 0).sum(dim=1).clamp(min=1)
        return self.backbone.encode(Batch(users=users, sequence=sequence, lengths=lengths))

    def _propagated(self, users: Tensor) -> Tensor:
        """``users [b]`` to their nodes ``[b, w]``."""
        assert isinstance(self.backbone, ToyPropagation)
        return self.backbone()[0][users]

    def encode(self, batch: Batch) -> Tensor:
        """``[B, d]``, within a step that knows the whole batch; nothing is learned from it."""
        beyond_batch = isinstance(self.backbone, ToyPropagation)
        with torch.no_grad(), self.chain.step(batch, beyond_batch=beyond_batch):
            return self.backbone.encode(batch)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """``[B, n_items]``, as an evaluation computes them."""
        training = self.training
        self.eval()
        with self.chain.asking() as step:
            scores = self.backbone.scores(batch)
            if batch.users is not None:
                scores = self.chain.score_ranking(step, scores, batch.users, shown=self.shown(batch))
        self.train(training)
        return scores

    def shown(self, batch: Batch) -> Batch:
        """What the backbone reads of a batch that is ranked."""
        if isinstance(self.backbone, ToyGraph):
            return Batch(users=batch.users)
        return Batch(users=batch.users, sequence=batch.sequence, lengths=batch.lengths)

    @torch.no_grad()
    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores ``[b]`` of ``users [b]`` with ``items [b]``, as an evaluation computes them."""
        assert isinstance(self.backbone, ToyGraph)
        if self.chain.by_whole_rows():
            some, place = torch.unique(users, return_inverse=True)
            return self.scores(Batch(users=some))[place, items]
        training = self.training
        self.eval()
        with self.chain.asking() as step:
            scores = self.chain.score(step, self.backbone.pairs(users, items), users, items)
        self.train(training)
        return scores


def histories_of(edges: Tensor, n_users: int) -> Tensor:
    """``edges [2, n]`` (user, item) to each user's items in their order, padded: ``[n_users, L]``."""
    order = torch.argsort(edges[0], stable=True)
    users, items = edges[:, order]
    counts = torch.bincount(users, minlength=n_users)
    place = torch.arange(len(users), device=users.device) - (counts.cumsum(0) - counts)[users]
    found = torch.zeros(n_users, max(int(counts.max()), 1), dtype=torch.long, device=edges.device)
    found[users, place] = items
    return found


def _over_graph(backbone: nn.Module, arguments: tuple[object, ...]) -> None:
    assert isinstance(backbone, ToyPropagation)
    chain: Chain = backbone.__dict__["chain"]
    backbone.propagates_over = chain.graph(chain.current(), backbone.adjacency)


def _through_chain(backbone: nn.Module, arguments: tuple[object, ...], nodes: tuple[Tensor, Tensor]) -> object:
    chain: Chain = backbone.__dict__["chain"]
    return chain.propagated(chain.current(), *nodes)


def _through_scores(loss: nn.Module, scores: tuple[Tensor, Tensor]) -> object:
    chain: Chain = loss.__dict__["chain"]
    return chain.score_training(*scores)
