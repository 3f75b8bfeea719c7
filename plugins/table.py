"""The item-table seam: the host's own ``nn.Embedding``, turned into one that asks the chain.

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


class ItemTable(nn.Embedding):
    """An embedding whose rows, and whose ``weight``, pass through a chain of augmentations.

    ``forward(ids)``: ids of two dimensions are users' histories (role *input*), others are candidates.
    ``weight``: ``[n_rows, d]``, every row in the role *candidate*; computed once a step.
    ``raw``: ``[n_rows, d]``, the host's parameter.
    """

    chain: Chain
    one_dimensional_input: bool

    @classmethod
    def graft(cls, embedding: nn.Embedding, chain: Chain, *, one_dimensional_input: bool = False) -> ItemTable:
        """Turn ``embedding`` into an :class:`ItemTable`, in place.

        Args:
            embedding: the host's table.
            chain: the augmentations.
            one_dimensional_input: whether the host reads the last item alone as its input (TransRec).
        """
        # Written past nn.Module.__setattr__: the chain is not a child of the table, or it would be saved twice.
        embedding.__dict__.update(chain=chain, one_dimensional_input=one_dimensional_input)
        embedding.__class__ = cls
        table: ItemTable = embedding  # type: ignore[assignment]
        chain.__dict__["item_table"] = table
        return table

    @property
    def raw(self) -> nn.Parameter:
        """``[n_rows, d]``: the host's own parameter."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        return parameter

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``[n_rows, d]``: the candidate table."""
        try:
            return self.chain.item_weight(self.chain.current())
        except AttributeError as error:
            # nn.Module would answer an AttributeError with the raw parameter and hide the failure.
            raise RuntimeError(f"an augmentation failed: {error}") from error

    def forward(self, ids: Tensor) -> Tensor:
        """``ids [...]`` to ``[..., d]``."""
        chain, step = self.chain, self.chain.current()
        table = chain.raw_table(step, "items")
        role: Role = "input" if ids.dim() >= 2 or self.one_dimensional_input else "candidate"
        if not chain.fuses_by_item(role):
            return chain.items(step, self.embed(ids, table), ids, role=role, sequence=ids if ids.dim() == 2 else None)
        if not chain.acts(role):
            return self.embed(ids, table)
        if chain.has_one_table() and (step.whole_table or step.kind == "evaluation"):
            return self.embed(ids, chain.item_weight(step))

        def fuse(distinct: Tensor) -> Tensor:
            return chain.items(step, self.embed(distinct, table), distinct, role=role, sequence=None)

        return step.lookup(f"recplug.rows.{role}", ids, fuse)[0]

    def embed(self, ids: Tensor, table: Tensor) -> Tensor:
        """The host's own lookup of ``ids`` in ``table [n_rows, d]``."""
        return F.embedding(
            ids, table, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )

    def extra_repr(self) -> str:
        """The embedding's own description and the chain's names."""
        return f"{super().extra_repr()}, plugins={list(self.chain.plugins)}"


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
