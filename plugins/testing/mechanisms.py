"""The rule of a plugin's summary: what it names acts at the defaults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from recplug.plugins.contract import Plugin
from recplug.plugins.presets import settings_of
from recplug.plugins.testing.case import Case, cases, trained
from recplug.plugins.testing.host import ToyHost
from recplug.plugins.testing.rules import BrokenContract
from recplug.plugins.testing.toys import HOSTS

ROUNDING = 1e-4  # of the scores' spread


def effect(case: Case, mechanism: str) -> float:
    """How far scores move when one mechanism is switched off, after two steps of training.

    Args:
        case: a plugin on a toy backbone.
        mechanism: one of the plugin's :attr:`~recplug.plugins.contract.Plugin.mechanisms`.

    Returns:
        The largest difference of a score, in standard deviations of the scores.
    """
    plugin = case.plugin
    values = {**case.settings.model_dump(exclude_unset=True), **plugin.mechanisms[mechanism]}
    without = replace(case, settings=settings_of(plugin, values))
    batch = case.batch()
    full, less = (_fitted(trained(each.build(), batch)).scores(batch) for each in (case, without))
    finite = full.isfinite() & less.isfinite()
    return float((full - less)[finite].abs().max() / full[finite].std())


class _Rising:
    """A validation that likes whatever is tried later better: constants that are fitted after training move."""

    key = "toy"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, users: int | None = None) -> float:
        """The number of questions so far."""
        self.asked += 1
        return float(self.asked)


def _fitted(host: ToyHost) -> ToyHost:
    for augmentation in host.chain.augmentations().values():
        augmentation.after_training(_Rising())
    host.chain.forget()
    return host


def check_mechanisms(plugin: Plugin, hosts: Iterable[str] = tuple(HOSTS)) -> None:
    """Each mechanism changes the scores of at least one toy backbone that the plugin fits, by more than rounding.

    Raises:
        BrokenContract: with one line for each mechanism that changes none.
    """
    fitting, idle = cases(plugin, hosts=hosts), []
    for mechanism in plugin.mechanisms:
        with torch.random.fork_rng(devices=[]):
            if not any(effect(case, mechanism) > ROUNDING for case in fitting):
                idle.append(f"{plugin.name}: '{mechanism}' is a mechanism, and without it the scores are the same")
    if idle:
        raise BrokenContract("\n".join(idle))
