"""The score seam of RecBole's models: what they rank with, and what their loss compares, passes through plugins.

Its *ranking* half is offered by all, its *training* half by general models with one ``BPRLoss``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recplug.plugins.chain import Chain
from recplug.plugins.errors import RecplugError
from recplug.plugins.step import Batch, Step

ARGUMENTS = ("pos_score", "neg_score")  # of BPRLoss
PAIRS = 2**17  # that a model which scores pair by pair is asked for at once


def ranks_everything(model: Any) -> bool:
    """Whether the backbone can score all items at once; RecBole asks the others pair by pair."""
    return model.recplug_base.full_sort_predict is not AbstractRecommender.full_sort_predict


def pairwise_losses(model: nn.Module) -> list[str]:
    """The names of a model's pairwise losses; the seam needs exactly one."""
    return [name for name, module in model.named_modules() if isinstance(module, BPRLoss)]


def score_through(chain: Chain, loss: nn.Module) -> None:
    """Let the scores that ``loss`` compares pass through ``chain``; the module and its place stay the host's.

    Args:
        chain: the plugins.
        loss: the host's ``BPRLoss``, called once a step with the scores of the batch's pairs.
    """
    # Past nn.Module.__setattr__: the chain is no child of the loss.
    loss.__dict__["recplug_chain"] = chain
    loss.register_forward_pre_hook(_through_chain, with_kwargs=True)


def score_block(value: Any) -> int | None:
    """How many users are scored at once in a ranking; None for a whole batch.

    Raises:
        RecplugError: for something else than a positive number.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise RecplugError(f"score_block={value} is no number of users; write 1 or more, or leave it out")


def rank(
    model: Any, host: Callable[[Interaction], Tensor], interaction: Interaction, step: Step, block: int | None = None
) -> Tensor:
    """``[B, n_items]``: the host's scores of every item, and what the plugins make of them.

    Args:
        model: augmented.
        host: the bare model's ``full_sort_predict``.
        interaction: who is asked about.
        step: the step under way.
        block: users whose scores are changed at once.
    """
    base = host(interaction).reshape(len(interaction), -1)
    shown = Batch(
        users=_field(interaction, model.USER_ID),
        sequence=_field(interaction, getattr(model, "ITEM_SEQ", None)),
        lengths=_field(interaction, getattr(model, "ITEM_SEQ_LEN", None)),
    )
    users = shown.users
    if users is None:  # histories of people who are not the data's
        users = torch.zeros(len(interaction), dtype=torch.long, device=base.device)
    return model.recplug.score_ranking(step, base, users, block, shown)


def pairs_of(ranked: Callable[[Interaction], Tensor], model: Any, interaction: Interaction) -> Tensor:
    """``[b]``: the scores of pairs, cut out of the rankings of those whom they are about, each of them ranked once.

    Args:
        ranked: rows of an interaction to scores ``[B, n_items]``.
        model: augmented.
        interaction: the pairs.
    """
    fields = [_field(interaction, getattr(model, name, None)) for name in ("USER_ID", "ITEM_SEQ")]
    about = torch.cat([each.reshape(len(interaction), -1) for each in fields if each is not None], dim=1)
    _, place = torch.unique(about, dim=0, return_inverse=True)  # [b]
    rows = torch.arange(len(place), device=place.device)
    first = torch.full((int(place.max()) + 1,), len(place), device=place.device).scatter_reduce(0, place, rows, "amin")
    return ranked(interaction[first])[place, interaction[model.ITEM_ID]]


def pair_by_pair(
    predict: Callable[[Interaction], Tensor], model: Any, interaction: Interaction, n_items: int
) -> Tensor:
    """``[B * n_items]``: the scores of every item, of a host that can be asked for pairs only."""
    items = torch.arange(n_items, device=model.device)
    found = []
    for row in range(len(interaction)):
        for block in items.split(PAIRS):
            pairs = interaction[row : row + 1].repeat(len(block))
            pairs.update(Interaction({model.ITEM_ID: block}))
            found.append(predict(pairs).reshape(-1))
    return torch.cat(found)


def _field(interaction: Interaction, name: str | None) -> Tensor | None:
    return interaction[name] if name is not None and name in interaction else None


def _through_chain(loss: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    chain: Chain = loss.__dict__["recplug_chain"]
    positive, negative = (*arguments, *(named[name] for name in ARGUMENTS if name in named))
    return chain.score_training(positive, negative), {}
