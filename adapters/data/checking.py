"""Moved to ``recplug.adapters.data.check``; the old path works for one version."""

import warnings

from recplug.adapters.data.check import read_atomic

__all__ = ["read_atomic"]
warnings.warn(
    "recplug.adapters.data.checking has moved to recplug.adapters.data.check", DeprecationWarning, stacklevel=2
)
