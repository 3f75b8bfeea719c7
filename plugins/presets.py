"""Presets: a plugin's settings under one name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from recplug.plugins.contract import Plugin
from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.settings import PluginSettings, Preset, parse_settings

log = logging.getLogger("recplug")
DEFAULT = Preset("recplug's defaults, chosen by validation on public data.", was=("plugin", "default"))


def presets(plugin: Plugin) -> dict[str, Preset]:
    """Every preset of a plugin by name; ``recplug`` is the defaults."""
    return {"recplug": DEFAULT, **plugin.presets}


def preset(plugin: Plugin, name: str) -> Preset:
    """One preset; an earlier name of it works, with a note.

    Raises:
        RecplugError: if there is none of this name, with the nearest one.
    """
    found = presets(plugin)
    if name in found:
        return found[name]
    for current, one in found.items():
        if name in one.was:
            log.info("%s.preset: '%s' is called '%s' now", plugin.name, name, current)
            return one
    raise RecplugError(f"{plugin.name} has no preset '{name}'{did_you_mean(name, found)}; it has: {', '.join(found)}")


def expand(plugin: Plugin, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Replace the key ``preset`` by what it stands for; what is given beside it wins.

    Args:
        plugin: the plugin.
        values: given settings without the plugin's prefix.

    Returns:
        The settings, and the host's values that the preset carries.

    Raises:
        RecplugError: for an unknown preset.
    """
    if "preset" not in values or "preset" in plugin.settings.model_fields:
        return dict(values), {}
    given = {key: value for key, value in values.items() if key != "preset"}
    chosen = preset(plugin, str(values["preset"]))
    return {**chosen.settings, **given}, dict(chosen.host)


def settings_of(plugin: Plugin, values: Mapping[str, Any]) -> PluginSettings:
    """Given settings, ``preset`` among them if you like, as the plugin's validated settings.

    Raises:
        RecplugError: for an unknown preset or setting, or a value out of range.
    """
    return parse_settings(plugin.name, plugin.settings, expand(plugin, values)[0])
