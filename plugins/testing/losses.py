"""The rule behind the control "no losses"."""

from __future__ import annotations

from dataclasses import replace

from recplug.plugins.presets import settings_of
from recplug.plugins.settings import loss_weights
from recplug.plugins.testing.case import Case, step_loss
from recplug.plugins.testing.rules import require, rule


@rule("with every setting that is declared as a loss weight at 0, a plugin has no loss of its own")
def check_no_losses(case: Case) -> None:
    """What is left of a method without its losses; a second domain's own training is no such loss."""
    plugin, weights = case.plugin, dict.fromkeys(loss_weights(case.plugin.settings), 0.0)
    if not weights:
        return  # nothing is declared: comparisons leave this control out
    values = {**case.settings.model_dump(exclude_unset=True), **weights}
    without = replace(case, settings=settings_of(plugin, values), second_domain=False)
    host, batch = without.build(), without.batch()
    step_loss(host.train(), batch)
    left = {name: value for name, value in host.chain.read_parts().items() if value != 0}
    require(not left, f"there is {left}")
