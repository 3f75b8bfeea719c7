"""The checks of what acts on whole tables and on nodes: padding, and users and items without interactions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.testing.case import COLD_ITEM, LONELY_USER, Case, finite, step_loss
from recplug.plugins.testing.host import ToyHost
from recplug.plugins.testing.rules import require, rule
from recplug.plugins.testing.toys import ToyPropagation


@rule("what stands in the padding rows enters no other row of the tables and no other node")
def check_padding_alone(case: Case) -> None:
    """``tables()`` and ``propagated()`` see padding too, for instance when they average."""
    host = case.build().eval()
    (augmentation,) = host.chain.augmentations().values()
    methods = {"tables": augmentation.tables, "propagated": augmentation.propagated}
    for seam in sorted(augmentation.seams() & methods.keys()):
        with torch.no_grad(), host.chain.serving():
            users, items = _inputs(host, seam)
            plain = methods[seam](users, items)  # type: ignore[arg-type]
            moved = methods[seam](_other_padding(users), _other_padding(items, host.backbone.mask_id))  # type: ignore[arg-type]
        for one, other in zip(plain, moved, strict=True):
            if one is None or other is None:
                continue
            require(one.isfinite().all() and other.isfinite().all(), f"{seam}() gives rows that are not finite")
            real = slice(1, host.backbone.mask_id) if one is plain[1] else slice(1, None)
            difference = (one - other)[real].abs().max()
            require(difference < 1e-5, f"{seam}() moves other rows by up to {difference:.2g}")


def _inputs(host: ToyHost, seam: str) -> tuple[Tensor | None, Tensor]:
    """Users and items as a seam is given them."""
    if seam == "propagated":
        assert isinstance(host.backbone, ToyPropagation)
        return host.backbone.forward()
    users = host.chain.user_table
    return None if users is None else users.raw, host.chain.table("items").raw


def _other_padding(rows: Tensor | None, mask_id: int | None = None) -> Tensor | None:
    if rows is None:
        return None
    special = torch.tensor([0] if mask_id is None else [0, mask_id], device=rows.device)
    return rows.index_add(0, special, torch.full_like(rows[special], 50.0))


@rule("a user and an item without interactions have finite scores and gradients, and are never zeroed")
def check_without_interactions(case: Case) -> None:
    """In training, where masks are at work, and in evaluation; the item has no content either."""
    batch = case.batch()
    assert batch.users is not None
    assert batch.positives is not None
    cold = torch.full_like(batch.positives, COLD_ITEM)
    batch = replace(batch, users=torch.full_like(batch.users, LONELY_USER), positives=cold)
    host = case.build()
    finite(host, step_loss(host, batch), batch)
    for _ in range(8):
        with torch.no_grad(), host.train().chain.step(batch, whole_table=True, beyond_batch=True):
            scores = host.backbone.scores(batch)[:, COLD_ITEM]  # [B]
        require(scores.isfinite().all(), "a score in training is not finite")
        require(scores.abs().sum() > 0, "in training its vector is zero")
    require((host.scores(batch)[:, COLD_ITEM] != 0).any(), "in evaluation its vector is zero")


@rule("data without any interaction are refused in one line, or give finite scores")
def check_no_interactions(case: Case) -> None:
    """An empty graph: nothing crashes."""
    batch, edges = case.batch(), torch.empty(2, 0, dtype=torch.long, device="cpu")
    try:
        host = case.build(edges=edges)
    except RecplugError as refusal:
        require("\n" not in str(refusal), "it is refused in several lines")
        return
    finite(host, step_loss(host, batch), batch)
