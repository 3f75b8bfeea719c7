"""Search settings by validation: Optuna over runs, stopped and shared at will."""

from recplug.adapters.tune.results import Tuned
from recplug.adapters.tune.search import tune

__all__ = ["Tuned", "tune"]
