"""Modules for recommenders, as plugins. PyTorch only: nothing here imports a host framework.

Names are imported when they are first asked for: commands that need none of torch do not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recplug.plugins.contract import Augmentation, Context, Modality, Panel, Plugin, Requirements
    from recplug.plugins.errors import RecplugError
    from recplug.plugins.hookspecs import hookimpl
    from recplug.plugins.registry import available, get
    from recplug.plugins.search import Range
    from recplug.plugins.settings import NONZERO, PluginSettings, Preset, setting
    from recplug.plugins.step import Batch, Step

__all__ = [
    "NONZERO",
    "Augmentation",
    "Batch",
    "Context",
    "Modality",
    "Panel",
    "Plugin",
    "PluginSettings",
    "Preset",
    "Range",
    "RecplugError",
    "Requirements",
    "Step",
    "available",
    "get",
    "hookimpl",
    "setting",
]
_ROOMS = {
    "contract": ("Augmentation", "Context", "Modality", "Panel", "Plugin", "Requirements"),
    "errors": ("RecplugError",),
    "hookspecs": ("hookimpl",),
    "registry": ("available", "get"),
    "search": ("Range",),
    "settings": ("NONZERO", "PluginSettings", "Preset", "setting"),
    "step": ("Batch", "Step"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
