"""MICRec as an augmentation: of whole tables, and of propagated nodes where the backbone propagates."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recplug.plugins.contract import Augmentation, Panel, Side
from recplug.plugins.micrec import diagnostics
from recplug.plugins.micrec.content import Content
from recplug.plugins.micrec.losses import SelfEnhanced
from recplug.plugins.micrec.neighbours import borrowing, refining
from recplug.plugins.micrec.settings import MicrecSettings
from recplug.plugins.micrec.templates import Templates
from recplug.plugins.micrec.transfer import Transfer, kept
from recplug.plugins.nn import Noise
from recplug.plugins.nn.knn import Neighbours
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.nn.recorder import Recorder
from recplug.plugins.protocols import Source
from recplug.plugins.step import Step

log = logging.getLogger("recplug")
LOOKED_UP, ENCODED = 1024, 256  # linked users in a step, by what a user's vector costs


class Micrec(Augmentation):
    r"""Template representations, content neighbours, and a contrast of two domains (MICRec, arXiv 2510.21812).

    .. math::
        h_u &= s_u^{-p}\,(g_U + \textstyle\sum_{i \in N(u)} e_i), \quad \text{items alike} \\
        \tilde h_x &= \Big(h_x + \textstyle\sum_y a_{xy} h_y\Big) \Big/ \Big(1 + \textstyle\sum_y a_{xy}\Big) \\
        \mathcal L &= \lambda\,\mathcal L_{self} + \mathcal L_{source} + \gamma\,\mathcal L_{CL}

    The first line is :class:`Templates`; y are the K nodes most like x in content. The backbone propagates, encodes and
    ranks :math:`\tilde h` as it does its own rows. e are these rows, so that only g, the diagonal of the self-enhanced
    loss and the projections are added; a sequential host, which has no users, is given a table of template users.

    Where we deviate: the paper's formulas were not available; the templates are INMO's, and the refinement is the most
    likely reading. An item without interactions ends as the mean of its neighbours' final vectors, through which no
    gradient flows: in training it is a negative and nothing else. By default the representations are
    added to the host's rows, times a trained number that begins at 1.

    Args:
        settings: every choice.
        templates: the representations, or None.
        neighbours: nearest by content, by side; a side that is not refined is absent.
        contents: content by side.
        degrees: ``[n]`` int64 by side: how many training interactions each node has.
        width: d, of the tables.
        own_users: rows of the table of template users, where the host has none; else 0.
        source: the second domain, or None.
        vector_width: of what the domains contrast.
        loss_sum: whether the host sums its loss over a batch.
        seed: of the plugin's noise.
    """

    epochs: Tensor

    def __init__(
        self,
        *,
        settings: MicrecSettings,
        templates: Templates | None,
        neighbours: Mapping[Side, Neighbours],
        contents: Mapping[Side, Content],
        degrees: Mapping[Side, Tensor],
        width: int,
        own_users: int = 0,
        source: Source | None = None,
        vector_width: int = 0,
        loss_sum: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.templates = templates
        self.neighbours = dict(neighbours)
        self.contents = dict(contents)
        self.degrees = dict(degrees)
        self.known: dict[Side, Tensor] = {side: degree > 0 for side, degree in degrees.items()}
        self.recorder = Recorder()
        self.loss_sum = loss_sum
        self.source = source
        self.register_buffer("epochs", torch.zeros((), dtype=torch.long, device=degrees["items"].device))
        self._refine: dict[Side, Adjacency] = {side: refining(each) for side, each in neighbours.items()}
        self.cold: Tensor | None = None
        if settings.isolated == "borrow" and "items" in neighbours:
            rows, lent = borrowing(neighbours["items"], ~self.known["items"])
            if len(rows):
                self.cold, self._lent = rows, lent
        self.self_enhanced: SelfEnhanced | None = None
        if templates is not None and settings.lambda_self:
            n_rows = templates.n_rows
            self.self_enhanced = SelfEnhanced(edges=templates.edges, n_rows=n_rows, width=width, seed=seed + 1)
        self.template_users: nn.Parameter | None = None
        if templates is not None and own_users:
            self.template_users = nn.Parameter(torch.empty(own_users, width))
        self.gate: nn.Parameter | None = None
        if templates is not None and settings.join == "residual":
            self.gate = nn.Parameter(torch.empty(2))  # of users, of items
        self.source_model: nn.Module | None = None if source is None else source.model
        self._alone = source is None and not settings.inert
        for module in () if source is None else source.model.modules():
            if isinstance(module, Micrec):
                module._alone = False
        self.transfer: Transfer | None = None
        self.links = None if source is None else kept(source.links, settings.overlap)
        if self.links is not None and settings.gamma and len(self.links) >= 2:
            self.transfer = Transfer(
                links=self.links,
                width=vector_width,
                temperature=settings.temperature,
                anchors=settings.anchors or (ENCODED if own_users else LOOKED_UP),
                seed=seed + 2,
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the plugin's own parameters anew; never those of the second domain's backbone."""
        if self.templates is not None:
            self.templates.reset_parameters()
        if self.self_enhanced is not None:
            self.self_enhanced.reset_parameters()
        if self.template_users is not None:
            nn.init.xavier_normal_(self.template_users)
        if self.gate is not None:
            nn.init.ones_(self.gate)
        if self.transfer is not None:
            self.transfer.reset_parameters()

    # -- tables

    def tables(self, users: Tensor | None, items: Tensor) -> tuple[Tensor | None, Tensor]:
        """``[n_users, d]`` or None, ``[n_rows, d]``."""
        users, items = self.joined(users, items)
        return users, self.lend(items)

    def joined(self, users: Tensor | None, items: Tensor) -> tuple[Tensor | None, Tensor]:
        """The host's rows to refined representations, in their place or added to them."""
        made_users, made_items = self.represented(users, items)
        new_users, new_items = self.refined(made_users, made_items)
        self._record("mixed_items", new_items, made_items)
        if new_users is not None and made_users is not None:
            self._record("mixed_users", new_users, made_users)
        if self.gate is None:
            return new_users, new_items
        if users is not None and new_users is not None:
            new_users = users + self.gate[0] * new_users
        return new_users, items + self.gate[1] * new_items

    def represented(self, users: Tensor | None, items: Tensor) -> tuple[Tensor | None, Tensor]:
        """H: the host's rows to representations of the same shapes, before content is looked at."""
        if self.templates is None:
            return users, items
        raw = self.template_users if users is None else users
        assert raw is not None
        if self.step is not None and self.step.kind == "training":
            self.step.memory["micrec.users"], self.step.memory["micrec.items"] = raw, items
        made = self.templates.make("items", raw)
        return None if users is None else self.templates.make("users", items), made

    def refined(self, users: Tensor | None, items: Tensor) -> tuple[Tensor | None, Tensor]:
        """M H: representations with those of their content neighbours."""
        return None if users is None else self._mixed("users", users), self._mixed("items", items)

    def _mixed(self, side: Side, rows: Tensor) -> Tensor:
        if side not in self._refine:
            return rows
        self._refine[side] = matrix = self._refine[side].to(rows.device)
        return matrix.matmul(rows)

    def lend(self, items: Tensor) -> Tensor:
        """Final vectors ``[n, w]``, in which items without interactions have the mean of their neighbours'."""
        if self.cold is None:
            return items
        self.cold, self._lent = self.cold.to(items.device), self._lent.to(items.device)
        # Such items are negatives or nothing: a gradient would push their neighbours down.
        borrowed = self._lent.matmul(items.detach()).to(items.dtype)  # [q, w]
        lent = items.index_copy(0, self.cold, borrowed)
        self._record("lent_items", lent, items)
        return lent

    def _record(self, name: str, after: Tensor, before: Tensor) -> None:
        """Which rows ``[n, d]`` content has changed, in an evaluation."""
        if self.step is not None and self.step.kind == "evaluation":
            ids = torch.arange(len(after), device=after.device)
            self.recorder.rows(self.step, name, ids, (after != before).any(dim=1).float(), len(after))

    # -- losses

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The self-enhanced loss, the second domain's own, and the contrast of both."""
        settings = self.settings
        found: dict[str, Tensor] = {}
        if self.self_enhanced is not None and self.templates is not None and "micrec.items" in step.memory:
            found["self"] = settings.lambda_self * self.self_enhanced(
                step.memory["micrec.users"],
                step.memory["micrec.items"],
                step.batch,
                user_templates=self.templates.user_templates,
                item_templates=self.templates.item_templates,
            )
        if self.source is None:
            return found
        loss = self.source.loss()
        if self.loss_sum and step.batch.users is not None:
            loss = loss / len(step.batch.users)  # it is a sum already, and will be multiplied by as many
        found["source"] = loss
        if self.transfer is not None:
            links = self.transfer.next_links()  # [m, 2]
            contrast = self.transfer(self.source.encode_users(links[:, 0]), step.vectors_of(links[:, 1]))
            found["transfer"] = settings.gamma * self.warmth() * contrast
        return found

    def warmth(self) -> Tensor:
        """``[]``: the share of gamma in this epoch, 1 after the warm-up."""
        return (self.epochs / max(self.settings.warm_up, 1)).clamp(max=1.0)

    def on_epoch_start(self, epoch: int) -> None:
        """Move the exponent and the weight of the contrast."""
        if self._alone:
            log.info("micrec: one domain, so nothing is transferred; name a second with --micrec.source=DATASET")
            self._alone = False
        # Counted on the device and saved: a model that is loaded goes on where it was.
        if self.templates is not None:
            self.templates.advance(self.epochs > 0)
        self.epochs.add_(1)

    def routes(self) -> dict[Side, Tensor]:
        """How nodes came by their vectors in the latest evaluation: places in :data:`.diagnostics.ROUTES`, ``[n]``.

        A node with training interactions is warm; another that content has changed has its vector from that; the rest
        have what every such node has.
        """
        found: dict[Side, Tensor] = {}
        for side, known in self.known.items():
            changed = [
                seen for name in ("mixed", "lent") if (seen := self.recorder.found.get(f"{name}_{side}")) is not None
            ]
            if changed:
                by_content = torch.stack([each[: len(known)] > 0 for each in changed]).any(dim=0)
                found[side] = torch.where(known.to(by_content.device), 0, torch.where(by_content, 1, 2))
        return found

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """Routes, hubs, lengths by degree; with a second domain, how well its people find themselves."""
        found: dict[str, Panel | Tensor] = {}
        if self.templates is not None:
            found["exponent"] = self.templates.exponent()
        for side, neighbours in self.neighbours.items():
            times = torch.bincount(neighbours.index[neighbours.valid], minlength=len(neighbours.index))
            found[f"hubs_{side}"] = diagnostics.hubs(side, times[neighbours.valid.any(dim=1)])
        if self.step is not None:
            if (vectors := self.final_vectors()) is not None:  # which makes the tables, if no evaluation has
                found["lengths"] = diagnostics.lengths(vectors, self.degrees)
            found |= self._people(self.step)
        if routes := self.routes():
            found["routes"] = diagnostics.routes(routes)
        return found

    def _people(self, step: Step) -> dict[str, Panel | Tensor]:
        """Linked users: those used in the loss, and those held out."""
        if self.source is None:
            return {}
        vectors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, links in (("used", self.links), ("held out", self.source.held_out)):
            if links is not None and len(links) >= 2:
                order = Noise(0).permutation(len(links), torch.device("cpu"))[: diagnostics.PEOPLE]
                some = links[order.to(links.device)]
                source, target = self.source.encode_users(some[:, 0]), step.vectors_of(some[:, 1])
                vectors[name] = source.float(), target.float()
        project = self.transfer.project if self.transfer is not None else lambda source, target: (source, target)
        return diagnostics.people(vectors, {n: project(*pair) for n, pair in vectors.items()}) if vectors else {}

    def final_vectors(self) -> dict[Side, Tensor] | None:
        """What the host ranks by, ``[n, w]`` by side; None outside of a step."""
        if self.step is None:
            return None
        return {side: self.step.table(side) for side in self.step.chain.tables()}

    def extra_repr(self) -> str:
        """Sides that are refined, and the choices that differ from the defaults."""
        changed = self.settings.model_dump(exclude_defaults=True)
        parts = [f"refined={sorted(self._refine)}, residual={self.gate is not None}"]
        return ", ".join([*parts, *(f"{k}={v!r}" for k, v in changed.items())])


class MicrecNodes(Micrec):
    """On a backbone that propagates: items without interactions borrow what was propagated."""

    def tables(self, users: Tensor | None, items: Tensor) -> tuple[Tensor | None, Tensor]:
        """``[n_users, d]``, ``[n_items, d]``."""
        return self.joined(users, items)

    def propagated(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """``[n_users, w]``, ``[n_items, w]``."""
        items = self.lend(items)
        if self.step is not None and self.step.kind == "evaluation":
            self.step.memory["micrec.nodes.users"], self.step.memory["micrec.nodes.items"] = users, items
        return users, items

    def final_vectors(self) -> dict[Side, Tensor] | None:
        """What was propagated, ``[n, w]`` by side; None before."""
        if self.step is None or "micrec.nodes.users" not in self.step.memory:
            return None
        memory = self.step.memory
        return {"users": memory["micrec.nodes.users"], "items": memory["micrec.nodes.items"]}
