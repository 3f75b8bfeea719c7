"""Controls by name: what a gain of plugins has to beat beside the bare backbone."""

from __future__ import annotations

from collections.abc import Sequence

CONTROLS = ("filter", "itemgraph", "mlp", "shuffled", "no_losses")
# Plugins that stand in for the others, and how.
OF_THEIR_OWN: dict[str, dict[str, str]] = {"filter": {"filter.alone": "true"}, "itemgraph": {}}
EXPLAINED = {
    "filter": "the closed-form content filter alone, with which nothing is trained",
    "itemgraph": "the backbone with frozen graphs of like items and users and with edge dropout, nothing else",
    "mlp": "an MLP on the same content, with as many parameters as the plugins",
    "shuffled": "the plugins, told the content and the factors of other items",
    "no_losses": "the plugins with every loss of their own at weight 0",
}


def overrides(control: str, plugins: Sequence[str], parameters: int | None) -> dict[str, str]:
    """What a control changes, as ``run_recbole`` takes it.

    Args:
        control: one of :data:`CONTROLS`.
        plugins: whose control it is.
        parameters: trained numbers of these plugins, for ``mlp``.
    """
    from recplug.plugins.registry import get
    from recplug.plugins.settings import loss_weights

    if control == "mlp":
        return {"mlp.parameters": str(parameters)}
    if control == "no_losses":
        return {f"{name}.{key}": "0.0" for name in plugins for key in loss_weights(get(name).settings)}
    found = {"shuffle_features": "true"}
    return {**found, "factor_control": "shuffled"} if any(_needs_factors(name) for name in plugins) else found


def applies(control: str, plugins: Sequence[str], model: str) -> bool:
    """Whether a control fits the model and differs from what it controls: bare backbones have none, an MLP no MLP."""
    if control == "mlp":
        return bool(plugins) and tuple(plugins) != ("mlp",)
    if control in OF_THEIR_OWN:
        itself = tuple(plugins) == (control,) and not OF_THEIR_OWN[control]
        return bool(plugins) and not itself and _fits(control, model)
    return bool(plugins) and bool(overrides(control, plugins, None))


def _needs_factors(name: str) -> bool:
    from recplug.plugins.registry import get

    plugin = get(name)
    return plugin.requirements(plugin.settings()).factors


def _fits(name: str, model: str) -> bool:
    from recplug.adapters.recbole.graft.hosts import HOSTS
    from recplug.plugins.registry import get

    plugin = get(name)
    return model not in HOSTS or HOSTS[model].family in plugin.requirements(plugin.settings()).families
