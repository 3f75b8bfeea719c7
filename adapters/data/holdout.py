"""New users and new items out of any data set: a seeded draw, ``recplug data holdout``.

A share of the users and of the items is drawn. Interactions of the others stay what RecBole reads, under the set's own
settings: its order, its ready-made split. The drawn ones' are divided into support, which a trained model may be shown,
and query; see :mod:`recplug.adapters.data.held_out_nodes`.

The protocol is a choice of ours: the paper states none, and INMO's (the last tokens in file order) favours late comers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recplug.adapters.data.held_out_nodes import GROUPS, Labels, Mask, groups
from recplug.plugins.errors import RecplugError

Ids = np.ndarray[tuple[int], np.dtype[np.int64]]
Places = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Draw:
    """What to hold out.

    Attributes:
        new_users, new_items: shares of all users, and of all items, in [0, 1).
        cold_items: share of the new items that get no support at all, in [0, 1].
        support: of a new user's and of a new item's interactions, the largest share that support may have, in [0, 1).
        seed: of the draw.

    Raises:
        RecplugError: for a share out of range, or where nothing is held out.
    """

    new_users: float = 0.2
    new_items: float = 0.2
    cold_items: float = 0.25
    support: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, top in (("new_users", "1)"), ("new_items", "1)"), ("support", "1)"), ("cold_items", "1]")):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (value == 1 and top == "1)"):
                raise RecplugError(f"{name} is {value}; give a share in [0, {top}")
        if not self.new_users + self.new_items:
            raise RecplugError("new_users and new_items are both 0; hold out some of one")


@dataclass(frozen=True)
class Held:
    """Which of the n interactions goes where.

    Attributes:
        known, support, query: ``[n]``, each interaction in one of them; but where the support shows a pair of user and
            item that occurs again, nobody asks for the repeat.
        new_users ``[n_users]``, new_items ``[n_items]``: who is new.
        group: ``[n]``, one of :data:`GROUPS`; empty for what is known.
    """

    known: Mask
    support: Mask
    query: Mask
    new_users: Mask
    new_items: Mask
    group: Labels

    def counts(self) -> dict[str, int]:
        """Queries by group."""
        return {name: int((self.group[self.query] == name).sum()) for name in GROUPS}


@dataclass(frozen=True)
class Log:
    """The interactions of a data set.

    Attributes:
        user, item: ``[n]``: ids from 0 without gaps, in the order of the sorted tokens, so that the order of the file
            does not matter.
        time: ``[n]``: when, or at which place of the user's history; None where nobody knows.
        part: ``[n]``: 0 where the ready-made split says training; None where there is no such split.
        last_out: how many of each user's last interactions validate and test, where the order says so.
    """

    user: Ids
    item: Ids
    time: Places | None = None
    part: Ids | None = None
    last_out: int = 0

    def training(self, among: Mask) -> Mask:
        """``[n]``: what trains when only ``among`` is read. Of a random split nobody knows yet: all of it."""
        if self.part is not None:
            return among & (self.part == 0)
        if not self.last_out or self.time is None:
            return among
        kept = among.nonzero()[0]
        order = kept[np.lexsort((self.time[kept], self.user[kept]))]  # by user, then in time
        size = np.bincount(self.user[order], minlength=self.user.max() + 1)[self.user[order]]
        trains = np.zeros_like(among)
        # RecBole leaves every user one interaction to train on; one alone is no sequence.
        trains[order] = (_place(self.user[order]) < np.maximum(size - self.last_out, 1)) & (size > 1)
        return trains


def hold_out(log: Log, draw: Draw) -> Held:
    """Draw new users and items, and divide their interactions.

    Whom the draw leaves without any training interaction is new too, so that everyone whom RecBole knows was trained.
    Of a new user's interactions the first in time come first into support, else random ones; of a new item's always
    random ones, since users' times are not comparable. Between a new user and a new item, both shares hold.

    Raises:
        RecplugError: where no training interaction remains.
    """
    rng = np.random.default_rng(draw.seed)
    n_users, n_items = int(log.user.max()) + 1, int(log.item.max()) + 1
    new_users, new_items = _drawn(rng, n_users, draw.new_users), _drawn(rng, n_items, draw.new_items)
    while True:
        known = ~new_users[log.user] & ~new_items[log.item]
        trains = log.training(known)
        idle_users = ~new_users & (np.bincount(log.user[trains], minlength=n_users) == 0)
        idle_items = ~new_items & (np.bincount(log.item[trains], minlength=n_items) == 0)
        if not idle_users.any() and not idle_items.any():
            break
        new_users, new_items = new_users | idle_users, new_items | idle_items
    if not trains.any():
        raise RecplugError("nothing to train on remains; hold out fewer users and items")

    cold = np.zeros(n_items, dtype=bool)
    candidates = new_items.nonzero()[0]
    cold[rng.permutation(candidates)[: round(draw.cold_items * len(candidates))]] = True
    chance = rng.permutation(len(known)).astype(np.float64)
    of_user, of_item = new_users[log.user], new_items[log.item]
    support = ~known & ~cold[log.item]
    support &= ~of_user | _first(log.user, chance if log.time is None else log.time, draw.support)
    support &= ~of_item | _first(log.item, chance, draw.support)
    shown = np.bincount(log.item[support], minlength=n_items) > 0
    group = np.full(len(known), "", dtype="<U9")
    apart = ~known
    group[apart] = groups(of_user[apart], of_item[apart], (of_item & ~shown[log.item])[apart])
    pair = log.user * n_items + log.item
    query = apart & ~support & ~np.isin(pair, pair[support])
    return Held(known, support, query, new_users, new_items, group)


def _drawn(rng: np.random.Generator, n: int, share: float) -> Mask:
    drawn = np.zeros(n, dtype=bool)
    drawn[rng.permutation(n)[: round(share * n)]] = True
    return drawn


def _first(owner: Ids, when: Places, share: float) -> Mask:
    """``[n]``: whether it is among its owner's first ``share``, rounded down."""
    order = np.lexsort((when, owner))
    place = np.empty(len(owner), dtype=np.int64)
    place[order] = _place(owner[order])
    # The margin keeps 0.3 of 10 from being 2.
    return place < np.floor(share * np.bincount(owner)[owner] + 1e-9)


def _place(owner: Ids) -> Ids:
    """``[n]``: the place, from 0, of each among its owner's; owners stand together."""
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    sizes = np.diff(np.r_[starts, len(owner)])
    return np.arange(len(owner)) - np.repeat(starts, sizes)
