"""MARS as an augmentation: of the item table, or of propagated items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Augmentation, Modality, Panel, Role
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.mars.diagnostics import diagnose
from recplug.plugins.mars.fusion import FactorFusion, Pooled, total
from recplug.plugins.mars.groups import Groups
from recplug.plugins.mars.losses import SemanticHead, mean_over, view_distance
from recplug.plugins.mars.settings import MarsSettings
from recplug.plugins.mars.unseen import Route, unseen
from recplug.plugins.mars.views import branches_by_source, choose, views
from recplug.plugins.nn.contrast import first_of_each
from recplug.plugins.nn.frozen import Frozen
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.step import Step


class Mars(Frozen, Augmentation):
    r"""Semantic factors of items: group means, a gate, a semantic head (MARS, OpenReview Y6idSGOwfK).

    .. math::
        X_i &= z_i^{id} + \textstyle\sum_m z_i^m W^m && \text{(5)} \\
        H_i &= a_i^0\,(S X)_i + \textstyle\sum_k a_i^k\,(P_k X)_i, \quad a_i = \mathrm{softmax}(W_g X_i)
        && \text{(6-8)} \\
        \tilde e_i &= e_i + H_i && \text{ours} \\
        \mathcal L &= \lambda\,\mathcal L_{sem} + \eta\,\mathcal L_{view} && \text{(10, 12, 13)}

    :math:`P_k X` is exactly the mean of the item's group, so no factor graph is built (:class:`Groups`). The equations
    have no term for the item itself, of whose vector about 1 % would be left; here H is added to it. With
    ``join="residual"`` R takes the place of H, in which every branch has a trained scale that starts at zero: the first
    scores are the backbone's to the last bit.

    Where we deviate: ids need no projection (W^id = 1), and by default content is no part of X; where it is, it is
    frozen, at unit length. By default the gate runs over the factors, which share ``factor_weight`` beside a structure
    of weight 1, and on sequential hosts a group is heard by the root of its size times its mean. An unknown factor has
    no weight and no label; losses are means over the batch's distinct positive items. The presets ``paper_literal`` and
    ``paper_mmrec`` are the paper's in all but what it leaves open.

    Args:
        settings: every choice.
        profiles: K factors of the host's items.
        n_rows: rows of the item table.
        width: d, of the rows that it acts on.
        modalities: content sources that enter X.
        structure: S, ``[n_rows, n_rows]``, or None.
        contributors: ``[n_rows]`` bool: whose rows enter their groups' means; None: everyone's.
        every_node: whether the host may read propagated items that the batch does not name.
        edges: ``[2, n]`` (user, item) training interactions, for :meth:`diagnostics` and :meth:`unseen`, or None.

    Raises:
        RecplugError: views or a gate's input that the data cannot give, or nothing in the item's place.
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
        contributors: Tensor | None = None,
        every_node: bool = False,
        edges: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.profiles = profiles
        self.width = width
        self.every_node = every_node
        self.contributors = contributors
        self.popularity = None if edges is None else torch.bincount(edges[1], minlength=n_rows)  # [n_rows]
        groups = None if settings.pool == "none" else self.groups_of(profiles, n_rows)
        self.fusion = FactorFusion(
            settings=settings,
            groups=groups,
            n_values=profiles.n_values,
            structure=structure,
            modalities=modalities,
            n_rows=n_rows,
            n_factors=len(profiles.factors),
            width=width,
        )
        if self.fusion.empty and settings.join == "replace":
            raise RecplugError("mars.join replace leaves items without a vector here; give it a pool or a structure")
        if self.fusion.by_content and not self.fusion.content.names:
            raise RecplugError("mars.gate_input content finds none; let mars.modalities name some, or set it to x")
        self.head: SemanticHead | None = None
        if settings.lambda_semantic:
            self.head = SemanticHead(
                profiles=profiles, n_rows=n_rows, width=width, form=settings.head, loss=settings.semantic
            )
        self.views = choose(settings.views, profiles, self.fusion) if settings.lambda_view else "off"
        self.freeze("sources", branches_by_source(profiles))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start, where with a residual H is not heard."""
        self.fusion.reset_parameters()
        if self.head is not None:
            self.head.reset_parameters()

    def groups_of(self, profiles: FactorProfiles, n_rows: int, **changes: Any) -> Groups:
        """Who shares a value in these profiles, by the module's settings but for ``changes`` to :meth:`Groups.of`."""
        settings = self.settings
        choices: dict[str, Any] = {
            "multi": settings.several,
            "self_loop": settings.self_loop,
            "other": settings.other,
            "strength": "mean" if settings.strength == "auto" else settings.strength,
        }
        return Groups.of(profiles, n_rows=n_rows, contributors=self.contributors, **{**choices, **changes})

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

    def join(self, rows: Tensor, h: Tensor) -> Tensor:
        """The item that is scored, from the backbone's ``rows [r, d]`` and R or H, ``h [r, d]``."""
        if self.settings.length == "l2":
            h = F.normalize(h, dim=-1)
        elif self.settings.length == "layernorm":
            h = F.layer_norm(h, (self.width,))
        return h.to(rows.dtype) if self.settings.join == "replace" else rows + h.to(rows.dtype)

    def at(self, step: Step, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The backbone's rows ``[r, d]``, R or H ``[r, d]`` and the gate ``[r, K + 1]``, at a batch's items ``[r]``."""
        raise NotImplementedError

    def plain(self, step: Step, ids: Tensor, weights: Tensor) -> Tensor:
        """H itself, ``[r, d]``, at ``ids [r]`` with the gate's ``weights [r, K + 1]``."""
        return self.fusion.mean(total(self.fusion.blocks(self.pooled(step), ids)), weights, ids)

    # -- losses

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The semantic head's loss and the views' distance, over the batch's distinct positive items.

        Where a batch names no items (ENMF), they are over all that the step works on.
        """
        found: dict[str, Tensor] = {}
        ids = step.asked() if step.batch.positives is None else step.batch.positives
        if self.head is None and self.views == "off" and self.fusion.free is None:
            return found
        once = first_of_each(ids) & (ids > 0)  # [b]
        rows, h, weights = self.at(step, ids)
        if self.head is not None:
            if self.settings.semantic_on == "fused":
                rows = h if self.fusion.scale is None else self.plain(step, ids, weights)
            elif self.settings.semantic_on == "output":
                rows = self.join(rows, h)
            each, known = self.head.per_item(rows, ids)
            found["semantic"] = self.settings.lambda_semantic * mean_over(each, once & known)
        if self.views != "off":
            seen, valid = views(self.views, self.fusion, self.sources, self.pooled(step), ids, weights)
            unit = self.settings.view_length == "l2"
            found["views"] = self.settings.lambda_view * view_distance(seen, valid, once, unit=unit)
        if self.fusion.free is not None and self.settings.lambda_free:
            found["free"] = self.settings.lambda_free * self.fusion.free.square().sum(dim=1).mean() / 2
        return found

    # -- after training

    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """See :func:`recplug.plugins.mars.diagnostics.diagnose`; most of it once an evaluation has seen the items."""
        return diagnose(self)

    def unseen(
        self,
        base: Tensor,
        profiles: FactorProfiles,
        modalities: Mapping[str, Modality] | None = None,
        *,
        known: Mapping[str, Modality] | None = None,
        ids: Tensor | None = None,
    ) -> tuple[Tensor, list[Route]]:
        """Vectors of items that have no row; see :func:`recplug.plugins.mars.unseen.unseen`."""
        return unseen(self, base, profiles, modalities, known=known, ids=ids)

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
        return self.join(rows, h)

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
        own = torch.where((rows == 0).unsqueeze(1), base, self.join(base, h))  # padding stays the host's
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
