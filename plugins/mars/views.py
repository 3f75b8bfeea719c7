"""Which views of an item are held together (eq. 12), and what they are."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.mars.fusion import FactorFusion, Pooled, total

log = logging.getLogger("recplug")
Kind = Literal["by_source", "additive", "raw", "off"]
TEXT, IMAGE = ("text", "catalogue"), ("image",)  # what the factors of a view were read from


def choose(wanted: Literal["auto"] | Kind, profiles: FactorProfiles, fusion: FactorFusion) -> Kind:
    """The views that are possible here.

    Raises:
        RecplugError: if those that are asked for are not.
    """
    sources = {factor.source for factor in profiles.factors}
    both = bool(sources & set(TEXT)) and bool(sources & set(IMAGE))
    averaged = fusion.structure is not None or (fusion.groups is not None and fusion.free is None)
    possible: dict[Kind, bool] = {
        "by_source": both and fusion.groups is not None,
        "additive": bool(fusion.content.names) and averaged,
        "raw": bool(fusion.content.names),
    }
    if wanted == "off":
        return "off"
    if wanted != "auto":
        if not possible[wanted]:
            lacks = "factors read from text and others read from images" if wanted == "by_source" else "content"
            raise RecplugError(f"mars.views {wanted} needs {lacks}; set it to auto or off")
        return wanted
    wishes: tuple[Kind, ...] = ("by_source", "additive")
    found: Kind = next((kind for kind in wishes if possible[kind]), "off")
    log.info("mars: views %s", found if found != "off" else "off, as X has no content and the factors have one source")
    return found


def branches_by_source(profiles: FactorProfiles) -> Tensor:
    """``[3, K + 1]`` bool: the branches of the views by source: structure, text (or the catalogue), images."""
    sources = ["structure", *(factor.source for factor in profiles.factors)]
    rows = [[source in group for source in sources] for group in (("structure",), TEXT, IMAGE)]
    return torch.tensor(rows, device=profiles.items.device)


def views(
    kind: Kind, fusion: FactorFusion, sources: Tensor, pooled: Pooled, rows: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The views of ``rows [r]``, and which of them each item has.

    Args:
        kind: not ``"off"``.
        fusion: what averages.
        sources: ``[3, K + 1]`` bool, from :func:`branches_by_source`.
        pooled: of this step.
        rows: ``[r]``.
        weights: ``[r, K + 1]``: the gate's.

    Returns:
        ``[n, r, d]`` float32 and ``[n, r]`` bool.
    """
    blocks = fusion.blocks(pooled, rows)
    have = fusion.available.index_select(0, rows)  # [r, K + 1]
    if kind == "by_source":
        x = total(blocks)
        parts = []
        for chosen in sources:  # structure, text, images
            own = weights * chosen
            share = own / own.sum(dim=1, keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)
            parts.append(fusion.mean(x, share, rows))
        return torch.stack(parts), (have & sources.unsqueeze(1)).any(dim=2)
    present = fusion.content.present.index_select(0, rows).T  # [M, r]
    valid = torch.cat([torch.ones_like(present[:1]), present])  # [1 + M, r]
    if kind == "raw":
        return torch.stack([block.own.float() for block in blocks]), valid
    return torch.stack([fusion.mean(block, weights, rows) for block in blocks]), valid
