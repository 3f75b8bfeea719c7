"""One of several processes that train one model: what it does otherwise than a process that is alone.

RecBole's trainer averages gradients over the processes (``DistributedDataParallel``), and deals the training data out
to them. Here is what it leaves open: who writes, who draws what, how a ranking is measured, and which epoch is tested.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from recbole.trainer import Trainer
from recbole.utils import get_trainer, init_seed
from torch.utils.data.distributed import DistributedSampler

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import Noise

# As torchrun names them; our own launcher sets the same.
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# RecBole's keys for the same; they describe machines, not the run.
KEYS = ("local_rank", "world_size", "nproc", "offset", "ip", "port")
OF_USERS = ("rec.items", "rec.topk", "rec.meanrank", "rec.score", "data.label")  # a row a user, in RecBole's evaluator


@dataclass(frozen=True)
class Place:
    """Which of the processes this is.

    Attributes:
        rank: its number among all, from 0.
        local_rank: its number on this machine.
        size: how many there are.
        local_size: how many on this machine.
        ip, port: where they meet.
    """

    rank: int
    local_rank: int
    size: int
    local_size: int
    ip: str
    port: str

    def variables(self) -> dict[str, str]:
        """The environment that says so."""
        values = (self.rank, self.local_rank, self.size, self.local_size, self.ip, self.port)
        return {name: str(value) for name, value in zip(VARIABLES, values, strict=True)}


def here() -> Place | None:
    """This process's place by the environment (of ``torchrun``, or of our launcher); None where it is alone.

    Raises:
        RecplugError: for a number that is none.
    """
    if not all(name in os.environ for name in VARIABLES):
        return None
    rank, local_rank, size, local_size, ip, port = (os.environ[name] for name in VARIABLES)
    try:
        found = Place(int(rank), int(local_rank), int(size), int(local_size), ip, port)
    except ValueError as error:
        raise RecplugError(
            f"the environment's {', '.join(VARIABLES[:4])} are no numbers; start with torchrun"
        ) from error
    return found if found.size > 1 else None


def is_first() -> bool:
    """Whether this process is the one that writes."""
    place = here()
    return place is None or place.rank == 0


def how_many() -> int:
    """How many processes train this model."""
    place = here()
    return 1 if place is None else place.size


def values_here() -> dict[str, Any]:
    """RecBole's keys for this process's place; empty where it is alone."""
    place = here()
    if place is None:
        return {}
    offset = place.rank - place.local_rank
    values = (place.local_rank, place.size, place.local_size, offset, place.ip, place.port)
    quiet = {} if place.rank == 0 else {"show_progress": False, "log_wandb": False}
    return {**dict(zip(KEYS, values, strict=True)), **quiet}


def scratch() -> Path:
    """A folder for what a process other than the first writes; it goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="recplug-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def check(host: type, names: Sequence[str], given: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what cannot train in several processes.

    Args:
        host: the model's class.
        names: its plugins.
        given: configurations, with the plugins' settings nested or dotted.

    Raises:
        RecplugError: naming it.
    """
    if get_trainer(getattr(host, "type", None), host.__name__) is not Trainer:
        raise RecplugError(f"{host.__name__} trains in a trainer of its own, in one process; leave --nproc out")
    for values in given:
        for name in names:
            nested = values.get(name)
            if values.get(f"{name}.source") or (isinstance(nested, Mapping) and nested.get("source")):
                raise RecplugError(
                    f"a second domain trains in one process; leave --nproc and --world_size out, or --{name}.source"
                )


def share_data(seed: int, train: Any, *rankings: Any) -> None:
    """Deal RecBole's loaders out to the processes; nothing where there is one.

    The order of training follows the run's seed (RecBole's is the same for all). What is ranked is cut into
    consecutive parts, none of it twice, so that the parts put together are what one process would rank.

    Args:
        seed: of the run.
        train: the training loader.
        rankings: of validation and test.

    Raises:
        RecplugError: for fewer users than processes.
    """
    if (place := here()) is None:
        return
    train.sampler.seed = seed
    for loader in rankings:
        if loader.sample_size < place.size:
            raise RecplugError(
                f"{loader.sample_size} users to rank for are fewer than {place.size} processes; use fewer"
            )
        loader.sampler.__class__ = _Part


class _Part(DistributedSampler[Any]):
    """Consecutive samples, where RecBole takes every n-th and repeats some so that all processes have as many."""

    def _places(self) -> range:
        n = len(self.dataset)  # type: ignore[arg-type]
        return range(n * self.rank // self.num_replicas, n * (self.rank + 1) // self.num_replicas)

    def __iter__(self) -> Any:
        return iter(self._places())

    def __len__(self) -> int:
        return len(self._places())


def gathered(value: Any) -> list[Any]:
    """Every process's ``value``, by rank; every process has to ask."""
    if here() is None:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def mean_over_processes(parts: Mapping[str, float]) -> dict[str, float]:
    """The mean of numbers by name; what a process lacks is 0 there."""
    found: Sequence[Mapping[str, float]] = gathered(dict(parts))
    names = dict.fromkeys(name for each in found for name in each)
    return {name: sum(each.get(name, 0.0) for each in found) / len(found) for name in names}


def join(trainer: Any, model: Any) -> None:
    """Make a trainer one of several: draws of its own, and evaluations of all users; nothing where it is alone.

    All processes have built the same model by the same draws; from here on each draws its own dropout, negatives and
    noise. The first keeps the draws that it has.

    Args:
        trainer: RecBole's, with its model in ``DistributedDataParallel``.
        model: the augmented model.
    """
    if (place := here()) is None:
        return
    if place.rank:
        init_seed(trainer.config["seed"] + place.rank, trainer.config["reproducibility"])
        for module in model.modules():
            if isinstance(module, Noise):
                module.restart(module.seed + 1_000_003 * place.rank)
    evaluate, measure = trainer.evaluate, trainer.evaluator.evaluate

    def evaluate_same(data: Any, load_best_model: bool = True, model_file: Any = None, **kwargs: Any) -> Any:
        if load_best_model:
            _load_from_first(trainer, model, model_file or trainer.saved_model_file)
        return evaluate(data, load_best_model=False, **kwargs)

    def measure_all(struct: Any) -> Any:
        for key in OF_USERS:
            if key in struct:
                struct.set(key, torch.cat(gathered(struct.get(key))))
        return measure(struct)

    trainer.evaluate, trainer.evaluator.evaluate = evaluate_same, measure_all
    # RecBole's own mean of the processes' rounded metrics has nothing left to do.
    trainer._map_reduce = lambda result, samples: result


def _load_from_first(trainer: Any, model: Any, file: str) -> None:
    """The best epoch, from the only process that has its checkpoint; others may see no or an older one."""
    vars(model).pop("forward", None)  # what RecBole's trainer puts there at every step
    state: list[Any] = [None, None]
    if is_first():
        found = torch.load(file, map_location=trainer.device)
        state = [found["state_dict"], found.get("other_parameter")]
    dist.broadcast_object_list(state, src=0)
    model.load_state_dict(state[0])
    model.load_other_parameter(state[1])


def leave() -> None:
    """Take leave of the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
