"""The adapter for RecBole 1.2.1."""

from recplug.adapters.recbole.augment import augment
from recplug.adapters.recbole.runner import RunResult, run

__all__ = ["RunResult", "augment", "run"]
