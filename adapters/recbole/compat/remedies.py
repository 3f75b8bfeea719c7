"""RecBole 1.2.1 on today's numpy, scipy, pandas and torch: the one place that knows what breaks.

Each remedy is a context manager that puts back what it changed, also after an error, and names the upstream thread.
``recbole_compat()`` enters those that this environment needs; it goes around a whole run::

    with recbole_compat():
        config = make_config("SASRec", "ml-100k", [], {})
        ...

What only ``recbole.quick_start`` needs (ray, and through it pkg_resources: RecBole#1518, #2055) has no remedy here,
because nothing in this package imports that module.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch.nn.parallel import DistributedDataParallel

from recplug.adapters.recbole.compat import missing_values
from recplug.adapters.recbole.compat.checkpoints import arrays_without_objects, own_checkpoints
from recplug.adapters.recbole.compat.patching import replaced

# What RecBole's source reads from numpy, beside what every numpy has. Its Config writes the second half itself and
# never takes it back.
NUMPY_ALIASES: Mapping[str, type] = {
    "float_": np.float64,
    "complex_": np.complex128,
    "unicode_": np.str_,
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
}


_SINE = "recbole.model.sequential_recommender.sine"


@dataclass(frozen=True)
class Remedy:
    """One remedy: its name, why it exists with the upstream thread, whether it is needed here, and its scope."""

    name: str
    why: str
    needed: Callable[[], bool]
    scope: Callable[[], AbstractContextManager[None]]


@contextmanager
def numpy_aliases() -> Iterator[None]:
    """The old numpy names that RecBole reads (RecBole#2215, #2216); numpy's own namespace comes back on exit."""
    with replaced(np, **NUMPY_ALIASES):
        yield


def _needs_numpy_aliases() -> bool:
    return any(name not in vars(np) for name in NUMPY_ALIASES)


@contextmanager
def dok_update() -> Iterator[None]:
    """``dok_matrix._update``, gone since scipy 1.13, for the adjacency of seven graph models (RecBole#2034, #2090)."""

    def _update(self: Any, entries: Mapping[tuple[int, int], float]) -> None:
        if entries:
            places = np.array(list(entries), dtype=np.int64)
            self[places[:, 0], places[:, 1]] = np.array(list(entries.values()))

    with replaced(scipy.sparse.dok_matrix, _update=_update):
        yield


def _needs_dok_update() -> bool:
    return not hasattr(scipy.sparse.dok_matrix, "_update")


@contextmanager
def gloo_without_cuda() -> Iterator[None]:
    """Distributed runs without CUDA: RecBole asks for nccl and for a CUDA device by rank (no thread yet).

    ``make_config`` sets the device of such a run to the CPU. Batch normalisation over all processes exists on
    accelerators alone; on the CPU each process normalises its own batch.
    """
    import recbole.trainer.trainer as trainer

    connect, parallel = torch.distributed.init_process_group, trainer.DistributedDataParallel

    @functools.wraps(connect)
    def connect_by_gloo(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        connect("gloo" if backend == "nccl" else backend, *args, **kwargs)

    def parallel_on_cpu(module: torch.nn.Module, device_ids: object = None, **kwargs: Any) -> torch.nn.Module:
        return parallel(module, **kwargs)

    with (
        replaced(torch.distributed, init_process_group=connect_by_gloo),
        replaced(torch.cuda, set_device=lambda device: None),
        replaced(torch.nn.SyncBatchNorm, convert_sync_batchnorm=lambda module, process_group=None: module),
        replaced(trainer, DistributedDataParallel=parallel_on_cpu),
    ):
        yield


@contextmanager
def one_connection() -> Iterator[None]:
    """A process joins the others once, though RecBole connects for each configuration it reads (no thread yet).

    Buffers that no checkpoint holds, because they follow from the data, are the same in every process; RecBole's
    trainer sends them all at every step.
    """
    import recbole.trainer.trainer as trainer

    connect, parallel = torch.distributed.init_process_group, trainer.DistributedDataParallel

    @functools.wraps(connect)
    def connect_once(*args: Any, **kwargs: Any) -> None:
        if not torch.distributed.is_initialized():
            connect(*args, **kwargs)

    def without_constants(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        constants = sorted({name for name, _ in module.named_buffers()} - set(module.state_dict()))
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, constants)
        return parallel(module, *args, **kwargs)

    with (
        replaced(torch.distributed, init_process_group=connect_once),
        replaced(trainer, DistributedDataParallel=without_constants),
    ):
        yield


def _is_distributed() -> bool:
    return torch.distributed.is_available()


@contextmanager
def float32_weights() -> Iterator[None]:
    """Preloaded entity vectors in float32: in float64, RecBole's KSR multiplies them with float32 (no thread yet)."""
    from recbole.data.dataset import Dataset

    load = Dataset.get_preload_weight

    @functools.wraps(load)
    def load_float32(self: Any, field: str) -> np.ndarray:
        return load(self, field).astype(np.float32)

    with replaced(Dataset, get_preload_weight=load_float32):
        yield


@contextmanager
def quiet_scaler() -> Iterator[None]:
    """No line per epoch about ``torch.cuda.amp.GradScaler``, made anew each time (no thread yet)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated", FutureWarning)
        yield


@contextmanager
def no_anomaly_detection() -> Iterator[None]:
    """Autograd without the anomaly detection that importing RecBole's SINE switches on (no thread yet).

    Every sequential model's import reaches SINE; each backward pass then looks for NaN in every gradient, which makes
    a step two to three times as long. A caller who had it on before SINE was imported keeps it.
    """
    before = torch.is_anomaly_enabled()
    wanted = before and _SINE not in sys.modules
    importlib.import_module(_SINE)  # now, so that no import inside the block switches it on
    try:
        torch.autograd.set_detect_anomaly(wanted)
        yield
    finally:
        torch.autograd.set_detect_anomaly(before)


REMEDIES = (
    Remedy("numpy aliases", "RecBole reads np.float_ and its like: RecBole#2215", _needs_numpy_aliases, numpy_aliases),
    Remedy("dok_matrix._update", "scipy 1.13 removed it: RecBole#2034, #2090", _needs_dok_update, dok_update),
    Remedy("own checkpoints", "torch.load refuses a pickled Config: RecBole#2212", lambda: True, own_checkpoints),
    Remedy("arrays", "LDiffRec unpickles emb_path: no thread yet", lambda: True, arrays_without_objects),
    Remedy(
        "gaps",
        "pandas 3 drops RecBole's chained fillna: no thread yet",
        missing_values.needs_filling,
        missing_values.filled_gaps,
    ),
    Remedy(
        "agg(len)",
        "pandas 3 counts the column: no thread yet",
        missing_values.needs_elementwise_len,
        missing_values.elementwise_len,
    ),
    Remedy("rows without id", "RecBole drops the wrong row: no thread yet", lambda: True, missing_values.dropped_rows),
    Remedy("gloo", "RecBole asks for nccl: no thread yet", lambda: not torch.cuda.is_available(), gloo_without_cuda),
    Remedy("connection", "RecBole connects for each Config: no thread yet", _is_distributed, one_connection),
    Remedy("float32", "KSR mixes float64 with float32: no thread yet", lambda: True, float32_weights),
    Remedy("anomaly", "importing SINE slows every step: no thread yet", lambda: True, no_anomaly_detection),
    Remedy("quiet scaler", "GradScaler warns each epoch: no thread yet", lambda: True, quiet_scaler),
)


@contextmanager
def recbole_compat() -> Iterator[None]:
    """Every remedy that this environment needs, for the time of the block; blocks may be nested."""
    with ExitStack() as stack:
        for remedy in REMEDIES:
            if remedy.needed():
                stack.enter_context(remedy.scope())
        yield
