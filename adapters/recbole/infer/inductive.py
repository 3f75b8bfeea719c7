"""A loaded RecBole model as MICRec's inductive half sees it: tables, nodes, and the rule by which it propagates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from recplug.adapters.recbole.compat.patching import replaced
from recplug.adapters.recbole.graft.fast_products import EPSILON
from recplug.adapters.recbole.infer.histories import Askers, Ragged
from recplug.adapters.recbole.infer.scores import at_work, host_scores
from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec.module import Micrec
from recplug.plugins.micrec.new_nodes import Rule, Trained
from recplug.plugins.nn.propagation import Adjacency, lightgcn
from recplug.plugins.step import Step

SEAMS = ("items", "users", "tables", "propagated", "score")
SAMPLE = 16  # users on whom it is tried what a host scores by


def micrec_of(model: Any) -> Micrec | None:
    """The plugin that can make new nodes, if the run has it."""
    return next((each for each in model.recplug.augmentations().values() if isinstance(each, Micrec)), None)


def trained(model: Any) -> Trained:
    """What MICRec needs to know of its host.

    By which rule a host propagates, and whether it scores by a dot product, is not looked up but tried.

    Raises:
        RecplugError: without MICRec, beside plugins that change rows too, or on a host that scores in another way.
    """
    host, chain, micrec = model.recplug_host, model.recplug, micrec_of(model)
    if micrec is None or micrec.templates is None:
        raise RecplugError(
            f"nothing in this run makes new users or items: {host.name} has a trained row for each; train with "
            "--plugin micrec, its templates on"
        )
    others = sorted({name for seam in SEAMS for name, each in chain.acting(seam).items() if each is not micrec})
    if others:
        raise RecplugError(
            f"{', '.join(others)} changes rows beside micrec, and knows nothing of new ones; train with micrec alone"
        )
    with at_work(model), chain.asking() as step:
        items = chain.table("items").raw
        if host.family == "sequential":
            table = chain.item_weight(step)
            _check_encoder(model, table)
            return Trained(micrec, None, items, (None, table))
        users = chain.table("users").raw
        model.recplug_encode()
        nodes = step.nodes()
        _check_dot(model, nodes)
        if not chain.propagates:
            return Trained(micrec, users, items, nodes)
        return Trained(micrec, users, items, nodes, *_rule(model, micrec.templates.edges, step))


# -- what a host scores by


def _check_dot(model: Any, nodes: tuple[Tensor, Tensor]) -> None:
    users = torch.arange(1, min(SAMPLE, len(nodes[0])))
    empty = Ragged.of([[] for _ in users])
    scores = host_scores(model, Askers([""] * len(users), users, empty), len(nodes[1]))
    if not _alike(scores, nodes[0][users.to(scores.device)] @ nodes[1].T):
        raise RecplugError(
            f"{model.recplug_host.name} does not score by the dot product of two vectors, which is all that a new user "
            "or item has; use BPR, LightGCN, NGCF or a sequential backbone"
        )


def _check_encoder(model: Any, table: Tensor) -> None:
    n = model.n_items if hasattr(model, "n_items") else len(table)
    some = Ragged.of([[1 + at % (n - 1), 1 + (3 * at) % (n - 1)] for at in range(SAMPLE)])
    name = model.recplug_host.name
    dot = model.recplug_host.dot and model._recplug_arguments() == ["sequence", "lengths"]
    if dot:
        items, lengths = (each.to(table.device) for each in some.padded(model.max_seq_length))
        scores = host_scores(model, Askers([""] * SAMPLE, torch.zeros(SAMPLE, dtype=torch.int64), some), n)
        dot = _alike(scores, model.forward(items, lengths) @ table[:n].T)
    if not dot:
        raise RecplugError(
            f"{name} does not score by the dot product of an encoded history with an item's row, which is all that a "
            "new item has; use SASRec or GRU4Rec"
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5)


# -- how a host propagates


def _rule(model: Any, edges: Tensor, step: Step) -> tuple[int | None, Rule | None]:
    """LightGCN's number of layers, if that is the host's rule; and the rule, if it can be run on another graph."""
    chain, host = model.recplug, model.recplug_host
    if host.nodes != "forward":
        return None, None
    tables = chain.user_weight(step), chain.item_weight(step)
    propagated = _forward(model)
    layers = getattr(model, "n_layers", None)
    candidates: list[tuple[int | None, Rule]] = []
    if isinstance(layers, int):
        candidates.append((layers, _lightgcn(layers)))
    if isinstance(getattr(model, "norm_adj_matrix", None), Adjacency) and not host.node_arguments:
        candidates.append((None, _rerun(model)))
    for number, rule in candidates:
        if all(_alike(a, b) for a, b in zip(rule(edges, *tables), propagated, strict=True)):
            return number, rule
    return None, None


def _forward(model: Any) -> tuple[Tensor, Tensor]:
    """The host's own nodes, before any plugin sees them."""
    found = model._recplug_forward(model, *(getattr(model, name) for name in model.recplug_host.node_arguments))
    return found[0], found[1]


def _graph(edges: Tensor, users: Tensor, items: Tensor) -> Adjacency:
    return Adjacency.bipartite(edges, n_users=len(users), n_items=len(items), epsilon=EPSILON)


def _lightgcn(layers: int) -> Rule:
    def rule(edges: Tensor, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        return lightgcn(_graph(edges, users, items), users, items, layers)

    return rule


def _rerun(model: Any) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The host's ``forward`` with other tables on another graph, where the host keeps its graph as NGCF does."""

    def rule(edges: Tensor, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        n = len(users) + len(items)
        changed: dict[str, Any] = {
            "norm_adj_matrix": _graph(edges, users, items),
            "n_users": len(users),
            "n_items": len(items),
        }
        if isinstance(getattr(model, "eye_matrix", None), Adjacency):
            each = torch.arange(n, device=users.device).repeat(2, 1)
            ones = torch.ones(n, device=users.device)
            changed["eye_matrix"] = Adjacency.of(each, ones, (n, n), symmetric=True)
        with model.recplug.asking() as step, replaced(model, **changed), tables_of(step, users, items):
            return _forward(model)

    return rule


@contextmanager
def tables_of(step: Step, users: Tensor | None, items: Tensor) -> Iterator[None]:
    """Other whole tables, after the *tables* seam, for what asks in ``step`` inside of the block."""
    new = {"tables.items": items} if users is None else {"tables.items": items, "tables.users": users}
    before = {key: value for key, value in step.memory.items() if key in new}
    step.memory.update(new)
    try:
        yield
    finally:
        for key in new:
            del step.memory[key]
        step.memory.update(before)
