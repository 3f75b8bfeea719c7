"""The checks of what a plugin declares and returns, asked of it directly."""

from __future__ import annotations

import torch
from torch import Tensor

from recplug.plugins.contract import Panel
from recplug.plugins.testing.case import N_ITEMS, Case
from recplug.plugins.testing.rules import require, rule
from recplug.plugins.testing.toys import ToyGraph, ToyPropagation


@rule("the seams that are declared are those whose methods are overridden")
def check_seams(case: Case) -> None:
    """``Requirements.seams`` against the class."""
    (augmentation,) = case.build().chain.augmentations().values()
    needs, found = case.plugin.requirements(case.settings), augmentation.seams()
    sure = found - needs.one_of - needs.optional
    require(needs.seams == sure, f"declared {sorted(needs.seams)}, found {sorted(sure)}")
    if "score" in sure:
        halves = sorted(augmentation.halves)
        require(needs.halves == augmentation.halves, f"declared the halves {sorted(needs.halves)}, found {halves}")
    if needs.one_of:
        taken = sorted(needs.one_of & found)
        require(len(taken) == 1, f"declared one of {sorted(needs.one_of)}, found {taken}")


@rule("rows, tables and loss terms have the shapes and types that the contract gives")
def check_shapes(case: Case) -> None:
    """Every seam's output, asked directly: the chain would hide a wrong type."""
    host, batch = case.build(), case.batch()
    (augmentation,) = host.chain.augmentations().values()
    table, items = host.chain.table("items"), torch.arange(N_ITEMS, device="cpu")
    assert batch.sequence is not None
    histories = [batch.sequence] if host.backbone.family == "sequential" else []
    with host.chain.step(batch, whole_table=True, score_is_dot=bool(histories)) as step:
        for ids, role in [(items, "candidate"), *((h, "input") for h in histories)]:
            rows = table.raw[ids]
            _like(augmentation.items(rows, ids, role=role, sequence=ids if ids.dim() == 2 else None), rows, "items()")  # type: ignore[arg-type]
        users = host.chain.user_table
        user_rows, item_rows = augmentation.tables(None if users is None else users.raw, table.raw)
        _like(item_rows, table.raw, "tables()")
        if users is None:
            require(user_rows is None, "tables() gave users where there are none")
        else:
            assert batch.users is not None
            _like(user_rows, users.raw, "tables()")
            rows = users.raw[batch.users]
            _like(augmentation.users(rows, batch.users), rows, "users()")
        if isinstance(host.backbone, ToyPropagation):
            whole = host.backbone.adjacency
            graph = augmentation.graph(whole)
            require(graph.shape == whole.shape and graph.symmetric, f"graph() gave {graph} for {whole}")
            nodes = host.backbone.forward()
            made = augmentation.propagated(*nodes)
            free = host.backbone.free_width
            for out, raw in zip(made, nodes, strict=True):
                _like(out[:, : raw.shape[1]] if free else out, raw, "propagated()")
            require(made[0].shape[1] == made[1].shape[1], "propagated() gave users and items of different widths")
            told = augmentation.propagated_width(nodes[1].shape[1])
            require(made[1].shape[1] == told, f"propagated() gave width {made[1].shape[1]}, propagated_width() {told}")
        if "score" in augmentation.seams() and isinstance(host.backbone, ToyGraph):
            host.backbone.loss(batch)  # propagates
            assert batch.users is not None
            assert batch.positives is not None
            asked = [(step.all_ids(), host.backbone.scores(batch))]
            if not augmentation.whole_rows:
                asked.append((batch.positives, host.backbone.pairs(batch.users, batch.positives)))
            for ids, base in asked:
                _like(augmentation.score(base, batch.users, ids, step), base, "score()")
        if histories:
            step.encoder = lambda: host.backbone.encode(batch)
            step.encoded = step.encoder()
        for name, value in augmentation.losses(step).items():
            require(value.dim() == 0 and value.is_floating_point(), f"the loss term '{name}' is no scalar")
    for name, found in augmentation.diagnostics().items():
        require(isinstance(found, (Panel, Tensor)), f"the diagnostic '{name}' is a {type(found).__name__}")


def _like(out: Tensor | None, rows: Tensor, method: str) -> None:
    require(out is not None, f"{method} gave None")
    assert out is not None
    require(out.shape == rows.shape, f"{method} gave {tuple(out.shape)} for {tuple(rows.shape)}")
    require(out.dtype == rows.dtype, f"{method} gave {out.dtype} for {rows.dtype}")
