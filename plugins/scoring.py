"""The score seam of a :class:`~recplug.plugins.chain.Chain`: blocks that are ranked, and pairs that a loss compares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recplug.plugins.contract import Augmentation, Half
from recplug.plugins.errors import RecplugError
from recplug.plugins.step import Batch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from recplug.plugins.contract import Seam
    from recplug.plugins.step import Step


class Scoring:
    """What a chain does with scores. Augmentations act in order, each on what the previous one made of them."""

    if TYPE_CHECKING:
        host: str
        n_items: int
        _step: Step | None

        def acting(self, seam: Seam) -> dict[str, Augmentation]:
            """The augmentations that act on one seam, in order."""

        def serving(self, step: Step | None = None) -> AbstractContextManager[Step]:
            """Bind the augmentations to ``step``, or to the current one."""

    def scoring(self, half: Half) -> dict[str, Augmentation]:
        """The augmentations that change scores in one half of the seam, in order."""
        return {name: each for name, each in self.acting("score").items() if half in each.halves}

    def by_whole_rows(self) -> bool:
        """Whether a pair's score takes its user's scores of all items; it is cut out of :meth:`score_ranking` then."""
        return any(each.whole_rows for each in self.scoring("ranking").values())

    def score(self, step: Step, base: Tensor, users: Tensor, items: Tensor, *, half: Half = "ranking") -> Tensor:
        """Pass the host's scores through one half of the seam: pairs (``base [b]``) or a block (``base [u, n]``).

        Args:
            step: the step in which the host has computed them.
            base: the host's scores.
            users: ``[b]`` or ``[u]`` user ids.
            items: ``[b]`` or ``[n]`` item ids.
            half: which.
        """
        with self.serving(step):
            for augmentation in self.scoring(half).values():
                base = augmentation.score(base, users, items, step)
        return base

    def score_ranking(
        self, step: Step, base: Tensor, users: Tensor, block: int | None = None, shown: Batch | None = None
    ) -> Tensor:
        """Pass the scores of every item, ``base [u, n_items]`` for ``users [u]``, through the ranking half.

        Args:
            step: the step in which the host has computed them.
            base: the host's scores.
            users: user ids.
            block: how many users are scored at once; None for all of them.
            shown: what the host has been shown of each of them.

        Raises:
            RecplugError: where these are not the scores of every item.
        """
        if not self.scoring("ranking"):
            return base
        if base.shape != (len(users), self.n_items):
            shape = f"{list(base.shape)} for {len(users)} users and {self.n_items} items"
            raise RecplugError(f"{self.host} ranks with scores {shape}; they cannot be changed")
        items = self._all_items(step, base.device)
        shown, size = shown or Batch(), block or max(len(users), 1)
        parts = []
        for start in range(0, len(users), size):
            rows = slice(start, start + size)
            part = Batch(**{name: None if ids is None else ids[rows] for name, ids in vars(shown).items()})
            with step.showing(part):
                parts.append(self.score(step, base[rows], users[rows], items))
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else base

    def _all_items(self, step: Step, device: torch.device) -> Tensor:
        """``[n_items]``; the step's own ids of all rows where there is a table with no other rows."""
        if step.chain.item_table is not None:
            ids = step.all_ids()
            return ids if len(ids) == self.n_items else ids[: self.n_items]
        if "recplug.all_items" not in step.memory:
            step.memory["recplug.all_items"] = torch.arange(self.n_items, device=device)
        return step.memory["recplug.all_items"]

    def score_training(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Pass what a host's pairwise loss is about to compare, ``[B]`` and ``[B]``, through the training half.

        Outside of a training step the scores stay as they are.

        Raises:
            RecplugError: if these are not one score each of the batch's pairs, asked for once a step.
        """
        step = self._step
        if step is None or step.kind != "training" or not self.scoring("training"):
            return positive, negative
        users, liked, others = step.batch.users, step.batch.positives, step.batch.negatives
        if users is None or liked is None or others is None or step.scored:
            what = "twice in a step" if step.scored else "without users, positives and negatives in the batch"
            raise RecplugError(f"{self.host} calls its pairwise loss {what}; its scores cannot be changed")
        if not positive.shape == negative.shape == users.shape == liked.shape == others.shape:
            shapes = f"{tuple(positive.shape)} and {tuple(negative.shape)} for {len(users)} pairs"
            raise RecplugError(f"{self.host} compares scores of the shapes {shapes}; they cannot be changed")
        step.scored = True
        return (
            self.score(step, positive, users, liked, half="training"),
            self.score(step, negative, users, others, half="training"),
        )
