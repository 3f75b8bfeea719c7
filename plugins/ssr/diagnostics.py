"""What SSR did, as pictures: where the energy lies, what the bands are, what each is worth, what is mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Panel

if TYPE_CHECKING:
    from recplug.plugins.ssr.module import Ssr

POINTS = 101  # of a response curve
USERS = 500  # whose rankings are compared
NODES = 20_000  # on which bands are compared
TOP = 20


@torch.no_grad()
def diagnose(ssr: Ssr) -> dict[str, Panel | Tensor]:
    """All panels and arrays; what needs the backbone's vectors only where an evaluation has seen them."""
    found: dict[str, Panel | Tensor] = {"edges": ssr.decomposition.edges.clone()}
    if ssr.settings.bands > 1:
        found["responses"] = _responses(ssr)
    nodes = ssr.seen_nodes()
    if nodes is None:
        return found
    s = ssr.bands(nodes, None)  # [N, M, P, d]
    found["energy"] = _energy(ssr, s)
    found["overlap"] = _overlap(s)
    if ssr.settings.bands > 1:
        found["importance"] = _importance(ssr, s)
        if len(ssr.blocks) > 2:
            found |= _coherence(ssr, s)
    if ssr.cross.mix is not None:
        found["coupling"] = _coupling(ssr)
    return found


def band_names(ssr: Ssr) -> tuple[str, ...]:
    """``band 1 (low)`` to ``band M (high)``."""
    last = ssr.settings.bands - 1
    ends = {0: " (low)", last: " (high)"}
    return tuple(f"band {m + 1}{ends.get(m, '') if last else ''}" for m in range(last + 1))


def _responses(ssr: Ssr) -> Panel:
    eigenvalues = torch.linspace(0.0, 2.0, POINTS, device=ssr.decomposition.edges.device)
    edges = ", ".join(f"{edge:.2f}" for edge in ssr.decomposition.edges.tolist())
    soft = " Curves that overlap much mean bands that hardly differ: raise ssr.order."
    if ssr.decomposition.choice != "polynomial":
        soft = ""
    return Panel(
        ssr.decomposition.responses(eigenvalues),
        "curves",
        "what each band lets through",
        f"The curves that are applied: at every eigenvalue they add up to 1. Edges at {edges}.{soft}",
        rows=band_names(ssr),
        columns=tuple(f"{x:.2f}" for x in eigenvalues.tolist()),
        xlabel="eigenvalue of the Laplacian (0 smooth, 2 rough)",
        ylabel="share",
        limits=(-0.05, 1.05) if ssr.decomposition.choice != "legacy_cheb" else None,
    )


def _energy(ssr: Ssr, s: Tensor) -> Panel:
    """``[P, M]``."""
    energy = s.float().square().sum(dim=(0, 3)).T  # [P, M]
    return Panel(
        energy / energy.sum(dim=1, keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny),
        "heatmap",
        "energy by band",
        "Share of a signal's energy in each band. Edges are set where all signals together have equal energy; a row "
        "that differs is a modality that is smoother, or rougher, than the rest.",
        rows=ssr.blocks,
        columns=band_names(ssr),
        limits=(0.0, 1.0),
    )


def _overlap(s: Tensor) -> Tensor:
    """``[P]``: 1 less the bands' energy over the signal's; 0 for sharp bands."""
    total = s.float().sum(dim=1).square().sum(dim=(0, 2))  # [P]
    bands = s.float().square().sum(dim=(0, 1, 3))
    return 1 - bands / total.clamp(min=torch.finfo(total.dtype).tiny)


def _importance(ssr: Ssr, s: Tensor) -> Panel:
    """``[2, M]``: change of the vectors, and of the best items, when a band is left out."""
    full = ssr.join(ssr.fuse(s), None)
    top = _best(ssr, full)
    change, moved = [], []
    for band in range(s.shape[1]):
        keep = torch.ones(s.shape[1], dtype=s.dtype, device=s.device)
        keep[band] = 0.0
        without = ssr.join(ssr.fuse(s * keep[:, None, None]), None)
        change.append((full - without).norm() / full.norm().clamp(min=1e-12))
        if top is not None:
            other = _best(ssr, without)
            assert other is not None
            common = (top.unsqueeze(2) == other.unsqueeze(1)).any(dim=2).float().mean()  # [u, k, k]
            moved.append(1 - common)
    rows, values = ["change of the vectors"], [torch.stack(change)]
    if moved:
        rows.append(f"share of the best {TOP} items that change")
        values.append(torch.stack(moved))
    return Panel(
        torch.stack(values),
        "heatmap",
        "what each band is worth",
        "Leave one band out, with everything else as trained: relative change of the vectors, and how many of a user's "
        "best items are others then. A band near 0 could be spared.",
        rows=tuple(rows),
        columns=band_names(ssr),
        limits=(0.0, 1.0),
    )


def _best(ssr: Ssr, nodes: Tensor) -> Tensor | None:
    """``[u, TOP]``: the best items of the first users, or None where there are no users or no items."""
    n = ssr.n_users
    users, items = nodes[1 : min(n, 1 + USERS)], nodes[n + 1 :]  # padding left out
    if not len(users) or not len(items):
        return None
    return (users @ items.T).topk(min(TOP, len(items)), dim=1).indices


def _coherence(ssr: Ssr, s: Tensor) -> dict[str, Panel]:
    """``[2, M]``: cosines of the first two modalities of an item, and of two items; nothing where none has both."""
    assert ssr.content is not None
    both = ssr.content.present[ssr.n_users :, :2].all(dim=1).nonzero().squeeze(1)[:NODES] + ssr.n_users
    if not len(both):
        return {}
    one, other = s[both, :, 1], s[both, :, 2]  # [n, M, d]
    own = F.cosine_similarity(one, other, dim=-1).mean(dim=0)  # [M]
    shuffled = F.cosine_similarity(one, other.roll(1, dims=0), dim=-1).mean(dim=0)
    names = " and ".join(ssr.blocks[1:3])
    panel = Panel(
        torch.stack([own, shuffled]),
        "heatmap",
        f"{names} agree, band by band",
        "Mean cosine between the two modalities of one item (top), and of different items (bottom). The contrast works "
        "where the top row exceeds the bottom one.",
        rows=("same item", "another item"),
        columns=band_names(ssr),
        limits=(-1.0, 1.0),
    )
    return {"coherence": panel}


def _coupling(ssr: Ssr) -> Panel:
    """``[M*P, M*P]``."""
    entries, strength = ssr.cross.coupling()
    labels = tuple(f"{band}, {block}" for band in band_names(ssr) for block in ssr.blocks)
    return Panel(
        entries,
        "heatmap",
        "what the operator mixes",
        "How much of the band and signal of a column is added to those of a row. As a whole it is "
        f"{strength:.3f} times the identity: near 0 the operator does nothing.",
        rows=labels,
        columns=labels,
    )
