"""A finished run that can be asked: recommendations, new users and items, explanations, and files to take away."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from recplug.adapters.recbole.export.files import ExportedRun
from recplug.adapters.recbole.infer.catalogue import Histories
from recplug.adapters.recbole.infer.extend import MODES, Mode, Scorer, Told, content_of
from recplug.adapters.recbole.infer.histories import Askers
from recplug.adapters.recbole.infer.inductive import micrec_of
from recplug.adapters.recbole.infer.scores import as_batch, at_work, best, default_batch, host_scores
from recplug.adapters.recbole.infer.top_k import Recommendations
from recplug.plugins.contract import Side
from recplug.plugins.errors import RecplugError


class LoadedRun(ExportedRun):
    """A finished run, ready to be asked; raw tokens in and out. Made by :func:`load`.

    Its attributes are those of :class:`~recplug.adapters.recbole.infer.catalogue.KnownRun`; what it exports is said in
    :class:`~recplug.adapters.recbole.export.files.ExportedRun`.
    """

    # -- recommendations

    def recommend(
        self,
        users: Iterable[str] | None = None,
        histories: Histories | None = None,
        *,
        k: int = 10,
        candidates: Iterable[str] | None = None,
        mask_history: bool = True,
        until: Literal["now", "test"] = "now",
        unknown_items: Literal["error", "skip"] = "error",
        mode: Mode = "fold_in",
        batch: int | None = None,
    ) -> Recommendations:
        """The k best items of each user.

        Args:
            users: tokens of users of the run, or of :meth:`extend_users`; None: all of the run's, unless ``histories``
                are given; where the backbone reads histories, all who have one.
            histories: items of anyone, oldest first, by name or in a list (then their names are "0", "1", ..., and
                nobody is taken for a user of the run). Needs a backbone that reads histories, or a plugin that makes
                users from their items (``micrec``). A user of the run, on a backbone with a row for each, keeps that
                row; in the mode ``"exact"`` these items are more interactions.
            k: how many.
            candidates: the items to choose from; None: all.
            mask_history: leave out what someone has had.
            until: which of the run's interactions count as past: all (``"now"``), or, as in the test evaluation, those
                before the test part (``"test"``; then ``users=None`` means those with a test interaction).
            unknown_items: whether an item of ``histories`` that the run does not know is an error or left out; whoever
                has nothing else is left out, too, where the backbone reads histories.
            mode: how new users and items, if there are any, come by vectors: beside known ones that stay as they are
                (``"fold_in"``), or with everything computed anew (``"exact"``); no gradient step in either.
            batch: users scored at once; None: as many as 128 MiB of scores allow, at most 256.

        Returns:
            A table that is computed when it is asked for, block by block.

        Raises:
            RecplugError: for a token that the run does not know, a history on a host that reads none, or no history
                on one that reads nothing else.
        """
        for name, number in (("k", k), ("batch", batch)):
            if number is not None and number < 1:
                raise RecplugError(f"{name}={number} must be 1 or more")
        words: Sequence[tuple[str, str, Sequence[str]]] = (
            ("until", until, ("now", "test")),
            ("unknown_items", unknown_items, ("error", "skip")),
            ("mode", mode, MODES),
        )
        for name, word, choices in words:
            if word not in choices:
                raise RecplugError(f"{name}={word!r} is not {' or '.join(map(repr, choices))}")
        parts, scorers = [], []
        if users is not None or histories is None:
            parts.append(self._known(users, until))
            scorers.append(self.scorer(parts[-1], mode))
        if histories is not None:
            parts.append(self.askers(histories, unknown=unknown_items))
            scorers.append(self.scorer(parts[-1], mode, since=True))
        among = None if candidates is None else self._candidates(candidates)
        tokens = self._columns()
        size = batch or default_batch(len(tokens))

        def make() -> Iterator[pa.RecordBatch]:
            for askers, score in zip(parts, scorers, strict=True):
                if not len(askers):
                    continue
                for rows in torch.arange(len(askers)).split(size):
                    block = askers.take(rows)
                    scores = score(rows).clone()
                    scores[:, 0] = -torch.inf  # padding
                    if mask_history:
                        owner, items = (each.to(scores.device) for each in block.past.pairs())
                        scores[owner, items] = -torch.inf
                    yield as_batch(block.names, tokens, *best(scores, k, among))

        return Recommendations(make, sum(map(len, parts)))

    def scores(self, users: Iterable[str], *, until: Literal["now", "test"] = "now", mode: Mode = "fold_in") -> Tensor:
        """Every item's score, ``[n, columns]``: the model's own, the padding column included, then new items'."""
        askers = self._known(users, until)
        return self.scorer(askers, mode)(torch.arange(len(askers)))

    def scorer(self, askers: Askers, mode: Mode, *, since: bool = False) -> Scorer:
        """What gives ``askers`` at rows ``[b]`` their scores ``[b, columns]``, the padding column included.

        Args:
            askers: who is asked about.
            mode: as in :meth:`recommend`.
            since: whether what users of the run have had was given, and counts in the exact mode.

        Raises:
            RecplugError: where the host cannot be asked about them.
        """
        host, empty = self.model.recplug_host, (askers.past.lengths() == 0).nonzero().squeeze(1)
        if host.family == "sequential" and len(empty):
            raise RecplugError(
                f"'{askers.names[int(empty[0])]}' has no history, which is all that {host.name} reads; "
                f"leave such users out ({len(empty):,} here)"
            )
        strangers = host.family != "sequential" and bool((askers.users == 0).any())
        if strangers and micrec_of(self.model) is None:
            who = askers.names[int((askers.users == 0).nonzero()[0])]
            raise RecplugError(
                f"{host.name} scores by a row of each user, and '{who}' has none; train with --plugin micrec, or on a "
                "sequential backbone such as SASRec"
            )
        if strangers or mode == "exact" or "_new" in self.__dict__:
            inner = self._new.scorer(askers, mode, since=since)
        else:
            inner = functools.partial(self._host_scores, askers)

        def score(rows: Tensor) -> Tensor:
            with at_work(self.model):
                return inner(rows)

        return score

    def _host_scores(self, askers: Askers, rows: Tensor) -> Tensor:
        return host_scores(self.model, askers.take(rows), len(self.item_tokens))

    # -- new users and items

    def extend_items(
        self,
        tokens: Sequence[str],
        features: Mapping[str, Any] | None = None,
        support: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Add items that training has not seen; needs the plugin ``micrec``. No known score changes in fold-in.

        Args:
            tokens: new items.
            features: their content by modality: ``[n, d]`` in the order of ``tokens``, or a
                :class:`~recplug.adapters.features.FeatureTable` in which they are looked up. None: they are looked up
                in the run's own feature tables. An item without a vector has none.
            support: (user, item) interactions of these items with users of the run.

        Raises:
            RecplugError: for a token that the run knows, or one that it does not where it should; a run that has no way
                to make new items; or vectors that do not fit those of training.
        """
        tokens = self._fresh("items", tokens)
        place = {token: at for at, token in enumerate(tokens)}
        pairs = [(place[item], user) for user, item in self._support(support, place, 1)]
        users = self._look_up("users", (user for _, user in pairs), self._known_ids["users"])
        local = torch.tensor([at for at, _ in pairs], dtype=torch.int64)
        edges = torch.stack([local, torch.tensor(users, dtype=torch.int64)])
        self._new.add_items(tokens, content_of(self.model, self.config, tokens, features), edges)

    def extend_users(self, tokens: Sequence[str], support: Iterable[tuple[str, str]] = ()) -> None:
        """Add users that training has not seen; needs the plugin ``micrec``. No known score changes in fold-in.

        On a sequential backbone a user is a history, and ``recommend(histories=...)`` does without this.

        Args:
            tokens: new users.
            support: (user, item) interactions of theirs with items of the run or new ones, oldest first. A user
                without any is scored through the second domain, where the run has one that knows the user, or as
                anyone.

        Raises:
            RecplugError: as :meth:`extend_items`.
        """
        tokens = self._fresh("users", tokens)
        found: dict[str, list[int]] = {token: [] for token in tokens}
        pairs = list(self._support(support, found, 0))
        for (user, _), item in zip(pairs, self._look_up("items", (i for _, i in pairs)), strict=True):
            found[user].append(item)
        self._new.add_users(tokens, list(found.values()))

    def explain(self, token: str, *, side: Side | None = None) -> Told:
        """How a user or an item, known or new, came by its vector; needs the plugin ``micrec``.

        Args:
            token: of either.
            side: ``"users"`` or ``"items"``, where a token is of both.

        Raises:
            RecplugError: for an unknown token, one of both sides, or a run without ``micrec``.
        """
        sides: list[Side] = ["users", "items"] if side is None else [side]
        found = [each for each in sides if token in self.known(each)]
        if len(found) != 1:
            what = (
                "both a user and an item; say side='users' or side='items'" if found else "no user or item of the run"
            )
            raise RecplugError(f"'{token}' is {what}")
        return self._new.explain(found[0], self.known(found[0])[token])

    def _fresh(self, side: Side, tokens: Sequence[str]) -> list[str]:
        listed = [str(token) for token in tokens]
        if isinstance(tokens, str) or not listed:
            raise RecplugError(f"new {side} are a list of tokens, not {tokens!r}")
        for token, times in Counter(listed).items():
            if times > 1 or token in self.known(side):
                why = f"named {times} times" if times > 1 else f"one of the run's {side} already"
                raise RecplugError(f"'{token}' is {why}; name each new one once")
        return listed

    def _support(
        self, support: Iterable[tuple[str, str]], new: Mapping[str, Any], place: int
    ) -> Iterator[tuple[str, str]]:
        what = ("user", "item")[place]
        for pair in support:
            if pair[place] not in new:
                raise RecplugError(f"support names the {what} '{pair[place]}', which is not among the new ones")
            yield pair
