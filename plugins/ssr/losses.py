"""SSR's losses, of what a training step has left in its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.contrast import first_of_each
from recplug.plugins.ssr.contrast import spectral_contrast
from recplug.plugins.ssr.masking import consistency
from recplug.plugins.step import Step

if TYPE_CHECKING:
    from recplug.plugins.ssr.module import Ssr


def masked_view(ssr: Ssr, step: Step) -> Tensor:
    """The masked view of some triples of the batch against their full view: a scalar.

    Raises:
        RecplugError: a score form of the consistency, and a host without users or negatives in its batches.
    """
    batch, s, y = step.batch, step.memory.get("ssr.bands"), step.memory["ssr.fused"]
    items = batch.positives if batch.positives is not None else step.asked()
    chosen = ssr.choice.permutation(len(items), items.device)[: ssr.settings.mask_triples]  # [n]
    parts = [
        None if ids is None or len(ids) != len(items) else _places(ssr, step, ids[chosen] + offset)
        for ids, offset in (
            (batch.users if ssr.n_users else None, 0),
            *((i, ssr.n_users) for i in (items, batch.negatives)),
        )
    ]
    present = [part for part in parts if part is not None]
    form = ssr.settings.consistency
    if form.startswith("score") and len(present) < len(parts):
        raise RecplugError(f"ssr.consistency {form} needs batches of users, items and negatives; set it to repr_mse")
    place = torch.cat(present)  # [n * parts]
    rows = step.memory.get("ssr.rows")
    nodes = place if rows is None else rows[place]
    if s is None:
        bands = ssr.bands_of(step.memory["ssr.signal"], nodes)  # [n * parts, M, P, d]
    else:  # from bands-first memory: the gradient of this is one addition of rows
        bands = s.permute(1, 2, 0, 3).index_select(2, place).permute(2, 0, 1, 3)
    isolated = ssr.decomposition.isolated[nodes]
    factors = ssr.mask.draw(len(place), bands.shape[1], bands.shape[2], isolated, bands)
    masked = ssr.fuse(bands * factors).flatten(1)
    full = [y[part].flatten(1) for part in present]
    return consistency(full, masked.split(len(chosen)), form)


def _places(ssr: Ssr, step: Step, nodes: Tensor) -> Tensor:
    """Where ``nodes [n]`` stand in this step's memory."""
    rows = step.memory.get("ssr.rows")
    if rows is None:
        return nodes
    slot = rows.new_zeros(ssr.decomposition.n_nodes)
    return slot.index_copy(0, rows, torch.arange(len(rows), device=rows.device))[nodes]


def ridge(step: Step) -> Tensor:
    """Half the mean squared length of content, all modalities together: every node of the batch counts once."""
    lengths = step.memory["ssr.content"].square().sum(dim=(1, 2))  # [r]
    rows = step.memory.get("ssr.rows")
    if rows is None:
        return lengths.mean() / 2
    once = first_of_each(rows)  # [r]
    return (lengths * once).sum() / once.sum() / 2


def contrast(ssr: Ssr, step: Step) -> Tensor:
    """Between every two modalities, over the batch's items: a scalar."""
    assert ssr.content is not None
    items = step.batch.positives if step.batch.positives is not None else step.asked()
    # More than are needed: some lack a modality, or come twice.
    enough = 4 * ssr.settings.anchors // ssr.settings.bands
    items = items[ssr.choice.permutation(len(items), items.device)[:enough]]
    bands = ssr.content(items + ssr.n_users).permute(2, 0, 1, 3)  # [n, M, P-1, d]
    present = ssr.content.present[items + ssr.n_users]  # [n, P-1]
    found = [
        spectral_contrast(
            bands[:, :, one],
            bands[:, :, other],
            items,
            present[:, one] & present[:, other],
            temperature=ssr.settings.temperature,
            anchors=ssr.settings.anchors,
            noise=ssr.choice,
        )
        for one in range(bands.shape[2])
        for other in range(one + 1, bands.shape[2])
    ]
    return torch.stack(found).mean()
