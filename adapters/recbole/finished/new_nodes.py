"""How well users and items that training has not seen are ranked: what is shown of them, then what is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recplug.adapters.recbole.finished.loaded_run import LoadedRun
from recplug.adapters.recbole.infer.extend import Mode
from recplug.adapters.recbole.infer.histories import Askers
from recplug.adapters.recbole.infer.scores import default_batch
from recplug.plugins.errors import RecplugError

SHOTS = (0, 1, 2, 5, 10)
BUCKETS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, None))
Row = tuple[str, str, str]  # user, item, group
Score = Callable[[Tensor], Tensor]  # rows of askers [b] to scores [b, columns]


@dataclass(frozen=True)
class Asked:
    """What is asked, one row a query.

    Attributes:
        rows: ``[q]``: whose.
        items: ``[q]``: columns.
        groups: ``[q]`` names.
    """

    rows: Tensor
    items: Tensor
    groups: list[str]


def evaluate_new(
    run: LoadedRun, support: Sequence[Row], query: Sequence[Row], *, k: int = 20, mode: Mode = "fold_in"
) -> dict[str, Any]:
    """Show a loaded run the support, ask for the queries, and measure; the run is extended by it.

    Every query is ranked among all items, known and new, but for what its user has had; a group, a support size and a
    bucket of degrees count the queries that belong to them. Users are averaged. Beside the model stand popularity
    (training and support interactions together) and, on a backbone with users' vectors, the one ranking for someone of
    whom nothing is known.

    Args:
        run: from ``load()``, with the plugin ``micrec``, or on a sequential backbone if no item is new.
        support: interactions that may be shown, oldest first.
        query: interactions that are asked for.
        k: of recall and NDCG.
        mode: of the new vectors.

    Returns:
        ``groups``, ``support`` (new users who have so many, cut to their latest, and of these whom the second domain
        knows; in the exact mode the graph holds the rest of their support, too), ``degree`` (of the items, among all
        and within the bucket): each with ``users``, ``queries``, and ``recall`` and ``ndcg`` by what ranked.

    Raises:
        RecplugError: for queries that no new user or item has, or that the support shows, and as ``extend_items`` and
            ``extend_users``.
    """
    if k < 1:
        raise RecplugError(f"k={k} must be 1 or more")
    before = len(run.known("items"))
    shown = _introduce(run, support, query)  # of the users who are asked about
    new = {user: had for user, had in shown.items() if not run.is_trained(user)}
    sequential = run.model.recplug_host.family == "sequential"
    people = run.askers({user: had if user in new else [*run.history(user), *had] for user, had in shown.items()})
    asked, degree = _asked(run, query, list(shown)), _degrees(run, support)

    ranking = {"model": run.scorer(people, mode), "popularity": _constant(degree.float())}
    if not sequential:
        nobody = run.scorer(run.askers({"": []}), mode)
        ranking["global"] = _constant(nobody(torch.zeros(1, dtype=torch.int64))[0])
    ranks = {name: _ranks(score, asked, people, degree) for name, score in ranking.items()}
    report: dict[str, Any] = {
        "k": k,
        "mode": mode,
        "new_users": len({user for user, _, _ in (*support, *query) if not run.is_trained(user)}),
        "new_items": len(run.known("items")) - before,
        "seen": run.result.get("test_result", {}),
        "groups": {},
        "degree": {},
        "support": {},
    }
    for group in sorted(set(asked.groups)):
        mine = torch.tensor([each == group for each in asked.groups])
        report["groups"][group] = _metrics(ranks, asked.rows, mine, k)
    buckets = _bucket(degree)[asked.items]
    for place, (low, high) in enumerate(BUCKETS):
        mine = buckets == place
        if bool(mine.any()):
            name = f"{low}" if low == high else f"{low}+" if high is None else f"{low}-{high}"
            within = _metrics(ranks, asked.rows, mine, k, within=True)["ranked"]
            report["degree"][name] = _metrics(ranks, asked.rows, mine, k) | {"within": within}
    rows, elsewhere = {user: at for at, user in enumerate(shown)}, run.known_elsewhere()
    for shots in SHOTS:
        enough = {user: had[len(had) - shots :] for user, had in new.items() if len(had) >= shots}
        if not enough or (sequential and not shots):
            continue
        # Under names that the run has never heard of: it knows what is shown here, and no more.
        cut = run.askers(enough, known=False)
        part, places = _of(asked, people, enough)
        score = run.scorer(cut, mode)
        hidden = people.take(torch.tensor([rows[user] for user in enough]))
        of_shots = {name: (every[places], own[places]) for name, (every, own) in ranks.items()}
        of_shots["model"] = _ranks(score, part, hidden, degree)
        report["support"][str(shots)] = _metrics(of_shots, part.rows, torch.ones(len(places), dtype=torch.bool), k)
        linked = torch.tensor([user in elsewhere for user in enough])[part.rows]
        if bool(linked.any()):
            report["support"][f"{shots}, known in the second domain"] = _metrics(of_shots, part.rows, linked, k)
    return report


def _introduce(run: LoadedRun, support: Sequence[Row], query: Sequence[Row]) -> dict[str, list[str]]:
    """Add who and what is new, and return what is shown of every user who is asked about."""
    users, items = run.known("users"), run.known("items")
    trained = [(user, item) for user, item, _ in query if user in users and item in items]
    if trained or not query:
        what = f"asks for '{trained[0][1]}' of '{trained[0][0]}', both of which" if trained else "is empty:"
        raise RecplugError(f"the query {what} training has seen; write what is asked of new users and items")
    given = {(user, item) for user, item, _ in support}
    if answered := next(((user, item) for user, item, _ in query if (user, item) in given), None):
        raise RecplugError(
            f"the query asks for '{answered[1]}' of '{answered[0]}', which the support shows; leave it out"
        )
    both = [*support, *query]
    new_items = list(dict.fromkeys(item for _, item, _ in both if item not in items))
    new_users = list(dict.fromkeys(user for user, _, _ in both if user not in users))
    shown: dict[str, list[str]] = {user: [] for user, _, _ in query}
    for user, item, _ in support:
        if user in shown:
            shown[user].append(item)
    sequential = run.model.recplug_host.family == "sequential"
    if sequential and any(not had for user, had in shown.items() if user not in users):
        raise RecplugError("a new user without support is nothing to a sequential backbone; leave such users out")
    of_items = [(user, item) for user, item, _ in support if user in users and item not in items]
    of_users = [(user, item) for user, item, _ in support if user not in users]
    if new_items:
        run.extend_items(new_items, support=of_items)
    if new_users and not sequential:
        run.extend_users(new_users, of_users)
    return shown


def _of(asked: Asked, people: Askers, users: Mapping[str, object]) -> tuple[Asked, Tensor]:
    """The queries of some users, whose rows are counted among these, and the queries' places."""
    order = {user: at for at, user in enumerate(users)}
    row = torch.tensor([order.get(user, -1) for user in people.names])[asked.rows]  # [q]
    places = (row >= 0).nonzero().squeeze(1)
    return Asked(row[places], asked.items[places], [asked.groups[at] for at in places.tolist()]), places


