"""The content graph filter in closed form: sparse products, nothing trained, no item-by-item matrix."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from recplug.plugins.nn.propagation import Adjacency


@dataclass(frozen=True)
class Exponents:
    """The filter's few numbers (see :class:`ClosedForm`).

    Attributes:
        heat: a, how far the signal spreads over content.
        users: b, of the users' degrees.
        history: x, of the degrees of the items in the history.
        items: y, of the items' degrees on the way to other users and back.
        popularity: q, of the degrees of the items that are scored.
    """

    heat: float
    users: float
    history: float
    items: float
    popularity: float

    def as_dict(self) -> dict[str, float]:
        """By name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


class ClosedForm:
    r"""The filter on the interaction signal.

    .. math:: s = r\, T^{-x} E D^{-y} R^\top U^{-b} R D^{-y} E T^{q}, \qquad
              E = \sum_{k=0}^{h} \frac{(aC)^k}{k!}

    R ``[n_users, n_items]`` are the training interactions, each once; D and U the degrees of items and users, T is
    D + 1; C the graph of similar items, E its heat kernel, cut after the power h. A user is a row r, known or new.

    Neither a tensor nor a module: constant, so copies share it. Memory is linear in the entries of R and C; each user
    of a block adds a few columns of ``n_users + n_items`` numbers.

    Args:
        edges: ``[2, n]`` training interactions (user, item); what comes twice counts once.
        n_users, n_items: counts with the padding row.
        content: C, ``[n_items, n_items]`` and symmetric, or None: E is the identity.
        order: h; 0: E is the identity.
    """

    def __init__(self, edges: Tensor, *, n_users: int, n_items: int, content: Adjacency | None, order: int) -> None:
        keys = torch.unique(edges[0].long() * n_items + edges[1].long())
        users, items = keys // n_items, keys % n_items
        self.users = Adjacency.of(torch.stack([users, items]), torch.ones_like(keys).float(), (n_users, n_items))  # R
        self.user_degree = torch.bincount(users, minlength=n_users)  # [n_users]
        self.item_degree = torch.bincount(items, minlength=n_items)  # [n_items]
        self.content = content if order else None
        self.order = order
        self._scaled: tuple[tuple[float, float], Adjacency, Adjacency] | None = None

    def rows(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """(place in ``users [u]``, item) of every training interaction of these users: ``[n]`` each."""
        crow, col, _ = self.users.bags(torch.float32)
        first, last = crow[users].long(), crow[users + 1].long()
        place = torch.repeat_interleave(torch.arange(len(users), device=users.device), last - first)
        begins = (last - first).cumsum(0) - (last - first)
        at = torch.arange(len(place), device=users.device) - begins[place] + first[place]
        return place, col[at].long()

    def to(self, device: torch.device) -> ClosedForm:
        """The same on ``device``; itself where it already lies there."""
        if self.user_degree.device == device:
            return self
        other = object.__new__(ClosedForm)
        moved = {name: value.to(device) for name, value in vars(self).items() if hasattr(value, "to")}
        other.__dict__.update({**vars(self), **moved, "_scaled": None})
        return other

    @torch.no_grad()
    def scores(self, history: Tensor, exponents: Exponents) -> Tensor:
        """``history [n_items, u]``, a column r of weights for each user, to scores ``[n_items, u]``."""
        return self.last(self.across(self.first(history, exponents), exponents), exponents)

    # -- in three parts, of which a search computes again what has changed

    def first(self, history: Tensor, exponents: Exponents) -> Tensor:
        """``E T^-x r``: ``[n_items, u]`` to the same."""
        return self.smooth(history * self._degree(-exponents.history), exponents.heat)

    def across(self, signal: Tensor, exponents: Exponents) -> Tensor:
        """``E D^-y R^T U^-b R D^-y``: to other users and back, ``[n_items, u]`` to the same."""
        there, back = self._across(exponents)
        return self.smooth(back.times(there.times(signal)), exponents.heat)

    def last(self, signal: Tensor, exponents: Exponents) -> Tensor:
        """``T^q``: ``[n_items, u]`` to the same."""
        return signal * self._degree(exponents.popularity)

    def popularity(self, exponents: Exponents) -> Tensor:
        """``[n_items]``: the diagonal of ``T^q``, which is all that is known of someone without a history."""
        return self._degree(exponents.popularity).squeeze(1)

    def smooth(self, signal: Tensor, heat: float) -> Tensor:
        """``E``: ``[n_items, u]`` to the same, by Horner's rule."""
        if self.content is None or heat == 0:
            return signal
        found = signal
        for power in range(self.order, 0, -1):
            found = self.content.times(found).mul_(heat / power).add_(signal)
        return found

    def half(self, exponents: Exponents) -> Adjacency:
        """``A = U^-b/2 R D^-y``, ``[n_users, n_items]``, of which ``A^T A`` is what stands between both kernels."""
        return self._across(exponents)[0]

    def _across(self, exponents: Exponents) -> tuple[Adjacency, Adjacency]:
        wanted = (exponents.users, exponents.items)
        if self._scaled is None or self._scaled[0] != wanted:
            user, item = self.users.indices()
            values = self.user_degree[user].double().pow(-exponents.users / 2)
            values = values * self.item_degree[item].double().pow(-exponents.items)
            there = self.users.with_values(values.float())
            self._scaled = wanted, there, there.transpose()
        return self._scaled[1], self._scaled[2]

    def _degree(self, power: float) -> Tensor:
        """``T^power [n_items, 1]``."""
        return (self.item_degree + 1).double().pow(power).float().unsqueeze(1)

    def digest(self) -> str:
        """Of everything that it is made of."""
        found = hashlib.sha256(repr(self).encode())
        for matrix in (self.users, *([] if self.content is None else [self.content])):
            for tensor in matrix.bags(matrix.dtype):
                found.update(tensor.cpu().numpy().data)
        return found.hexdigest()

    # -- copies

    def __deepcopy__(self, memo: dict[int, Any]) -> ClosedForm:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scaled": None}

    def __repr__(self) -> str:
        entries = 0 if self.content is None else self.content.nnz
        return f"ClosedForm(interactions={self.users.nnz}, content={entries}, order={self.order})"


def histories(
    form: ClosedForm, users: Tensor, sequence: Tensor | None, lengths: Tensor | None, *, recency: float = 1.0
) -> Tensor:
    """r, a column for each of ``users [u]``: ``[n_items, u]``.

    Args:
        form: whose training interactions a user's row is.
        users: user ids.
        sequence: ``[u, L]`` padded histories that are shown instead, or None. An item that comes twice counts twice.
        lengths: ``[u]`` their lengths, or None: what is neither padding nor a mask.
        recency: what an item of a history counts for each step that it lies back.
    """
    n_items = len(form.item_degree)
    found = torch.zeros(n_items, len(users), device=users.device)
    if sequence is None:
        place, item = form.rows(users)
        found[item, place] = 1.0
        return found
    places = torch.arange(sequence.shape[1], device=users.device)
    real = (sequence > 0) & (sequence < n_items)  # neither padding nor a mask
    if lengths is None:
        lengths = real.sum(dim=1)
    back = (lengths.unsqueeze(1) - 1 - places).clamp(min=0)  # [u, L]
    counts = torch.where(real, torch.full_like(back, recency, dtype=torch.float32).pow(back), 0.0)
    columns = torch.arange(len(users), device=users.device).unsqueeze(1).expand_as(sequence)
    # Padding takes a count of 0.
    return found.index_put_((torch.where(real, sequence, 0), columns), counts, accumulate=True)


def constants(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of ``scores [u, n_items]`` over all items but padding, ``[u, 1]`` each; never 0 deviation."""
    deviation, mean = torch.std_mean(scores[:, 1:], dim=1, keepdim=True, correction=0)
    return mean, torch.where(deviation > 0, deviation, 1.0)


def beside(base: Tensor, found: Tensor, history: Tensor, weight: float) -> Tensor:
    r"""A filter's scores added to a backbone's, at the backbone's own scale.

    .. math:: b_{ui} + w\, \sigma(b_u) \frac{f_{ui} - \mu(f_u)}{\sigma(f_u)}

    Mean and deviation are the user's, over all items, whatever is masked later; items of the history keep b.

    Args:
        base: b, ``[u, n_items]``.
        found: f, the same.
        history: r, the same; not 0 where the user had the item.
        weight: w.

    Returns:
        Of ``base``'s shape and type.
    """
    mean, deviation = constants(found)
    spread = constants(base.float())[1]
    added = (found - mean).mul_(weight * spread / deviation).masked_fill_(history > 0, 0.0)
    return base + added.to(base.dtype)
