"""Moved to ``recplug.adapters.recbole.train.launch``; the old path works for one version."""

import warnings

from recplug.adapters.recbole.train.launch import launch

__all__ = ["launch"]
warnings.warn(
    "recplug.adapters.recbole.launch has moved to recplug.adapters.recbole.train.launch",
    DeprecationWarning,
    stacklevel=2,
)
