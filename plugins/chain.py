"""Composition: several augmentations on one backbone, in the order in which the user named them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from recplug.plugins.contract import SEAMS, Augmentation, Context, Role, Seam, Side
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.scoring import Scoring
from recplug.plugins.step import Batch, RowFunction, Step
from recplug.plugins.table import ItemTable, Table, UserTable, special_rows


class Chain(Scoring, nn.Module):
    """The augmentations of one backbone by plugin name; each sees the previous one's output.

    An adapter grafts the chain's tables, opens a :meth:`step` around each training loss, and adds :meth:`total_loss` to
    what the host returns. The rest (memory, the epoch clock, padding rows) happens here, once, for every host.

    Args:
        augmentations: by plugin name, in order.
        context: what they were built with.
    """

    item_table: ItemTable | None = None
    user_table: UserTable | None = None

    def __init__(self, augmentations: Mapping[str, Augmentation], context: Context) -> None:
        super().__init__()
        self.plugins = nn.ModuleDict(augmentations)
        self._acting = {s: tuple(n for n, a in augmentations.items() if s in a.seams()) for s in SEAMS}
        self.host = context.host
        self.n_items = context.n_items
        self.padding_id = context.padding_id
        self.mask_id = context.mask_id
        self.loss_reduction = context.loss_reduction
        self.propagates = "propagated" in context.width
        self.steps_per_epoch = context.steps_per_epoch
        self.flips_mode = False  # whether the host switches modes between the steps of one epoch
        self.epoch, self.start_epoch = -1, 0
        self.on_epoch: Callable[[int], None] | None = None
        self.vectors: Callable[[Tensor], Tensor] | None = None  # set by an adapter, for Step.vectors_of
        self._epoch_pending = True
        self._steps_in_epoch = 0
        self._step: Step | None = None
        self._bound: Step | None = None
        self._evaluation: tuple[tuple[object, ...], Step] | None = None
        self._override: RowFunction | None = None
        self._parts: dict[str, Tensor] = {}

    # -- steps

    @contextmanager
    def step(
        self, batch: Batch, *, whole_table: bool = False, beyond_batch: bool = False, score_is_dot: bool = False
    ) -> Iterator[Step]:
        """Open one training step around the host's loss; tells the epoch clock.

        Args:
            batch: the batch's ids.
            whole_table: whether the host's loss scores against every item.
            beyond_batch: whether the host may ask for items that no field of the batch holds.
            score_is_dot: whether the host scores by the dot product with the candidate table.
        """
        self._tick()
        fused = bool(self.acting("tables")) or any("candidate" in a.roles for a in self.acting("items").values())
        whole_table = beyond_batch or (whole_table and fused)
        step = Step(self, kind="training", batch=batch, whole_table=whole_table, score_is_dot=score_is_dot)
        self._step = step
        self._bind(step)
        try:
            yield step
        finally:
            self._step = None
            self._bind(None)

    def current(self) -> Step:
        """The step under way; in evaluation one that lasts until the model changes; else one for a single use.

        A change is a move, an in-place write or another precision; a write through ``.data`` needs ``eval()`` after it.
        """
        if self._step is not None:
            return self._step
        if self.training or torch.is_grad_enabled():
            return Step(self, kind="call")
        versions = self._versions()
        if self._evaluation is None or self._evaluation[0] != versions:
            self._evaluation = versions, Step(self, kind="evaluation")
        return self._evaluation[1]

    @contextmanager
    def asking(self, step: Step | None = None) -> Iterator[Step]:
        """Hold ``step``, or the current one, while a host computes: what it reads and makes of it is one step's."""
        held, previous = step or self.current(), self._step
        self._step = held
        try:
            yield held
        finally:
            self._step = previous

    @contextmanager
    def serving(self, step: Step | None = None) -> Iterator[Step]:
        """Bind the augmentations to ``step``, or to the current one, while they are being asked something."""
        step, previous = step or self.current(), self._bound
        self._bind(step)
        try:
            yield step
        finally:
            self._bind(previous)  # one augmentation may ask for a table that another one makes

    @property
    def steps_in_epoch(self) -> int:
        """Training steps that this epoch has begun."""
        return self._steps_in_epoch

    def forget(self) -> None:
        """Drop what an evaluation remembered."""
        self._evaluation = None

    def train(self, mode: bool = True) -> Chain:
        """Switch mode; training forgets what evaluation remembered and arms the epoch clock."""
        super().train(mode)
        self.forget()
        if mode:
            self._epoch_pending = True
        return self

    def _bind(self, step: Step | None) -> None:
        self._bound = step
        for augmentation in self.augmentations().values():
            augmentation.step = step

    def _versions(self) -> tuple[object, ...]:
        # In-place writes (an optimiser, load_state_dict) raise a tensor's version; moving the model makes new tensors.
        tensors = [*(t.raw for t in self.tables().values()), *self.parameters(), *self.buffers()]
        numbers = versions_of(tensors)
        device = tensors[0].device.type if tensors else "cpu"
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return (*numbers, dtype)

    def _tick(self) -> None:
        # RecBole's dynamic negative sampling flips eval() and train() between the steps of one epoch.
        begun = self.flips_mode and 0 < self._steps_in_epoch < self.steps_per_epoch
        if self._epoch_pending and not begun:
            self.epoch = self.start_epoch if self.epoch < 0 else self.epoch + 1
            self._steps_in_epoch = 0
            for augmentation in self.augmentations().values():
                augmentation.on_epoch_start(self.epoch)
            if self.on_epoch is not None:
                self.on_epoch(self.epoch)
        self._epoch_pending = False
        self._steps_in_epoch += 1

    # -- seams

    def augmentations(self) -> dict[str, Augmentation]:
        """The augmentations by name, in order."""
        return cast(dict[str, Augmentation], dict(self.plugins.items()))

    def acting(self, seam: Seam) -> dict[str, Augmentation]:
        """The augmentations that act on one seam, in order."""
        return {name: cast(Augmentation, self.plugins[name]) for name in self._acting[seam]}

    def fuses_by_item(self, role: Role) -> bool:
        """Whether an item has one row in ``role``, whatever the history."""
        if role == "input" and self._override is not None:
            return False
        return all(role in a.by_item for a in self.acting("items").values() if role in a.roles)

    def acts(self, role: Role) -> bool:
        """Whether any augmentation changes rows in ``role``."""
        overridden = role == "input" and self._override is not None
        return overridden or any(role in a.roles for a in self.acting("items").values())

    def has_one_table(self) -> bool:
        """Whether the encoder reads and the score uses the same rows."""
        return all(a.roles == a.by_item == {"input", "candidate"} for a in self.acting("items").values())

    @contextmanager
    def override(self, row_fn: RowFunction) -> Iterator[None]:
        """Replace the chain at the encoder's input by ``row_fn``."""
        previous, self._override = self._override, row_fn
        try:
            yield
        finally:
            self._override = previous

    def tables(self) -> dict[Side, Table]:
        """The host's grafted tables by side."""
        both: dict[Side, Table | None] = {"users": self.user_table, "items": self.item_table}
        return {side: table for side, table in both.items() if table is not None}

    def table(self, side: Side) -> Table:
        """One of the host's grafted tables.

        Raises:
            RecplugError: if the host has none.
        """
        found = self.tables().get(side)
        if found is None:
            what, other = ("user", "items") if side == "users" else ("item", "propagated nodes")
            raise RecplugError(f"{self.host} has no {what} table; use a plugin that acts on {other}")
        return found

    def raw_table(self, step: Step, side: Side) -> Tensor:
        """The host's table after the *tables* seam: ``[n_rows, d]``."""
        raw, acting = self.table(side).raw, self.acting("tables")
        if not acting:
            return raw
        if f"tables.{side}" not in step.memory:
            items: Tensor = self.table("items").raw
            users: Tensor | None = None if self.user_table is None else self.user_table.raw
            with self.serving(step):
                for augmentation in acting.values():
                    users, items = augmentation.tables(users, items)
            step.memory["tables.items"] = self._kept(step, "items", items)
            if users is not None:
                step.memory["tables.users"] = self._kept(step, "users", users)
        return step.memory[f"tables.{side}"]

    def _kept(self, step: Step, side: Side, rows: Tensor) -> Tensor:
        """``rows [n, d]`` of a whole table with the host's own padding and mask rows."""
        raw = self.table(side).raw
        if rows is raw:
            return raw
        ids = step.all_ids()  # cut, not made: a step makes no tensor on the CPU
        special = ids[self.padding_id : self.padding_id + 1]
        if side == "items" and self.mask_id is not None:
            special = torch.cat([special, ids[self.mask_id : self.mask_id + 1]])
        # A copy that exchanges a row; a choice between two tables, row by row, takes several times as long.
        return rows.to(raw.dtype).index_copy(0, special, raw.index_select(0, special))

    def users(self, step: Step, rows: Tensor, ids: Tensor) -> Tensor:
        """Pass ``rows [*ids.shape, d]`` through the user seam; the padding row keeps the host's vector."""
        fused = rows
        with self.serving(step):
            for augmentation in self.acting("users").values():
                fused = augmentation.users(fused, ids)
        if fused is rows:
            return rows
        return torch.where((ids == self.padding_id).unsqueeze(-1), rows, fused.to(rows.dtype))

    def user_weight(self, step: Step) -> Tensor:
        """``[n_rows, d]``: every user, augmented; once a step."""
        table = self.raw_table(step, "users")
        if not self.acting("users"):
            return table
        if "recplug.users" not in step.memory:
            ids = torch.arange(len(table), device=table.device)
            step.memory["recplug.users"] = self.users(step, table, ids)
        return step.memory["recplug.users"]

    def graph(self, step: Step, graph: Adjacency) -> Adjacency:
        """The user-item graph that the host propagates over in ``step``; outside of training it is ``graph`` itself."""
        if step.kind != "training" or not self.acting("graph"):
            return graph
        if step.graph is None:  # a host may propagate more than once a step
            with self.serving(step):
                for augmentation in self.acting("graph").values():
                    graph = augmentation.graph(graph)
            step.graph = graph
        return step.graph

    def propagated(self, step: Step, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Pass propagated nodes ``[n_users, w]`` and ``[n_items, w]`` through that seam."""
        with self.serving(step):
            for augmentation in self.acting("propagated").values():
                users, items = augmentation.propagated(users, items)
        step.propagated = users, items
        return users, items

    def items(self, step: Step, rows: Tensor, ids: Tensor, *, role: Role, sequence: Tensor | None) -> Tensor:
        """Pass ``rows [*ids.shape, d]`` through the item seam; padding and mask rows keep the host's vector."""
        if role == "input" and self._override is not None:
            fused = self._override(rows, ids, sequence)
        else:
            fused = rows
            with self.serving(step):
                for augmentation in self.acting("items").values():
                    if role in augmentation.roles:
                        fused = augmentation.items(fused, ids, role=role, sequence=sequence)
        if fused is rows:
            return rows
        special = special_rows(ids, self.padding_id, self.mask_id)
        return torch.where(special.unsqueeze(-1), rows, fused.to(rows.dtype))

    def item_weight(self, step: Step) -> Tensor:
        """``[n_rows, d]``: the candidate table, once a step."""
        table = self.raw_table(step, "items")
        if not self.acts("candidate"):
            return table

        def fuse(ids: Tensor) -> Tensor:
            rows = table if len(ids) == len(table) else table[ids]
            return self.items(step, rows, ids, role="candidate", sequence=None)

        return step.lookup("recplug.weight", step.all_ids(), fuse)[0]

    # -- losses

    def total_loss(self, step: Step) -> Tensor | None:
        """The sum of every plugin's loss terms, or None where there are none; the parts are kept for the log.

        Plugins' losses are means over the batch; where the host's is a sum (SGL), theirs is multiplied by the batch.
        """
        total: Tensor | None = None
        for name, augmentation in self.acting("losses").items():
            for part, value in augmentation.losses(step).items():
                self.log_part(f"{name}.{part}", value)
                total = value if total is None else total + value
        users = step.batch.users
        if total is not None and self.loss_reduction == "sum" and users is not None:
            total = total * len(users)
        return total

    def log_part(self, name: str, value: Tensor) -> None:
        """Add one loss part to this epoch's sums, on the device."""
        value = value.detach().float().mean()  # RecBole's LightGCN has a loss of shape [1]
        self._parts[name] = self._parts[name] + value if name in self._parts else value

    def read_parts(self) -> dict[str, float]:
        """This epoch's mean of every loss part (one transfer to the host), and begin anew."""
        if not self._parts:
            return {}
        steps = max(self._steps_in_epoch, 1)
        values = (torch.stack(list(self._parts.values())) / steps).tolist()
        means = dict(zip(self._parts, values, strict=True))
        self._parts = {}
        return means

    def on_evaluation_end(self, epoch: int, score: float) -> None:
        """Tell every augmentation that a validation has ended."""
        for augmentation in self.augmentations().values():
            augmentation.on_evaluation_end(epoch, score)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(_step=None, _bound=None, _evaluation=None, _override=None, _parts={}, on_epoch=None)
        return state


def versions_of(tensors: Iterable[Tensor]) -> list[int]:
    """Numbers that change when one of the tensors is written to in place, or replaced."""
    return [n for t in tensors for n in (0 if t.is_inference() else t._version, t.data_ptr())]
