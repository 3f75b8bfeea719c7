"""Moved to ``recplug.adapters.recbole.finished.new_nodes``; the old path works for one version."""

import warnings

from recplug.adapters.recbole.finished.new_nodes import evaluate_new

__all__ = ["evaluate_new"]
warnings.warn(
    "recplug.adapters.recbole.unseen has moved to recplug.adapters.recbole.finished.new_nodes",
    DeprecationWarning,
    stacklevel=2,
)
