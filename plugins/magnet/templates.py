"""The fixed mixes of the sources that experts work on (eqs. 12-15)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recplug.plugins.errors import RecplugError

log = logging.getLogger("recplug")
KINDS = ("dominant", "balanced", "complementary")
CLOSE = 0.2  # two templates of different kinds with a smaller L1 distance hardly differ


@dataclass(frozen=True)
class Templates:
    """Mixes, one an expert.

    Attributes:
        weights: ``[E, M]`` float32; rows are not negative and sum to 1. Column 0 is behaviour.
        anchors: ``[E]`` int64, the source that an expert is built around: without it, it is not asked.
        names: one an expert, for example ``"image dominant"``.
        kinds: the index in :data:`KINDS`, one an expert; empty where experts have none.
    """

    weights: Tensor
    anchors: Tensor
    names: tuple[str, ...]
    kinds: tuple[int, ...] = ()

    @property
    def n_experts(self) -> int:
        """E."""
        return len(self.names)


def templates(
    sources: Sequence[str], *, alpha: float, beta: float, delta: float | Sequence[float], epsilon: float
) -> Templates:
    r"""Three experts an anchor: E = 3M.

    With the pivot :math:`q = [1/2, 1/(2(M-1)), ...]` over [anchor, auxiliaries in the order of ``sources``]:

    .. math::
        \mathrm{Dom} &= (1-\alpha)\,q + \alpha\,[1, 0, ...] && \text{(12)} \\
        \mathrm{Bal} &= (1-\beta)\,\tfrac{1}{M} + \beta\,q && \text{(13)} \\
        \mathrm{Com} &= [\epsilon, (1-\epsilon)\,\delta_1, (1-\epsilon)\,\delta_2, ...] && \text{(14)}

    The paper has M = 3; epsilon and the order of the auxiliaries are not given there, other M are ours. With M = 2 the
    balanced experts coincide and one is kept (E = 5). With M = 1 there is nothing to mix, and one expert.

    Args:
        sources: M names, behaviour first.
        alpha, beta, epsilon: in [0, 1].
        delta: the first auxiliary's share, the rest in equal parts, or the shares of all M - 1.

    Raises:
        RecplugError: the number of shares does not fit.
    """
    m = len(sources)
    if m == 1:
        log.warning("magnet: there is no content, so there is nothing to mix; it has one expert")
        return Templates(torch.ones(1, 1, device="cpu"), torch.zeros(1, dtype=torch.long, device="cpu"), ("single",))
    if m == 2:
        shares = [1.0]
    elif isinstance(delta, (int, float)):
        shares = [delta, *[(1 - delta) / (m - 2)] * (m - 2)]
    else:
        shares = list(delta)
    if len(shares) != m - 1:
        raise RecplugError(f"magnet.delta has {len(shares)} shares; with {m} sources it is one number or {m - 1}")
    pivot = [0.5, *[0.5 / (m - 1)] * (m - 1)]
    canonical = (
        [(1 - alpha) * q + alpha * (place == 0) for place, q in enumerate(pivot)],
        [(1 - beta) / m + beta * q for q in pivot],
        [epsilon, *((1 - epsilon) * share for share in shares)],
    )
    rows, anchors, names, kinds = [], [], [], []
    for anchor, name in enumerate(sources):
        order = [anchor, *(s for s in range(m) if s != anchor)]
        for kind, mix in enumerate(canonical):
            shared = m == 2 and kind == 1
            if shared and anchor:
                continue
            row = [0.0] * m
            for source, weight in zip(order, mix, strict=True):
                row[source] = weight
            rows.append(row)
            anchors.append(anchor)
            kinds.append(kind)
            names.append(KINDS[kind] if shared else f"{name} {KINDS[kind]}")
    found = Templates(
        torch.tensor(rows, dtype=torch.float32, device="cpu"),
        torch.tensor(anchors, device="cpu"),
        tuple(names),
        tuple(kinds),
    )
    _warn_of_twins(found)
    return found


def plain(sources: Sequence[str], n_experts: int) -> Templates:
    """Uniform mixes of all sources, without anchors: for the controls ``free`` and ``single``."""
    m = len(sources)
    names = ("single",) if n_experts == 1 else tuple(f"expert {e + 1}" for e in range(n_experts))
    weights = torch.full((n_experts, m), 1.0 / m, device="cpu")
    return Templates(weights, torch.zeros(n_experts, dtype=torch.long, device="cpu"), names)


def _warn_of_twins(found: Templates) -> None:
    """Name experts of different kinds whose mixes are nearly the same; balanced ones are alike by design."""
    distance = torch.cdist(found.weights, found.weights, p=1)
    pairs = [
        f"{found.names[a]} and {found.names[b]}"
        for a, b in torch.combinations(torch.arange(found.n_experts, device="cpu")).tolist()
        if found.kinds[a] != found.kinds[b] and distance[a, b] < CLOSE
    ]
    if pairs:
        log.warning("magnet: nearly the same mixes: %s; move alpha, beta or delta", "; ".join(pairs))
