"""The filter as an augmentation: it acts where items are ranked, and nowhere in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recplug.plugins.contract import Augmentation, Half, Panel
from recplug.plugins.filter import fitting
from recplug.plugins.filter.settings import FilterSettings
from recplug.plugins.nn.closed_form import ClosedForm, Exponents, beside, constants, histories
from recplug.plugins.protocols import Validate
from recplug.plugins.step import Step

COLUMNS = 96  # users at once on the CPU: blocks that stay in its cache are half as dear
NUMBERS = (*(each.name for each in fields(Exponents)), "recency")


class ContentFilter(Augmentation):
    r"""The closed-form content graph filter beside a backbone, or in its place.

    .. math:: s_{ui} = b_{ui} + w\, \sigma(b_u) \frac{f_{ui} - \mu(f_u)}{\sigma(f_u)}

    b are the backbone's scores and f the filter's (:class:`~recplug.plugins.nn.closed_form.ClosedForm`); mean and
    deviation are the user's, over all items, whatever is masked later, so that this is an increasing function of the
    sum of both standardised scores, and a user and an item have one score. Items of the user's history keep b, or with
    ``alone`` the mean of f: the form favours them above all others.

    A user is their training row on a graph backbone. On a sequential one it is the history that the backbone is shown,
    an item counting ``recency ** steps back``. All else comes from training interactions only.

    Args:
        settings: every choice.
        form: the closed form, on the run's training interactions.
        sequential: whether a user is the history that is shown.
        cache: a folder for what a search has found, or None.
    """

    halves: frozenset[Half] = frozenset({"ranking"})
    whole_rows = True
    weight: Tensor
    numbers: Tensor

    def __init__(
        self, *, settings: FilterSettings, form: ClosedForm, sequential: bool, cache: Path | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.form = form
        self.sequential = sequential
        self.cache = cache
        self.alone = self.replaces = self.untrained = settings.alone
        self.curves: dict[str, list[tuple[float, float]]] = {}  # of the latest fit: setting, (value, score)
        self.kept: fitting.Kept | None = None  # partial products, during a search
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("numbers", torch.zeros(len(NUMBERS), dtype=torch.float64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The settings' numbers, and the weight where one was given."""
        self.weight.fill_(self.settings.weight or 0.0)
        self.set_numbers({name: getattr(self.settings, name) for name in NUMBERS})

    def set_numbers(self, values: Mapping[str, float]) -> None:
        """Other exponents, heat or recency, by name."""
        for name, value in values.items():
            self.numbers[NUMBERS.index(name)] = value

    def get_numbers(self) -> dict[str, float]:
        """Exponents, heat and recency as they are."""
        return dict(zip(NUMBERS, self.numbers.tolist(), strict=True))

    # -- scores

    def score(self, base: Tensor, users: Tensor, items: Tensor, step: Step) -> Tensor:
        """The score seam, its ranking half: ``base [u, n_items]`` to the same."""
        weight = float(self.weight)
        if not self.alone and weight == 0:
            return base
        found, history = self.filtered(users, step)  # [u, n_items] twice
        if self.alone:
            return torch.where(history > 0, constants(found)[0], found).to(base.dtype)
        return beside(base, found, history, weight)

    @torch.no_grad()
    def filtered(self, users: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The filter's scores f, and the histories r, of users ``[u]``: ``[u, n_items]`` twice.

        Without a history popularity is all there is. Padding has the score 0.
        """
        self.form = self.form.to(users.device)
        history = self.histories(users, step).T  # [u, n_items], each column of the other layout in one piece
        numbers = self.get_numbers()
        exponents = Exponents(**{name: numbers[name] for name in NUMBERS if name != "recency"})
        size = COLUMNS if users.device.type == "cpu" else max(len(users), 1)
        parts = []
        with torch.autocast(users.device.type, enabled=False):
            for at, some in enumerate(history.split(size)):
                signal = some.T.contiguous()  # [n_items, size]
                found = (
                    self.form.scores(signal, exponents)
                    if self.kept is None
                    else self.kept(self.form, signal, exponents, (numbers["recency"], at, users))
                )
                parts.append(found.T)
        scores = torch.cat(parts) if parts else torch.zeros_like(history)
        nobody = ~(history > 0).any(dim=1, keepdim=True)
        scores = torch.where(nobody, self.form.popularity(exponents), scores)
        scores[:, 0] = 0.0
        return scores, history

    def histories(self, users: Tensor, step: Step) -> Tensor:
        """``r``, of users ``[u]``: ``[n_items, u]``."""
        recency = float(self.numbers[NUMBERS.index("recency")]) if self.sequential else 1.0
        return histories(self.form, users, step.batch.sequence, step.batch.lengths, recency=recency)

    # -- fitting

    def after_training(self, validate: Validate) -> dict[str, Any]:
        """Fit what the settings leave open: exponents first, by the filter alone, then its weight."""
        found: dict[str, Any] = {}
        if self.settings.fit:
            with self.replacing():
                found |= fitting.fit_numbers(self, validate)
        if not self.alone and self.settings.weight is None:
            found["weight"] = fitting.fit_weight(self, validate)
        return found

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Rank by the filter alone inside of the block."""
        before, self.alone = self.alone, True
        try:
            yield
        finally:
            self.alone = before

    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """The curves of what was fitted."""
        found: dict[str, Panel | Tensor] = {}
        for name, curve in self.curves.items():
            found[name] = Panel(
                values=torch.tensor([score for _, score in curve]),
                kind="bars",
                title=f"The filter's {name}, by validation",
                caption="The validation score at each value that was tried; the highest bar's was taken.",
                rows=tuple(f"{value:g}" for value, _ in curve),
                xlabel=name,
                ylabel="validation score",
            )
        return found

    def extra_repr(self) -> str:
        """The choices."""
        numbers = ", ".join(f"{name}={value:g}" for name, value in self.get_numbers().items())
        return f"alone={self.alone}, weight={float(self.weight):g}, {numbers}, {self.form!r}"
