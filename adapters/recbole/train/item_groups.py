"""The test, told apart for warm and for cold items: metrics over the targets of one group, ranked among all items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.metrics import TopkMetric
from recbole.evaluator.register import metrics_dict
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType
from torch import Tensor

from recplug.adapters.recbole.data.interactions import interactions
from recplug.plugins.errors import RecplugError


def check(config: Any, host: type) -> None:
    """Compare ``cold_below`` with what the test ranks.

    Args:
        config: RecBole's.
        host: the model's class.

    Raises:
        RecplugError: for something else than a positive number, and where not every item is ranked.
    """
    below = config["cold_below"]
    if below is None:
        return
    if isinstance(below, bool) or not isinstance(below, int) or below < 1:
        raise RecplugError(f"cold_below={below} is no number of interactions; write 1 or more, or leave it out")
    if config["eval_args"]["mode"]["test"] != "full" or (
        host.full_sort_predict is AbstractRecommender.full_sort_predict  # type: ignore[attr-defined]
    ):
        raise RecplugError(
            "cold_below needs a test in which every item is ranked; set eval_args' mode to full, on a model that "
            "scores all items at once"
        )


def item_groups(ranks: Mapping[str, Sequence[Any]], train: Any, config: Any) -> dict[str, dict[str, Any]]:
    """The run's top-k metrics over the warm and over the cold items among the test targets.

    A user counts in a group with the targets that belong to it, and not at all without one; the other group's items
    are ranked like any others. Where all targets are in one group, its metrics are the test's own.

    Args:
        ranks: of :func:`recplug.adapters.recbole.train.target_ranks.target_ranks`.
        train: RecBole's training split; a pair of user and item counts once.
        config: RecBole's, with ``cold_below``.

    Returns:
        ``warm`` and ``cold``: how many ``items`` there are of them in the catalogue, ``targets`` and ``users``; and
        each metric that is one of targets (what a list of recommendations is by itself, such as its coverage, has no
        groups).
    """
    _, items = interactions(train)
    counts = torch.bincount(items, minlength=train.item_num)  # [n_items]
    cold = counts < config["cold_below"]
    tokens = {str(token): index for index, token in enumerate(train.field2id_token[train.iid_field])}
    of_target = cold[[tokens[item] for item in ranks["item"]]]  # [n]
    # A sequential model is asked anew for each target, a general one once for all targets of a user.
    alone = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    people = {user: index for index, user in enumerate(dict.fromkeys(ranks["user"]))}
    case = torch.arange(len(of_target)) if alone else torch.tensor([people[user] for user in ranks["user"]])
    person = torch.tensor([people[user] for user in ranks["user"]])
    rank = torch.tensor(ranks["rank"])
    found = {}
    for name, group in (("warm", ~of_target), ("cold", of_target)):
        listed = ~cold if name == "warm" else cold
        found[name] = {
            "items": int(listed[1:].sum()),
            "targets": int(group.sum()),
            "users": len(person[group].unique()),
            **_metrics(case[group], rank[group], config),
        }
    return found


def _metrics(case: Tensor, rank: Tensor, config: Any) -> dict[str, float]:
    """RecBole's own metrics of targets ``[n]`` that came at ``rank`` in the ranking ``case``."""
    names = [name for name in config["metrics"] if issubclass(metrics_dict[name.lower()], TopkMetric)]
    # Those that look at the list alone are of the same class, and need something else.
    names = [name for name in names if metrics_dict[name.lower()].metric_need == ["rec.topk"]]
    if not len(case) or not names:
        return {}
    struct = DataStruct()
    struct.set("rec.topk", _hits(case, rank, max(config["topk"])))
    keys = ("topk", "metric_decimal_place")
    return dict(Evaluator({"metrics": names, **{key: config[key] for key in keys}}).evaluate(struct))


def _hits(case: Tensor, rank: Tensor, k: int) -> Tensor:
    """``[cases, k + 1]`` int: whether a target stands at each of the first places, and how many targets there are."""
    _, case = torch.unique(case, return_inverse=True)
    order = torch.argsort(rank, stable=True)
    order = order[torch.argsort(case[order], stable=True)]  # by case, and in it by rank
    case, rank = case[order], rank[order]
    counts = torch.bincount(case)  # [cases]
    first = (counts.cumsum(0) - counts)[case]  # [n]
    # Targets of one score share a rank, and have places one after the other: r_i = max(r_i, r_(i-1) + 1).
    number = torch.arange(len(case)) - first
    place = _running_max(rank - number, case) + number
    hits = torch.zeros(len(counts), k + 1, dtype=torch.int)
    within = place <= k
    hits[case[within], place[within] - 1] = 1
    hits[:, k] = counts.int()
    return hits


def _running_max(values: Tensor, case: Tensor) -> Tensor:
    """``[n]``: the largest value so far in each case; ``case [n]`` is ascending."""
    span = int(values.max() - values.min()) + 1
    return torch.cummax(values + case * span, dim=0).values - case * span
