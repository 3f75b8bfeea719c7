"""Example users: what they had, what was held out, and what each run recommends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recplug.adapters.page.frame import percent
from recplug.adapters.recbole import LoadedRun, load
from recplug.adapters.report.catalogue import Catalogue
from recplug.adapters.report.explanations import Line, Reasons, how
from recplug.adapters.report.side_by_side import Column
from recplug.plugins.errors import RecplugError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the test users by rank, from which examples are taken
HAD = 8  # latest items of a history that are shown


@dataclass(frozen=True)
class Item:
    """An item as it is shown."""

    token: str
    title: str
    picture: str | None


@dataclass(frozen=True)
class Recommended:
    """One line of a list."""

    item: Item
    score: float
    hit: bool
    why: Sequence[tuple[Line, Item | None]]


@dataclass(frozen=True)
class Answer:
    """What one run says of one user."""

    name: str
    items: Sequence[Recommended]
    lines: Sequence[Line]


@dataclass
class Example:
    """One user.

    Attributes:
        user: the token.
        history: the latest items, oldest first.
        total: how many items the history has.
        held_out: test items, and their rank in each run by the run's name; those that any run ranks best come first.
        answers: of the runs that could be asked.
    """

    user: str
    history: Sequence[Item]
    total: int
    held_out: Sequence[tuple[Item, Mapping[str, int]]]
    answers: list[Answer] = field(default_factory=list)

    @property
    def best(self) -> dict[str, int]:
        """The best rank of a held-out item in each run that has ranked one, by the run's name."""
        found: dict[str, int] = {}
        for _, ranks in self.held_out:
            found |= {name: min(rank, found.get(name, rank)) for name, rank in ranks.items()}
        return found


@dataclass
class Examples:
    """All example users, how their reasons were computed, and what is missing.

    Attributes:
        examples: by user, for each kind of data that the runs were trained on.
        how: how reasons were computed.
        missing: what could not be asked.
        chosen: how the users were chosen.
        items: how many there are.
    """

    examples: list[Example] = field(default_factory=list)
    how: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    chosen: str = ""
    items: int = 0


def examples(
    shown: Sequence[Column], users: Sequence[str] | None, images: str | None, k: int, data_path: Path | None
) -> Examples:
    """Ask every run that can be loaded about the same users; runs on other data than the first loaded one are left out.

    Args:
        shown: the runs.
        users: tokens; None: some at fixed places among the test users, by the rank of what was held out.
        images: see :class:`Catalogue`.
        k: how many items to recommend.
        data_path: where the data are now, if they have moved.

    Raises:
        RecplugError: for a user that the run does not know, or ``images`` that are neither folder nor column.
    """
    found, catalogue, fingerprint, used = Examples(), None, None, dict[str, None]()
    for column in shown:
        run = column.run
        if catalogue is not None and run.result.get("data_fingerprint") != fingerprint:
            found.missing.append(f"{column.name}: trained on other data, so it is not asked about these users.")
            continue
        try:
            loaded = load(run.path, data_path=data_path)
        except Exception as error:  # a model of anyone's, and files of any age: the page is made without it
            kind = "" if isinstance(error, RecplugError) else f"{type(error).__name__}: "
            found.missing.append(f"{column.name}: no example users, as {kind}{' '.join(str(error).split())}")
            continue
        if catalogue is None:
            fingerprint = run.result.get("data_fingerprint")
            folder = Path(loaded.config["data_path"])
            catalogue = Catalogue(folder, run.result["dataset"], loaded.item_tokens.tolist(), loaded.config, images)
            names, found.chosen = (list(users), "as asked") if users is not None else _chosen(loaded, shown)
            found.items = len(loaded.item_tokens) - 1
            found.examples = [_example(loaded, catalogue, user, shown) for user in names]
        used |= _ask(found, column, loaded, catalogue, k)
    found.how = how(used)
    return found


def _chosen(loaded: LoadedRun, shown: Sequence[Column]) -> tuple[list[str], str]:
    """Test users that nobody has picked."""
    ranked = next((column for column in reversed(shown) if column.given and column.run.ranks), None)
    if ranked is None:
        tested = loaded.user_tokens[loaded.past.tested[: len(QUANTILES)].numpy()].tolist()
        return tested, "the first of the test users, as no ranks are known"
    best: dict[str, int] = {}
    for (user, _), rank in ranked.run.ranks.items():
        best[user] = min(rank, best.get(user, rank))
    order = sorted((user for user in best if user in loaded.known("users")), key=lambda user: (best[user], user))
    places = dict.fromkeys(round(share * (len(order) - 1)) for share in QUANTILES)
    shares = ", ".join(percent(share) for share in QUANTILES)
    return [order[place] for place in places], (
        f"not by hand: of all {len(order):,} test users, sorted by where {ranked.name} ranks what was held out, those "
        f"at {shares} of the way"
    )


def _item(catalogue: Catalogue, token: str) -> Item:
    return Item(token, catalogue.titles.get(token, ""), catalogue.thumbnail(token))


def _history(loaded: LoadedRun, user: str) -> list[str]:
    """What came before the test part, oldest first."""
    past = loaded.past.before_test.take(torch.tensor([loaded.known("users")[user]]))
    return loaded.item_tokens[past.items.numpy()].tolist()


def _example(loaded: LoadedRun, catalogue: Catalogue, user: str, shown: Sequence[Column]) -> Example:
    if user not in loaded.known("users"):
        loaded.recommend([user])  # says so, with the nearest name
    history = _history(loaded, user)
    ranks: dict[str, dict[str, int]] = {}
    for column in shown:
        for (who, item), rank in column.run.ranks.items():
            if who == user:
                ranks.setdefault(item, {})[column.name] = rank
    best_first = sorted(ranks, key=lambda item: min(ranks[item].values()))
    held_out = [(_item(catalogue, item), ranks[item]) for item in best_first]
    return Example(user, [_item(catalogue, token) for token in history[-HAD:]], len(history), held_out)


def _ask(
    found: Examples, column: Column, loaded: LoadedRun, catalogue: Catalogue, k: int
) -> dict[str, None]:  # fmt: skip
    """Add one run's answers."""
    run, reasons = column.run, Reasons(loaded, column.run, catalogue)
    masked = bool(run.result.get("mask_history", True))
    for example in found.examples:
        try:
            rows: list[dict[str, Any]] = (
                loaded.recommend([example.user], k=k, until="test", mask_history=masked).table().to_pylist()
            )
        except RecplugError as error:
            found.missing.append(f"{column.name}: no recommendations for {example.user}, as {error}")
            continue
        targets = {item.token for item, _ in example.held_out}
        tokens = [row["item"] for row in rows]
        why = reasons.of_items(example.user, tokens, _history(loaded, example.user))
        listed = [
            Recommended(
                _item(catalogue, row["item"]),
                row["score"],
                row["item"] in targets,
                [(line, _item(catalogue, line.token) if line.token else None) for line in lines],
            )
            for row, lines in zip(rows, why, strict=True)
        ]
        example.answers.append(Answer(column.name, listed, reasons.of_user(example.user)))
    return reasons.used
