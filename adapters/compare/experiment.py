"""``compare``: a grid of trainings that can be stopped at any time, and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recplug.adapters.compare.cells.workers import Command, fill, run_recbole
from recplug.adapters.compare.comparison import Comparison
from recplug.adapters.compare.controls import CONTROLS
from recplug.adapters.compare.spec import Asked, ask, check_names, grown, remembered
from recplug.adapters.compare.statistics import measure
from recplug.plugins.errors import RecplugError


def compare(
    models: str | Iterable[str] | None = None,
    plugins: str | Iterable[str] | None = None,
    datasets: str | Iterable[str] | None = None,
    *,
    output: str | Path,
    seeds: int = 5,
    controls: str | Iterable[str] = CONTROLS,
    grid: Mapping[str, Sequence[Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    data_path: str | Path | None = None,
    jobs: int = 1,
    retry: bool = False,
    metric: str | None = None,
    activity: Sequence[int] = (),
    groups: bool = True,
    command: Command | None = None,
    ablations: bool = False,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> Comparison:
    """Train a grid of cells, each in a process of its own, and compare them.

    What has finished is never trained again: call it once more with the same ``output`` to go on, with more seeds,
    models, plugins, data sets or controls if you like. The folder gets ``results.parquet``, ``table.md``,
    ``table.tex`` and ``index.html``; the run directories lie in ``cells/``.

    Args:
        models: backbones, ``"SASRec,GRU4Rec"`` or a list; None for those of a comparison that has begun.
        plugins: sets of plugins, ``"prism,prism+mars"``; the bare backbone is always there.
        datasets: names.
        output: the folder.
        seeds: how many: 1, 2, ...
        controls: of every set of plugins; ``"none"`` for none.
        grid: values by key, of which validation chooses.
        settings: of all cells, as ``run`` takes them.
        data_path: as for ``run``.
        jobs: cells at once.
        retry: whether cells that failed before are tried again.
        metric: on which to test, such as ``"ndcg@10"``; by default what the runs are validated by.
        activity: training interactions at which groups of users begin; by default thirds.
        groups: whether to tell groups apart, for which one run of each data set is loaded once.
        command: what trains a cell into a folder; by default ``run_recbole``.
        ablations: whether each set of plugins is compared with the ablations that its plugins declare.
        variants: by name, what else each set of plugins is compared with: keys and values that differ.

    Raises:
        RecplugError: for wrong input, before anything is trained; for a folder that cannot be written.
    """
    folder = Path(output).expanduser()
    check_jobs(jobs)
    _check_shown(metric, activity)
    asked = plan(folder, models, plugins, datasets, seeds=seeds, controls=controls, grid=grid, settings=settings,
                 data_path=data_path, ablations=ablations, variants=variants)  # fmt: skip
    command = command or run_recbole(asked, folder)
    with _written(folder):
        fill(folder, asked, command=command, jobs=jobs, retry=retry)
    return _shown(folder, asked, metric, activity, groups)


def show(
    output: str | Path, *, metric: str | None = None, activity: Sequence[int] = (), groups: bool = True
) -> Comparison:
    """Compare what a folder has so far, and train nothing; its tables are written anew.

    Args:
        output: the folder of a comparison.
        metric, activity, groups: as for :func:`compare`.

    Raises:
        RecplugError: where the folder holds no comparison, or cannot be written.
    """
    folder = Path(output).expanduser()
    _check_shown(metric, activity)
    return _shown(folder, _held(folder), metric, activity, groups)


def plan(
    output: Path,
    models: str | Iterable[str] | None,
    plugins: str | Iterable[str] | None,
    datasets: str | Iterable[str] | None,
    **options: Any,
) -> Asked:
    """What :func:`compare` would train, checked; nothing is written.

    Args:
        output: the folder.
        models, plugins, datasets: as for :func:`compare`; none of the three for what the folder has begun.
        **options: ``seeds``, ``controls``, ``grid``, ``settings``, ``data_path``, ``ablations`` and ``variants``.

    Raises:
        RecplugError: for wrong input.
    """
    if models is None and plugins is None and datasets is None:
        return _held(output)
    if models is None or plugins is None or datasets is None:
        raise RecplugError("models, plugins and datasets belong together; name all three")
    asked = check_names(ask(models, plugins, datasets, **options))
    before = remembered(output)
    return asked if before is None else grown(before, asked, output)


def _held(output: Path) -> Asked:
    found = remembered(output)
    if found is None:
        raise RecplugError(f"{output} holds no comparison to go on with; name models, plugins and datasets")
    return found


def check_jobs(jobs: int) -> None:
    """Refuse fewer than one cell at a time.

    Raises:
        RecplugError: then.
    """
    if jobs < 1:
        raise RecplugError(f"jobs={jobs} is no positive number; 1 trains one cell at a time")


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A disk that is full or read-only, and what else keeps files from being written, in a line."""
    try:
        yield
    except OSError as error:
        raise RecplugError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; make room, or choose another "
            "--output (cells that have finished are kept)"
        ) from error


def _check_shown(metric: str | None, activity: Sequence[int]) -> None:
    if metric is not None:
        measure(metric)
    if list(activity) != sorted(set(activity)) or any(cut < 1 for cut in activity):
        raise RecplugError(f"activity {','.join(map(str, activity))} does not rise from 1 on; write 5,10")


def _shown(folder: Path, asked: Asked, metric: str | None, activity: Sequence[int], groups: bool) -> Comparison:
    found = Comparison.of(folder, asked, metric=metric, activity_cuts=activity, by_group=groups)
    with _written(folder):
        found.save()
    return found
