"""MAGNET on items by themselves (node mode, ours): on the item table, or on propagated items."""

from __future__ import annotations

import torch
from torch import Tensor

from recplug.plugins.contract import Role
from recplug.plugins.errors import RecplugError
from recplug.plugins.magnet.module import Magnet
from recplug.plugins.magnet.router import Routing, route
from recplug.plugins.nn.contrast import first_of_each
from recplug.plugins.step import BLOCK, Step


class MagnetItems(Magnet):
    """An item is routed by its own behaviour vector, and its row becomes the mixture of the experts' vectors.

    Not the paper's granularity: an item has one routing for all users, and keeps one vector, so that dot products,
    softmaxes over all items and nearest-neighbour indexes work as before. Entropies are those of the batch's positives
    as they come, or the rarely sampled tail would fire the trigger.
    """

    def routed(self, z: Tensor, ids: Tensor) -> tuple[Tensor, Routing]:
        """Of items ``ids [r]`` with ``z [r, d]``: the mixture ``[r, d]`` and its routing."""
        assert self.content is not None
        x, absent = self.inputs(z, *self.content.items(ids))
        found = route(self.router(self.router.item(z)), absent, self.top_k)
        return self.experts.vector(self.experts.item(x), found.kept), found

    def item_routing(self, step: Step, ids: Tensor) -> Routing | None:
        """As this step has routed items ``ids [r]``; None before it has."""
        raise NotImplementedError

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Coverage and confidence over the batch's positives."""
        positives = step.batch.positives
        if self.settings.inert or positives is None:
            return {}
        found = self.item_routing(step, positives)
        if found is None:
            return {}
        assert self.content is not None
        asked = ~self.lacking(self.content.present[positives])  # [b, E]
        return self.reduced(self.route_losses(found.dense, found.entropy, asked), len(positives))

    def sampled_routing(self, users: Tensor, items: Tensor) -> Routing | None:
        """Of the items of pairs ``[n]``, as this step has routed them."""
        return None if self.step is None else self.item_routing(self.step, items)


class MagnetTable(MagnetItems):
    """On the item table: the same row whatever the history, as an input and as a candidate."""

    by_item: frozenset[Role] = frozenset({"input", "candidate"})

    def items(self, rows: Tensor, ids: Tensor, *, role: Role, sequence: Tensor | None) -> Tensor:
        """``[*ids.shape, d]``."""
        if self.settings.inert:
            return rows
        assert self.step is not None
        return self.join(rows, self._looked_up(self.step, ids)[0])

    def _looked_up(self, step: Step, ids: Tensor) -> tuple[Tensor, ...]:
        """The mixture and its routing's three parts at ``ids``, once a step and item."""

        def compute(rows: Tensor) -> tuple[Tensor, ...]:
            own, found = self.routed(step.table("items").index_select(0, rows), rows)
            return own, *found

        return step.lookup("magnet.items", ids, compute)

    def item_routing(self, step: Step, ids: Tensor) -> Routing | None:
        """As this step's rows are made."""
        return Routing(*self._looked_up(step, ids)[1:])


class MagnetNodes(MagnetItems):
    """On propagated items ``[n_items, d]``, of which a step needs its batch's.

    ``every_node``: whether the host may read propagated items that the batch does not name.
    """

    every_node = False

    def propagated(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """``[n_users, d]``, ``[n_items, d]``; items that the batch does not name keep the host's vector."""
        if self.settings.inert:
            return users, items
        if self.step is None:
            raise RecplugError("magnet acts on propagated items within a step; ask the host, not the module")
        memory = self.step.memory
        rows = self._rows(self.step, items)
        ids = torch.arange(len(items), device=items.device) if rows is None else rows
        parts = [self.routed(items.index_select(0, some), some) for some in ids.split(BLOCK)]
        mixed = torch.cat([own for own, _ in parts])
        for field, values in zip(Routing._fields, zip(*(found for _, found in parts), strict=True), strict=True):
            memory[f"magnet.{field}"] = torch.cat(values)
        if rows is None:
            return users, self.join(items, mixed)
        place = torch.arange(len(rows), device=rows.device)
        memory["magnet.slot"] = torch.zeros(len(items), dtype=rows.dtype, device=rows.device).index_copy(0, rows, place)
        own = self.join(items.index_select(0, rows), mixed)
        spare = torch.where(first_of_each(rows), rows, len(items))  # a row that comes twice is written once
        room = torch.cat([items, items.new_zeros(1, items.shape[1])])
        return users, room.index_copy(0, spare, own)[: len(items)]

    def _rows(self, step: Step, items: Tensor) -> Tensor | None:
        """``[r]``: the items that this step reads; None for all."""
        named = step.batch.items()
        if step.kind != "training" or self.every_node or not named:
            return None
        rows = torch.cat(named)
        # Counting distinct ids would stop an accelerator.
        return torch.unique(rows) if rows.device.type == "cpu" else rows

    def item_routing(self, step: Step, ids: Tensor) -> Routing | None:
        """As this step's items were routed; None where the host has propagated nothing in it."""
        memory = step.memory
        if "magnet.dense" not in memory:
            return None
        rows = memory["magnet.slot"][ids] if "magnet.slot" in memory else ids
        return Routing(*(memory[f"magnet.{field}"].index_select(0, rows) for field in Routing._fields))
