"""MAGNET on pairs of users and items, through the score seam: the paper's granularity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.magnet.channels import Channels
from recplug.plugins.magnet.losses import view_contrast
from recplug.plugins.magnet.module import Magnet
from recplug.plugins.magnet.router import HIDDEN, Routing, mixture, route
from recplug.plugins.magnet.settings import MagnetSettings
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.protocols import Propagate
from recplug.plugins.step import Step

FLOAT = 4  # bytes
RANKING = 2**28  # bytes that the ranking of a block may use at once
CPU_BLOCK = 2**22  # bytes: on the CPU, blocks that stay in its cache rank four times as fast
VIEWS = ("observed", "induced")
CONTRASTED = 1024  # rows of a batch whose nodes are contrasted, each with all others: the cost is its square


class Part(NamedTuple):
    """What a pair's score takes from its user, or from its item.

    ``first [r, E, d]`` of the experts, ``query [r, h]`` of the router, ``absent [r, E]`` bool: experts whose anchor it
    lacks.
    """

    first: Tensor
    query: Tensor
    absent: Tensor

    def cut(self, start: int, size: int) -> Part:
        """Of ``size`` rows."""
        return Part(*(values[start : start + size] for values in self))


class MagnetPairs(Magnet):
    """MAGNET's pair router: ``y = <z_u, z_i> + gamma * sum_e pi~_ui,e <v, s_ui^e>``.

    Behaviour vectors z are the host's nodes, or their mean with those of the graph that has content-induced edges too
    (eq. 6). With one view, or ``base="backbone"``, the first term is the host's own score. Where the host's nodes are
    not as wide as its table (NGCF, or after a plugin that widens them), it is so too, and LightGCN's rule on the
    training graph gives the z that experts and router read.

    Full ranking is exact. The first layers of experts and router are sums of a user's and an item's part, and the
    score is linear, so that a block of users times items needs their sums only; blocks fit 256 MB.

    Args:
        settings: every choice.
        modalities: content sources.
        n_rows: items with the padding row.
        n_users: with the padding row.
        edges: ``[2, n]`` training interactions.
        width: d, of the host's tables.
        induced: the graph with content-induced edges, or None: one view.
        propagate: the rule on a graph.
        channels: what experts read in place of content vectors, or None.
        seed: of the plugin's noise.
    """

    def __init__(
        self,
        *,
        settings: MagnetSettings,
        modalities: Sequence[Modality],
        n_rows: int,
        n_users: int,
        edges: Tensor,
        width: int,
        propagate: Propagate,
        induced: Adjacency | None = None,
        channels: Channels | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            settings=settings,
            modalities=modalities,
            n_rows=n_rows,
            n_users=n_users,
            edges=edges,
            width=width,
            of_pairs=True,
            by_vectors=channels is None,
            seed=seed,
        )
        self.replaces = settings.base == "none" or (settings.base == "views" and induced is not None)
        self.channels = channels
        self.induced = induced  # graphs are no buffers: DDP would send them at every step
        self.observed: Adjacency | None = None
        self.propagate = propagate

    # -- behaviour

    def behaviour(self, step: Step) -> tuple[Tensor, Tensor]:
        """``z``: ``users [n_users, d]``, ``items [n_items, d]``, once a step."""
        memory = step.memory
        if "magnet.users" not in memory:
            users, items = zip(*self._views(step), strict=True)
            memory["magnet.users"], memory["magnet.items"] = _mean(users), _mean(items)
        return memory["magnet.users"], memory["magnet.items"]

    def _views(self, step: Step) -> list[tuple[Tensor, Tensor]]:
        """``users [n_users, d]``, ``items [n_items, d]`` of one view or two."""
        views = [self._observed(step)]
        if self.induced is not None:
            self.induced = self.induced.to(views[0][0].device)
            views.append(self._propagated(self.induced, step))
        return views

    def _observed(self, step: Step) -> tuple[Tensor, Tensor]:
        users, items = step.nodes()
        if users.shape[1] == self.width:
            return users, items[: self.n_rows]
        if self.observed is None:
            self.observed = Adjacency.bipartite(self.edges, n_users=self.n_users, n_items=self.n_rows)
        self.observed = self.observed.to(users.device)
        return self._propagated(self.observed, step)

    def _propagated(self, graph: Adjacency, step: Step) -> tuple[Tensor, Tensor]:
        return self.propagate(graph, step.table("users"), step.table("items")[: self.n_rows])

    # -- scores

    def user_part(self, z: Tensor, ids: Tensor, without: Tensor | None = None) -> Part:
        """Of users ``ids [r]`` with ``z [r, d]``; their profiles without the items ``without [r]``."""
        if self.content is None:
            x = z.float().unsqueeze(1).expand(-1, self.pool.n_experts, -1)  # every source of a user is its behaviour
            absent = torch.zeros(x.shape[:2], dtype=torch.bool, device=z.device)
        else:
            x, absent = self.inputs(z, *self.content.users(ids, without))
        return Part(self.experts.user(x), self.router.user(z), absent)

    def item_part(self, z: Tensor, ids: Tensor, step: Step) -> Part:
        """Of items ``ids [r]`` with ``z [r, d]``."""
        x, absent = self.inputs(z, *self._item_sources(ids, step))
        return Part(self.experts.item(x), self.router.item(z), absent)

    def _item_sources(self, ids: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """``[r, M-1, d]`` and whether they are there, ``[r, M-1]``."""
        if self.channels is None:
            assert self.content is not None
            return self.content.items(ids)
        if "magnet.channels" not in step.memory:
            step.memory["magnet.channels"] = self.channels(step.table("items")[: self.n_rows])  # [n_items, M-1, d]
        return step.memory["magnet.channels"].index_select(0, ids), self.channels.present[ids]

    def routed(self, user: Part, item: Part) -> tuple[Tensor, Routing]:
        """MAGNET's scores ``[..., r]`` of pairs, and the routing that they are made by."""
        found = route(self.router(user.query + item.query), user.absent | item.absent, self.top_k)
        return (found.kept * self.experts.pairs(user.first, item.first)).sum(dim=-1), found

    def score(self, base: Tensor, users: Tensor, items: Tensor, step: Step) -> Tensor:
        """Pairs ``base [b]``, or a block ``base [u, n]``."""
        if self.settings.inert:
            return base
        if base.dim() == 1:
            base, own = self._pairs(base, users, items, step)
            return self.join(base, own)
        with torch.autocast(base.device.type, enabled=False):
            if self._by_views(step):
                z_users, z_items = self.behaviour(step)
                base = (z_users.index_select(0, users) @ z_items.index_select(0, items).T).to(base.dtype)
            return self.join(base, self._block(users, items, step))

    def _by_views(self, step: Step) -> bool:
        """Whether the views' mean takes the place of the host's nodes: two views, as wide as these."""
        if self.induced is None or self.settings.base != "views":
            return False
        return step.nodes()[0].shape[1] == self.width

    def _pairs(self, base: Tensor, users: Tensor, items: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """``[b]``: what is added to, and MAGNET's part."""
        batch = step.batch
        if step.kind == "training" and users is batch.users:
            for place, known in enumerate((batch.positives, batch.negatives)):
                if items is known:
                    own = self._compared(step)[place]
                    return (step.memory["magnet.views"][place].to(base.dtype) if self._by_views(step) else base), own
        if self._by_views(step):
            z_users, z_items = self.behaviour(step)
            base = (z_users.index_select(0, users) * z_items.index_select(0, items)).sum(dim=-1).to(base.dtype)
        return base, self._asked(users, items, step)[0]

    def _asked(self, users: Tensor, items: Tensor, step: Step) -> tuple[Tensor, Routing]:
        """:meth:`routed` of any pairs ``[b]``, with users' whole profiles."""
        z_users, z_items = self.behaviour(step)
        user = self.user_part(z_users.index_select(0, users), users)
        return self.routed(user, self.item_part(z_items.index_select(0, items), items, step))

    def _compared(self, step: Step) -> Tensor:
        """``[k, b]``: the batch's positives and negatives, together: they share users, and the users' dropout.

        Kept for the losses: the positives' routing, and the views of users and positives.
        """
        batch, memory = step.batch, step.memory
        if "magnet.scores" in memory:
            return memory["magnet.scores"]
        users, positives = batch.users, batch.positives
        assert users is not None
        assert positives is not None
        known = [ids for ids in (positives, batch.negatives) if ids is not None]
        ids = torch.cat(known)  # [k b]
        # Rows first, means later: whole tables are neither added nor given gradients more than once a view.
        views = [(u.index_select(0, users), i.index_select(0, ids)) for u, i in self._views(step)]
        for name, (of_users, of_items) in zip(VIEWS, views, strict=False):
            memory[f"magnet.{name}.users"], memory[f"magnet.{name}.items"] = of_users, of_items[: len(users)]
        z_users, z_items = (_mean(rows) for rows in zip(*views, strict=True))
        if self._by_views(step):
            memory["magnet.views"] = (z_users * z_items.unflatten(0, (len(known), -1))).sum(dim=-1)  # [k, b]
        without = positives if self.settings.leave_one_out and self.training else None
        user = self.user_part(z_users, users, without)
        item = Part(
            *(rows.unflatten(0, (len(known), -1)) for rows in self.item_part(z_items, ids, step))
        )  # [k, b, ...]
        memory["magnet.scores"], found = self.routed(user, item)
        memory["magnet.dense"], memory["magnet.entropy"] = found.dense[0], found.entropy[0]
        memory["magnet.asked"] = ~(user.absent | item.absent[0])
        return memory["magnet.scores"]

    # -- ranking

    def _budget(self) -> int:
        """How many pairs a block may hold."""
        floats = max(self.experts.floats_a_pair(), 3 * max(HIDDEN, self.pool.n_experts))
        room = CPU_BLOCK if self.templates.device.type == "cpu" else RANKING
        return max(1, room // (FLOAT * (floats + 4 * self.pool.n_experts)))

    def _block(self, users: Tensor, items: Tensor, step: Step) -> Tensor:
        """``[u, n]``: in tiles, whatever their number of experts and width."""
        z_users, z_items = self.behaviour(step)
        budget = self._budget()
        tall = max(1, min(len(users), math.isqrt(budget)))
        wide = max(1, min(len(items), budget // tall))
        whole = self._whole(items, step)
        out = []
        for some in users.split(tall):
            user = self.user_part(z_users.index_select(0, some), some)
            row = []
            for start in range(0, len(items), wide):
                ids = items[start : start + wide]
                part = (
                    self.item_part(z_items.index_select(0, ids), ids, step) if whole is None else whole.cut(start, wide)
                )
                row.append(self._tile(user, part))
            out.append(torch.cat(row, dim=1))
        return torch.cat(out)

    def _tile(self, user: Part, item: Part) -> Tensor:
        """``[u, n]``."""
        logits = self.router.experts_first(user.query.unsqueeze(1) + item.query)  # [E, u, n]
        absent = user.absent.T.unsqueeze(2) | item.absent.T.unsqueeze(1)
        return mixture(logits, absent, self.experts.block(user.first, item.first), self.top_k)

    def _whole(self, items: Tensor, step: Step) -> Part | None:
        """Every item's part, kept for the evaluation where it fits: hosts may ask for one user at a time."""
        floats = self.pool.n_experts * self.width + HIDDEN
        fits = 2 * FLOAT * floats * self.n_rows <= RANKING
        if step.kind != "evaluation" or items is not step.all_ids() or not fits:
            return None
        memory = step.memory
        if "magnet.whole.first" not in memory:
            part = self.item_part(self.behaviour(step)[1], items, step)
            memory.update({f"magnet.whole.{name}": value for name, value in part._asdict().items()})
        return Part(*(memory[f"magnet.whole.{name}"] for name in Part._fields))

    # -- losses

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Coverage, confidence and the contrast of the views, over the batch's positives."""
        users, items = step.batch.users, step.batch.positives
        if self.settings.inert or users is None or items is None:
            return {}
        if "magnet.dense" not in step.memory:  # the host has not compared these pairs
            self._compared(step)
        found = self.route_losses(*(step.memory[f"magnet.{name}"] for name in ("dense", "entropy", "asked")))
        if self.induced is not None and self.settings.lambda_view:
            contrast = users.new_zeros((), dtype=torch.float32)
            for side, ids in (("users", users), ("items", items)):
                one, other = (step.memory[f"magnet.{view}.{side}"][:CONTRASTED] for view in VIEWS)
                ids = ids[:CONTRASTED]
                contrast = contrast + view_contrast(one, other, ids=ids, temperature=self.settings.temperature)
            found["view"] = self.settings.lambda_view * contrast
        return self.reduced(found, len(users))

    def sampled_routing(self, users: Tensor, items: Tensor) -> Routing | None:
        """Of pairs ``[n]``, as :meth:`score` routes them in this step; None before the host has propagated."""
        step = self.step
        if step is None or (step.chain.propagates and step.propagated is None):
            return None
        return self._asked(users, items, step)[1]


def _mean(views: Sequence[Tensor]) -> Tensor:
    """Of one view or two, of one shape."""
    return views[0] if len(views) == 1 else (views[0] + views[1]) / 2
