"""Data with planted signals: what each modality alone, all of them alike, and only all of them together say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recplug.plugins.contract import Context, Modality
from recplug.plugins.step import Batch


@dataclass(frozen=True)
class Planted:
    """A small data set whose interactions depend on known signals.

    Attributes:
        modalities: by name; row 0 is padding.
        signals: ``[n_items, k]`` by name: ``redundant``, ``unique_NAME`` for each modality, ``synergistic``.
        train: every beginning of every history but its last item, with the item that follows and a negative.
        test: whole histories, with their last item as the target.
    """

    modalities: dict[str, Modality]
    signals: dict[str, Tensor]
    train: Batch
    test: Batch

    @property
    def n_items(self) -> int:
        """Items with the padding row."""
        return len(self.signals["redundant"])

    @property
    def n_users(self) -> int:
        """Users with the padding row."""
        assert self.test.users is not None
        return len(self.test.users) + 1

    def context(self, *, width: int, seed: int = 0) -> Context:
        """What a plugin is told of these data and a sequential toy of ``width`` d."""
        assert self.train.users is not None
        assert self.train.positives is not None
        return Context(
            host="ToySequence",
            family="sequential",
            n_users=self.n_users,
            n_items=self.n_items,
            n_rows={"items": self.n_items},
            width={"items": width},
            edges=torch.stack([self.train.users, self.train.positives]),
            modalities=self.modalities,
            seed=seed,
        )

    def batches(self, size: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch of training batches in random order."""
        assert self.train.users is not None
        order = torch.randperm(len(self.train.users), generator=generator, device="cpu")
        for rows in order.split(size):
            yield Batch(**{name: None if v is None else v[rows] for name, v in vars(self.train).items()})


def planted_modalities(
    *,
    names: Sequence[str] = ("image", "text"),
    n_items: int = 200,
    n_users: int = 400,
    length: int = 8,
    k: int = 4,
    noise: float = 0.1,
    strength: float = 1.0,
    seed: int = 0,
) -> Planted:
    """Modalities with planted signals, and histories that depend on all of them.

    A modality is a random rotation of ``[redundant, unique, sign]`` with a little noise. The redundant signal is the
    same in all modalities and the unique one in one of them. The signs are independent coins; their product over the
    modalities is the synergistic signal, of which no modality alone, nor any but all of them, says anything.

    Args:
        names: M >= 2 modalities.
        n_items, n_users: counts without padding.
        length: items in a history.
        k: width of each signal.
        noise: deviation of the noise on the content.
        strength: how strongly users prefer what they like.
        seed: of everything.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu")

    signals = {"redundant": normal(n_items, k)}
    signs, modalities = [], {}
    present = torch.arange(n_items + 1, device="cpu") > 0
    for name in names:
        signals[f"unique_{name}"] = normal(n_items, k)
        signs.append(normal(n_items, k).sign())
        latent = torch.cat([signals["redundant"], signals[f"unique_{name}"], signs[-1]], dim=1)  # [n, 3k]
        rotation = torch.linalg.qr(normal(3 * k, 3 * k)).Q
        values = latent @ rotation + noise * normal(n_items, 3 * k)
        modalities[name] = Modality(name, _padded(values), present)
    signals["synergistic"] = torch.stack(signs).prod(dim=0)
    likes = normal(n_users, k * len(signals)) @ torch.cat(list(signals.values()), dim=1).T  # [n_users, n_items]
    chances = torch.softmax(strength * likes, dim=-1)
    histories = 1 + torch.multinomial(chances, length, generator=generator)  # [n_users, length]
    users = torch.arange(1, n_users + 1, device="cpu")
    ends = range(1, length - 1)
    train = [_beginning(users, histories, end, n_items, generator) for end in ends]
    return Planted(
        modalities=modalities,
        signals={name: _padded(values) for name, values in signals.items()},
        train=Batch(*(torch.cat(parts) for parts in zip(*train, strict=True))),
        test=Batch(*_beginning(users, histories, length - 1, n_items, generator)),
    )


def _beginning(
    users: Tensor, histories: Tensor, end: int, n_items: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """The fields of a :class:`Batch`: the first ``end`` items of each history, what follows, and a negative."""
    sequence = torch.zeros_like(histories[:, 1:])
    sequence[:, :end] = histories[:, :end]
    negatives = torch.randint(1, n_items + 1, (len(users),), generator=generator, device="cpu")
    return users, histories[:, end], negatives, sequence, torch.full_like(users, end)


def _padded(values: Tensor) -> Tensor:
    """``[n, k]`` to ``[n + 1, k]``: a row of zeros for padding."""
    return torch.cat([torch.zeros_like(values[:1]), values])
