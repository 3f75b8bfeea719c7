"""Scores of a trained model for anyone who can be asked about, a block of users at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recplug.adapters.recbole.compat.patching import replaced
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.data.sampling import MOST_SCORES, USERS_A_BATCH
from recplug.adapters.recbole.graft.score_seam import pair_by_pair, ranks_everything
from recplug.adapters.recbole.infer.histories import Askers
from recplug.adapters.recbole.infer.top_k import SCHEMA
from recplug.plugins.errors import RecplugError


def default_batch(n_items: int) -> int:
    """Users whose scores are made at once."""
    return max(1, min(USERS_A_BATCH, MOST_SCORES // n_items))


@contextmanager
def at_work(model: Any) -> Iterator[None]:
    """In evaluation, without gradients, RecBole's remedies at hand, and nobody's history masked by the model itself."""
    training = model.training
    if training:
        model.eval()
    try:
        with recbole_compat(), torch.no_grad():
            if hasattr(model, "recplug_history"):
                with replaced(model, recplug_history=None):
                    yield
            else:
                yield
    finally:
        if training:
            model.train()


def host_scores(model: Any, askers: Askers, n_items: int) -> Tensor:
    """The host's own scores ``[n, n_items]``, with its plugins', of people with a row of theirs or a history.

    Args:
        model: augmented, in evaluation.
        askers: who is asked about; on a sequential host by their history, and by their row where they have one.
        n_items: items with the padding row.

    Raises:
        RecplugError: if the host needs a row of someone who has none, or reads more than ids and histories.
    """
    if model.recplug_host.family != "sequential":
        return _scored(model, {model.USER_ID: askers.users}, len(askers), n_items)
    known = askers.users > 0
    if bool(known.all()) or not bool(known.any()):
        return _scored(model, _history(model, askers), len(askers), n_items)
    scores = torch.empty(len(askers), n_items, device=model.device)
    for mask in (known, ~known):
        rows = mask.nonzero().squeeze(1)
        part = askers.take(rows)
        scores[rows.to(scores.device)] = _scored(model, _history(model, part), len(part), n_items)
    return scores


def _history(model: Any, askers: Askers) -> dict[str, Tensor]:
    """What a sequential host reads. Nobody's row stands in for that of someone who has none: a host asks in vain."""
    items, lengths = askers.past.padded(model.max_seq_length)
    fields = {model.ITEM_SEQ: items, model.ITEM_SEQ_LEN: lengths}
    return {model.USER_ID: askers.users, **fields} if bool((askers.users > 0).all()) else fields


def _scored(model: Any, fields: dict[str, Tensor], n: int, n_items: int) -> Tensor:
    asked = Interaction(fields).to(model.device)
    try:
        if ranks_everything(model) or model.recplug.scoring("ranking"):
            return model.full_sort_predict(asked).reshape(n, n_items)
        return pair_by_pair(model.predict, model, asked, n_items).reshape(n, n_items)
    except KeyError as error:
        host, field = model.recplug_host.name, error.args[0] if error.args else ""
        if field == model.USER_ID:
            raise RecplugError(
                f"{host} scores by a row of each user, and someone whom it was not trained with has none; "
                "ask for users of the run, or train a backbone that reads histories alone, such as SASRec"
            ) from error
        if field in fields or not isinstance(field, str):
            raise
        raise RecplugError(
            f"{host} reads '{field}' beside users and their items, which cannot be made up here; use its own evaluation"
        ) from error


def best(scores: Tensor, k: int, candidates: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k best of ``scores [n, m]``: scores and columns ``[n, k']``, equal ones by the lower column.

    Args:
        scores: minus infinity where an item is left out.
        k: how many.
        candidates: ``[c]`` columns to choose from, ascending; None: all.
    """
    if candidates is not None:
        scores = scores[:, candidates]
    k = min(k, scores.shape[1])
    found, columns = scores.topk(k, dim=1)
    columns, order = columns.sort(dim=1)
    found, again = found.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, again)
    # Of equal scores at the end of the list topk takes any.
    last = found[:, -1:]
    tied = ((scores >= last).sum(dim=1) > k).nonzero().squeeze(1)
    columns[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return found, columns if candidates is None else candidates[columns]


def as_batch(names: Sequence[str], tokens: np.ndarray[Any, Any], scores: Tensor, columns: Tensor) -> pa.RecordBatch:
    """Rows of the answer; what scores minus infinity is left out.

    Args:
        names: ``[n]`` users.
        tokens: ``[m]`` items by column.
        scores, columns: ``[n, k]``, best first.
    """
    kept = (scores > -torch.inf).cpu()
    row, place = kept.nonzero(as_tuple=True)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([names[at] for at in row.tolist()], pa.string()),
            pa.array(tokens[columns.cpu()[kept].numpy()], pa.string()),
            pa.array(scores.float().cpu()[kept].numpy()),
            pa.array((place + 1).int().numpy()),
        ],
        schema=SCHEMA,
    )
