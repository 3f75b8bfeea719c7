"""Content as unit vectors whose products are likeness: of items, of users, and of what comes later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.propagation import Adjacency

SHORTEST = 1e-6  # a unit vector that is no longer than this without the mean has no direction


@dataclass(frozen=True)
class Content:
    """What is known of users or items, as vectors whose inner products are their likeness.

    Attributes:
        values: ``[n, D]`` float32, the modalities side by side; of unit length, or zero where nothing is known.
        present: ``[n]`` bool, whether anything is.
        widths: of the modalities; they add up to D.
        weights: of the modalities.
        centres: ``[d_m]`` each: the means that were subtracted.
        names: of the modalities.
    """

    values: Tensor
    present: Tensor
    widths: tuple[int, ...]
    weights: tuple[float, ...]
    centres: tuple[Tensor, ...]
    names: tuple[str, ...]

    def blocks(self) -> list[Tensor]:
        """``[n, d_m]`` each: one modality at unit length, zero where it is missing."""
        return [F.normalize(block, dim=1) for block in self.values.split(self.widths, dim=1)]

    def to(self, device: torch.device | str) -> Content:
        """The same on ``device``."""
        centres = tuple(centre.to(device) for centre in self.centres)
        return Content(self.values.to(device), self.present.to(device), self.widths, self.weights, centres, self.names)


def text_first(names: Sequence[str], text: float) -> dict[str, float]:
    """Weights of modalities: ``text`` for the one of that name, the others share the rest; equal where that is all."""
    others = [name for name in names if name != "text"]
    if len(others) in (0, len(names)):
        return {name: 1.0 / len(names) for name in names}
    return {name: text if name == "text" else (1.0 - text) / len(others) for name in names}


@torch.no_grad()
def content_vectors(
    modalities: Sequence[Modality],
    weights: Mapping[str, float],
    n_rows: int,
    *,
    known: Tensor | None = None,
    centres: Mapping[str, Tensor] | None = None,
    device: torch.device | None = None,
) -> Content:
    r"""Content of items, stacked so that :math:`\hat x^\top \hat y = \sum_m w_m \cos(x_m, y_m)`.

    Vectors are brought to unit length, the mean of known items is subtracted, and they are brought to unit length
    again: means over many items point one way otherwise. An item that lacks a modality has a block of zeros there, and
    its other blocks weigh more (:math:`w_m / \sum_{m' \text{ present}} w_{m'}`), so that it stays at unit length.

    Args:
        modalities: content, aligned with the first rows of the item table.
        weights: w_m, one a modality; one of 0 leaves it out.
        n_rows: rows of the result.
        known: ``[n_rows]`` bool, the items whose mean is subtracted; None: all.
        centres: means by name that are subtracted in their place, for items that come later.
        device: where it is computed; None: where the content lies.
    """
    blocks, here, used, middles = [], [], [], []
    for modality in modalities:
        if weights[modality.name] <= 0:
            continue
        place = device or modality.values.device
        present = F.pad(modality.present.to(place), (0, n_rows - len(modality.present)))  # [n]
        values = F.normalize(modality.values.to(place).float(), dim=1)
        values = F.pad(values, (0, 0, 0, n_rows - len(values))).masked_fill(~present.unsqueeze(1), 0.0)
        given = None if centres is None else centres[modality.name].to(place)
        mask = present if known is None else present & known.to(place)
        values, present, centre = _centred(values, present, mask, given)
        blocks.append(values)
        here.append(present)
        middles.append(centre)
        used.append(modality.name)
    if not blocks:
        raise RecplugError("micrec: no modality has a weight above 0; raise micrec.text_weight or lower it from 1")
    return _stacked(blocks, here, [weights[name] for name in used], middles, used)


@torch.no_grad()
def user_content(
    content: Content, edges: Tensor, n_users: int, *, centres: Mapping[str, Tensor] | None = None
) -> Content:
    """Content of users: by modality, the mean of the unit vectors of their items, centred over users, at unit length.

    Args:
        content: of the items.
        edges: ``[2, n]`` training interactions (user, item), each once.
        n_users: rows of the result.
        centres: means by modality to subtract, for users that come later; None: these users' own.
    """
    members = Adjacency.of(edges, torch.ones_like(edges[0], dtype=torch.float32), (n_users, len(content.values)))
    blocks, here, middles = [], [], []
    for name, block in zip(content.names, content.blocks(), strict=True):
        count = members.matmul((block != 0).any(dim=1, keepdim=True).float())  # [n_users, 1]
        mean = members.matmul(block) / count.clamp(min=1.0)
        present = count.squeeze(1) > 0
        given = None if centres is None else centres[name].to(block.device)
        values, present, centre = _centred(mean, present, present, given)
        blocks.append(values)
        here.append(present)
        middles.append(centre)
    return _stacked(blocks, here, content.weights, middles, content.names)


def new_content(known: Content, given: Mapping[str, Modality], n: int) -> Content:
    """Content of ``n`` new items in the terms of the known ones': their centres, their modalities, their order.

    Args:
        known: of the items that were trained.
        given: some or all of its modalities, ``n`` rows each; others are left out.
        n: rows.

    Raises:
        RecplugError: for vectors of another width, or for other rows.
    """
    modalities = []
    for name, centre in zip(known.names, known.centres, strict=True):
        empty = Modality(name, torch.zeros(n, len(centre)), torch.zeros(n, dtype=torch.bool))
        modality = given.get(name, empty)
        if modality.values.shape != empty.values.shape:
            raise RecplugError(
                f"{name} of new items is {list(modality.values.shape)}; beside the trained items it has to be "
                f"{list(empty.values.shape)}"
            )
        modalities.append(modality)
    weights = dict(zip(known.names, known.weights, strict=True))
    centres = dict(zip(known.names, known.centres, strict=True))
    return content_vectors(modalities, weights, n, centres=centres, device=known.values.device)


def _centred(values: Tensor, present: Tensor, mask: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``values [n, d]`` less the mean at ``mask``, at unit length; which still have a direction; the mean."""
    if centre is None:
        centre = values[mask].double().mean(dim=0).float() if bool(mask.any()) else values.new_zeros(values.shape[1])
    values = values - centre
    length = torch.linalg.vector_norm(values, dim=1)  # [n]
    present = present & (length > SHORTEST)
    values = (values / length.clamp(min=SHORTEST).unsqueeze(1)).masked_fill(~present.unsqueeze(1), 0.0)
    return values, present, centre


def _stacked(
    blocks: Sequence[Tensor],
    here: Sequence[Tensor],
    weights: Sequence[float],
    centres: Sequence[Tensor],
    names: Sequence[str],
) -> Content:
    present = torch.stack(list(here), dim=1)  # [n, M]
    share = present * torch.tensor(list(weights), device=present.device)
    share = share / share.sum(dim=1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    values = torch.cat([share[:, m : m + 1].sqrt() * block for m, block in enumerate(blocks)], dim=1)
    widths = tuple(block.shape[1] for block in blocks)
    return Content(values, present.any(dim=1), widths, tuple(weights), tuple(centres), tuple(names))
