"""The adapter for RecBole 1.2.1."""

from recplug.adapters.recbole.adapter_file import load_adapter, warm_start
from recplug.adapters.recbole.augment import augment
from recplug.adapters.recbole.load import load
from recplug.adapters.recbole.loaded import LoadedRun
from recplug.adapters.recbole.ranking import Recommendations
from recplug.adapters.recbole.resume import resume
from recplug.adapters.recbole.runner import RunResult, run

__all__ = [
    "LoadedRun",
    "Recommendations",
    "RunResult",
    "augment",
    "load",
    "load_adapter",
    "resume",
    "run",
    "warm_start",
]
