"""The checks of what changes scores: a user and an item have one score, whichever way it is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from recplug.plugins.step import Batch
from recplug.plugins.testing.case import N_ITEMS, N_USERS, Case
from recplug.plugins.testing.host import ToyHost
from recplug.plugins.testing.rules import require, rule
from recplug.plugins.testing.toys import ToyGraph


def _scoring(case: Case) -> tuple[ToyHost, ToyGraph] | None:
    """A host whose scores the plugin changes, in evaluation mode, and its backbone; None where it changes none."""
    host = case.build().eval()
    acts = bool(host.chain.acting("score")) and isinstance(host.backbone, ToyGraph)
    return (host, host.backbone) if acts else None  # type: ignore[return-value]


def _same(found: Tensor, wanted: Tensor, what: str) -> None:
    require(found.shape == wanted.shape, f"{what} have the shape {tuple(found.shape)}")
    difference = (found - wanted).abs().max()
    require(difference <= 1e-5 * wanted.abs().max().clamp(min=1.0), f"{what} differ by up to {difference:.2g}")


@rule("a pair's score is the one that it has in a block, of any users and any items")
def check_pairs(case: Case) -> None:
    """RecBole ranks all items at once, sampled candidates as pairs, and a large evaluation in blocks of users."""
    if (found := _scoring(case)) is None:
        return
    host, backbone = found
    users = torch.arange(1, N_USERS, device="cpu")
    items = torch.arange(N_ITEMS, device="cpu")
    some = items.flip(0)[1::3]
    with torch.no_grad(), host.chain.asking() as step:
        ranks = torch.stack([backbone.pairs(user.expand(N_ITEMS), items) for user in users])  # [u, n_items]
        whole = host.chain.score_ranking(step, ranks, users)
        for block in (1, 5):
            _same(host.chain.score_ranking(step, ranks, users, block), whole, f"blocks of {block} user(s)")
        if not host.chain.by_whole_rows():
            _same(host.chain.score(step, ranks[:, some], users, some), whole[:, some], "blocks of some items")
    pairs = host.pairs(users.repeat_interleave(N_ITEMS), items.repeat(len(users)))
    _same(pairs.reshape(len(users), -1), whole, "pairs")
    few = host.pairs(users.repeat_interleave(len(some)), some.repeat(len(users)))
    _same(few.reshape(len(users), -1), whole[:, some], "pairs of some items")


@rule("a training step compares the scores by which items are ranked")
def check_training_pairs(case: Case) -> None:
    """With dropout off, so that both are the same to rounding."""
    if (found := _scoring(case)) is None or not found[0].chain.scoring("training"):
        return
    host, backbone = found
    batch, seen = case.batch(), []
    assert batch.positives is not None
    assert batch.negatives is not None
    ranks = host.scores(batch)  # [B, n_items]
    handle = backbone.pair_loss.register_forward_pre_hook(lambda module, scores: seen.extend(scores))
    with torch.no_grad():
        host.loss(batch)
    handle.remove()
    require(len(seen) == 2, f"the loss was given {len(seen)} tensors")
    rows = torch.arange(len(ranks), device="cpu")
    for scores, ids, what in zip(seen, (batch.positives, batch.negatives), ("positives", "negatives"), strict=True):
        _same(scores, ranks[rows, ids], f"scores of {what}")


@rule("the scores of a history depend on it, in its own order, and not on the others that are ranked with it")
def check_shown(case: Case) -> None:
    """Of what changes the ranking of a sequential host: in blocks, and beside other histories."""
    host, batch = case.build().eval(), case.batch()
    if case.backbone().family != "sequential" or not host.chain.scoring("ranking"):
        return
    assert batch.users is not None
    whole = host.scores(batch)
    for rows in (slice(1), slice(1, 4)):
        part = Batch(**{name: None if ids is None else ids[rows] for name, ids in vars(batch).items()})
        _same(host.scores(part), whole[rows], "the scores of some users")
    with torch.no_grad(), host.chain.asking() as step:
        base = host.backbone.scores(batch)
        blocks = host.chain.score_ranking(step, base, batch.users, 2, shown=host.shown(batch))
    _same(blocks, whole, "blocks of 2 users")
