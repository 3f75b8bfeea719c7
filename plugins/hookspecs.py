"""Hook specifications: what a plugin package may implement. Documented, typed, empty.

Implement a hook with ``recplug.plugins.hookimpl`` in the module that the entry point names; only
:func:`recplug_plugin` is needed. None of the hooks is ``firstresult``: every implementation is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recplug.plugins.contract import Plugin

PROJECT = "recplug"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def recplug_plugin() -> Plugin:  # type: ignore[empty-body]
    """Provide a plugin. Called once, when plugins are first asked for."""


@hookspec
def recplug_before_training(model: nn.Module, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Called before the first epoch of a run.

    Args:
        model: the augmented backbone.
        settings: the resolved settings of every plugin in use, by plugin name.
    """


@hookspec
def recplug_after_training(model: nn.Module, result: Mapping[str, Any]) -> None:
    """Called when a run has ended and been tested.

    Args:
        model: the augmented backbone with its best parameters.
        result: what ``result.json`` holds.
    """


@hookspec
def recplug_epoch_start(model: nn.Module, epoch: int) -> None:
    """Called before the first step of an epoch, counted from 0 (from the resumed epoch after a resume)."""


@hookspec
def recplug_evaluation_end(model: nn.Module, epoch: int, score: float) -> None:
    """Called after every validation with the epoch and the validation score."""


@hookspec
def recplug_export(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Called before a run's adapter file is written.

    Args:
        model: the augmented backbone.
        tensors: what will be written, by name; add to it, change nothing that others put there.
    """
