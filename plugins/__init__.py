"""Modules for recommenders, as plugins. PyTorch only: nothing here imports a host framework."""

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
