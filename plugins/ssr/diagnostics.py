"""What SSR did, as pictures: where the energy lies, what the bands are, what each is worth, what is mixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Panel
from recplug.plugins.ssr.decomposition import Decomposition

POINTS = 101  # of a response curve
USERS = 500  # whose rankings are compared
NODES = 20_000  # on which modalities are compared
TOP = 20


def band_names(bands: int) -> tuple[str, ...]:
    """``band 1 (low)`` to ``band M (high)``."""
    ends = {0: " (low)", bands - 1: " (high)"}
    return tuple(f"band {m + 1}{ends.get(m, '') if bands > 1 else ''}" for m in range(bands))


def of_bands(decomposition: Decomposition) -> dict[str, Panel | Tensor]:
    """Where the bands' edges are, and their curves where there are several."""
    found: dict[str, Panel | Tensor] = {"edges": decomposition.edges.clone()}
    if decomposition.n_bands > 1:
        found["responses"] = responses(decomposition, band_names(decomposition.n_bands))
    return found


def of_signals(
    s: Tensor,
    *,
    rebuild: Callable[[Tensor], Tensor],
    blocks: tuple[str, ...],
    n_users: int,
    present: Tensor | None,
    coupling: tuple[Tensor, Tensor] | None,
) -> dict[str, Panel | Tensor]:
    """Energy, overlap, what each band is worth, whether modalities agree, what the operator mixes.

    Args:
        s: bands of every node and block ``[N, M, P, d]``.
        rebuild: bands to the host's vectors ``[N, D]``.
        blocks: names of the P blocks.
        n_users: user nodes, which come first.
        present: ``[N, P-1]`` bool: who has content of their own; None without content.
        coupling: of the operator: entries ``[M*P, M*P]`` and their norm; None without one.
    """
    names = band_names(s.shape[1])
    found: dict[str, Panel | Tensor] = {"energy": energy(s, blocks, names), "overlap": overlap(s)}
    if s.shape[1] > 1:
        found["importance"] = importance(s, rebuild, names, n_users)
        if present is not None:
            found |= coherence(s, present, n_users, blocks, names)
    if coupling is not None:
        found["coupling"] = mixing(*coupling, blocks, names)
    return found


def responses(decomposition: Decomposition, names: tuple[str, ...]) -> Panel:
    """``[M, POINTS]``: the curves that are applied."""
    eigenvalues = torch.linspace(0.0, 2.0, POINTS, device=decomposition.edges.device)
    edges = ", ".join(f"{edge:.2f}" for edge in decomposition.edges.tolist())
    soft = " Curves that overlap much mean bands that hardly differ: raise ssr.order."
    return Panel(
        decomposition.responses(eigenvalues),
        "curves",
        "what each band lets through",
        f"The curves that are applied: at every eigenvalue they add up to 1. Edges at {edges}."
        f"{soft if decomposition.choice == 'polynomial' else ''}",
        rows=names,
        columns=tuple(f"{x:.2f}" for x in eigenvalues.tolist()),
        xlabel="eigenvalue of the Laplacian (0 smooth, 2 rough)",
        ylabel="share",
        limits=(-0.05, 1.05) if decomposition.choice != "legacy_cheb" else None,
    )


def energy(s: Tensor, blocks: tuple[str, ...], names: tuple[str, ...]) -> Panel:
    """``[P, M]`` of bands ``s [N, M, P, d]``."""
    found = s.float().square().sum(dim=(0, 3)).T  # [P, M]
    return Panel(
        found / found.sum(dim=1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny),
        "heatmap",
        "energy by band",
        "Share of a signal's energy in each band. Edges are set where all signals together have equal energy; a row "
        "that differs is a modality that is smoother, or rougher, than the rest.",
        rows=blocks,
        columns=names,
        limits=(0.0, 1.0),
    )


def overlap(s: Tensor) -> Tensor:
    """``[P]``: 1 less the bands' energy over the signal's; 0 for sharp bands ``s [N, M, P, d]``."""
    total = s.float().sum(dim=1).square().sum(dim=(0, 2))  # [P]
    bands = s.float().square().sum(dim=(0, 1, 3))
    return 1 - bands / total.clamp(min=torch.finfo(total.dtype).tiny)


def importance(s: Tensor, rebuild: Callable[[Tensor], Tensor], names: tuple[str, ...], n_users: int) -> Panel:
    """``[2, M]``: change of the vectors, and of the best items, when a band is left out.

    Args:
        s: ``[N, M, P, d]``.
        rebuild: bands to the host's vectors ``[N, D]``.
        names: of the bands.
        n_users: user nodes, which come first; without any there is no second row.
    """
    full = rebuild(s)
    top = _best(full, n_users)
    change, moved = [], []
    for band in range(s.shape[1]):
        keep = torch.ones(s.shape[1], dtype=s.dtype, device=s.device)
        keep[band] = 0.0
        without = rebuild(s * keep[:, None, None])
        change.append((full - without).norm() / full.norm().clamp(min=1e-12))
        if top is not None:
            other = _best(without, n_users)
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
        columns=names,
        limits=(0.0, 1.0),
    )


def _best(nodes: Tensor, n_users: int) -> Tensor | None:
    """``[u, TOP]``: the best items of the first users, or None where there are no users or no items."""
    users, items = nodes[1 : min(n_users, 1 + USERS)], nodes[n_users + 1 :]  # padding left out
    if not len(users) or not len(items):
        return None
    return (users @ items.T).topk(min(TOP, len(items)), dim=1).indices


def coherence(
    s: Tensor, present: Tensor, n_users: int, blocks: Sequence[str], names: tuple[str, ...]
) -> dict[str, Panel]:
    """``[2, M]``: cosines of the first two modalities of an item, and of two items; nothing where none has both.

    Args:
        s: ``[N, M, P, d]``, the backbone's block first.
        present: ``[N, P-1]`` bool: who has content of their own.
        n_users: user nodes, which come first.
        blocks, names: of the blocks and bands.
    """
    both = present[n_users:, :2].all(dim=1).nonzero().squeeze(1) + n_users  # [n]
    if len(blocks) < 3 or not len(both):
        return {}
    one, other = s[both[:NODES], :, 1], s[both[:NODES], :, 2]  # [n, M, d]
    own = F.cosine_similarity(one, other, dim=-1).mean(dim=0)  # [M]
    shuffled = F.cosine_similarity(one, other.roll(1, dims=0), dim=-1).mean(dim=0)
    panel = Panel(
        torch.stack([own, shuffled]),
        "heatmap",
        f"{' and '.join(blocks[1:3])} agree, band by band",
        "Mean cosine between the two modalities of one item (top), and of different items (bottom). The contrast works "
        "where the top row exceeds the bottom one.",
        rows=("same item", "another item"),
        columns=names,
        limits=(-1.0, 1.0),
    )
    return {"coherence": panel}


def mixing(entries: Tensor, strength: Tensor, blocks: Sequence[str], names: tuple[str, ...]) -> Panel:
    """``entries [M*P, M*P]`` of the operator, and its norm relative to the identity's."""
    labels = tuple(f"{band}, {block}" for band in names for block in blocks)
    return Panel(
        entries,
        "heatmap",
        "what the operator mixes",
        "How much of the band and signal of a column is added to those of a row. As a whole it is "
        f"{strength:.3f} times the identity: near 0 the operator does nothing.",
        rows=labels,
        columns=labels,
    )
