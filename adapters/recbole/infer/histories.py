"""What the users of a run have had, and of whom recommendations are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Lists of item ids of different lengths.

    Attributes:
        start: ``[n + 1]``, where each list begins in ``items``.
        items: ``[total]``.
    """

    start: Tensor
    items: Tensor

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """From Python lists."""
        lengths = torch.tensor([len(each) for each in lists], dtype=torch.int64)
        flat = torch.tensor([item for each in lists for item in each], dtype=torch.int64)
        return cls(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), flat)

    @classmethod
    def by_owner(cls, owners: Tensor, items: Tensor, n: int) -> Ragged:
        """The items of each owner from 0 to ``n - 1``, in the order in which they come; both ``[total]``."""
        order = torch.argsort(owners, stable=True)
        counts = torch.bincount(owners, minlength=n)
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), items[order])

    def __len__(self) -> int:
        return len(self.start) - 1

    def lengths(self) -> Tensor:
        """``[n]``."""
        return self.start[1:] - self.start[:-1]

    def take(self, rows: Tensor) -> Ragged:
        """The lists of ``rows [r]``, in that order."""
        lengths = self.lengths()[rows]
        start = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        return Ragged(start, self.items[self.start[rows][owner] + torch.arange(len(owner)) - start[owner]])

    def followed_by(self, other: Ragged) -> Ragged:
        """These lists, then the other ones."""
        return Ragged(torch.cat([self.start, other.start[1:] + self.start[-1]]), torch.cat([self.items, other.items]))

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(list, item) of every entry: ``[total]`` each."""
        return torch.repeat_interleave(torch.arange(len(self)), self.lengths()), self.items

    def without_last(self, counts: Tensor) -> Ragged:
        """Each list without its last ``counts [n]`` entries."""
        owner, items = self.pairs()
        place = torch.arange(len(items)) - self.start[owner]
        kept = place < (self.lengths() - counts)[owner]
        return Ragged.by_owner(owner[kept], items[kept], len(self))

    def padded(self, length: int) -> tuple[Tensor, Tensor]:
        """The last ``length`` entries of every list, 0 behind them: ``[n, length]``, and their number ``[n]``."""
        counts = self.lengths().clamp(max=length)
        place = torch.arange(length)
        real = place < counts.unsqueeze(1)  # [n, length]
        first = (self.start[1:] - counts).unsqueeze(1)
        where = torch.where(real, first + place, 0)
        return torch.where(real, self.items[where], 0) if len(self.items) else torch.zeros_like(where), counts


@dataclass(frozen=True)
class Past:
    """The items of every user of a run, by user id, oldest first where the data have a time.

    Attributes:
        now: everything in the files.
        before_test: what comes before the test part: of a general model the rest of the data, of a sequential one each
            user's items up to the first that is tested.
        tested: ``[n]``: the ids of users with test interactions.
    """

    now: Ragged
    before_test: Ragged
    tested: Tensor

    @classmethod
    def of(cls, dataset: Any, frame: Any, parts: Sequence[Any], *, sequential: bool) -> Past:
        """From RecBole's data.

        Args:
            dataset: RecBole's.
            frame: its interactions before they were split, a pandas frame of ids.
            parts: the data sets of train, valid and test.
            sequential: whether the parts hold histories.
        """
        user, item, time = dataset.uid_field, dataset.iid_field, dataset.time_field
        n, feats = dataset.user_num, [part.inter_feat for part in parts]
        histories = f"{item}{dataset.config['LIST_SUFFIX']}"
        if histories in frame:  # a benchmark whose files hold histories themselves
            now = _from_rows(feats, user, item, histories, n)
        else:
            keys = [frame[user].to_numpy(), *([frame[time].to_numpy()] if time in frame else [])]
            order = np.lexsort(keys[::-1])  # stable, as the host's own sort
            owners, items = (
                torch.from_numpy(frame[field].to_numpy()[order].astype(np.int64)) for field in (user, item)
            )
            now = Ragged.by_owner(owners, items, n)
        test = feats[2][user]
        if sequential:
            before = now.without_last(torch.bincount(test, minlength=n))
        else:
            users, items = (torch.cat([feat[field] for feat in feats[:2]]) for field in (user, item))
            before = Ragged.by_owner(users, items, n)
        return cls(now, before, torch.unique(test))


def _from_rows(feats: Sequence[Any], user: str, item: str, histories: str, n: int) -> Ragged:
    """Each user's last history with its target, and before it what only other rows name."""
    users = torch.cat([feat[user] for feat in feats])
    rows = torch.cat([torch.cat([feat[histories], feat[item].unsqueeze(1)], dim=1) for feat in feats])  # [r, L + 1]
    last = torch.full((n,), -1).scatter_reduce(0, users, torch.arange(len(users)), "amax")
    known = (last >= 0).nonzero().squeeze(1)
    owner, place = (rows[last[known]] != 0).nonzero(as_tuple=True)
    recent, of_whom = rows[last[known]][owner, place], known[owner]
    span = int(rows.max()) + 1
    real = rows != 0
    everything = torch.unique(users.unsqueeze(1).expand_as(rows)[real] * span + rows[real])
    older = everything[~torch.isin(everything, of_whom * span + recent)]
    return Ragged.by_owner(torch.cat([older // span, of_whom]), torch.cat([older % span, recent]), n)


@dataclass(frozen=True)
class Askers:
    """Of whom recommendations are asked.

    Attributes:
        names: tokens of known users, any names of others.
        users: ``[n]`` user ids, 0 for someone whom the run does not know.
        past: their items, oldest first.
    """

    names: list[str]
    users: Tensor
    past: Ragged

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Tensor) -> Askers:
        """Those at ``rows [r]``."""
        return Askers([self.names[row] for row in rows.tolist()], self.users[rows], self.past.take(rows))

    def with_past(self) -> Askers:
        """Those who have had something."""
        return self.take((self.past.lengths() > 0).nonzero().squeeze(1))
