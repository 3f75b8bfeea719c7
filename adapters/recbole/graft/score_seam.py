"""The score seam of RecBole's general models: what their pairwise loss compares passes through the plugins first."""

from __future__ import annotations

from typing import Any

from recbole.model.loss import BPRLoss
from torch import nn

from recplug.plugins.chain import Chain
from recplug.plugins.errors import RecplugError

ARGUMENTS = ("pos_score", "neg_score")  # of BPRLoss


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


def _through_chain(loss: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    chain: Chain = loss.__dict__["recplug_chain"]
    positive, negative = (*arguments, *(named[name] for name in ARGUMENTS if name in named))
    return chain.score_training(positive, negative), {}
