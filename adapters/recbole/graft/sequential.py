"""Augmented sequential models: encoding without padding, the encoder for re-encoding, whole and masked histories."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from recplug.adapters.recbole.data.interactions import interactions
from recplug.adapters.recbole.graft.base import Grafted
from recplug.adapters.recbole.graft.hosts import HOSTS
from recplug.adapters.recbole.graft.score_seam import pairs_of, rank, score_block
from recplug.adapters.recbole.graft.trimming import encode_trimmed
from recplug.plugins.errors import RecplugError

# How encoders name their arguments.
ENCODES = {"user": "users", "item_seq": "sequence", "seq_item": "sequence", "item_seq_len": "lengths",
           "seq_item_len": "lengths"}  # fmt: skip


class GraftedSequences(Grafted):
    """A sequential backbone: its ``forward`` encodes histories."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.recplug_whole_table = config["loss_type"] == "CE"
        self.recplug_block = score_block(config["score_block"])
        self.recplug_trim = self._recplug_trims(config)
        self.recplug_history: Tensor | None = None
        if config["mask_history"]:
            self.recplug_history = torch.stack(interactions(dataset))
        if self.recplug_names and self.recplug_host.dot and self._recplug_arguments():
            self._recplug_histories = Histories(dataset)
            self.recplug.vectors = self._recplug_vectors

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
        if step is not None and step.kind == "training" and step.encoded is None and self.recplug_host.dot:
            step.encoder, step.encoded = run, output
        return output

    def _recplug_arguments(self) -> list[str]:
        """What the encoder takes, in its order, in the words of :data:`ENCODES`; empty where it takes other things."""
        names = list(inspect.signature(self.recplug_base.forward).parameters)[1:]  # type: ignore[attr-defined]
        return [ENCODES[name] for name in names] if all(name in ENCODES for name in names) else []

    def _recplug_vectors(self, users: Tensor) -> Tensor:
        """``users [b]`` to encodings ``[b, d]`` of their whole training histories."""
        sequence, lengths = self._recplug_histories.of(users)
        given = {"users": users, "sequence": sequence, "lengths": lengths}
        return self(*(given[name] for name in self._recplug_arguments()))  # type: ignore[operator]

    def predict(self, interaction: Any) -> Tensor:
        """The host's scores of pairs ``[b]``, through the plugins."""
        if not self.recplug.scoring("ranking"):
            return super().predict(interaction)  # type: ignore[misc]
        return pairs_of(self._recplug_rank, self, interaction)

    def _recplug_rank(self, interaction: Any) -> Tensor:
        """``[B, n_items]``, before anything is masked."""
        with self.recplug.asking() as step:
            return rank(self, super().full_sort_predict, interaction, step, self.recplug_block)  # type: ignore[misc]

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """The scores of every item ``[B * n_items]``, through the plugins; ``mask_history`` puts those had last."""
        if self.recplug.scoring("ranking"):
            scores = self._recplug_rank(interaction).reshape(-1)
        else:
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


class Histories:
    """Every user's whole training history; read from the data when first asked, and shared by copies of the model.

    Args:
        dataset: the training split of RecBole's sequential data: a row for every target, in the order of time.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._whole: tuple[Tensor, Tensor] | None = None

    def of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """``users [b]`` to ``sequence [b, L]``, padded, and ``lengths [b]``, at least 1."""
        if self._whole is None:
            self._whole = whole_histories(self._dataset)
        if self._whole[0].device != users.device:
            self._whole = self._whole[0].to(users.device), self._whole[1].to(users.device)
        sequences, lengths = self._whole
        return sequences[users], lengths[users]

    def __deepcopy__(self, memo: dict[int, Any]) -> Histories:
        return self


def whole_histories(dataset: Any) -> tuple[Tensor, Tensor]:
    """Every user's whole training history: the history of the last training row, and its target.

    Args:
        dataset: a training split of RecBole's sequential data: a row for every target, in the order of time.

    Returns:
        ``sequences [n_users, L]``, padded, the last L items of longer ones; ``lengths [n_users]``, at least 1.
    """
    feat = dataset.inter_feat
    users, targets = feat[dataset.uid_field], feat[dataset.iid_field]
    histories = feat[f"{dataset.iid_field}{dataset.config['LIST_SUFFIX']}"]  # [n, L]
    n_rows, size = histories.shape
    # Ties of the length are rows of users with more than L items: of these the last one counts.
    last = torch.full((dataset.user_num,), -1).scatter_reduce(0, users, torch.arange(n_rows), "amax")
    known = last >= 0
    rows = last.clamp(min=0)
    items = torch.cat([histories[rows], torch.zeros(len(rows), 1, dtype=histories.dtype)], dim=1)  # [n_users, L + 1]
    lengths = (histories[rows] != 0).sum(dim=1)
    items = items.scatter(1, lengths.unsqueeze(1), targets[rows].unsqueeze(1))
    full = (lengths == size).unsqueeze(1)
    sequences = torch.where(full, items[:, 1:], items[:, :-1]) * known.unsqueeze(1)
    return sequences, torch.where(known, (lengths + 1).clamp(max=size), 1)
