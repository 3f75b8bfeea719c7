"""Augmented sequential models: encoding without padding, the encoder for re-encoding, masked histories."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from recplug.adapters.recbole.grafted import Grafted, interactions
from recplug.adapters.recbole.hosts import HOSTS
from recplug.adapters.recbole.trim import encode_trimmed
from recplug.plugins.errors import RecplugError


class GraftedSequences(Grafted):
    """A sequential backbone: its ``forward`` encodes histories."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.recplug_whole_table = config["loss_type"] == "CE"
        self.recplug_trim = self._recplug_trims(config)
        self.recplug_history: Tensor | None = None
        if config["mask_history"]:
            self.recplug_history = torch.stack(interactions(dataset))

    def _recplug_trims(self, config: Any) -> bool:
        wanted = config["trim_padding"]
        if wanted is None:
            return bool(self.recplug_names) and self.recplug_host.trim
        if wanted and self.recplug_host.name in HOSTS and not self.recplug_host.trim:
            exact = [name for name, host in HOSTS.items() if host.trim]
            raise RecplugError(
                f"trim_padding is not exact for {self.recplug_host.name}, whose encoder reads the padding; "
                f"leave it out, or use one of {', '.join(exact)}"
            )
        return bool(wanted)

    def recplug_speed(self) -> str:
        """What was done to the backbone's speed, for the log."""
        return f"padding {'trimmed' if self.recplug_trim else 'kept'}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's encoder, without padding where that is exact; remembered for ``Step.reencode``."""
        encode = functools.partial(super().forward, **kwargs)  # type: ignore[misc]
        step = self.recplug._step
        padded = bool(args) and isinstance(args[0], Tensor) and args[0].dim() == 2
        trim = self.recplug_trim and padded and not any(isinstance(value, Tensor) for value in kwargs.values())

        def run() -> Any:
            if trim:
                return encode_trimmed(encode, args, self.max_seq_length)  # type: ignore[attr-defined]
            return encode(*args)

        output = run()
        if step is not None and step.encoded is None and self.recplug_host.dot:
            step.encoder, step.encoded = run, output
        return output

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """The host's scores of every item ``[B * n_items]``; what a user has had ranks last with ``mask_history``."""
        scores = super().full_sort_predict(interaction)  # type: ignore[misc]
        if self.recplug_history is None:
            return scores
        users = interaction[self.USER_ID]  # type: ignore[attr-defined]
        rows = scores.reshape(len(users), -1).clone()  # [B, n_items]
        rows.scatter_(1, interaction[self.ITEM_SEQ], -torch.inf)  # type: ignore[attr-defined]
        row, items = self._recplug_seen(users)
        rows[row, items] = -torch.inf
        return rows.reshape(scores.shape)

    def _recplug_seen(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """(row of the batch, item) of every training interaction of the batch's ``users [B]``."""
        assert self.recplug_history is not None
        self.recplug_history = history = self.recplug_history.to(users.device)  # [2, n], sorted by user
        first = torch.searchsorted(history[0].contiguous(), users)
        last = torch.searchsorted(history[0].contiguous(), users, right=True)
        rows = torch.repeat_interleave(torch.arange(len(users), device=users.device), last - first)
        offset = torch.arange(len(rows), device=users.device) - torch.repeat_interleave(
            (last - first).cumsum(0) - (last - first), last - first
        )
        return rows, history[1, first[rows] + offset]
