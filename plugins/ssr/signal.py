"""Bands of the interaction signal: the closed-form content filter, each band of its spectrum with a gain of its own."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from recplug.plugins.nn.closed_form import ClosedForm, Exponents
from recplug.plugins.protocols import Validate

log = logging.getLogger("recplug")

EXPONENTS = Exponents(heat=0.7, users=0.3, history=0.1, items=0.4, popularity=0.4)
WIDEST = 1024
"""Ranks of eigenvectors between which bands are cut: the last band begins before it."""

ITERATIONS = 8
SPARE = 16
"""Directions that a subspace iteration carries beside those that are wanted."""

GAINS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
COLUMNS = 96
"""Users at once on the CPU: blocks that stay in its cache are half as dear."""


class BandedSignal(nn.Module):
    r"""A user's interactions, filtered over the joint graph of interactions and content, band by band.

    .. math::
        f = r\, T^{-x} \Big(\sum_{m \le M} g_m P_m\Big) S\, T^q, \qquad
        S = B^\top B,\ B = U^{-b/2} R D^{-y} E

    S is the middle of :class:`~recplug.plugins.nn.closed_form.ClosedForm`: items are near if people who had what looks
    like one had what looks like the other. :math:`P_m` projects on its eigenvectors of one band, from the largest
    eigenvalue on; with all gains 1, f is the closed form. Ours, in the place of the paper's bands of vectors: bands act
    on the signal that is ranked. The first band is the leading eigenvector alone, which is close to popularity; the
    others are cut at ranks in geometric progression from 1 to 1024 (at 32 for three bands), as bands of equal energy
    did less on Amazon Baby. The last band, whose gain is 1, is what the others leave, so that no more than its first
    rank of eigenvectors is computed.

    Args:
        form: the closed form, on training interactions.
        bands: M.
        seed: of the iteration's start.
        shuffled: a control: the same eigenvectors, dealt to the bands at random.

    Shapes:
        columns of weights ``r [n_items, u]`` to scores ``[n_items, u]``; popularity where a column is empty.
    """

    gains: Tensor
    weight: Tensor
    basis: Tensor
    values: Tensor
    band: Tensor

    def __init__(self, *, form: ClosedForm, bands: int, seed: int = 0, shuffled: bool = False) -> None:
        super().__init__()
        self.form = form
        edges = ranks(bands, min(len(form.item_degree), len(form.user_degree)))
        basis, values = leading(form, edges[-1] if edges else 0, seed)
        cuts = torch.tensor(edges, dtype=torch.long, device="cpu")
        band = torch.bucketize(torch.arange(len(values), device="cpu"), cuts, right=True)  # [k]
        if shuffled:
            band = band[torch.randperm(len(band), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")]
        self.edges = edges
        self.register_buffer("gains", torch.ones(len(edges), device=basis.device))  # [M-1]
        self.register_buffer("weight", torch.zeros((), device=basis.device))  # nothing, until it is fitted
        for name, tensor in {"basis": basis, "values": values, "band": band.to(basis.device)}.items():
            self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def forward(self, history: Tensor) -> Tensor:
        """f, of ``history [n_items, u]``."""
        self.form = form = self.form.to(history.device)
        parts = []
        for r in history.split(COLUMNS if history.device.type == "cpu" else max(history.shape[1], 1), dim=1):
            through = form.across(form.first(r.contiguous(), EXPONENTS), EXPONENTS)
            z = r * (form.item_degree + 1).pow(-EXPONENTS.history).unsqueeze(1)  # T^-x r
            change = (self.gains[self.band] - 1) * self.values  # [k]
            moved = self.basis @ (change.unsqueeze(1) * (self.basis.T @ z))
            parts.append(form.last(through + moved, EXPONENTS))
        found = torch.cat(parts, dim=1) if parts else torch.zeros_like(history)
        found = torch.where((history > 0).any(dim=0), found, form.popularity(EXPONENTS).unsqueeze(1))
        found[0] = 0.0
        return found

    def fit(self, validate: Validate) -> dict[str, Any]:
        """Choose the weight, then each gain in turn, then the weight again, by the validation score.

        Nothing moves without a better score: a weight of 0 leaves the backbone's ranking as it is.

        Returns:
            Weight, gains, and the validation score without the signal, with it whole, and with it in bands.
        """
        scores = {"without": validate()}
        scores["whole"] = self._along(self.weight, WEIGHTS, scores["without"], validate)
        best = scores["whole"]
        if float(self.weight):
            for gain in self.gains:
                best = self._along(gain, GAINS, best, validate)
            best = self._along(self.weight, WEIGHTS, best, validate)
        scores["bands"] = best
        found = {"weight": float(self.weight), "gains": [round(gain, 3) for gain in self.gains.tolist()]}
        shown = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
        log.info("ssr: interaction signal of weight %g, gains %s (%s)", found["weight"], found["gains"], shown)
        return {**found, "validation": scores}

    @staticmethod
    def _along(value: Tensor, choices: tuple[float, ...], best: float, validate: Validate) -> float:
        """Leave in ``value []`` the best of its own and ``choices``; returns its score, where its own has ``best``."""
        kept = float(value)
        for choice in choices:
            if abs(choice - kept) < 1e-6:
                continue
            value.fill_(choice)
            if (score := validate()) > best:
                best, kept = score, choice
        value.fill_(kept)
        return best

    def extra_repr(self) -> str:
        """Where bands begin, and what was fitted."""
        gains = [round(g, 3) for g in self.gains.tolist()]
        return f"ranks={self.edges}, gains={gains}, weight={float(self.weight):g}, {self.form!r}"


def ranks(bands: int, most: int) -> list[int]:
    """Where each band but the first begins, M - 1 ranks of eigenvectors: 1, then up to 1024 in equal ratios.

    Args:
        bands: M; one band has no edges.
        most: ranks that there are; bands beyond it are left out.
    """
    inner = [round(WIDEST ** (j / (bands - 1))) for j in range(bands - 1)] if bands > 1 else []
    return [rank for rank in inner if rank < most]


@torch.no_grad()
def leading(form: ClosedForm, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The leading eigenvectors of S, ``[n_items, count]``, and its eigenvalues ``[count]``, by subspace iteration.

    On isolated items they are zero. Computed in float32; the start is drawn on the CPU, so that devices agree.
    """
    n_items, device = len(form.item_degree), form.item_degree.device
    if not count or not form.users.nnz:
        return torch.zeros(n_items, 0, device=device), torch.zeros(0, device=device)
    generator = torch.Generator("cpu").manual_seed(seed)
    width = min(count + SPARE, n_items)
    q = torch.randn(n_items, width, generator=generator, device="cpu").to(device)
    for _ in range(ITERATIONS):
        q = torch.linalg.qr(_middle(form, q))[0]
    inner = (q.T @ _middle(form, q)).double()
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)  # ascending
    basis = q @ vectors.float().flip(1)[:, :count]
    return basis, values.float().flip(0)[:count].clamp(min=0)


def _middle(form: ClosedForm, x: Tensor) -> Tensor:
    """``S x``: ``[n_items, k]`` to the same."""
    return form.across(form.smooth(x, EXPONENTS.heat), EXPONENTS)
