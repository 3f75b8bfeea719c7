"""The adapter for RecBole 1.2.1."""

from recplug.adapters.recbole.augment import augment
from recplug.adapters.recbole.finished.load import load
from recplug.adapters.recbole.finished.loaded_run import LoadedRun
from recplug.adapters.recbole.infer.top_k import Recommendations
from recplug.adapters.recbole.state.adapter_file import load_adapter, warm_start
from recplug.adapters.recbole.train.resume import resume
from recplug.adapters.recbole.train.run import RunResult, run

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
