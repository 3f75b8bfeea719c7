"""What links two domains: batches of linked users, two projections, and the contrast of what they give."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import Noise
from recplug.plugins.nn.contrast import info_nce


class Transfer(nn.Module):
    r"""The symmetric contrast of a person's two vectors (MICRec, arXiv 2510.21812).

    .. math::
        z^S = f^S(r^S), \quad z^T = f^T(r^T), \qquad
        L_1 = -\frac1m \sum_u \log \frac{e^{\cos(z^S_u, z^T_u) / \tau}}{\sum_v e^{\cos(z^S_u, z^T_v) / \tau}}, \quad
        L = \frac{L_1 + L_2}{2}

    L_2 has the domains exchanged; the sums are over a batch of linked users, so that the negatives of a user are the
    others of the batch in the other domain. f are two layers each. Batches go through the links in a random order, all
    of them before any comes again, in as few equal parts of at most m as there can be.

    Where this is ours: tau, the widths, the batches and that negatives of the own domain are left out; the paper's
    formulas were not available.

    Args:
        links: ``[n, 2]`` (source user, target user); each user once, for another row of a user would be a negative.
        width: of the domains' vectors.
        temperature: tau.
        anchors: m.
        seed: of the order.
    """

    links: Tensor
    order: Tensor

    def __init__(
        self,
        *,
        links: Tensor,
        width: int,
        temperature: float,
        anchors: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.noise = Noise(seed)
        self.width = width
        self.batches = min(-(-len(links) // anchors), max(len(links) // 2, 1))
        self.position = 0
        self.register_buffer("links", links, persistent=False)
        self.register_buffer("order", torch.arange(len(links), device=links.device))
        self.source = _two_layers(width)
        self.target = _two_layers(width)

    def reset_parameters(self) -> None:
        """Draw both projections anew."""
        for layer in (*self.source, *self.target):
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def next_links(self) -> Tensor:
        """``[<= m, 2]``: the next batch of links; a new order after the last."""
        if self.position == 0:
            self.order = self.noise.permutation(len(self.links), self.links.device)
        n = len(self.links)
        first, last = (n * at // self.batches for at in (self.position, self.position + 1))
        self.position = (self.position + 1) % self.batches
        return self.links[self.order[first:last]]

    def project(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors ``[b, d]`` of both domains to what is compared, ``[b, d]``."""
        for name, vectors in (("source", source), ("target", target)):
            if vectors.shape[1] != self.width:
                raise RecplugError(
                    f"micrec expects vectors of width {self.width}, the {name} has {vectors.shape[1]}; name micrec "
                    "after a plugin that changes the width of nodes, or keep that from doing so"
                )
        return self.source(source), self.target(target)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """``[b, d]`` and ``[b, d]``, a row a person, to a scalar; 0 below two people."""
        with torch.autocast(source.device.type, enabled=False):
            return info_nce(*self.project(source.float(), target.float()), temperature=self.temperature)

    def get_extra_state(self) -> dict[str, Any]:
        """Where in the order the next batch begins."""
        return {"position": self.position}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.position = state["position"]

    def extra_repr(self) -> str:
        """Choices."""
        return f"links={len(self.links)}, temperature={self.temperature}"


def kept(links: Tensor, overlap: float) -> Tensor:
    """The first share ``overlap`` of ``links [n, 2]`` in an order that is the same in every run, so that a smaller
    share is part of a larger one and seeds differ in nothing else; as they are at 1."""
    if overlap == 1.0:
        return links
    order = torch.randperm(len(links), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return links[order[: round(overlap * len(links))].to(links.device)]


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def agreement(source: Tensor, target: Tensor) -> dict[str, float]:
    """How near two vectors ``[n, d]`` and ``[n, d]`` of the same people are; n at least 2.

    Returns:
        ``alignment``: the mean squared distance of a person's unit vectors, 0 to 4. ``uniformity_source`` and
        ``uniformity_target``: the log of the mean of exp(-2 distance^2) between different people; about -3 and lower
        where they are spread, 0 where all are one. ``match``: how many find themselves nearest in the other domain.
        ``rank``: the median place of oneself there, 1 the best.
    """
    a, b = (F.normalize(x.double(), dim=1) for x in (source, target))
    cosine = a @ b.T  # [n, n]
    own = cosine.diagonal().unsqueeze(1)
    # Equals count half, or vectors that are all one would find themselves every time.
    place = 1 + (cosine > own).sum(dim=1) + ((cosine == own).sum(dim=1) - 1) / 2  # [n]
    found = {
        "alignment": float((a - b).square().sum(dim=1).mean()),
        "match": float((place == 1).double().mean()),
        "rank": float(place.median()),
    }
    for name, unit in (("source", a), ("target", b)):
        far = torch.pdist(unit).square()
        found[f"uniformity_{name}"] = float((-2 * far).exp().mean().log())
    return found


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Similarity of two sets of vectors ``[n, d]``, ``[n, e]`` of the same people up to rotation and scale, 0 to 1."""
    a, b = (x.double() - x.double().mean(dim=0) for x in (a, b))
    own = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).square().sum() / own.clamp(min=1e-300))
