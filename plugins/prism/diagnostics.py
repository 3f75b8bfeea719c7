"""What PRISM learned, as pictures: do the experts play their parts, and does the gate tell users apart?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Panel
from recplug.plugins.nn import Noise
from recplug.plugins.prism.losses import stand_ins
from recplug.plugins.step import BLOCK

if TYPE_CHECKING:
    from recplug.plugins.prism.module import Prism

ITEMS = 5_000  # items on which experts are compared


def expert_names(prism: Prism) -> tuple[str, ...]:
    """``unique image``, ``unique text``, ``synergy``, ``redundancy``."""
    return (*(f"unique {name}" for name in prism.names), "synergy", "redundancy")


def diagnose(prism: Prism) -> dict[str, Panel | Tensor]:
    """All panels and arrays; without experts (the controls) only the size of the fused content."""
    found: dict[str, Panel | Tensor] = {"scale": prism.scale.detach()}
    ids = _sample(prism)
    if prism.settings.block != "experts" or not len(ids):
        return found
    p = prism.content(ids)  # [n, M, d]
    e = prism.experts(p)  # [n, J, d]
    if len(prism.names) > 1:
        found["responses"] = _responses(prism, p, ids)
    found["experts"] = _similarity(prism, e)
    found["spread"] = _spread(prism, e)
    if prism.step is not None:
        weights = gate_weights(prism, prism.step.table("items"))
        found["gate"] = weights
        found["gate_by_user"] = _gate_panel(prism, weights)
        found["size"] = _size(prism, ids, e, weights)
    return found


def response_matrix(prism: Prism, p: Tensor, valid: Tensor, mask: str) -> Tensor:
    """``[J, M]``: mean cosine between an expert's output and its output when only modality m is left.

    Args:
        prism: the module.
        p: ``[n, M, d]`` projections.
        valid: ``[n]`` bool.
        mask: what replaces the other modalities; one that was not used in training exposes experts that merely
            detect the stand-in.
    """
    z = stand_ins(p, mask, Noise(prism.noise.seed), valid)  # training's stream stays where it is
    full = prism.experts(p).float()  # [n, J, d]
    columns = []
    for kept in range(p.shape[1]):
        alone = z.clone()
        alone[:, kept] = p[:, kept]
        cosine = F.cosine_similarity(full, prism.experts(alone).float(), dim=-1)  # [n, J]
        columns.append(cosine[valid].mean(dim=0))
    return torch.stack(columns, dim=1)


def gate_weights(prism: Prism, table: Tensor) -> Tensor:
    """``[n_users, J]``: a user's mean weights over the training interactions; NaN for users without any.

    Args:
        prism: the module.
        table: ``[n_rows, d]``, the host's item rows.
    """
    users, items = prism.edges
    n_users = int(users.max()) + 1 if users.numel() else 0
    n_experts = prism.experts.n_experts
    count = torch.zeros(n_users, device=table.device).index_add(0, users, torch.ones_like(users, dtype=torch.float32))
    history = torch.zeros(n_users, table.shape[1], device=table.device).index_add(0, users, table[items].float())
    history = history / count.clamp(min=1).unsqueeze(-1)  # [n_users, d]
    total = torch.zeros(n_users, n_experts, device=table.device)
    for user, item in zip(users.split(BLOCK), items.split(BLOCK), strict=True):
        first = prism.gate.items(prism.experts(prism.content(item)))  # [n, 2d]
        context = history[user] if prism.settings.fusion != "item" else table[item]
        total.index_add_(0, user, prism.gate(first + prism.gate.contexts(context.to(first.dtype))).float())
    weights = total / count.unsqueeze(-1)
    return weights


def _sample(prism: Prism) -> Tensor:
    present = prism.content.present.any(dim=-1).nonzero().squeeze(-1)
    if len(present) <= ITEMS:
        return present
    return present[Noise(prism.noise.seed).permutation(len(present), present.device)[:ITEMS]]


def _responses(prism: Prism, p: Tensor, ids: Tensor) -> Panel:
    mask = "matched" if prism.settings.mask == "shuffle" else "shuffle"
    values = response_matrix(prism, p, prism.content.complete(ids), mask)
    names = " and ".join(prism.names)
    return Panel(
        values=values,
        kind="heatmap",
        title="What each expert answers to when one modality is left",
        caption=f"Cosine between an expert's output for an item and its output when only one of {names} is kept and "
        f"the rest is replaced ({mask}, not used in training). A unique expert should be near 1 for its own modality "
        "and lower for the other, synergy low for both, redundancy near 1 for both.",
        rows=expert_names(prism),
        columns=tuple(f"only {name}" for name in prism.names),
        limits=(-1.0, 1.0),
    )


def _similarity(prism: Prism, e: Tensor) -> Panel:
    centred = F.normalize((e - e.mean(dim=0, keepdim=True)).float(), dim=-1)  # [n, J, d]
    values = torch.einsum("njd,nkd->jk", centred, centred) / len(e)
    names = expert_names(prism)
    return Panel(
        values=values,
        kind="heatmap",
        title="How alike the experts are",
        caption="Mean cosine between the centred outputs of two experts over items. Above 0.95 off the diagonal they "
        "are copies of each other; below 0.8 is healthy.",
        rows=names,
        columns=names,
        limits=(-1.0, 1.0),
    )


def _spread(prism: Prism, e: Tensor) -> Panel:
    centred = (e - e.mean(dim=0, keepdim=True)).float().transpose(0, 1)  # [J, n, d]
    share = torch.linalg.svdvals(centred).square()  # [J, min(n, d)]
    share = share / share.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    rank = torch.exp(-(share * share.clamp(min=1e-12).log()).sum(dim=-1))  # [J]
    return Panel(
        values=rank,
        kind="bars",
        title="How many directions an expert uses",
        caption=f"Effective rank of an expert's outputs over items, of at most {prism.width}. Near 1 the expert says "
        "the same of every item: it has collapsed.",
        rows=expert_names(prism),
        ylabel="effective rank",
    )


def _gate_panel(prism: Prism, weights: Tensor) -> Panel:
    known = weights[weights.isfinite().all(dim=-1)]
    spread = known.std(dim=0).mean() if len(known) > 1 else known.new_zeros(())
    return Panel(
        values=known.T,
        kind="histogram",
        title="How the gate weighs the experts, user by user",
        caption=f"Each user's mean weight of each expert over the training history ({len(known)} users; mean standard "
        f"deviation between users {spread:.3f}). All at {1 / known.shape[1]:.2f}: the gate has learned nothing. Narrow "
        "peaks: it prefers some experts, for all users alike. Wide ones: it tells users apart.",
        rows=expert_names(prism),
        xlabel="weight",
        ylabel="users",
        limits=(0.0, 1.0),
    )


def _size(prism: Prism, ids: Tensor, e: Tensor, weights: Tensor) -> Panel:
    assert prism.step is not None
    rows = prism.step.table("items")[ids].float().norm(dim=-1).mean()
    share = weights[weights.isfinite().all(dim=-1)].mean(dim=0)  # [J]
    parts = prism.scale.abs() * share * e.float().norm(dim=-1).mean(dim=0) / rows.clamp(min=1e-12)  # [J]
    return Panel(
        values=parts,
        kind="bars",
        title="How much each expert adds to an item's own vector",
        caption="Mean length of an expert's weighted contribution, relative to the mean length of the backbone's item "
        f"vectors; the trained scale s is {prism.scale.item():.3f}. Near 0: content is ignored. Far above 1: it drowns "
        "the item's own vector.",
        rows=expert_names(prism),
        ylabel="relative length",
    )
