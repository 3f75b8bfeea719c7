"""New users and items beside a data set: ``NAME.support.inter`` and ``NAME.query.inter``, which RecBole never reads.

Who is new has no interaction in what RecBole reads, and so no id there. ``support`` is what a trained model may be
shown of them without a gradient step, ``query`` what it is then asked for. Both have the columns of the interactions
and, last, ``group:token``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recplug.plugins.errors import RecplugError

SUPPORT, QUERY = APART = ("support", "query")
GROUP = "group:token"
GROUPS = ("new_user", "new_item", "new_both", "cold_item")
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
Labels = np.ndarray[tuple[int], np.dtype[np.str_]]


def groups(new_user: Mask, new_item: Mask, cold_item: Mask) -> Labels:
    """The group of every interaction of new users and items.

    Args:
        new_user, new_item: ``[n]``: whether the interaction's user, or item, is new; at least one is.
        cold_item: ``[n]``: whether its item is new and occurs in no support at all, so that content is all there is.

    Returns:
        ``[n]``: ``cold_item``, whoever the user is; else ``new_both``, ``new_user`` or ``new_item``.

    Raises:
        RecplugError: for an interaction of which nothing is new, or a cold item that is not new.
    """
    if not (new_user | new_item).all() or (cold_item & ~new_item).any():
        raise RecplugError("an interaction of known user and known item is in no group of new ones; leave it out")
    return np.select([cold_item, new_user & new_item, new_user], ["cold_item", "new_both", "new_user"], "new_item")


def last_apart(rows: Sequence[Sequence[str]], known_items: set[str]) -> tuple[list[list[str]], list[list[str]]]:
    """New users' histories as support, all but the last item, and query, the last.

    Args:
        rows: ``[user, item, order, ...]`` of new users alone.
        known_items: those that the known users have.

    Returns:
        Both as rows with the group at the end, each user's in order.
    """
    histories: dict[str, list[Sequence[str]]] = {}
    for row in rows:
        histories.setdefault(row[0], []).append(row)
    parts: tuple[list[Sequence[str]], list[Sequence[str]]] = ([], [])
    for own in histories.values():
        *shown, asked = sorted(own, key=lambda row: float(row[2]))
        parts[0].extend(shown)
        parts[1].append(asked)
    shown_items = {row[1] for row in parts[0]}
    labelled = []
    for part in parts:
        new = np.array([row[1] not in known_items for row in part], dtype=bool)
        cold = new & np.array([row[1] not in shown_items for row in part], dtype=bool)
        group = groups(np.ones(len(part), dtype=bool), new, cold)
        labelled.append([[*row, str(name)] for row, name in zip(part, group, strict=True)])
    return labelled[0], labelled[1]
