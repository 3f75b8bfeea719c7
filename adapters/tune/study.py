"""The study on disk: which trial is next, which are lost, and what they were worth; several workers share it.

What Optuna keeps is a trial's parameters, state and scores. Whether a worker still lives, and who may ask for the next
trial, is told by locks in the search's folder, which end with the process that holds them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recplug.adapters.ownership import claim
from recplug.adapters.tune.space import Dimension
from recplug.adapters.tune.spec import Asked, check_same
from recplug.plugins.errors import RecplugError
from recplug.plugins.search import Range

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL, TRIALS = "study.journal", "trials"
ATTEMPTS = 3  # of the same parameters, where processes are killed
STARTUP = 5  # trials before the median prunes


@dataclass(frozen=True)
class Taken:
    """A trial that this process has to train.

    Attributes:
        trial: Optuna's.
        lock: the open file that says that somebody is at it; a child may hold it too.
    """

    trial: optuna.Trial
    lock: int


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Only one process at a time, on all machines that see the folder; it is made where there is none."""
    claim(output, "search", again=True)
    handle = os.open(output / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Study:
    """A study and its folder.

    Args:
        output: the folder of the search.
        asked: the search.

    Raises:
        RecplugError: where the storage cannot be opened, or holds another search.
    """

    def __init__(self, output: Path, asked: Asked) -> None:
        library = import_optuna()
        self.output, self.asked = output, asked
        (output / TRIALS).mkdir(parents=True, exist_ok=True)
        self.distributions = {each.key: _distribution(each) for each in asked.dimensions}
        name = "-".join([asked.model, "+".join(asked.plugins) or "bare", asked.dataset])
        with alone(output):
            try:
                self.study: optuna.Study = library.create_study(
                    storage=_storage(asked.storage, output),
                    study_name=name,
                    direction="maximize" if asked.larger else "minimize",
                    pruner=_pruner(asked),
                    load_if_exists=True,
                )
            except RecplugError:
                raise
            except Exception as error:  # of a data base, or of a file that is none
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise RecplugError(
                    f"the study {asked.storage or output / JOURNAL} cannot be opened ({why}); check --study"
                ) from error
            self._recognise()

    def _recognise(self) -> None:
        before = self.study.user_attrs
        if "asked" not in before:
            self.study.set_user_attr("folder", self.asked.folder)
            self.study.set_user_attr("asked", self.asked.same())
            # The first trial is what there is without a search: a result below it is told by validation.
            known = {d.key: d.default for d in self.asked.dimensions if d.holds(d.default)}
            self.study.enqueue_trial(known)
            return
        check_same(before["asked"], self.asked, "the study")
        if before["folder"] != self.asked.folder:
            raise RecplugError(
                "the study belongs to a search in another folder; name that --output, or another --study"
            )

    # -- who does what

    def take(self, total: int) -> Taken | None:
        """The next trial; None where ``total`` have been taken."""
        with alone(self.output):
            self._recover()
            taken = self.taken()
            if len(taken) >= total:
                return None
            self.study.sampler = _sampler(self.asked, len(taken))
            trial = self.study.ask(self.distributions)
            lock = self._hold(trial.number)
            assert lock is not None, "a trial that was just asked for is nobody else's"
            return Taken(trial, lock)

    def running(self) -> list[int]:
        """Numbers of the trials that somebody is at."""
        with alone(self.output):
            self._recover()
            return [trial.number for trial in self._trials() if trial.state.name == "RUNNING"]

    def give_back(self, taken: Taken) -> None:
        """Let somebody else train it: this process has to end."""
        with alone(self.output):
            self._lost(self.study.trials[taken.trial.number])

    def _recover(self) -> None:
        """Trials whose worker was killed: their parameters are asked for again."""
        for trial in self._trials():
            if trial.state.name != "RUNNING":
                continue
            lock = self._hold(trial.number)
            if lock is not None:
                os.close(lock)
                self._lost(trial)

    def _lost(self, trial: FrozenTrial) -> None:
        import optuna

        attempt = int(trial.user_attrs.get("attempt", 1))
        self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if attempt < ATTEMPTS:
            self.study.enqueue_trial(trial.params, user_attrs={"attempt": attempt + 1})
        else:
            self.study.set_user_attr("given_up", [*self.study.user_attrs.get("given_up", []), trial.number])

    def _hold(self, number: int) -> int | None:
        """The lock of a trial; None where another process has it."""
        handle = os.open(self.output / TRIALS / f".{number}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return handle

    # -- what there is

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def taken(self) -> list[FrozenTrial]:
        """Trials that count: neither waiting, nor cut off and asked for again."""
        given_up = self.study.user_attrs.get("given_up", [])
        return [t for t in self._trials() if t.state.name != "WAITING" and not _cut_off(t, given_up)]

    def finished(self) -> list[FrozenTrial]:
        """Trials that were trained to their end."""
        return [trial for trial in self._trials() if trial.state.name == "COMPLETE"]

    def best(self) -> FrozenTrial | None:
        """The trial with the best validation score; the first of equals. None where no trial has finished."""
        sign = 1 if self.asked.larger else -1
        return max(self.finished(), key=lambda trial: (sign * _value(trial), -trial.number), default=None)

    def importance(self) -> dict[str, float]:
        """How much of what validation varied by each key explains; nothing of fewer than five finished trials."""
        import optuna

        if len(self.finished()) < 5 or len({_value(trial) for trial in self.finished()}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(self.study, evaluator=evaluator))


def import_optuna() -> Any:
    """Optuna, silent.

    Raises:
        RecplugError: where it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise RecplugError(f"recplug tune needs {error.name}; pip install 'recplug[tune]' -c constraints.txt") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _cut_off(trial: FrozenTrial, given_up: list[int]) -> bool:
    return trial.state.name == "FAIL" and "error" not in trial.user_attrs and trial.number not in given_up


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    search = dimension.search
    if not isinstance(search, Range):
        return CategoricalDistribution(list(search))
    if dimension.whole:
        return IntDistribution(int(search.low), int(search.high), log=search.log)
    return FloatDistribution(search.low, search.high, log=search.log)


def _storage(where: str, output: Path) -> Any:
    """A journal for a file of any name but SQLite's; SQLAlchemy's for these and for URLs."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in where:
        return RDBStorage(where)
    file = Path(where).expanduser() if where else output / JOURNAL
    by_sqlite = file.suffix in (".db", ".sqlite", ".sqlite3")
    _check_study(file, b"SQLite format 3\0" if by_sqlite else b'{"op_code"')
    if by_sqlite:
        return RDBStorage(f"sqlite:///{file.absolute()}")
    return JournalStorage(JournalFileBackend(str(file)))


def _check_study(file: Path, begins: bytes) -> None:
    """Refuse to write into a file that is somebody's: Optuna would append to it."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        found = stream.read(len(begins))
    if found and found != begins:
        raise RecplugError(f"{file} holds no study of Optuna's; name another --study")


def _sampler(asked: Asked, taken: int) -> Any:
    """One for the next trial alone, so that a search that was stopped goes on as it would have."""
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    seed = int(np.random.SeedSequence([asked.seed, taken]).generate_state(1)[0])
    return RandomSampler(seed=seed) if asked.sampler == "random" else TPESampler(seed=seed)


def _pruner(asked: Asked) -> Any:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if asked.pruner == "median":
        return MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=asked.epochs // 10)
    if asked.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=asked.epochs)
    return NopPruner()