def _asked(run: LoadedRun, query: Sequence[Row], users: Sequence[str]) -> Asked:
    places, columns = {user: at for at, user in enumerate(users)}, run.known("items")
    rows = torch.tensor([places[user] for user, _, _ in query], dtype=torch.int64)
    items = torch.tensor([columns[item] for _, item, _ in query], dtype=torch.int64)
    return Asked(rows, items, [group for _, _, group in query])


def _degrees(run: LoadedRun, support: Sequence[Row]) -> Tensor:
    """``[columns]``: training and support interactions of every item."""
    columns = run.known("items")
    named = torch.tensor([columns[item] for _, item, _ in support], dtype=torch.int64)
    return run.degrees() + torch.bincount(named, minlength=len(run.degrees()))


def _bucket(degree: Tensor) -> Tensor:
    """``[columns]``: the place in :data:`BUCKETS`."""
    return torch.bucketize(degree, torch.tensor([low for low, _ in BUCKETS[1:]]), right=True)


def _constant(scores: Tensor) -> Score:
    """One ranking for all."""
    return lambda rows: scores.expand(len(rows), -1)


def _ranks(score: Score, asked: Asked, hidden: Askers, degree: Tensor) -> tuple[Tensor, Tensor]:
    """Each query's place among all items, and among those of its bucket ``[q]``; equals share the mean of their places.

    Args:
        score: of users.
        asked: the queries.
        hidden: what each user has had, which is not ranked.
        degree: ``[columns]``.
    """
    order = torch.argsort(asked.rows, stable=True)
    everywhere, within = (torch.empty(len(order), dtype=torch.float64) for _ in range(2))
    bucket = _bucket(degree)
    for block in torch.arange(len(hidden)).split(default_batch(len(degree))):
        mine = order[(asked.rows[order] >= block[0]) & (asked.rows[order] <= block[-1])]
        if not len(mine):
            continue
        scores = score(block).clone()
        scores[:, 0] = -torch.inf
        owner, items = (each.to(scores.device) for each in hidden.take(block).past.pairs())
        scores[owner, items] = -torch.inf
        here = bucket.to(scores.device)
        for part in mine.split(default_batch(len(degree))):
            rows, columns = (each[part].to(scores.device) for each in (asked.rows - block[0], asked.items))
            theirs = scores[rows]  # [p, columns]
            own = theirs.gather(1, columns.unsqueeze(1))
            above, equal = theirs > own, theirs == own
            same = here == here[columns].unsqueeze(1)
            for found, among in ((everywhere, torch.ones_like(same)), (within, same)):
                place = (above & among).sum(dim=1) + ((equal & among).sum(dim=1) + 1) / 2
                found[part] = place.double().cpu()
    return everywhere, within


