"""What a finished run knows: its users and items by token, what they have had, and of whom it can be asked."""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recplug.adapters.recbole.data.interactions import interactions
from recplug.adapters.recbole.infer.extend import Newcomers
from recplug.adapters.recbole.infer.histories import Askers, Past, Ragged
from recplug.adapters.recbole.infer.inductive import micrec_of
from recplug.plugins.contract import Side
from recplug.plugins.errors import RecplugError, did_you_mean

log = logging.getLogger("recplug")
Histories = Mapping[str, Sequence[str]] | Sequence[Sequence[str]]


@dataclass
class KnownRun:
    """A finished run's data and model, by token.

    Attributes:
        directory: the run directory.
        result: what ``result.json`` holds.
        config: RecBole's configuration.
        model: the augmented model with its best parameters, in evaluation mode.
        loaders: RecBole's loaders of train, valid and test.
        past: what the users have had.
    """

    directory: Path
    result: dict[str, Any]
    config: Any = field(repr=False)
    model: Any = field(repr=False)
    loaders: tuple[Any, Any, Any] = field(repr=False)
    past: Past = field(repr=False)

    @property
    def dataset(self) -> Any:
        """RecBole's data set of the training part; its ids are those of all parts."""
        return self.loaders[0]._dataset

    @cached_property
    def item_tokens(self) -> np.ndarray[Any, Any]:
        """``[n_items]``: the items' tokens by id; the first is the padding's."""
        return np.asarray(self.dataset.field2id_token[self.dataset.iid_field]).astype(object)

    @cached_property
    def user_tokens(self) -> np.ndarray[Any, Any]:
        """``[n_users]``: the users' tokens by id; the first is the padding's."""
        return np.asarray(self.dataset.field2id_token[self.dataset.uid_field]).astype(object)

    @cached_property
    def _known_ids(self) -> dict[Side, dict[str, int]]:
        tokens: dict[Side, np.ndarray[Any, Any]] = {"users": self.user_tokens, "items": self.item_tokens}
        return {side: {token: row for row, token in enumerate(each.tolist()) if row} for side, each in tokens.items()}

    def known(self, side: Side) -> Mapping[str, int]:
        """Numbers by token: of a user the row, of an item the column of scores; of those who were added too."""
        known = self._known_ids[side]
        return ChainMap(self._new.ids[side], known) if "_new" in self.__dict__ else known

    @cached_property
    def _new(self) -> Newcomers:
        return Newcomers(self.model, self.user_tokens.tolist(), self.item_tokens.tolist())

    def is_trained(self, user: str) -> bool:
        """Whether a user is one of the run's own."""
        return user in self._known_ids["users"]

    def known_elsewhere(self) -> Collection[str]:
        """Whom the run's second domain knows, by this domain's names; nobody without a second domain."""
        micrec = micrec_of(self.model)
        return self._new.elsewhere if micrec is not None and micrec.source is not None else ()

    def degrees(self) -> Tensor:
        """``[columns]``: training interactions of every item, none of new ones."""
        return torch.bincount(interactions(self.dataset)[1], minlength=len(self._columns()))

    def history(self, user: str) -> list[str]:
        """What a user has had, oldest first; nothing for someone whom the run does not know."""
        row = self.known("users").get(user)
        return [] if row is None else self._columns()[self._past(torch.tensor([row]), "now").items.numpy()].tolist()

    # -- tokens

    def _past(self, rows: Tensor, until: str) -> Ragged:
        """What users of the run, and new ones, have had, by row ``[n]``."""
        past = self.past.now if until == "now" else self.past.before_test
        known = len(self.user_tokens)
        if bool((rows < known).all()):
            return past.take(rows)
        return past.followed_by(Ragged.of(self._new.histories)).take(rows)

    def _known(self, users: Iterable[str] | None, until: str) -> Askers:
        if users is None:
            ids = self.past.tested if until == "test" else torch.arange(1, len(self.user_tokens))
            askers = Askers(self.user_tokens[ids.numpy()].tolist(), ids, self._past(ids, until))
            return askers.with_past() if self.model.recplug_host.family == "sequential" else askers
        names = users if isinstance(users, str) else [str(user) for user in users]
        ids = torch.tensor(self._look_up("users", names), dtype=torch.int64)
        past = self._past(ids, until)
        if self.model.recplug_host.family == "sequential":
            ids = ids * (ids < len(self.user_tokens))  # a new user has no row
        return Askers(list(names), ids, past)

    def askers(
        self, histories: Histories, *, unknown: Literal["error", "skip"] = "error", known: bool = True
    ) -> Askers:
        """People by what they have had.

        Args:
            histories: as in :meth:`recommend`.
            unknown: as ``unknown_items`` there.
            known: whether names that the run knows, or that were added, are these users; places in a list never are.
        """
        known = known and isinstance(histories, Mapping)
        listed = histories.items() if isinstance(histories, Mapping) else enumerate(histories)
        named = {str(name): had for name, had in listed}
        if text := next((name for name, had in named.items() if isinstance(had, str)), None):
            raise RecplugError(f"the history of '{text}' is a list of items, not the text {named[text]!r}")
        if unknown == "skip":
            items = self.known("items")
            named = {name: [item for item in had if item in items] for name, had in named.items()}
        flat = self._look_up("items", (item for had in named.values() for item in had))
        lengths = torch.tensor([len(had) for had in named.values()], dtype=torch.int64)
        start = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        users = self.known("users") if known else {}
        ids = torch.tensor([users.get(name, 0) for name in named], dtype=torch.int64)
        if self.model.recplug_host.family == "sequential":
            ids = ids * (ids < len(self.user_tokens))  # a new user has no row
        askers = Askers(list(named), ids, Ragged(start, torch.tensor(flat, dtype=torch.int64)))
        if unknown == "error" or self.model.recplug_host.family != "sequential":
            return askers
        kept = askers.with_past()
        if lost := len(askers) - len(kept):
            log.warning("left out, because the run knows nothing that they have had: %d", lost)
        return kept

    def _candidates(self, tokens: Iterable[str]) -> Tensor:
        ids = torch.tensor(sorted(set(self._look_up("items", tokens))), dtype=torch.int64)
        if not len(ids):
            raise RecplugError("candidates is empty; name items, or leave it out for all")
        return ids.to(self.model.device)

    def _look_up(self, side: Side, tokens: Iterable[str], among: Mapping[str, int] | None = None) -> list[int]:
        known, what = self.known(side) if among is None else among, side[:-1]
        if isinstance(tokens, str):
            raise RecplugError(f"{side} are a list of tokens, not the text {tokens!r}")
        listed = [str(token) for token in tokens]
        missing = list(dict.fromkeys(token for token in listed if token not in known))
        if missing:
            hint = did_you_mean(missing[0], known) if len(known) < 100_000 else ""
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise RecplugError(
                f"the run does not know the {what} '{missing[0]}'{more}"
                f"{hint or '; tokens are those of the .inter file'}"
            )
        return [known[token] for token in listed]

    def _columns(self) -> np.ndarray[Any, Any]:
        """``[columns]``: the tokens of items, new ones too."""
        return np.asarray(self._new.tokens["items"], dtype=object) if "_new" in self.__dict__ else self.item_tokens
