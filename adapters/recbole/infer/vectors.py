"""The two sides of the dot product that is a trained model's score: a vector of every item, and one of whoever asks.

By what a host scores is not believed but tried, on some users and all items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.adapters.recbole.infer.histories import Askers
from recplug.adapters.recbole.infer.scores import host_scores
from recplug.plugins.errors import RecplugError
from recplug.plugins.table import find_table

TOLERANCE = 1e-5  # of the largest score, within which two ways of scoring are the same
Tower = Callable[[Tensor, Tensor], Tensor]  # histories [b, L] and their lengths [b] to [b, w]


@dataclass(frozen=True)
class Vectors:
    """``of(askers) @ items.T`` is the model's score.

    Attributes:
        items: ``[n_items, w]``, the padding row included.
        of: people to ``[n, w]``.
        tower: the encoder of histories, where people are nothing but these; else None.
    """

    items: Tensor
    of: Callable[[Askers], Tensor]
    tower: Tower | None = None


def vectors_of(model: Any, sample: Askers, n_items: int) -> Vectors:
    """What a model's scores are dot products of; an output bias is one more column, of ones on the other side.

    Args:
        model: augmented, at work (see :func:`~recplug.adapters.recbole.infer.scores.at_work`).
        sample: people on whom it is tried.
        n_items: items with the padding row.

    Raises:
        RecplugError: where the scores are no dot products.
    """
    name = model.recplug_host.name
    if changed := model.recplug.acting("score"):
        raise RecplugError(
            f"{', '.join(changed)} changes {name}'s scores pair by pair, so that no two vectors give them; ask the run "
            "with `recplug recommend`"
        )
    found = _of_histories(model, n_items) if model.recplug_host.family == "sequential" else _of_nodes(model)
    if found is None or not _are_of(found, sample, host_scores(model, sample, n_items)):
        raise RecplugError(
            f"{name} does not score by the dot product of a user's and an item's vector; ask the run with "
            "`recplug recommend`"
        )
    return found


def alike(one: Tensor, other: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors are the same but for rounding, as large as their largest number allows."""
    if one.shape != other.shape:
        return False
    return not one.numel() or bool((one - other).abs().max() <= tolerance * other.abs().max())


def _are_of(found: Vectors, sample: Askers, scores: Tensor) -> bool:
    people = found.of(sample)  # of a few hosts a list, or distributions
    fits = isinstance(people, Tensor) and people.dim() == 2 and people.shape[1] == found.items.shape[1]
    return fits and alike(people @ found.items.T, scores)


# -- people as histories


def _of_histories(model: Any, n_items: int) -> Vectors | None:
    table = find_table(model, model.recplug_host.table) if model.recplug_host.table else None
    if table is None:
        return None
    rows = table.weight.detach()[:n_items]  # [n_items, d]
    if model.recplug_host.name in HISTORIES:
        tower, items = HISTORIES[model.recplug_host.name](model, rows)
        return _by_tower(model, tower, items)
    arguments = model._recplug_arguments()
    if not arguments:
        return None

    def encode(**given: Tensor) -> Tensor:
        return model.forward(*(given[name] for name in arguments))

    if "users" not in arguments:
        return _by_tower(model, lambda sequence, lengths: encode(sequence=sequence, lengths=lengths), rows)

    def of(askers: Askers) -> Tensor:
        sequence, lengths = _padded(model, askers)
        return encode(sequence=sequence, lengths=lengths, users=askers.users.to(sequence.device))

    return Vectors(rows, of)


def _by_tower(model: Any, tower: Tower, items: Tensor) -> Vectors:
    return Vectors(items, lambda askers: tower(*_padded(model, askers)), tower)


def _padded(model: Any, askers: Askers) -> tuple[Tensor, Tensor]:
    sequence, lengths = askers.past.padded(model.max_seq_length)
    return sequence.to(model.device), lengths.to(model.device)


def _bert4rec(model: Any, rows: Tensor) -> tuple[Tower, Tensor]:
    """A mask stands for the next item, the oldest one makes room for it; there is an output bias."""

    def encode(sequence: Tensor, lengths: Tensor) -> Tensor:
        longer = torch.cat([sequence, torch.zeros_like(sequence[:, :1])], dim=1)
        asked = longer.scatter(1, lengths.unsqueeze(1), model.mask_token)[:, 1:]  # [b, L]
        return _with_one(model.gather_indexes(model.forward(asked), lengths - 1))

    return encode, torch.cat([rows, model.output_bias.unsqueeze(1)], dim=1)


def _s3rec(model: Any, rows: Tensor) -> tuple[Tower, Tensor]:
    def encode(sequence: Tensor, lengths: Tensor) -> Tensor:
        return model.gather_indexes(model.forward(sequence, bidirectional=False), lengths - 1)

    return encode, rows


def _core(model: Any, rows: Tensor) -> tuple[Tower, Tensor]:
    """A cosine, divided by a temperature."""
    return (lambda sequence, lengths: model.forward(sequence)), F.normalize(rows, dim=-1) / model.temperature


def _with_one(vectors: Tensor) -> Tensor:
    return torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1)


HISTORIES: dict[str, Callable[[Any, Tensor], tuple[Tower, Tensor]]] = {
    "BERT4Rec": _bert4rec,
    "S3Rec": _s3rec,
    "CORE": _core,
}


# -- people as rows


def _of_nodes(model: Any) -> Vectors | None:
    host = model.recplug_host
    if host.nodes == "forward" and model._recplug_propagates():
        users, items = model.forward(*(getattr(model, name) for name in host.node_arguments))[:2]
        return Vectors(items, lambda askers: users[askers.users.to(users.device)])
    tables = [table for name in (host.users, host.table) if name and (table := find_table(model, name)) is not None]
    if len(tables) < 2:
        return None
    users, items = (table.weight.detach() for table in tables)
    if host.name == "SimpleX":
        return _simplex(model, items)
    if host.name == "ENMF":  # a dot product whose columns are weighted
        users = users * model.H_i.weight
    return Vectors(items, lambda askers: users[askers.users.to(users.device)])


def _simplex(model: Any, rows: Tensor) -> Vectors:
    """The cosine of an item with what a user is together with the items that it had in training."""

    def of(askers: Askers) -> Tensor:
        users = askers.users.to(rows.device)
        had, lengths = model.history_item_id[users], model.history_item_len[users]
        return F.normalize(model.get_UI_aggregation(model.user_emb(users), model.item_emb(had), lengths), dim=1)

    return Vectors(F.normalize(rows, dim=1), of)