def _metrics(
    ranks: Mapping[str, tuple[Tensor, Tensor]], rows: Tensor, mask: Tensor, k: int, *, within: bool = False
) -> dict[str, Any]:
    """Recall and NDCG, the mean over users with a query at ``mask [q]``, of everything that ranks."""
    users = torch.unique(rows[mask])
    found: dict[str, Any] = {"users": len(users), "queries": int(mask.sum()), "ranked": {}}
    for name, places in ranks.items():
        place = places[within][mask]
        owner = torch.searchsorted(users, rows[mask])
        wanted = torch.bincount(owner, minlength=len(users))
        hit = (place <= k).double()
        gain = torch.zeros(len(users), dtype=torch.float64)
        ideal = (1.0 / torch.arange(2, k + 2).double().log2()).cumsum(0)[wanted.clamp(max=k) - 1]
        recall = gain.index_add(0, owner, hit) / wanted
        ndcg = gain.index_add(0, owner, hit / (place + 1).log2()) / ideal
        found["ranked"][name] = {"recall": float(recall.mean()), "ndcg": float(ndcg.mean())}
    return found


def as_markdown(report: dict[str, Any]) -> str:
    """The report as tables for a README."""
    k = report["k"]
    lines = [f"{report['new_users']:,} new users, {report['new_items']:,} new items; {report['mode']}, top {k}", ""]
    titles = {
        "groups": "group",
        "support": "support shown",
        "degree": "interactions of the item",
    }
    for key, title in titles.items():
        if not report[key]:
            continue
        names = list(next(iter(report[key].values()))["ranked"])
        inside = key == "degree"
        heads = [f"{metric}@{k} {name}" for name in names for metric in ("recall", "ndcg")]
        heads += [f"recall@{k} {name}, within" for name in names] if inside else []
        lines += [f"| {title} | users | queries | {' | '.join(heads)} |", "|---" * (len(heads) + 3) + "|"]
        for label, row in report[key].items():
            cells = [row["ranked"][name][metric] for name in names for metric in ("recall", "ndcg")]
            cells += [row["within"][name]["recall"] for name in names] if inside else []
            numbers = " | ".join(f"{cell:.4f}" for cell in cells)
            lines.append(f"| {label} | {row['users']:,} | {row['queries']:,} | {numbers} |")
        lines.append("")
    return "\n".join(lines)
