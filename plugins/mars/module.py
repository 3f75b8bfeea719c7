"""MARS as an augmentation: of the item table, or of propagated items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recplug.plugins.contract import Augmentation, Modality, Panel, Role
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.mars.diagnostics import Seen, diagnose
from recplug.plugins.mars.fusion import FactorFusion, Pooled
from recplug.plugins.mars.new_items import Route, vectors_of_new_items
from recplug.plugins.mars.semantic_head import SemanticHead, mean_over
from recplug.plugins.mars.settings import MarsSettings
from recplug.plugins.mars.views import branches_by_source, choose, view_distance, views
from recplug.plugins.nn.contrast import first_of_each
from recplug.plugins.nn.frozen import Frozen
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.step import Step


class Mars(Frozen, Augmentation):
    r"""Semantic factors of items: group means, a gate, a semantic head (MARS, OpenReview Y6idSGOwfK).

    .. math::
        X_i &= z_i^{id} W^{id} + \textstyle\sum_m z_i^m W^m && \text{(5)} \\
        H_i &= a_i^0\,(S X)_i + \textstyle\sum_k a_i^k\,(P_k X)_i, \quad a_i = \mathrm{softmax}(W_g X_i)
        && \text{(6-8)} \\
        \tilde e_i &= e_i + H_i && \text{ours} \\
        \mathcal L &= \lambda\,\mathcal L_{sem} + \eta\,\mathcal L_{view} && \text{(10, 12, 13)}

    :math:`P_k X` is exactly the mean of the item's group, so no factor graph is built
    (:class:`~recplug.plugins.mars.groups.Groups`). The equations have no term for the item itself, of whose vector
    about 1 % would be left; here H is added to it.

    Where the defaults deviate: X is the item's row alone; the gate runs over the factors, which share ``factor_weight``
    beside a structure of weight 1; on sequential hosts a group is heard by the root of its size times its mean; the
    head reads the backbone's item and not H; there is no view loss. In every preset: an unknown factor has no weight
    and no label, and losses are means over the batch's distinct positive items. The preset ``paper`` is the equations
    as they stand, ``mmrec`` the same with H added to the backbone's item.

    Args:
        settings: every choice; ``strength`` is ``"mean"`` or ``"root"``.
        profiles: K factors of the host's items.
        n_rows: rows of the item table.
        width: d, of the rows that it acts on.
        modalities: content sources that enter X.
        structure: S, ``[n_rows, n_rows]``, or None.
        every_node: whether the host may read propagated items that the batch does not name.
        edges: ``[2, n]`` (user, item) training interactions, for :meth:`diagnostics` and :meth:`unseen`, or None.

    Raises:
        RecplugError: views that the data cannot give, or nothing in the item's place.
    """

    sources: Tensor

    def __init__(
        self,
        *,
        settings: MarsSettings,
        profiles: FactorProfiles,
        n_rows: int,
        width: int,
        modalities: Sequence[Modality] = (),
        structure: Adjacency | None = None,
        every_node: bool = False,
        edges: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.profiles = profiles
        self.width = width
        self.every_node = every_node
        self.popularity = None if edges is None else torch.bincount(edges[1], minlength=n_rows)  # [n_rows]
        self.fusion = FactorFusion(
            settings=settings,
            profiles=profiles,
            structure=structure,
            modalities=modalities,
            n_rows=n_rows,
            width=width,
        )
        self.head: SemanticHead | None = None
        if settings.lambda_semantic:
            self.head = SemanticHead(profiles=profiles, n_rows=n_rows, width=width)
        self.views = choose(settings.views, profiles, self.fusion) if settings.lambda_view else "off"
        self.freeze("sources", branches_by_source(profiles))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start."""
        self.fusion.reset_parameters()
        if self.head is not None:
            self.head.reset_parameters()

    # -- vectors

    def pooled(self, step: Step) -> Pooled:
        """What this step averages once."""
        memory = step.memory
        if "mars.ids" not in memory:
            found = self.fusion.pool(self.ids(step))
            memory.update({f"mars.{name}": value for name, value in found._asdict().items() if value is not None})
        return Pooled(memory["mars.ids"], memory.get("mars.values"), memory.get("mars.neighbours"))

    def ids(self, step: Step) -> Tensor:
        """``[n_rows, d]``: z^id, the backbone's item table."""
        return step.table("items")

    def at(self, step: Step, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The backbone's rows ``[r, d]``, H ``[r, d]`` and the gate ``[r, K + 1]``, at a batch's items ``[r]``."""
        raise NotImplementedError

    # -- losses

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The semantic head's loss and the views' distance, over the batch's distinct positive items.

        Where a batch names no items (ENMF), they are over all that the step works on.
        """
        found: dict[str, Tensor] = {}
        ids = step.asked() if step.batch.positives is None else step.batch.positives
        free = self.fusion.free
        if self.head is None and self.views == "off" and free is None:
            return found
        once = first_of_each(ids) & (ids > 0)  # [b]
        rows, h, weights = self.at(step, ids)
        if self.head is not None:
            each, known = self.head.per_item(h if self.settings.semantic_on == "fused" else rows, ids)
            found["semantic"] = self.settings.lambda_semantic * mean_over(each, once & known)
        if self.views != "off":
            seen, valid = views(self.views, self.fusion, self.sources, self.pooled(step), ids, weights)
            found["views"] = self.settings.lambda_view * view_distance(seen, valid, once)
        if free is not None and self.settings.lambda_free:
            found["free"] = self.settings.lambda_free * free.square().sum(dim=1).mean() / 2
        return found

    # -- after training

    def seen(self) -> Seen | None:
        """What the evaluation under way used of every item, or None before it has seen them."""
        step = self.step
        if step is None or ("propagated" in self.seams() and "mars.base" not in step.memory):
            return None
        pooled = self.pooled(step)
        items = torch.arange(1, self.profiles.n_items, device=pooled.ids.device)
        base, h, weights = self.at(step, items)
        trained_on_labels = self.head is not None and self.settings.semantic_on == "base"
        return Seen(
            self.fusion, pooled, items, base, h, weights, self.views, self.sources, self.popularity, trained_on_labels
        )

    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """See :func:`recplug.plugins.mars.diagnostics.diagnose`; empty before an evaluation has seen the items."""
        seen = self.seen()
        return {} if seen is None else diagnose(seen)

    def unseen(
        self,
        base: Tensor,
        profiles: FactorProfiles,
        modalities: Mapping[str, Modality] | None = None,
        *,
        known: Mapping[str, Modality] | None = None,
        ids: Tensor | None = None,
    ) -> tuple[Tensor, list[Route]]:
        """Vectors of items that have no row; see :func:`recplug.plugins.mars.new_items.vectors_of_new_items`."""
        return vectors_of_new_items(
            self.fusion, base, profiles, modalities, known=known, ids=ids, popularity=self.popularity
        )

    def extra_repr(self) -> str:
        """Sizes, and the choices that differ from the defaults."""
        changed = self.settings.model_dump(exclude_defaults=True)
        names = [factor.name for factor in self.profiles.factors]
        return ", ".join([f"factors={names}, views={self.views}", *(f"{k}={v!r}" for k, v in changed.items())])


class MarsTable(Mars):
    """On the item table: an item's row is the same whatever the history, as an input and as a candidate."""

    by_item: frozenset[Role] = frozenset({"input", "candidate"})

    def items(self, rows: Tensor, ids: Tensor, *, role: Role, sequence: Tensor | None) -> Tensor:
        """``[*ids.shape, d]``."""
        if self.fusion.empty:
            return rows
        assert self.step is not None
        h, _ = self.fused(self.step, ids)
        return self.fusion.join(rows, h)

    def fused(self, step: Step, ids: Tensor) -> tuple[Tensor, Tensor]:
        """H ``[*ids.shape, d]`` and its weights ``[*ids.shape, K + 1]``, computed once a step and item."""
        pooled = self.pooled(step)
        h, weights = step.lookup("mars.h", ids, lambda rows: self.fusion(pooled, rows))
        return h, weights

    def at(self, step: Step, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The table's rows, H and its weights at ``ids [r]``."""
        return step.table("items").index_select(0, ids), *self.fused(step, ids)


class MarsNodes(Mars):
    """On propagated items ``[n_items, d]``, of which a step needs its batch's; z^id is the raw table, as in FREEDOM."""

    def ids(self, step: Step) -> Tensor:
        """``[n_items, d]``: the raw table, without further rows."""
        return step.table("items")[: step.memory["mars.base"].shape[0]]

    def propagated(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """``[n_users, d]``, ``[n_items, d]``; items that the batch does not name keep the host's vector."""
        if self.step is None:
            raise RecplugError("mars acts on propagated items within a step; ask the host, not the module")
        step, memory = self.step, self.step.memory
        memory["mars.base"] = items
        if self.fusion.empty:
            return users, items
        rows = self._rows(step, items)
        h, weights = self.fusion(self.pooled(step), rows)
        memory["mars.h"], memory["mars.weights"] = h, weights
        memory["mars.slot"] = torch.zeros(len(items), dtype=rows.dtype, device=rows.device).index_copy(
            0, rows, torch.arange(len(rows), device=rows.device)
        )
        base = items.index_select(0, rows)
        own = torch.where((rows == 0).unsqueeze(1), base, self.fusion.join(base, h))  # padding stays the host's
        spare = torch.where(first_of_each(rows), rows, len(items))  # a row that comes twice is written once
        room = torch.cat([items, items.new_zeros(1, items.shape[1])])
        return users, room.index_copy(0, spare, own)[: len(items)]

    def at(self, step: Step, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The host's propagated rows, H and its weights at ``ids [r]``."""
        memory = step.memory
        rows = memory["mars.base"].index_select(0, ids)
        if "mars.h" not in memory:
            h, weights = self.fusion(self.pooled(step), ids)
            return rows, h, weights
        slot = memory["mars.slot"][ids]
        return rows, memory["mars.h"].index_select(0, slot), memory["mars.weights"].index_select(0, slot)

    def _rows(self, step: Step, items: Tensor) -> Tensor:
        """``[r]``: the items that this step reads."""
        named = step.batch.items()
        if step.kind != "training" or self.every_node or not named:
            return torch.arange(len(items), device=items.device)
        rows = torch.cat(named)
        # Counting distinct ids would stop an accelerator.
        return torch.unique(rows) if rows.device.type == "cpu" else rows
