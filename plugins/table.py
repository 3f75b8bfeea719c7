"""The table seams: the host's own ``nn.Embedding`` of items or users, turned into one that asks the chain.

The embedding object stays the same object (only its class changes, as ``torch.nn.utils.parametrize`` does), so every
alias that a host holds of it is handled, checkpoint keys stay vanilla, and the parameter stays the host's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from recplug.plugins.chain import Chain
    from recplug.plugins.contract import Role


class Table(nn.Embedding):
    """An embedding whose rows, and whose ``weight``, pass through a chain of augmentations.

    ``raw``: ``[n_rows, d]``, the host's parameter.
    """

    chain: Chain

    @property
    def raw(self) -> nn.Parameter:
        """``[n_rows, d]``: the host's own parameter."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        return parameter

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``[n_rows, d]``: every row, augmented."""
        try:
            return self.every_row()
        except AttributeError as error:
            # nn.Module would answer an AttributeError with the raw parameter and hide the failure.
            raise RuntimeError(f"an augmentation failed: {error}") from error

    def every_row(self) -> Tensor:
        """``[n_rows, d]``: what ``weight`` gives."""
        raise NotImplementedError

    def embed(self, ids: Tensor, table: Tensor) -> Tensor:
        """The host's own lookup of ``ids`` in ``table [n_rows, d]``."""
        return F.embedding(
            ids, table, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )

    def extra_repr(self) -> str:
        """The embedding's own description and the chain's names."""
        return f"{super().extra_repr()}, plugins={list(self.chain.plugins)}"


class UserTable(Table):
    """The users' embedding: ``forward(ids [...])`` to ``[..., d]``, ``weight`` to ``[n_rows, d]``."""

    @classmethod
    def graft(cls, embedding: nn.Embedding, chain: Chain) -> UserTable:
        """Turn ``embedding`` into a :class:`UserTable`, in place."""
        embedding.__dict__.update(chain=chain)
        embedding.__class__ = cls
        table: UserTable = embedding  # type: ignore[assignment]
        chain.__dict__["user_table"] = table
        return table

    def every_row(self) -> Tensor:
        """``[n_rows, d]``: all users, augmented."""
        return self.chain.user_weight(self.chain.current())

    def forward(self, ids: Tensor) -> Tensor:
        """``ids [...]`` to ``[..., d]``."""
        chain, step = self.chain, self.chain.current()
        return chain.users(step, self.embed(ids, chain.raw_table(step, "users")), ids)


class ItemTable(Table):
    """The items' embedding.

    ``forward(ids)``: ids of two dimensions are users' histories (role *input*), others are candidates, unless the host
    has one role for all.
    ``weight``: ``[n_rows, d]``, every row in the role *candidate*; computed once a step.
    """

    role: Role | None

    @classmethod
    def graft(cls, embedding: nn.Embedding, chain: Chain, *, role: Role | None = None) -> ItemTable:
        """Turn ``embedding`` into an :class:`ItemTable`, in place.

        Args:
            embedding: the host's table.
            chain: the augmentations.
            role: the role of every lookup, where dimensions do not tell: TransRec encodes single items, SimpleX scores
                matrices of negatives.
        """
        # Written past nn.Module.__setattr__: the chain is not a child of the table, or it would be saved twice.
        embedding.__dict__.update(chain=chain, role=role)
        embedding.__class__ = cls
        table: ItemTable = embedding  # type: ignore[assignment]
        chain.__dict__["item_table"] = table
        return table

    def every_row(self) -> Tensor:
        """``[n_rows, d]``: the candidate table."""
        return self.chain.item_weight(self.chain.current())

    def forward(self, ids: Tensor) -> Tensor:
        """``ids [...]`` to ``[..., d]``."""
        chain, step = self.chain, self.chain.current()
        table = chain.raw_table(step, "items")
        role: Role = self.role or ("input" if ids.dim() >= 2 else "candidate")
        if not chain.fuses_by_item(role):
            history = ids if ids.dim() == 2 and role == "input" else None
            return chain.items(step, self.embed(ids, table), ids, role=role, sequence=history)
        if not chain.acts(role):
            return self.embed(ids, table)
        if chain.has_one_table() and (step.whole_table or step.kind == "evaluation"):
            return self.embed(ids, chain.item_weight(step))

        def fuse(distinct: Tensor) -> Tensor:
            return chain.items(step, self.embed(distinct, table), distinct, role=role, sequence=None)

        return step.lookup(f"recplug.rows.{role}", ids, fuse)[0]


def find_table(model: nn.Module, attribute: str) -> nn.Embedding | None:
    """The embedding at a dotted ``attribute`` of ``model``, or None."""
    found: object = model
    for part in attribute.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Embedding) else None


def special_rows(ids: Tensor, padding_id: int, mask_id: int | None) -> Tensor:
    """``[*ids.shape]`` bool: padding and mask rows, which keep the host's own vector."""
    special = ids == padding_id
    if mask_id is not None:
        special = torch.logical_or(special, ids == mask_id)
    return special
