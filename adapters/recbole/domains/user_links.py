"""Who is who in two domains: users that both have, by their raw tokens or by a file that says so."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recplug.adapters.recbole.data.interactions import interactions
from recplug.plugins.errors import RecplugError

log = logging.getLogger("recplug")
FEW, LEAST = 50, 2
HELD_OUT = 0.1  # the share of the links that no loss may read


@dataclass(frozen=True)
class Pairing:
    """The people that two domains share.

    Attributes:
        links: ``[n, 2]`` int64 (source user id, target user id), for the losses.
        held_out: ``[m, 2]`` int64, for diagnostics alone.
        shares: how many of the source's and of the target's training users the links cover together, 0 to 1.
        by_file: whether a file said who is who, not the tokens.
    """

    links: Tensor
    held_out: Tensor
    shares: tuple[float, float]
    by_file: bool

    @property
    def total(self) -> int:
        """All links, held out or not."""
        return len(self.links) + len(self.held_out)

    def report(self, source: str, target: str) -> None:
        """Log how many people are linked, and what they are linked by."""
        how = "by the link file" if self.by_file else "because their user tokens are equal, which this pair promises"
        log.info(
            "%s and %s: %d users are taken for the same person, %s: %.1f %% of the training users of %s, %.1f %% of "
            "those of %s; %d links are held out of the loss",
            source,
            target,
            self.total,
            how,
            100 * self.shares[0],
            source,
            100 * self.shares[1],
            target,
            len(self.held_out),
        )
        if self.total < LEAST:
            log.warning(
                "%s and %s have %d training users in common: nothing can be transferred", source, target, self.total
            )
        elif self.total < FEW:
            log.warning("%s and %s have only %d training users in common", source, target, self.total)


def pair(source: Any, target: Any, *, file: str | Path | None, seed: int) -> Pairing:
    """Link the users of two training splits. Only users with a training interaction in both are linked.

    Args:
        source, target: RecBole's training splits.
        file: who is who (:func:`read_links`); without one, equal tokens are the same person.
        seed: of the choice of the links that are held out.

    Raises:
        RecplugError: for a link file that cannot be read, or that fits none of the users.
    """
    ours, theirs = _training_users(source), _training_users(target)
    if file is None:
        named: Iterable[tuple[str, str]] = ((token, token) for token in ours)
    else:
        named = read_links(file)
    found = [(ours[one], theirs[other]) for one, other in named if one in ours and other in theirs]
    if file is not None and not found:
        raise RecplugError(
            f"{file} links no users that {source.config['dataset']} and {target.config['dataset']} both train on; "
            "its columns are the source's user tokens and the target's, in this order"
        )
    links = torch.tensor(sorted(found), dtype=torch.long).reshape(-1, 2)
    order = torch.randperm(len(links), generator=torch.Generator().manual_seed(seed))
    held = round(HELD_OUT * len(links)) if len(links) > LEAST else 0
    shares = len(links) / max(len(ours), 1), len(links) / max(len(theirs), 1)
    kept, held_out = links[order[held:].sort().values], links[order[:held].sort().values]
    if file is None and found and all(token.isdigit() for token in ours if token in theirs):
        log.warning(
            "the user tokens that %s and %s share are plain numbers; where each data set counted its own users, equal "
            "numbers are different people, and a link file has to say who is who",
            source.config["dataset"],
            target.config["dataset"],
        )
    return Pairing(kept, held_out, shares, file is not None)


def read_links(file: str | Path) -> list[tuple[str, str]]:
    """A link file: a header, then a person a line: the source's user token, a tab, the target's.

    Raises:
        RecplugError: for a file that is not like that, and where a user is linked twice; with the line.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecplugError(f"cannot read the link file {file}: {reason}") from None
    found: list[tuple[str, str]] = []
    seen: tuple[dict[str, int], dict[str, int]] = {}, {}
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 2 or not all(cells):
            raise RecplugError(
                f"{file}, line {number}: expected a source user, a tab and a target user, found {line!r}"
            )
        if number == 1:
            continue  # the header
        for token, known, side in zip(cells, seen, ("source", "target"), strict=True):
            if token in known:
                raise RecplugError(
                    f"{file}, line {number}: the {side} user {token!r} is linked already, in line {known[token]}; "
                    "a person has one account in each domain"
                )
            known[token] = number
        found.append((cells[0], cells[1]))
    if not found:
        raise RecplugError(f"{file} holds no links; it needs a header, and a line for each person")
    return found


def _training_users(dataset: Any) -> dict[str, int]:
    """The ids of the users with a training interaction, by token; never the padding's."""
    users, items = interactions(dataset)
    ids = torch.unique(users[(users != 0) & (items != 0)]).tolist()
    tokens = dataset.field2id_token[dataset.uid_field]
    return {str(tokens[i]): i for i in ids}
