"""The self-enhanced loss: template rows are asked to rank by themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.nn import Noise
from recplug.plugins.step import Batch


class SelfEnhanced(nn.Module):
    r"""A pairwise loss on raw template rows (INMO, arXiv 2107.05247).

    .. math:: L = \frac{1}{|V|} \sum_{(u, i, j) \in V} \mathrm{softplus}\big( e_u^\top C e_j - e_u^\top C e_i \big)

    C is diagonal, trained, and begins as the identity; V are the triples of which all three are templates.

    Where we deviate: the triples are the batch's where the host has users, positives and negatives, one of each, and
    not a batch of their own. Elsewhere (cross-entropy and pointwise hosts) as many are drawn as the batch has rows: a
    training interaction, and an item with interactions that the user has not had. A sequential batch's own targets
    would leave out the beginnings of histories.

    Args:
        edges: ``[2, n]`` training interactions (user, item), each once, ascending.
        n_rows: rows of the item table.
        width: d.
        seed: of the draws.
    """

    keys: Tensor
    items: Tensor

    def __init__(self, *, edges: Tensor, n_rows: int, width: int, seed: int) -> None:
        super().__init__()
        self.n_rows = n_rows
        self.noise = Noise(seed)
        self.register_buffer("keys", edges[0] * n_rows + edges[1], persistent=False)  # [n], ascending
        self.register_buffer("items", torch.unique(edges[1]), persistent=False)
        self.scale = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """C as the identity."""
        nn.init.ones_(self.scale)

    def triples(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Users, positives and negatives ``[b]``, and which of the triples hold ``[b]`` bool."""
        users, liked, others = batch.users, batch.positives, batch.negatives
        named = users is not None and liked is not None and others is not None and batch.labels is None
        if named and users.shape == liked.shape == others.shape:  # type: ignore[union-attr]
            return users, liked, others, torch.ones_like(users, dtype=torch.bool)  # type: ignore[return-value, arg-type]
        ids = next((ids for ids in (users, liked, batch.sequence) if ids is not None), self.keys[:0])
        if not len(self.keys):
            return self.keys, self.keys, self.keys, self.keys.bool()
        drawn = self.noise.uniform((2, len(ids)), self.keys.device)
        pairs = self.keys[_places(drawn[0], len(self.keys))]
        others = self.items[_places(drawn[1], len(self.items))]
        users, liked = pairs // self.n_rows, pairs % self.n_rows
        asked = users * self.n_rows + others
        nearest = torch.searchsorted(self.keys, asked).clamp(max=len(self.keys) - 1)
        return users, liked, others, self.keys[nearest] != asked

    def forward(
        self, users: Tensor, items: Tensor, batch: Batch, *, user_templates: Tensor, item_templates: Tensor
    ) -> Tensor:
        """The loss, a scalar; 0 where no triple is left.

        Args:
            users: ``[n_users, d]``, raw rows.
            items: ``[n_rows, d]``, raw rows.
            batch: the host's ids.
            user_templates: ``[n_users]`` bool.
            item_templates: ``[n_rows]`` bool.
        """
        who, liked, other, valid = self.triples(batch)
        valid = valid & user_templates[who] & item_templates[liked] & item_templates[other]
        with torch.autocast(users.device.type, enabled=False):
            rows = F.embedding(who, users).float() * self.scale  # [b, d]
            first, second = F.embedding(torch.stack([liked, other]), items)  # [b, d] each
            margin = (rows * (first - second)).sum(dim=1)
            return (F.softplus(-margin) * valid).sum() / valid.sum().clamp(min=1)


def _places(drawn: Tensor, n: int) -> Tensor:
    """Uniform numbers in [0, 1) to places below ``n``."""
    return (drawn.double() * n).long().clamp(max=n - 1)
