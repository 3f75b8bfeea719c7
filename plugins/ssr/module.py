"""SSR as an augmentation: of propagated nodes where the backbone propagates, else of its tables."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from recplug.plugins.contract import Augmentation, Panel
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import Noise
from recplug.plugins.nn.contrast import first_of_each
from recplug.plugins.nn.smoothing import Smoothing
from recplug.plugins.ssr import diagnostics
from recplug.plugins.ssr.content import ContentEncoders, FrozenContent
from recplug.plugins.ssr.decomposition import Decomposition
from recplug.plugins.ssr.losses import BandMask, consistency, ridge, spectral_contrast
from recplug.plugins.ssr.operator import CrossBand
from recplug.plugins.ssr.settings import SsrSettings
from recplug.plugins.step import Step

EDGE_EPOCHS = 5
"""Epochs in which the edges of equal energy are estimated; then they stay."""


class Ssr(Augmentation):
    r"""Structured spectral reasoning (arXiv 2512.01372): decompose, modulate, fuse, align.

    .. math::
        s_m &= h_m(L)\,(H + S^n E) && \text{bands of the graph's spectrum} \\
        y &= \textstyle\sum_m \mathrm{Op}(s)_m && \text{mixed across bands and modalities} \\
        \mathcal L &= \lambda_{ma} \lVert \tilde y - \mathrm{sg}(y) \rVert^2 + \lambda_{cl} \mathcal L_{cl}
        + \lambda_{reg} \mathcal L_{hs}

    H are the backbone's vectors, S is the frozen content graph over items and E their table, and :math:`\tilde y` is
    made from bands of which some are masked. Content is a further block a modality beside the backbone's
    (:class:`FrozenContent`, :class:`ContentEncoders`). At the start the operator ``cp`` is the identity, so that y is
    H + S^n E, and content beside it.

    Where we deviate from the authors' code: the backbone's vectors take the place of its id encoder, its loss that of
    the binary cross-entropy; the rest is a choice of the settings. Bands are those of :class:`Decomposition`.

    Args:
        settings: every choice.
        decomposition: the bands, over N nodes, users first where the host has users.
        n_users: user nodes, 0 where there are none.
        width: d, the width of the host's vectors.
        content: further blocks, or None.
        item_graph: S^n, of S ``[n_items, n_items]``, or None.
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
        content: FrozenContent | ContentEncoders | None = None,
        item_graph: Smoothing | None = None,
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
        self.blocks = ("backbone", *(content.names if content is not None else ()))
        self.cross = CrossBand(
            bands=settings.bands,
            blocks=len(self.blocks),
            width=width,
            rank=settings.fusion_rank,
            fusion=settings.fusion,
            gate=settings.gate,
        )
        self.mask = BandMask(rate=settings.mask_rate, noise=self.noise)
        self.preferences: nn.Parameter | None = None
        if n_users and self.concat and isinstance(content, FrozenContent):
            self.preferences = nn.Parameter(torch.empty(n_users, len(self.blocks) - 1, width))
        self.masks = bool(settings.lambda_mask and settings.mask_rate) and settings.bands > 1
        self.contrasts = bool(settings.lambda_contrast) and len(self.blocks) > 2
        self.epoch = 0
        self._observe = True
        self.register_load_state_dict_post_hook(_refresh_loaded)
        self._refresh()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start; the bands' edges stay."""
        self.cross.reset_parameters()
        if self.content is not None:
            self.content.reset_parameters()
        if self.preferences is not None:
            nn.init.zeros_(self.preferences)  # content begins without a say in the scores

    @property
    def inert(self) -> bool:
        """Whether these settings leave every vector as it is."""
        alone = self.content is None and self.item_graph is None
        return self.settings.bands == 1 and self.settings.fusion == "sum" and alone

    # -- the signal and its bands

    def signals(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """H and H + S^n E of ``nodes [N, d]``: ``[N, Q, d]`` each, Q = P with encoders, else 1: the backbone's."""
        n, encoders = self.n_users, self.content if isinstance(self.content, ContentEncoders) else None
        rep = nodes.unsqueeze(1) if encoders is None else encoders(nodes)
        if self.item_graph is None:
            return rep, rep
        users, items = self._sources(nodes)
        if encoders is not None:
            users = torch.cat([users.unsqueeze(1), encoders.preferences.to(users.dtype)], dim=1)
            items = torch.cat([items.unsqueeze(1), rep[n:, 1:]], dim=1)  # [n_items, P, d]
        moved = rep[n:] + self.item_graph(items.flatten(1)).view(rep[n:].shape).to(rep.dtype)
        return rep, torch.cat([rep[:n] if encoders is None else rep[:n] + users, moved])

    def _sources(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to users ``[n_users, d]`` (with encoders), and what the content graph averages (E)."""
        return nodes[: self.n_users], nodes[self.n_users :]

    def beside(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """``x [N, Q, d]``, with frozen content beside it, to ``[r, P, d]``: what the bands add up to."""
        own = x if rows is None else x.index_select(0, rows)
        if not isinstance(self.content, FrozenContent):
            return own
        return torch.cat([own, self.content(rows).to(own.dtype)], dim=1)

    def bands(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """``x [N, Q, d]`` to ``[r, M, P, d]``, at ``rows [r]``, which may come twice, or everywhere."""
        s = self.decomposition(x.flatten(1), rows).unflatten(2, x.shape[1:])  # [r, M, Q, d]
        if not isinstance(self.content, FrozenContent):
            return s
        return torch.cat([s, self.content.bands(rows).to(s.dtype)], dim=2)

    def observe(self, x: Tensor) -> None:
        """Estimate the bands' edges from ``x [N, Q, d]`` and content; waits for the device, once an epoch."""
        if self.decomposition.frozen:
            return
        contents = self.content.signals() if isinstance(self.content, FrozenContent) else []
        self.decomposition.observe([*x.detach().unbind(dim=1), *contents])
        if self.epoch + 1 >= EDGE_EPOCHS:
            self.decomposition.freeze()
        self._refresh()

    def on_epoch_start(self, epoch: int) -> None:
        """Look at the edges again, until they are frozen."""
        self.epoch = epoch
        self._observe = epoch < EDGE_EPOCHS

    def _refresh(self) -> None:
        """Make anew what depends on the edges."""
        banded = self.settings.fusion != "sum" or self.masks or self.contrasts
        if banded and isinstance(self.content, FrozenContent):
            self.content.refresh(self.decomposition)

    def view(self, nodes: Tensor, rows: Tensor | None) -> Tensor:
        """Bands, fused: ``[r, P, d]``; remembered for this step's losses, or an evaluation's diagnostics."""
        rep, x = self.signals(nodes)
        if self._observe and self.training:
            self._observe = False
            self.observe(x)
        kept = {"signal": x}
        if self.settings.fusion == "sum":
            y = self.beside(x, rows)
        else:
            kept |= {"bands": self.bands(x, rows), "context": self.beside(rep, rows).flatten(1)}
            y = self.cross(kept["bands"], kept["context"])
        if self.step is not None and self.step.kind != "call":
            kept |= {"fused": y} if rows is None else {"fused": y, "rows": rows}
            self.step.memory |= {f"ssr.{name}": value for name, value in kept.items()}
        return y

    def join(self, y: Tensor, rows: Tensor | None) -> Tensor:
        """``y [r, P, d]`` to the host's vectors: ``[r, P*d]`` beside each other, or ``[r, d]`` added."""
        if y.shape[1] == 1:
            return y.squeeze(1)
        own, content = y[:, :1], y[:, 1:]
        if self.preferences is not None:
            n = self.n_users
            if rows is None:
                mine = nn.functional.pad(self.preferences, (0, 0, 0, 0, 0, len(y) - n))
            else:  # not by indexing: the gradient of that sorts the rows
                mine = self.preferences.index_select(0, rows.clamp(max=n - 1)) * (rows < n)[:, None, None]
            content = content + mine.to(content.dtype)
        if self.step is not None and self.step.kind == "training":
            self.step.memory["ssr.content"] = content
        if self.concat:
            return torch.cat([own, content], dim=1).flatten(1)
        return own.squeeze(1) + content.sum(dim=1)

    def augmented(self, nodes: Tensor, rows: Tensor | None) -> Tensor:
        """``nodes [N, d]`` to ``[N, D]``; with ``rows [r]`` the others are the host's, or zeros where D is wider."""
        out = self.join(self.view(nodes, rows), rows).to(nodes.dtype)
        if rows is None:
            return out
        spare = torch.where(first_of_each(rows), rows, len(nodes))  # a row that comes twice is written once
        base = nodes.new_zeros(1, out.shape[1])
        base = base.expand(len(nodes) + 1, -1) if self.concat else torch.cat([nodes, base])
        return base.index_copy(0, spare, out)[: len(nodes)]

    # -- losses

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Masked view, contrast of modalities, length of content, penalty of the operator."""
        settings = self.settings
        found: dict[str, Tensor] = {}
        if step.kind != "training" or "ssr.fused" not in step.memory:
            return found
        if self.masks:
            found["mask"] = settings.lambda_mask * self._masked_view(step)
        if self.contrasts:
            found["contrast"] = settings.lambda_contrast * self._contrast(step)
        if settings.lambda_ridge and self.content is not None:
            found["ridge"] = settings.lambda_ridge * ridge(step.memory["ssr.content"], step.memory.get("ssr.rows"))
        if settings.lambda_operator and settings.fusion != "sum":
            found["operator"] = settings.lambda_operator * self.cross.penalty()
        return found

    def _masked_view(self, step: Step) -> Tensor:
        """The masked view of the batch's users, positives and negatives against their full view: a scalar."""
        batch, y = step.batch, step.memory["ssr.fused"]
        items = batch.positives if batch.positives is not None else step.asked()
        users = batch.users if self.n_users else None
        named = [(users, 0), (items, self.n_users), (batch.negatives, self.n_users)]
        parts = [self._places(step, ids + shift) for ids, shift in named if ids is not None and len(ids) == len(items)]
        if self.settings.consistency == "score_kl" and len(parts) < len(named):
            raise RecplugError(
                "ssr.consistency score_kl needs batches of users, items and negatives; set it to repr_mse"
            )
        place = torch.cat(parts)  # [n * parts]
        rows = step.memory.get("ssr.rows")
        nodes = place if rows is None else rows[place]
        context = step.memory.get("ssr.context")
        s = self._bands_at(step, place, nodes)  # [n * parts, M, P, d]
        masked = self.cross(
            s * self.mask.draw(s, self.decomposition.isolated[nodes]),
            s.new_zeros(0) if context is None else context.index_select(0, place),
        )
        full = [y[part].flatten(1) for part in parts]
        return consistency(full, masked.flatten(1).split(len(items)), self.settings.consistency)

    def _contrast(self, step: Step) -> Tensor:
        """Between every two modalities, over the batch's items, and its users where encoders give them content."""
        items = step.batch.positives if step.batch.positives is not None else step.asked()
        groups = [items + self.n_users]
        if isinstance(self.content, ContentEncoders) and self.n_users and step.batch.users is not None:
            groups.append(step.batch.users)
        return torch.stack([self._alignment(step, nodes) for nodes in groups]).sum()

    def _alignment(self, step: Step, nodes: Tensor) -> Tensor:
        """Of image and text of ``nodes [n]``, band by band: a scalar."""
        assert self.content is not None
        # More than are needed: some lack a modality, or come twice.
        enough = 4 * self.settings.anchors // self.settings.bands
        nodes = nodes[self.choice.permutation(len(nodes), nodes.device)[:enough]]
        if isinstance(self.content, FrozenContent):
            s = self.content.bands(nodes)  # [n, M, P-1, d]
        else:
            s = self._bands_at(step, self._places(step, nodes), nodes)[:, :, 1:]
        present = self.content.present[nodes]  # [n, P-1]
        found = [
            spectral_contrast(
                s[:, :, one],
                s[:, :, other],
                nodes,
                present[:, one] & present[:, other],
                temperature=self.settings.temperature,
                anchors=self.settings.anchors,
                noise=self.choice,
            )
            for one, other in itertools.combinations(range(s.shape[2]), 2)
        ]
        return torch.stack(found).mean()

    def _places(self, step: Step, nodes: Tensor) -> Tensor:
        """Where ``nodes [n]`` stand in this step's memory."""
        rows = step.memory.get("ssr.rows")
        if rows is None:
            return nodes
        slot = rows.new_zeros(self.decomposition.n_nodes)
        return slot.index_copy(0, rows, torch.arange(len(rows), device=rows.device))[nodes]

    def _bands_at(self, step: Step, place: Tensor, nodes: Tensor) -> Tensor:
        """``[n, M, P, d]``: this step's bands at ``nodes [n]``, which stand at ``place [n]`` of its memory."""
        s = step.memory.get("ssr.bands")
        return self.bands(step.memory["ssr.signal"], nodes) if s is None else s.index_select(0, place)

    # -- what it did

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """Energy by band, the bands' curves, what each band is worth, and what the operator couples.

        Of the last evaluation's signals; where bands stand in the scores, the very bands that did.
        """
        memory = self.evaluated()
        if memory is None:
            return diagnostics.of_bands(self.decomposition)
        s = memory.get("ssr.bands")  # [N, M, P, d]
        if s is None:
            x = self.beside(memory["ssr.signal"], None)
            s = self.decomposition(x.flatten(1)).unflatten(2, x.shape[1:])
        context = memory.get("ssr.context", s.new_zeros(0))
        return diagnostics.of_bands(self.decomposition) | diagnostics.of_signals(
            s,
            rebuild=lambda part: self.join(self.cross(part, context), None),
            blocks=self.blocks,
            n_users=self.n_users,
            present=None if self.content is None else self.content.present,
            coupling=None if self.cross.mix is None else self.cross.coupling(),
        )

    def evaluated(self) -> dict[str, Tensor] | None:
        """What the evaluation under way has kept, or None."""
        memory = None if self.step is None or self.step.kind != "evaluation" else self.step.memory
        return None if memory is None or "ssr.signal" not in memory else memory

    def extra_repr(self) -> str:
        """Sizes, and the choices that differ from the defaults."""
        changed = self.settings.model_dump(exclude_defaults=True)
        parts = [f"users={self.n_users}, blocks={list(self.blocks)}, concat={self.concat}"]
        return ", ".join([*parts, *(f"{k}={v!r}" for k, v in changed.items())])


def _refresh_loaded(module: nn.Module, incompatible: object) -> None:
    """Content's bands follow the edges that were loaded."""
    assert isinstance(module, Ssr)
    module._observe = False
    module._refresh()
