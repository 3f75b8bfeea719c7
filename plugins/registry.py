"""The registry: plugins enter by the entry-point group ``recplug.plugins``, the package's own ones too.

``RECPLUG_PLUGINS=prism,mine`` loads exactly these entry points (empty: none) and ``RECPLUG_TRACE_HOOKS=1`` prints
every hook call, for whoever has to find out which installed package does what.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib.metadata import entry_points

import pluggy
from torch import nn

from recplug.plugins import hookspecs
from recplug.plugins.contract import Plugin
from recplug.plugins.errors import RecplugError, did_you_mean, one_line

GROUP = "recplug.plugins"
# A plugin's name is a namespace of settings beside RecBole's own keys, and of tensors beside nn.ModuleDict's methods.
RESERVED = frozenset({"model", "dataset", "plugin", "features", *dir(nn.ModuleDict())})


@cache
def manager() -> pluggy.PluginManager:
    """The one plugin manager, with every installed plugin loaded.

    Raises:
        RecplugError: if an installed plugin package cannot be imported or breaks the contract.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    wanted = os.environ.get("RECPLUG_PLUGINS")
    names = None if wanted is None else {name.strip() for name in wanted.split(",") if name.strip()}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        if names is not None and point.name not in names:
            continue
        if manager.has_plugin(point.name):
            raise RecplugError(f"two installed packages have the entry point '{point.name}'; uninstall one")
        try:
            manager.register(point.load(), name=point.name)
            manager.check_pending()
        except Exception as error:
            where = f" of {point.dist.name}" if point.dist is not None else ""
            raise RecplugError(
                f"plugin '{point.name}'{where} does not load ({one_line(error)}); "
                f"uninstall it or leave it out with RECPLUG_PLUGINS"
            ) from error
    if os.environ.get("RECPLUG_TRACE_HOOKS"):
        manager.trace.root.setwriter(lambda line: print(line, end="", file=sys.stderr))
        manager.enable_tracing()
    return manager


@lru_cache(maxsize=1)
def _plugins(registered: frozenset[object]) -> dict[str, Plugin]:
    """By name; asked for anew where another package has been registered, by a script or a notebook."""
    found: dict[str, Plugin] = {}
    for plugin in _provided():
        validate(plugin)
        if plugin.name in found:
            raise RecplugError(f"two installed packages provide the plugin '{plugin.name}'; uninstall one")
        found[plugin.name] = plugin
    return found


def _provided() -> Iterator[Plugin]:
    """What each installed package provides; asked one by one, to name the one that fails."""
    implementations = manager().hook.recplug_plugin.get_hookimpls()
    for one in implementations:
        others = [other.plugin for other in implementations if other is not one]
        try:
            provided = manager().subset_hook_caller("recplug_plugin", others)()
        except Exception as error:
            raise RecplugError(
                f"plugin '{one.plugin_name}' fails ({one_line(error)}); "
                f"uninstall it or leave it out with RECPLUG_PLUGINS"
            ) from error
        if not provided:
            raise RecplugError(f"plugin '{one.plugin_name}': recplug_plugin() returns nothing")
        yield from provided


def validate(plugin: Plugin) -> None:
    """Check a plugin's name and identity settings.

    Raises:
        RecplugError: saying which rule is broken.
    """
    if not isinstance(plugin, Plugin):
        raise RecplugError(f"recplug_plugin() must return a recplug.plugins.Plugin, not {type(plugin).__name__}")
    if not plugin.name.isidentifier() or plugin.name != plugin.name.lower():
        raise RecplugError(f"plugin name '{plugin.name}' must be a lower-case identifier")
    if plugin.name in RESERVED:
        raise RecplugError(f"plugin name '{plugin.name}' is reserved; choose another")
    declared = {"identity": plugin.identity}
    declared |= {f"preset '{name}'": preset.settings for name, preset in plugin.presets.items()}
    declared |= {f"ablation '{name}'": values for name, values in plugin.ablations.items()}
    declared |= {f"mechanism '{name}'": values for name, values in plugin.mechanisms.items()}
    for what, values in declared.items():
        if unknown := sorted(set(values) - set(plugin.settings.model_fields)):
            raise RecplugError(f"plugin '{plugin.name}': its {what} names settings that it does not have: {unknown}")


def available() -> dict[str, Plugin]:
    """Every installed plugin by name."""
    return dict(_plugins(frozenset(manager().get_plugins())))


def get(name: str) -> Plugin:
    """The plugin called ``name``.

    Raises:
        RecplugError: if there is none, with the nearest name.
    """
    plugins = available()
    if name not in plugins:
        hint = did_you_mean(name, plugins)
        raise RecplugError(f"no plugin '{name}'{hint}; installed: {', '.join(plugins) or 'none'}")
    return plugins[name]


def parse_names(names: str | Iterable[str] | None) -> list[str]:
    """``"prism,mars"``, ``["prism", "mars"]`` or None to a list of known, distinct plugin names, in order.

    Raises:
        RecplugError: for an unknown name, or the same plugin twice.
    """
    if names is None or names == "none":
        return []
    listed = names.split(",") if isinstance(names, str) else list(names)
    listed = [name.strip() for name in listed if name.strip()]
    for name in listed:
        get(name)
        if listed.count(name) > 1:
            raise RecplugError(f"plugin '{name}' is named twice; name it once")
    return listed
