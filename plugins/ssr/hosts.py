"""SSR on each kind of backbone: on propagated nodes, or on its tables; with or without a say in the ranking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recplug.plugins.contract import Half, Panel
from recplug.plugins.nn.closed_form import beside, histories
from recplug.plugins.protocols import Validate
from recplug.plugins.ssr.content import ContentEncoders
from recplug.plugins.ssr.diagnostics import band_names
from recplug.plugins.ssr.module import Ssr
from recplug.plugins.ssr.signal import BandedSignal
from recplug.plugins.step import Step


class SsrNodes(Ssr):
    """On a backbone that propagates: nodes ``[n_users, d]``, ``[n_items, d]``, of which a step needs its batch's."""

    def propagated(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """``[n_users, D]``, ``[n_items, D]``."""
        if self.inert:
            return users, items
        out = self.augmented(torch.cat([users, items]), self._rows(self.step))
        return out[: self.n_users], out[self.n_users :]

    def propagated_width(self, width: int) -> int:
        """Content stands beside the host's vectors, where it is not added to them."""
        return width * len(self.blocks) if self.concat and not self.inert else width

    def _sources(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's own tables where they are as wide as the nodes; items' only where the settings say so."""
        users, items = super()._sources(nodes)
        if self.step is None or self.table_width != self.width:
            return users, items
        if isinstance(self.content, ContentEncoders):
            users = self.step.table("users")
        if self.settings.item_source == "table":
            items = self.step.table("items")[: len(items)]
        return users, items

    def _rows(self, step: Step | None) -> Tensor | None:
        if step is None or step.kind != "training" or self.every_node or step.batch.users is None:
            return None
        return distinct([step.batch.users, *(i + self.n_users for i in step.batch.items())])


class SsrTables(Ssr):
    """On any backbone with a table of items: whole raw tables, users ``[n_users, d]`` where there are any."""

    def evaluated(self) -> dict[str, Tensor] | None:
        """Of the whole tables, which an evaluation may not have asked for yet."""
        if self.step is not None and self.step.kind == "evaluation" and "ssr.signal" not in self.step.memory:
            self.step.table("items")
        return super().evaluated()

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


class Ranked(Ssr):
    """With the interaction signal, filtered band by band, added to the ranking (:class:`BandedSignal`).

    A user is their training row, or on a sequential backbone the history that it is shown, an item counting
    ``recency`` ** steps back. Its weight and its gains are fitted after training; until then nothing is added.
    """

    halves: frozenset[Half] = frozenset({"ranking"})
    whole_rows = True
    banded: BandedSignal
    recency: float = 1.0

    def score(self, base: Tensor, users: Tensor, items: Tensor, step: Step) -> Tensor:
        """The score seam, its ranking half: ``base [u, n_items]`` to the same."""
        if (weight := float(self.banded.weight)) == 0:
            return base
        batch = step.batch
        r = histories(self.banded.form, users, batch.sequence, batch.lengths, recency=self.recency)
        return beside(base, self.banded(r).T, r.T, weight)

    def after_training(self, validate: Validate) -> dict[str, Any]:
        """Weight and gains, by the validation score."""
        return self.banded.fit(validate)

    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """What there is without it, and the gains."""
        gains = torch.cat([self.banded.gains, self.banded.gains.new_ones(1)])  # [M]: the last is what is left
        return super().diagnostics() | {
            "signal": Panel(
                gains,
                "bars",
                "gains of the interaction signal's bands",
                f"How much of each band of what a user had reaches the ranking, at a weight of "
                f"{float(self.banded.weight):g} beside the backbone. Where all are 1 it is the closed-form filter.",
                rows=band_names(len(gains)),
                ylabel="gain",
            )
        }


class RankedNodes(Ranked, SsrNodes):
    """:class:`SsrNodes` with the interaction signal in the ranking."""


class RankedTables(Ranked, SsrTables):
    """:class:`SsrTables` with the interaction signal in the ranking."""


def distinct(ids: list[Tensor]) -> Tensor:
    """All ids, each once where counting them does not stop an accelerator."""
    rows = torch.cat([i.reshape(-1) for i in ids])
    return torch.unique(rows) if rows.device.type == "cpu" else rows
