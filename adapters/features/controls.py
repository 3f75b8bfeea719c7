"""Content as a study wants it: vectors dealt out to other items, or taken from some."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import Neighbours


def shuffled(modality: Modality, seed: int) -> Modality:
    """The control "shuffled features": the same vectors, each given to a random item that has one.

    The presence mask stays; only which vector belongs to which item is lost.
    """
    rows = modality.present.nonzero().squeeze(1)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator, device="cpu").to(rows.device)
    values = modality.values.clone()
    values[rows] = modality.values[rows[order]]
    return Modality(modality.name, values, modality.present)


def dropped(
    modalities: Mapping[str, Modality],
    neighbours: Mapping[str, Neighbours],
    tokens: Sequence[str],
    share: float,
    *,
    seed: int = 0,
    together: bool = False,
) -> tuple[dict[str, Modality], dict[str, Neighbours]]:
    """The study of missing modalities: the same items, of which a share has lost its vectors.

    Which ones is drawn by item token: the same for every backbone and every order of the items, and whoever loses a
    vector at one share has none at a larger one.

    Args:
        modalities: by name, a row for each of ``tokens``.
        neighbours: the graphs of nearest items; an edge goes with the vector of either end. May lack modalities, or
            have others: there, whoever has neighbours counts as having a vector.
        tokens: of every row.
        share: how many of the items that have a vector lose it, at least 0 and below 1.
        seed: another one takes other items.
        together: take an item's vectors of all modalities, or each modality's on its own.

    Raises:
        RecplugError: for a share outside its range, or one that would leave a modality without a vector.
    """
    if not 0 <= share < 1:
        raise RecplugError(f"drop_features={share} is no share; give a number of at least 0 and below 1")
    present = {name: graph.valid.any(dim=1) for name, graph in neighbours.items()}
    present |= {name: modality.present for name, modality in modalities.items()}
    if together and present:
        whole = torch.stack(list(present.values())).any(dim=0)  # [n]
        lost = dict.fromkeys(present, _losers(whole, tokens, share, f"{seed}"))
    else:
        lost = {name: _losers(have, tokens, share, f"{seed}/{name}") for name, have in present.items()}
    for name, have in present.items():
        if not (have & ~lost[name]).any():
            raise RecplugError(f"drop_features={share} leaves no item its {name} vector; choose a smaller share")
    return (
        {name: _without(modality, lost[name]) for name, modality in modalities.items()},
        {name: _unjoined(graph, lost[name]) for name, graph in neighbours.items()},
    )


def _losers(present: Tensor, tokens: Sequence[str], share: float, draw: str) -> Tensor:
    """``[n]`` bool: the first of those present, in an order that tokens and ``draw`` alone decide."""
    rows = present.nonzero().squeeze(1).tolist()
    key = draw.encode()
    rows.sort(key=lambda row: hashlib.blake2b(str(tokens[row]).encode(), digest_size=16, key=key).digest())
    lost = torch.zeros_like(present)
    lost[rows[: round(share * len(rows))]] = True
    return lost


def _without(modality: Modality, lost: Tensor) -> Modality:
    values = modality.values.clone()
    values[lost] = 0
    return Modality(modality.name, values, modality.present & ~lost)


def _unjoined(graph: Neighbours, lost: Tensor) -> Neighbours:
    valid = graph.valid & ~lost[:, None] & ~lost[graph.index]  # [n, k]
    own = torch.arange(len(valid), device=valid.device)[:, None]  # [n, 1]
    index, weight = torch.where(valid, graph.index, own), torch.where(valid, graph.weight, 0.0)
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)  # whoever is left stays nearest first
    return Neighbours(index.gather(1, order), weight.gather(1, order), valid.gather(1, order))
