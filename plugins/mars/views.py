"""Views of an item, and how far apart they are (eq. 12)."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.mars.fusion import FactorFusion, Pooled, total
from recplug.plugins.mars.semantic_head import mean_over

log = logging.getLogger("recplug")
Kind = Literal["by_source", "additive", "off"]
TEXT, IMAGE = ("text", "catalogue"), ("image",)  # what the factors of a view were read from


def choose(wanted: Literal["auto"] | Kind, profiles: FactorProfiles, fusion: FactorFusion) -> Kind:
    """The views that are possible here.

    Raises:
        RecplugError: if those that are asked for are not.
    """
    sources = {factor.source for factor in profiles.factors}
    both = bool(sources & set(TEXT)) and bool(sources & set(IMAGE))
    averaged = fusion.is_x or fusion.structure is not None or (fusion.groups is not None and fusion.free is None)
    possible: dict[Kind, bool] = {
        "by_source": both and fusion.groups is not None,
        "additive": bool(fusion.content.names) and averaged,
    }
    if wanted == "off":
        return "off"
    if wanted != "auto":
        if not possible[wanted]:
            lacks = "factors read from text and others read from images" if wanted == "by_source" else "content"
            raise RecplugError(f"mars.views {wanted} needs {lacks}; set it to auto or off")
        return wanted
    found: Kind = next((kind for kind in ("by_source", "additive") if possible[kind]), "off")
    if found == "off":
        log.info(
            "mars: no view loss (eq. 12), lambda_view is idle: an item has one view here, as X holds no content and "
            "no two of its factors were read from different sources (text, images)"
        )
    else:
        log.info("mars: the view loss (eq. 12) compares %s", WORDS[found])
    return found


WORDS = {
    "by_source": "structure, the factors read from text and those read from images",
    "additive": "the parts of H that come from ids and from each modality",
}


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
    if kind == "additive":
        present = fusion.content.present.index_select(0, rows).T  # [M, r]
        valid = torch.cat([torch.ones_like(present[:1]), present])  # [1 + M, r]
        return torch.stack([fusion.mean(block, weights, rows) for block in blocks]), valid
    x, parts = total(blocks), []
    for chosen in sources:  # structure, text, images
        own = weights * chosen
        share = own / own.sum(dim=1, keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)
        parts.append(fusion.mean(x, share, rows))
    have = fusion.available.index_select(0, rows)  # [r, K + 1]
    return torch.stack(parts), (have & sources.unsqueeze(1)).any(dim=2)


def view_distance(views: Tensor, valid: Tensor, once: Tensor) -> Tensor:
    r"""Squared distances between every two views, summed over d and over pairs, in the mean over items (eq. 12).

    Args:
        views: ``[n, r, d]``.
        valid: ``[n, r]`` bool: which views an item has; a pair that lacks one does not count.
        once: ``[r]`` bool: one occurrence of every item.
    """
    with torch.autocast(views.device.type, enabled=False):
        views = views.float()
        one, other = torch.triu_indices(len(views), len(views), offset=1, device=views.device)
        distance = (views[one] - views[other]).square().sum(dim=-1) * (valid[one] & valid[other])  # [pairs, r]
        return mean_over(distance.sum(dim=0), once)
