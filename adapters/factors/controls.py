"""Profiles that know nothing about their items: what a gain has to beat."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recplug.plugins.factors import FactorProfiles


def shuffled(profiles: FactorProfiles, seed: int) -> FactorProfiles:
    """The control "shuffled profiles": the same profiles, each given to a random item that has one.

    Which values occur together stays; only which profile belongs to which item is lost. Items without any value keep
    having none.
    """
    goes = _dealt(profiles.items, profiles.n_items, _generator(seed))
    return _sorted(profiles, goes[profiles.items])


def random_groups(profiles: FactorProfiles, seed: int) -> FactorProfiles:
    """The control "random groups": each factor's labels dealt out anew among the items it is known for.

    The sizes of the groups stay, and which items are unknown under which factor; the factors are dealt independently,
    so that which values occur together is lost too. An item's several values of one factor stay together.
    """
    generator = _generator(seed)
    factor = profiles.factor_of[profiles.values]  # [e]
    items = profiles.items.clone()
    for k in range(len(profiles.factors)):
        own = factor == k
        items[own] = _dealt(profiles.items[own], profiles.n_items, generator)[profiles.items[own]]
    return _sorted(profiles, items)


FACTOR_CONTROLS: dict[str, Callable[[FactorProfiles, int], FactorProfiles]] = {
    "shuffled": shuffled,
    "random": random_groups,
}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(seed)


def _dealt(items: Tensor, n_items: int, generator: torch.Generator) -> Tensor:
    """``[n_items]``: to whom each of ``items`` gives what it has; every one of them gets from exactly one."""
    known = items.unique()
    order = torch.randperm(len(known), generator=generator, device="cpu").to(items.device)
    goes = torch.arange(n_items, device=items.device)
    goes[known] = known[order]
    return goes


def _sorted(profiles: FactorProfiles, items: Tensor) -> FactorProfiles:
    """The same values at other ``items [e]``."""
    order = (items * profiles.n_values + profiles.values).argsort()
    return FactorProfiles(profiles.factors, items[order], profiles.values[order], profiles.n_items)
