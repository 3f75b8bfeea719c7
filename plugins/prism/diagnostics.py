"""What PRISM learned, as pictures: do the experts play their parts, and does the gate tell users apart?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Panel
from recplug.plugins.prism.fusion import Experts

ITEMS = 5_000  # items on which experts are compared


def response_matrix(experts: Experts, p: Tensor, z: Tensor, valid: Tensor) -> Tensor:
    """``[J, M]``: mean cosine between an expert's output and its output when only modality m is left.

    Args:
        experts: the module.
        p: ``[n, M, d]`` projections.
        z: ``[n, M, d]``, what replaces the other modalities; of a kind that was not used in training, it exposes
            experts that merely detect the stand-in.
        valid: ``[n]`` bool.
    """
    full = experts(p).float()  # [n, J, d]
    columns = []
    for kept in range(p.shape[1]):
        alone = z.clone()
        alone[:, kept] = p[:, kept]
        cosine = F.cosine_similarity(full, experts(alone).float(), dim=-1)  # [n, J]
        columns.append(cosine[valid].mean(dim=0))
    return torch.stack(columns, dim=1)


def responses(matrix: Tensor, experts: tuple[str, ...], modalities: Sequence[str], mask: str) -> Panel:
    """``matrix [J, M]`` as a picture."""
    return Panel(
        values=matrix,
        kind="heatmap",
        title="What each expert answers to when one modality is left",
        caption=f"Cosine between an expert's output for an item and its output when only one of "
        f"{' and '.join(modalities)} is kept and the rest is replaced ({mask}, not used in training). A unique expert "
        "should be near 1 for its own modality and lower for the other, synergy low for both, redundancy near 1 for "
        "both.",
        rows=experts,
        columns=tuple(f"only {name}" for name in modalities),
        limits=(-1.0, 1.0),
    )


def similarity(e: Tensor, experts: tuple[str, ...]) -> Panel:
    """How alike the outputs ``e [n, J, d]`` of two experts are."""
    centred = F.normalize((e - e.mean(dim=0, keepdim=True)).float(), dim=-1)  # [n, J, d]
    return Panel(
        values=torch.einsum("njd,nkd->jk", centred, centred) / len(e),
        kind="heatmap",
        title="How alike the experts are",
        caption="Mean cosine between the centred outputs of two experts over items. Above 0.95 off the diagonal they "
        "are copies of each other; below 0.8 is healthy.",
        rows=experts,
        columns=experts,
        limits=(-1.0, 1.0),
    )


def spread(e: Tensor, experts: tuple[str, ...]) -> Panel:
    """How many directions the outputs ``e [n, J, d]`` of each expert use."""
    centred = (e - e.mean(dim=0, keepdim=True)).float().transpose(0, 1)  # [J, n, d]
    share = torch.linalg.svdvals(centred).square()  # [J, min(n, d)]
    share = share / share.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    rank = torch.exp(-(share * share.clamp(min=1e-12).log()).sum(dim=-1))  # [J]
    return Panel(
        values=rank,
        kind="bars",
        title="How many directions an expert uses",
        caption=f"Effective rank of an expert's outputs over items, of at most {e.shape[-1]}. Near 1 the expert says "
        "the same of every item: it has collapsed.",
        rows=experts,
        ylabel="effective rank",
    )


def gate(recorded: Mapping[str, Tensor], experts: tuple[str, ...]) -> dict[str, Panel | Tensor]:
    """The weights that an evaluation used, as arrays and pictures.

    Args:
        recorded: ``gate_histories [n, J]``, means over each history's positions, where histories are weighed;
            ``gate_items [n_rows, J]``, where items are; not a number for a row that was not asked for.
        experts: J names.
    """
    found: dict[str, Panel | Tensor] = {}
    words = {
        "histories": (
            "gate_by_history",
            "How the gate weighs the experts, history by history",
            "Each history's mean weight of each expert over its items, in the latest evaluation",
        ),
        "items": (
            "gate_by_item",
            "How the gate weighs the experts, item by item",
            "Each item's weight of each expert in what is scored against, in the latest evaluation",
        ),
    }
    for what, (name, title, caption) in words.items():
        if f"gate_{what}" not in recorded:
            continue
        found[f"gate_{what}"] = weights = recorded[f"gate_{what}"].float()
        known = _known(weights)
        apart = known.std(dim=0).mean() if len(known) > 1 else known.new_zeros(())
        entropy = -(known * known.clamp(min=1e-12).log()).sum(dim=1)  # [n]
        found[name] = Panel(
            values=known.T,
            kind="histogram",
            title=title,
            caption=f"{caption} ({len(known)} {what}; mean standard deviation between them {apart:.3f}; entropy "
            f"{entropy.mean():.2f}, of at most {torch.tensor(float(len(experts))).log():.2f}). All at "
            f"{1 / len(experts):.2f}: the gate has learned nothing. Narrow peaks: it prefers some experts, for all "
            "alike. Wide ones: it tells them apart.",
            rows=experts,
            xlabel="weight",
            ylabel=what,
            limits=(0.0, 1.0),
        )
    return found


def size(e: Tensor, rows: Tensor, scale: Tensor, recorded: Mapping[str, Tensor], experts: tuple[str, ...]) -> Panel:
    """What each expert adds to an item, by outputs ``e [n, J, d]`` and the backbone's rows ``[n, d]``."""
    weights = recorded.get("gate_histories", recorded.get("gate_items"))
    share = e.new_full((len(experts),), 1 / len(experts)) if weights is None else _known(weights).float().mean(dim=0)
    length = e.float().norm(dim=-1).mean(dim=0)  # [J]
    return Panel(
        values=scale.abs() * share * length / rows.float().norm(dim=-1).mean().clamp(min=1e-12),
        kind="bars",
        title="How much each expert adds to an item's own vector",
        caption="Mean length of an expert's weighted contribution, relative to the mean length of the backbone's item "
        f"vectors; the trained scale s is {scale.item():.3f}. Near 0: content is ignored. Far above 1: it drowns the "
        "item's own vector.",
        rows=experts,
        ylabel="relative length",
    )


def _known(weights: Tensor) -> Tensor:
    return weights[weights.isfinite().all(dim=-1)]
