"""What an adapter hands to plugins that can be asked for something: a propagation, a validation, a second domain."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Propagate(Protocol):
    """The host's propagation rule on another graph: ``(graph, users, items) -> (users, items)``."""

    def __call__(self, graph: Any, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Propagate ``users [n_users, d]`` and ``items [n_items, d]`` over ``graph``."""
        ...


class Validate(Protocol):
    """The validation score of the model as it stands; greater is better, whatever RecBole's ``valid_metric``."""

    @property
    def key(self) -> str:
        """A digest of the data, and of what is measured on them."""
        ...

    def __call__(self, users: int | None = None) -> float:
        """On everyone, or on about ``users`` of them, always the same ones."""
        ...


class Source(Protocol):
    """A second domain, present in :attr:`Context.source` only when one is configured.

    A plugin keeps :attr:`model` as a child module, so that the host's optimiser trains it and checkpoints save it, and
    adds :meth:`loss` to its losses. What the source draws (order, negatives, dropout) comes from a random state of its
    own: the host's draws are those of a run without a source.
    """

    @property
    def name(self) -> str:
        """The source's data set."""
        ...

    @property
    def model(self) -> nn.Module:
        """The source's backbone, of the host's class, with the plugins that can act there too."""
        ...

    @property
    def links(self) -> Tensor:
        """``[n, 2]`` int64 (source user id, target user id): the same person, who trains in both; never padding."""
        ...

    @property
    def held_out(self) -> Tensor:
        """``[m, 2]`` int64: such pairs that no loss may read, for diagnostics."""
        ...

    def next_batch(self) -> Any:
        """The source's next training batch, on its device; a loader that is used up begins anew, in another order."""
        ...

    def loss(self) -> Tensor:
        """``[]``: the source model's whole training loss on its next batch, a mean or a sum as the host's own is."""
        ...

    def encode_users(self, ids: Tensor) -> Tensor:
        """``ids [b]`` of source users to ``[b, d]`` vectors (:meth:`Step.vectors_of` of the latest step there).

        With a gradient in training. After :meth:`loss` a backbone that propagates need not do so again.
        """
        ...

    def share_seen(self) -> float:
        """How much of the source's training data this epoch has seen so far; 2 where it went through them twice."""
        ...
