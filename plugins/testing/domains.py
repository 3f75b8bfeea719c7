"""A second domain in plain torch, and pairs of domains in which it is known what one says of the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.step import Batch
from recplug.plugins.testing.host import ToyHost


class ToySource:
    """A :class:`~recplug.plugins.contract.Source` over a toy host: the same few batches, round and round.

    What it draws depends on the batch's place alone, so that a copy that was saved and loaded draws the same.

    Args:
        model: the source's host.
        batches: its training batches, at least one.
        links: ``[n, 2]`` (source user, target user).
        held_out: ``[m, 2]`` such pairs that no loss reads.
        name: of the data set.
        next_epoch: makes the batches of another epoch when these are used up; None: the same again.
    """

    def __init__(
        self,
        model: ToyHost,
        batches: Sequence[Batch],
        *,
        links: Tensor,
        held_out: Tensor,
        name: str = "toy-source",
        next_epoch: Callable[[], Sequence[Batch]] | None = None,
    ) -> None:
        self.model = model
        self.batches = list(batches)
        self.links = links
        self.held_out = held_out
        self.name = name
        self.next_epoch = next_epoch
        self.drawn = 0
        self._place = 0

    def next_batch(self) -> Batch:
        """The next batch; after the last, the first, or that of another epoch."""
        if self._place == len(self.batches):
            self._place = 0
            if self.next_epoch is not None:
                self.batches = list(self.next_epoch())
        self._place += 1
        self.drawn += 1
        return self.batches[self._place - 1]

    def loss(self) -> Tensor:
        """``[]``: the model's loss on its next batch."""
        batch = self.next_batch()
        with self._draws(self._place):
            return self.model.loss(batch)

    def encode_users(self, ids: Tensor) -> Tensor:
        """``ids [b]`` to ``[b, d]``."""
        chain = self.model.chain
        opened = chain.step(Batch(), beyond_batch=True) if self.model.training else chain.asking()
        with self._draws(-1), opened as step:
            return step.vectors_of(ids)

    def share_seen(self) -> float:
        """Of its batches, since the beginning."""
        return self.drawn / len(self.batches)

    @contextmanager
    def _draws(self, place: int) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 + place)
            yield


@dataclass(frozen=True)
class PlantedDomain:
    """One data set of a :class:`PlantedPair`; row 0 of users and items is padding.

    Attributes:
        train: ``[2, n]`` interactions (user, item).
        test: ``[2, m]`` others.
        content: of the items, of which their likings are made.
        n_users, n_items: counts with the padding row.
    """

    train: Tensor
    test: Tensor
    content: Modality
    n_users: int
    n_items: int

    def batches(self, size: int, *, generator: torch.Generator) -> list[Batch]:
        """One epoch of triples in random order; negatives are any items that the user has not had in training."""
        order = torch.randperm(self.train.shape[1], generator=generator, device="cpu")
        users, items = self.train[:, order]
        had = torch.zeros(self.n_users, self.n_items, dtype=torch.bool, device="cpu")
        had[tuple(self.train)] = True
        had[:, 0] = True
        others = torch.multinomial((~had[users]).float(), 1, generator=generator).squeeze(1)
        triples = zip(users.split(size), items.split(size), others.split(size), strict=True)
        return [Batch(users=u, positives=i, negatives=j) for u, i, j in triples]


@dataclass(frozen=True)
class PlantedPair:
    """Two domains of the same people.

    Attributes:
        source: with more interactions.
        target: with fewer.
        links: ``[n, 2]`` (source user, target user), everybody.
    """

    source: PlantedDomain
    target: PlantedDomain
    links: Tensor

    def shuffled(self, seed: int = 0) -> Tensor:
        """``[n, 2]``: the control, everybody linked with somebody."""
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(len(self.links), generator=generator, device="cpu")
        return torch.stack([self.links[:, 0], self.links[order, 1]], dim=1)


def planted_domains(
    *,
    correlation: float,
    n_users: int = 300,
    n_items: int = 120,
    interactions: tuple[int, int] = (24, 3),
    tests: int = 5,
    k: int = 4,
    strength: float = 2.0,
    zipf: float = 0.5,
    noise: float = 0.3,
    seed: int = 0,
) -> PlantedPair:
    r"""Two domains in which people's likings are correlated.

    .. math::
        p^T_u = \kappa\, p^S_u + \sqrt{1 - \kappa^2}\; \epsilon_u, \qquad
        P(i \mid u) \propto \mathrm{rank}(i)^{-z}\, e^{s\, p_u^\top q_i / \sqrt k}

    People have other numbers in the two domains; items have nothing in common but the space in which they lie. An
    item's content is a linear map of q and noise.

    Args:
        correlation: kappa, from 0 (one domain says nothing of the other) to 1.
        n_users, n_items: of each domain, without padding.
        interactions: a user's in training, in the source and in the target.
        tests: a user's further ones.
        k: width of what is liked.
        strength: s.
        zipf: z.
        noise: deviation of the noise on content.
        seed: of everything.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    own = torch.randn(n_users, k, generator=generator, device="cpu")
    other = torch.randn(n_users, k, generator=generator, device="cpu")
    likings = own, correlation * own + (1.0 - correlation**2) ** 0.5 * other
    domains, numbers = [], []
    for liking, count in zip(likings, interactions, strict=True):
        items = torch.randn(n_items, k, generator=generator, device="cpu")
        popularity = -zipf * torch.arange(1, n_items + 1, device="cpu").log()
        chances = (strength * liking @ items.T / k**0.5 + popularity).softmax(dim=1)  # [n_users, n_items]
        had = 1 + torch.multinomial(chances, count + tests, generator=generator)  # [n_users, count + tests]
        number = 1 + torch.randperm(n_users, generator=generator, device="cpu")  # [n_users]
        mix = torch.randn(k, 4 * k, generator=generator, device="cpu")
        content = items @ mix + noise * torch.randn(n_items, 4 * k, generator=generator, device="cpu")
        domains.append(
            PlantedDomain(
                train=_pairs(number, had[:, :count]),
                test=_pairs(number, had[:, count:]),
                content=Modality(
                    "text",
                    torch.cat([torch.zeros_like(content[:1]), content]),
                    torch.arange(n_items + 1, device="cpu") > 0,
                ),
                n_users=n_users + 1,
                n_items=n_items + 1,
            )
        )
        numbers.append(number)
    return PlantedPair(source=domains[0], target=domains[1], links=torch.stack(numbers, dim=1))


def _pairs(users: Tensor, items: Tensor) -> Tensor:
    """``[n]`` and ``[n, c]`` to ``[2, n * c]``."""
    return torch.stack([users.repeat_interleave(items.shape[1]), items.reshape(-1)])
