"""SSR as an augmentation: of propagated nodes where the backbone propagates, else of its tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recplug.plugins.contract import Augmentation, Panel
from recplug.plugins.nn import Noise
from recplug.plugins.nn.contrast import first_of_each
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.ssr.content import ContentBands
from recplug.plugins.ssr.decomposition import Decomposition
from recplug.plugins.ssr.diagnostics import diagnose
from recplug.plugins.ssr.losses import contrast, masked_view, ridge
from recplug.plugins.ssr.masking import BandMask
from recplug.plugins.ssr.operator import CrossBand
from recplug.plugins.ssr.settings import SsrSettings
from recplug.plugins.step import Step


class Ssr(Augmentation):
    r"""Structured spectral reasoning (arXiv 2512.01372): decompose, modulate, fuse, align.

    .. math::
        s_m &= h_m(L)\,(H + w\,S^n E) && \text{bands of the graph's spectrum} \\
        y &= \textstyle\sum_m \mathrm{Op}(s)_m && \text{mixed across bands and modalities} \\
        \mathcal L &= \lambda_{ma} \lVert \tilde y - \mathrm{sg}(y) \rVert^2 + \lambda_{cl} \mathcal L_{cl}
        + \lambda_{reg} \mathcal L_{hs}

    H are the backbone's vectors, S is the frozen content graph over items and E their table (``item_weight`` w and
    ``item_layers`` n), and :math:`\tilde y` is made from bands of which some are masked. Content vectors are further
    blocks beside the backbone's (:class:`ContentBands`). At the start the operator ``cp`` is the identity, so that y
    is H + w S^n E, and content beside it.

    Where we deviate from the authors' code, which decomposes three trained encoders of its own: the backbone's vectors
    take the place of its id encoder; content is frozen, and banded once; the operator is a true low-rank residual;
    bands are those of :class:`Decomposition`; the masked view is made of ``mask_triples`` triples of a batch.

    Args:
        settings: every choice.
        decomposition: the bands, over N nodes, users first where the host has users.
        n_users: user nodes, 0 where there are none.
        width: d, the width of the host's vectors.
        content: further blocks, or None.
        item_graph: S, ``[n_items, n_items]``, or None.
        concat: whether content stands beside the host's vectors; else it is added to them.
        every_node: whether the host may read vectors of nodes that the batch does not name.
        table_width: width of the host's item table, 0 where there is none.
        seed: of the plugin's noise.
    """

    def __init__(
        self,
        *,
        settings: SsrSettings,
        decomposition: Decomposition,
        n_users: int,
        width: int,
        content: ContentBands | None = None,
        item_graph: Adjacency | None = None,
        concat: bool = False,
        every_node: bool = False,
        table_width: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.n_users = n_users
        self.width = width
        self.item_graph = item_graph
        self.concat = concat and content is not None
        self.every_node = every_node
        self.table_width = table_width
        self.noise = Noise(seed)
        self.choice = Noise(seed + 1)
        self.decomposition = decomposition
        self.content = content
        blocks = 1 if content is None else 1 + len(content.names)
        self.blocks = ("backbone", *(content.names if content is not None else ()))
        self.cross = CrossBand(
            bands=settings.bands,
            blocks=blocks,
            width=width,
            rank=settings.fusion_rank,
            fusion=settings.fusion,
            gate=settings.gate,
            keep_length=settings.keep_length,
        )
        self.mask = BandMask(
            rate=settings.mask_rate, noise=self.noise, scope=settings.mask_scope, unit=settings.mask_unit
        )
        self.balance: nn.Parameter | None = None
        self.preferences: nn.Parameter | None = None
        if n_users and blocks > 1:
            self.balance = nn.Parameter(torch.ones(n_users, blocks - 1))
            if settings.preferences and self.concat:
                self.preferences = nn.Parameter(torch.empty(n_users, blocks - 1, width))
        self.epoch = 0
        self._observe = True
        self._age = 0
        self._kept: tuple[Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(_refresh_loaded)
        self._refresh()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start; the bands' edges stay."""
        self.cross.reset_parameters()
        if self.content is not None:
            self.content.reset_parameters()
        if self.balance is not None:
            nn.init.ones_(self.balance)
        if self.preferences is not None:
            nn.init.zeros_(self.preferences)  # content begins without a say in the scores

    # -- the signal and its bands

    def signal(self, nodes: Tensor) -> Tensor:
        """H + w S^n E: ``nodes [N, d]`` with the content graph's means added to the items, ``[N, d]``."""
        if self.item_graph is None:
            return nodes
        self.item_graph = graph = self.item_graph.to(nodes.device)
        items = nodes[self.n_users :]  # [n_items, d]
        smooth = self._source(items)
        for _ in range(self.settings.item_layers):
            smooth = graph.matmul(smooth)
        weight = self.settings.item_weight
        return torch.cat([nodes[: self.n_users], items + weight * smooth.to(items.dtype)])

    def _source(self, items: Tensor) -> Tensor:
        """E, ``[n_items, d]``: what the content graph averages."""
        return items

    def bands(self, nodes: Tensor, rows: Tensor | None) -> Tensor:
        """``nodes [N, d]`` to ``[r, M, P, d]``, at ``rows [r]`` or everywhere."""
        return self.bands_of(self.signal(nodes), rows)

    def bands_of(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Of a signal ``x [N, d]``; rows may come twice."""
        # Bands first in memory, as they are made: the operator then reads them without a copy.
        s = self._decompose(x, rows).unsqueeze(1)  # [M, 1, r, d]
        if self.content is not None:
            s = torch.cat([s, self.content(rows).to(s.dtype)], dim=1)  # [M, P, r, d]
        return s.permute(2, 0, 1, 3)

    def _sum(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """``[r, P, d]``: what the bands add up to, without making them."""
        own = (x if rows is None else x.index_select(0, rows)).unsqueeze(1)  # [r, 1, d]
        return own if self.content is None else torch.cat([own, self.content.plain(rows).to(own.dtype)], dim=1)

    def _decompose(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """``x [N, d]`` to ``[M, r, d]``; the bands of an earlier step where ``every`` allows."""
        settings = self.settings
        if not self.training or settings.every == 1 or settings.bands == 1 or settings.fusion == "sum":
            return self.decomposition(x, rows).transpose(0, 1)
        if self._kept is None or self._age % settings.every == 0:
            with torch.no_grad():
                self._kept = x.detach().clone(), self.decomposition(x).transpose(0, 1)  # [N, d], [M, N, d]
        self._age += 1
        old, bands = self._kept
        if rows is not None:
            x, old, bands = x.index_select(0, rows), old.index_select(0, rows), bands.index_select(1, rows)
        # What the signal has moved since belongs to no band yet; in equal parts, the bands still add up to it.
        return bands + (x - old) / len(bands)

    def observe(self, x: Tensor) -> None:
        """Estimate the bands' edges from ``x [N, d]`` and the content; waits for the device, once an epoch."""
        if self.decomposition.frozen:
            return
        contents = [] if self.content is None else self.content.signals()
        self.decomposition.observe([x.detach(), *contents])
        if self.epoch + 1 >= self.settings.edge_epochs:
            self.decomposition.freeze()
        self._refresh()

    def on_epoch_start(self, epoch: int) -> None:
        """Look at the edges again, until they are frozen."""
        self.epoch = epoch
        self._observe = epoch < self.settings.edge_epochs
        self._kept, self._age = None, 0  # an epoch after a pause begins as any other

    def _refresh(self) -> None:
        """Make anew what depends on the edges."""
        self._kept, self._age = None, 0
        if self.content is not None:
            self.content.refresh(self.decomposition)

    def fuse(self, s: Tensor) -> Tensor:
        """``[r, M, P, d]`` to ``[r, P, d]``."""
        return self.cross(s, s.sum(dim=1).flatten(1) if self.cross.needs_context else None)

    def view(self, nodes: Tensor, rows: Tensor | None) -> Tensor:
        """Bands, fused: ``[r, P, d]``; remembered for this step's losses."""
        x = self.signal(nodes)
        if self._observe and self.training:
            self._observe = False
            self.observe(x)
        s = None if self.settings.fusion == "sum" else self.bands_of(x, rows)
        y = self._sum(x, rows) if s is None else self.fuse(s)
        if self.step is not None and self.step.kind == "training":
            memory = self.step.memory
            memory["ssr.signal"], memory["ssr.fused"] = x, y
            if s is not None:
                memory["ssr.bands"] = s
            if rows is not None:
                memory["ssr.rows"] = rows
        return y

    def join(self, y: Tensor, rows: Tensor | None) -> Tensor:
        """``y [r, P, d]`` to the host's vectors: ``[r, P*d]`` beside each other, or ``[r, d]`` added."""
        if y.shape[1] == 1:
            return y.squeeze(1)
        own, content = y[:, :1], y[:, 1:]
        if self.balance is not None:
            content = self._personal(content, rows)
        if self.step is not None and self.step.kind == "training":
            self.step.memory["ssr.content"] = content
        if self.concat:
            return torch.cat([own, content], dim=1).flatten(1)
        return own.squeeze(1) + content.sum(dim=1)

    def _personal(self, content: Tensor, rows: Tensor | None) -> Tensor:
        """What users make of content ``[r, P-1, d]``: weights of their own, and vectors of their own."""
        assert self.balance is not None
        n = self.n_users
        if rows is None:
            users = content[:n] * self.balance.unsqueeze(-1)
            if self.preferences is not None:
                users = users + self.preferences
            return torch.cat([users, content[n:]])
        user, is_user = rows.clamp(max=n - 1), (rows < n)[:, None, None]  # [r], [r, 1, 1]
        # Not by indexing: the gradient of that sorts the rows.
        mine = content * self.balance.index_select(0, user).unsqueeze(-1)
        if self.preferences is not None:
            mine = mine + self.preferences.index_select(0, user)
        return torch.where(is_user, mine, content)

    def augmented(self, nodes: Tensor, rows: Tensor | None) -> Tensor:
        """``nodes [N, d]`` to ``[N, D]``; with ``rows [r]`` the others are the host's, or zeros where D is wider."""
        if self.step is not None and self.step.kind == "evaluation":
            self.step.memory["ssr.nodes"] = nodes
        out = self.join(self.view(nodes, rows), rows).to(nodes.dtype)
        if rows is None:
            return out
        spare = torch.where(first_of_each(rows), rows, len(nodes))  # a row that comes twice is written once
        base = nodes.new_zeros(1, out.shape[1])
        base = base.expand(len(nodes) + 1, -1) if self.concat else torch.cat([nodes, base])
        return base.index_copy(0, spare, out)[: len(nodes)]

    @property
    def inert(self) -> bool:
        """Whether these settings leave every vector as it is."""
        return (
            self.settings.bands == 1
            and self.settings.fusion == "sum"
            and len(self.blocks) == 1
            and self.item_graph is None
        )

    # -- losses

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Masked view, contrast of modalities, length of content, penalty of the operator."""
        settings = self.settings
        found: dict[str, Tensor] = {}
        if "ssr.fused" not in step.memory:
            return found
        if settings.lambda_mask and settings.mask_rate and settings.bands > 1 and (times := self._mask_turn()):
            found["mask"] = times * settings.lambda_mask * masked_view(self, step)
        if settings.lambda_contrast and len(self.blocks) > 2:
            found["contrast"] = settings.lambda_contrast * contrast(self, step)
        if settings.lambda_ridge and len(self.blocks) > 1:
            found["ridge"] = settings.lambda_ridge * ridge(step)
        if settings.lambda_operator and settings.fusion != "sum":
            found["operator"] = settings.lambda_operator * self.cross.penalty()
        return found

    def _mask_turn(self) -> int:
        """How much the masked view counts in this step: with the plain sum, ``every`` times each so many steps."""
        if self.settings.fusion != "sum":
            return 1
        self._age += 1
        return self.settings.every if (self._age - 1) % self.settings.every == 0 else 0

    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """Energy by band, the bands' curves, what each band is worth, and what the operator couples."""
        return diagnose(self)

    def extra_repr(self) -> str:
        """Sizes, and the choices that differ from the defaults."""
        changed = self.settings.model_dump(exclude_defaults=True)
        parts = [f"users={self.n_users}, blocks={list(self.blocks)}, concat={self.concat}"]
        return ", ".join([*parts, *(f"{k}={v!r}" for k, v in changed.items())])

    def seen_nodes(self) -> Tensor | None:
        """``[N, d]``: the backbone's vectors in the evaluation under way, or None where they are not known."""
        return None if self.step is None else self.step.memory.get("ssr.nodes")


class SsrNodes(Ssr):
    """On a backbone that propagates: nodes ``[n_users, d]``, ``[n_items, d]``, of which a step needs its batch's."""

    def propagated(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """``[n_users, D]``, ``[n_items, D]``."""
        if self.inert:
            return users, items
        out = self.augmented(torch.cat([users, items]), self._rows(self.step))
        return out[: self.n_users], out[self.n_users :]

    def _source(self, items: Tensor) -> Tensor:
        """E: the backbone's own table where it is as wide as the nodes, or the nodes."""
        if self.settings.item_source == "table" and self.step is not None and self.table_width == self.width:
            return self.step.table("items")[: len(items)]
        return items

    def _rows(self, step: Step | None) -> Tensor | None:
        if step is None or step.kind != "training" or self.every_node or step.batch.users is None:
            return None
        return distinct([step.batch.users, *(i + self.n_users for i in step.batch.items())])


class SsrTables(Ssr):
    """On any backbone with a table of items: whole raw tables, users ``[n_users, d]`` where there are any."""

    def seen_nodes(self) -> Tensor | None:
        """``[N, d]``: the backbone's tables."""
        if self.step is not None and self.step.kind == "evaluation":
            self.step.table("items")
        return super().seen_nodes()

    def tables(self, users: Tensor | None, items: Tensor) -> tuple[Tensor | None, Tensor]:
        """``[n_users, d]``, ``[n_items, d]``."""
        if self.inert:
            return users, items
        nodes = items if users is None else torch.cat([users, items])
        out = self.augmented(nodes, self._rows(self.step))
        return None if users is None else out[: self.n_users], out[self.n_users :]

    def _rows(self, step: Step | None) -> Tensor | None:
        # Without users it is a sequential host, whose full softmax reads every item without announcing it.
        if step is None or step.kind != "training" or self.every_node or not self.n_users:
            return None
        return None if step.batch.users is None else distinct([step.batch.users, step.asked() + self.n_users])


def distinct(ids: list[Tensor]) -> Tensor:
    """All ids, each once where counting them does not stop an accelerator."""
    rows = torch.cat([i.reshape(-1) for i in ids])
    return torch.unique(rows) if rows.device.type == "cpu" else rows


def _refresh_loaded(module: nn.Module, incompatible: object) -> None:
    """Content's bands follow the edges that were loaded."""
    assert isinstance(module, Ssr)
    module._observe = False
    module._refresh()
