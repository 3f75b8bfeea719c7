"""``run``: one RecBole training with plugins, in RecBole's own trainer, into a run directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from recplug.adapters.data import locate
from recplug.adapters.recbole import processes
from recplug.adapters.recbole.augment import augment
from recplug.adapters.recbole.config.dataset_file import dataset_files
from recplug.adapters.recbole.config.host_config import model_class, read_yaml
from recplug.adapters.recbole.state.run_directory import RunDirectory
from recplug.adapters.recbole.train.job import Job
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import available, get, parse_names

log = logging.getLogger("recplug")
DEFAULT_DATASET = "amazon-scientific"


@dataclass
class RunResult:
    """What a run returns: ``result.json`` as a mapping, its directory, and the model with its best parameters.

    Attributes:
        directory: the run directory.
        result: what ``result.json`` holds.
        model: the augmented model.
        baseline: the bare backbone's result, where one was asked for.
    """

    directory: Path
    result: dict[str, Any]
    model: Any = field(repr=False)
    baseline: RunResult | None = None

    @property
    def test_result(self) -> dict[str, float]:
        """Test metrics of the epoch with the best validation score; empty where the data have no test part."""
        return {metric: float(value) for metric, value in (self.result["test_result"] or {}).items()}

    @property
    def best_valid_score(self) -> float | None:
        """The best validation score; None where the data have no validation part."""
        score = self.result["best_valid_score"]
        return None if score is None else float(score)


def run(
    model: str | type,
    dataset: str = DEFAULT_DATASET,
    plugins: str | Sequence[str] = (),
    config_dict: Mapping[str, Any] | None = None,
    *,
    config_files: Sequence[str | Path] = (),
    data_path: str | Path | None = None,
    output_dir: str | Path | RunDirectory | None = None,
    baseline: bool = False,
    test: bool = True,
    table: str | None = None,
    users: str | None = None,
) -> RunResult:
    """Train, validate and test one model with plugins.

    Args:
        model: RecBole's name, or a model class of your own.
        dataset: a bundled set, ``ml-100k``, or the name of files under ``data_path``.
        plugins: names, in the order in which they act; empty for the bare backbone.
        config_dict: RecBole's keys, the adapter's (``features``, ``shuffle_features``, ``factors``, ``factor_control``,
            ``trim_padding``, ``fast_propagation``, ``score_block``, ``mask_history``, ``cold_below``, ``amp_dtype``),
            and plugin settings, nested (``{"prism": {"scale": 0.5}}``) or dotted (``{"prism.scale": 0.5}``). They win
            over ``config_files``, which win over the data set's own YAML.
        config_files: YAML files.
        data_path: folder that holds ``DATASET/DATASET.inter``.
        output_dir: a new directory; default ``runs/<model>-<plugins>-<dataset>-<time>``.
        baseline: train the bare backbone first, with the same budget and seed, into ``<run directory>/baseline``.
        test: whether to test at the end. A search chooses by validation alone and says False: then the directory has no
            test result, ranks, adapter file or diagnostics, and the model has the parameters of the last epoch.
        table: the attribute that holds the item embedding, for models of your own (default ``item_embedding``).
        users: the attribute that holds the user embedding, for general models of your own (default
            ``user_embedding``).

    Raises:
        RecplugError: for wrong input, before anything is trained; and where training itself cannot go on.
    """
    names = parse_names(plugins)
    host = model if isinstance(model, type) else model_class(model)
    values = dict(config_dict or {})
    given = _plugin_values(values, names)
    augment(host, names, given, table=table, users=users)  # refuses before any directory is made
    folder = locate(dataset, data_path)
    files = {file: read_yaml(file) for file in (*dataset_files(folder, dataset), *map(Path, config_files))}
    for file, settings in files.items():
        for plugin in sorted(available().keys() & {key.partition(".")[0] for key in settings} - set(names)):
            log.info("note: %s has settings for %s, which is not in use", file.name, plugin)
    if baseline and not names:
        raise RecplugError("--baseline compares plugins with the bare backbone; name a plugin with --plugin")
    if processes.here() is not None:
        processes.check(host, names, [given, *files.values()])
    first = processes.is_first()
    directory = new_directory(host, names, dataset, output_dir) if first else RunDirectory(processes.scratch())
    job = Job(host, dataset, names, given, values, folder, files, directory, (table, users), test=test)
    bare: RunResult | None = None
    if baseline:
        below = RunDirectory.create(directory.path / "baseline")  # by which a resumed run knows that it was asked for
        job.rehearse()
        bare_values = {**job.preset_values(), **values, **bare_speed(host, [*files.values(), values])}
        log.info("first the bare backbone, with the same budget and seed")
        bare = _finish(Job(host, dataset, [], {}, bare_values, folder, files, below, (table, users), test=test))
    return _finish(job, bare)


def new_directory(
    host: type, names: Sequence[str], dataset: str, output_dir: str | Path | RunDirectory | None = None
) -> RunDirectory:
    """A run's directory: ``output_dir``, or one named after what is run and when.

    Raises:
        RecplugError: for one that holds files, or cannot be written.
    """
    label, started = "+".join(names) or "bare", datetime.now().strftime("%Y%m%d-%H%M%S")
    if isinstance(output_dir, RunDirectory):  # made by the process that started this one
        return output_dir
    path = Path(output_dir) if output_dir else Path("runs") / f"{host.__name__}-{label}-{dataset}-{started}"
    return RunDirectory.create(path, beside=not output_dir)


def _finish(job: Job, bare: RunResult | None = None) -> RunResult:
    model = job.run()
    return RunResult(job.directory.path, job.result, model, bare)


def bare_speed(host: type, settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Time is compared too: the bare backbone gets the adapter's speed, which changes no number beyond rounding.

    Args:
        host: the model's class.
        settings: what was given; a switch that is among them counts.
    """
    fast: dict[str, Any] = {"trim_padding": _trims(host), "fast_propagation": True}
    for given in settings:
        fast |= {key: given[key] for key in fast if given.get(key) is not None}
    return fast


def _trims(host: type) -> bool:
    return augment(host, []).recplug_host.trim  # type: ignore[attr-defined]


def _plugin_values(values: dict[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Take plugin settings, nested or dotted, out of ``values``."""
    given: dict[str, dict[str, Any]] = {}
    for key in list(values):
        plugin, dot, setting = key.partition(".")
        if dot:
            get(plugin)
            given.setdefault(plugin, {})[setting] = values.pop(key)
        elif key in names:
            if not isinstance(values[key], Mapping):
                raise RecplugError(f"'{key}' is a plugin: its settings are a mapping, or dotted keys like {key}.NAME")
            given.setdefault(key, {}).update(values.pop(key))
    return given
