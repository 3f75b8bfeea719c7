"""``run``: one RecBole training with plugins, in RecBole's own trainer, into a run directory."""

from __future__ import annotations

import logging
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import get_trainer, init_seed

from recplug.adapters.data import locate
from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole.augment import KEYS, augment, check_config
from recplug.adapters.recbole.compat import recbole_compat
from recplug.adapters.recbole.config import make_config, model_class, read_yaml
from recplug.adapters.recbole.fingerprint import fingerprint
from recplug.adapters.recbole.ranks import write_ranks
from recplug.adapters.recbole.rundir import RunDirectory, adapter_tensors, plain
from recplug.adapters.recbole.scoped import replaced
from recplug.adapters.recbole.values import check_valid_metric
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import available, get, manager, parse_names

log = logging.getLogger("recplug")
DEFAULT_DATASET = "amazon-scientific"
PACKAGES = ("recplug", "torch", "recbole", "numpy", "pandas", "scipy")


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
        """Test metrics of the epoch with the best validation score."""
        return dict(self.result["test_result"])

    @property
    def best_valid_score(self) -> float:
        """The best validation score."""
        return float(self.result["best_valid_score"])


def run(
    model: str | type,
    dataset: str = DEFAULT_DATASET,
    plugins: str | Sequence[str] = (),
    config_dict: Mapping[str, Any] | None = None,
    *,
    config_files: Sequence[str | Path] = (),
    data_path: str | Path | None = None,
    output_dir: str | Path | None = None,
    baseline: bool = False,
    table: str | None = None,
) -> RunResult:
    """Train, validate and test one model with plugins.

    Args:
        model: RecBole's name, or a model class of your own.
        dataset: a bundled set, ``ml-100k``, or the name of files under ``data_path``.
        plugins: names, in the order in which they act; empty for the bare backbone.
        config_dict: RecBole's keys, the adapter's (``features``, ``shuffle_features``, ``trim_padding``,
            ``mask_history``), and plugin settings, nested (``{"prism": {"scale": 0.5}}``) or dotted
            (``{"prism.scale": 0.5}``). They win over ``config_files``, which win over the data set's own YAML.
        config_files: YAML files.
        data_path: folder that holds ``DATASET/DATASET.inter``.
        output_dir: a new directory; default ``runs/<model>-<plugins>-<dataset>-<time>``.
        baseline: train the bare backbone first, with the same budget and seed, into ``<run directory>/baseline``.
        table: the attribute that holds the item embedding, for models of your own (default ``item_embedding``).

    Raises:
        RecplugError: for wrong input, before anything is trained; and where training itself cannot go on.
    """
    names = parse_names(plugins)
    host = model if isinstance(model, type) else model_class(model)
    values = dict(config_dict or {})
    given = _plugin_values(values, names)
    augment(host, names, given, table=table)  # refuses before any directory is made
    folder = locate(dataset, data_path)
    files = {file: read_yaml(file) for file in (*_dataset_files(folder, dataset), *map(Path, config_files))}
    for file, settings in files.items():
        for plugin in sorted(available().keys() & {key.partition(".")[0] for key in settings} - set(names)):
            log.info("note: %s has settings for %s, which is not in use", file.name, plugin)
    if baseline and not names:
        raise RecplugError("--baseline compares plugins with the bare backbone; name a plugin with --plugin")
    label = "+".join(names) or "bare"
    started = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path(output_dir) if output_dir else Path("runs") / f"{host.__name__}-{label}-{dataset}-{started}"
    job = _Job(host, dataset, names, given, values, folder, files, RunDirectory.create(path), table)
    bare: RunResult | None = None
    if baseline:
        job.rehearse()
        chosen = [settings["trim_padding"] for settings in (*files.values(), values) if "trim_padding" in settings]
        bare_values = {**values, "trim_padding": chosen[-1] if chosen else _trims(host)}
        log.info("first the bare backbone, with the same budget and seed")
        directory = RunDirectory.create(path / "baseline")
        bare = _Job(host, dataset, [], {}, bare_values, folder, files, directory, table).run()
    result = job.run()
    result.baseline = bare
    return result


def _trims(host: type) -> bool:
    return augment(host, []).recplug_host.trim  # type: ignore[attr-defined]


def _dataset_files(folder: Path | None, dataset: str) -> list[Path]:
    if folder is None:
        return []
    file = folder / f"{dataset}.yaml"
    return [file] if file.is_file() else []


def _merged(files: Mapping[Path, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """What the files say under one key that holds a mapping, nested or dotted; later files win, name by name."""
    merged: dict[str, Any] = {}
    for file, settings in files.items():
        nested = settings.get(key) or {}
        if not isinstance(nested, Mapping):
            raise RecplugError(f"{file}: '{key}' takes names and values, nested under it; found {nested!r}")
        merged |= {str(name): value for name, value in nested.items()}
        merged |= {name[len(key) + 1 :]: value for name, value in settings.items() if name.startswith(f"{key}.")}
    return merged


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


class _Job:
    """One training, from configuration to result."""

    def __init__(
        self,
        host: type,
        dataset: str,
        names: list[str],
        given: dict[str, dict[str, Any]],
        values: dict[str, Any],
        folder: Path | None,
        files: dict[Path, dict[str, Any]],
        directory: RunDirectory,
        table: str | None,
    ) -> None:
        self.host, self.dataset, self.names, self.given = host, dataset, names, given
        self.values, self.folder, self.files, self.directory, self.table = values, folder, files, directory, table
        self.result: dict[str, Any] = {
            "status": "failed",
            "model": host.__name__,
            "dataset": dataset,
            "plugins": names,
            "checkpoint": None,
            "versions": {name: _version(name) for name in PACKAGES},
        }
        self.accepted = False  # whether the input turned out right

    def rehearse(self) -> None:
        """Build everything once, and train nothing: what is wrong is said before a long training of something else."""
        with replaced(log, disabled=True), self._at_work():
            self._build()
        self.accepted = True

    def run(self) -> RunResult:
        """Train and test; whatever happens, leave a ``result.json``."""
        try:
            with self._at_work():
                model = self._train()
            self.result["status"] = "finished"
        except KeyboardInterrupt:
            self.result.update(status="interrupted", error="interrupted by the user")
            raise
        except Exception as error:
            self.result["error"] = " ".join(f"{type(error).__name__}: {error}".split())
            raise
        finally:
            if self.directory.checkpoint.is_file():
                self.result["checkpoint"] = self.directory.checkpoint.name
            if self.directory.path.is_dir():
                self.directory.write_result(self.result)
        return RunResult(self.directory.path, self.result, model)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """RecBole's remedies and the log; wrong input leaves no directory, another error its traceback in the log."""
        log_file = self.directory.path / "run.log"
        try:
            with recbole_compat(), self._log_file(log_file):
                try:
                    yield
                except Exception as error:
                    logging.getLogger().exception("the run failed")
                    error.run_log = log_file  # type: ignore[attr-defined]
                    raise
        except RecplugError:
            if not self.accepted:
                shutil.rmtree(self.directory.path, ignore_errors=True)
            raise

    def _configure(self) -> Any:
        overrides = {**self.values, "checkpoint_dir": str(self.directory.path)}
        overrides.setdefault("show_progress", sys.stderr.isatty())
        if self.folder is not None:
            overrides["data_path"] = str(self.folder.parent)
        config = make_config(self.host, self.dataset, list(self.files), overrides)
        check_valid_metric(config["metrics"], config["topk"], config["valid_metric"])
        if self.folder is not None:
            config["data_path"] = str(self.folder)  # the folder need not be called like the data set
        for key, default in KEYS.items():
            if config[key] is None:
                config[key] = default
        config["features"] = {**_merged(self.files, "features"), **(self.values.get("features") or {})}
        for name in self.names:
            config[name] = {**_merged(self.files, name), **self.given.get(name, {})}
        self.directory.write_config(config.final_config_dict, self._origins(config.final_config_dict))
        return config

    def _origins(self, resolved: Mapping[str, Any]) -> dict[str, str]:
        origins = dict.fromkeys(KEYS, "recplug")
        for file, settings in self.files.items():
            origins |= {key: file.name for key in settings if key in resolved}
        origins |= dict.fromkeys(self.values, "given")
        origins |= dict.fromkeys(self.given, "given")
        origins |= dict.fromkeys(("checkpoint_dir", "data_path", "dataset", "model", "device"), "the run")
        return origins

    def _build(self) -> tuple[Any, tuple[Any, Any, Any], Any]:
        """Configuration, data (train, valid, test) and model."""
        config = self._configure()
        augmented: Any = augment(self.host, self.names, self.given, table=self.table)
        check_config(augmented.recplug_host, config)
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        data = data_preparation(config, dataset)
        init_seed(config["seed"], config["reproducibility"])
        return config, data, augmented(config, data[0]._dataset).to(config["device"])

    def _train(self) -> Any:
        config, (train_data, valid_data, test_data), model = self._build()
        log.info(
            "%s on %s: %s; history %s in evaluation; padding %s; %s",
            self.host.__name__,
            self.dataset,
            " + ".join(["backbone", *self.names]),
            "masked" if config["mask_history"] else "not masked",
            "trimmed" if model.recplug_trim else "kept",
            config["device"],
        )
        self.result |= {
            "seed": config["seed"],
            "mask_history": bool(config["mask_history"]),
            "trim_padding": model.recplug_trim,
            "settings": {name: s.model_dump() for name, s in model.recplug_resolved.items()},
            "parameters": _parameters(model),
            "data_fingerprint": fingerprint(train_data, valid_data, test_data),
            "features": self._features(config),
        }
        trainer = self._trainer(config, model)
        hooks = manager().hook
        self.accepted = True
        hooks.recplug_before_training(model=model, settings=self.result["settings"])
        try:
            score, best = trainer.fit(
                train_data, valid_data, show_progress=config["show_progress"], callback_fn=self._evaluated(model)
            )
        except ValueError as error:
            if "nan" not in str(error).lower():
                raise
            raise RecplugError(
                f"the training loss became NaN in epoch {model.recplug.epoch} "
                f"({_shown(model.recplug.read_parts()) or 'first step'}); lower learning_rate or the plugin's weights"
            ) from error
        test = trainer.evaluate(test_data, load_best_model=True, show_progress=config["show_progress"])
        self.result |= {
            "valid_metric": config["valid_metric"],
            "best_valid_score": score,
            "best_valid_result": best,
            "test_result": test,
            "epochs": len(self.directory.rows),
            "seconds_per_epoch": _mean(row["train_seconds"] for row in self.directory.rows),
            "peak_memory_bytes": _peak_memory(config["device"]),
        }
        self._leave(model)
        if isinstance(test_data, FullSortEvalDataLoader):
            write_ranks(model, test_data, self.directory.path / "ranks.parquet")
        return model

    def _trainer(self, config: Any, model: Any) -> Any:
        import recbole.trainer.trainer as module
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.directory.path / "tensorboard"))
        with replaced(module, get_tensorboard=lambda logger: writer):
            trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.saved_model_file = str(self.directory.checkpoint)
        self._watch(trainer, model, writer)
        return trainer

    def _watch(self, trainer: Any, model: Any, writer: Any) -> None:
        """Note losses, validation and seconds of every epoch, around the trainer's own two methods."""
        train, validate = trainer._train_epoch, trainer._valid_epoch
        best = [float("-inf") if trainer.valid_metric_bigger else float("inf")]
        model.recplug.on_epoch = lambda epoch: manager().hook.recplug_epoch_start(model=model, epoch=epoch)

        def timed_train(data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            loss = train(data, epoch, *args, **kwargs)
            parts = model.recplug.read_parts()
            losses = {f"loss/{name}": value for name, value in parts.items()}
            for name, value in losses.items():
                writer.add_scalar(name, value, epoch)
            trainer.wandblogger.log_metrics({"epoch": epoch, **losses}, head="train")
            seconds = time.perf_counter() - begun
            row = {"epoch": epoch, "train_seconds": round(seconds, 3)}
            self.directory.add_epoch({**row, **losses})
            return loss

        def timed_validate(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            score, result = validate(*args, **kwargs)
            row = self.directory.rows.pop()
            row |= {"valid_seconds": round(time.perf_counter() - begun, 3)}
            row |= {f"valid/{name}": value for name, value in result.items()}
            self.directory.add_epoch(row)
            better = score >= best[0] if trainer.valid_metric_bigger else score <= best[0]
            best[0] = score if better else best[0]
            losses = {k.removeprefix("loss/"): v for k, v in row.items() if k.startswith("loss/")}
            log.info(
                "epoch %3d  %s  %s %.4f (best %.4f)  %.1f s",
                row["epoch"],
                _shown(losses),
                trainer.valid_metric,
                score,
                best[0],
                row["train_seconds"] + row["valid_seconds"],
            )
            return score, result

        trainer._train_epoch, trainer._valid_epoch = timed_train, timed_validate

    def _evaluated(self, model: Any) -> Any:
        def callback(epoch: int, score: float) -> None:
            model.recplug.on_evaluation_end(epoch, score)
            manager().hook.recplug_evaluation_end(model=model, epoch=epoch, score=score)

        return callback

    def _leave(self, model: Any) -> None:
        """Adapter file and diagnostics of the best epoch, whose parameters the model now has."""
        model.eval()
        if self.names:
            tensors = adapter_tensors(model.recplug)
            manager().hook.recplug_export(model=model, tensors=tensors)
            about = {
                key: self.result[key] for key in ("model", "dataset", "plugins", "settings", "features", "versions")
            }
            self.directory.write_adapter(tensors, about)
            self.result["diagnostics"] = self.directory.write_diagnostics(model.recplug)
        manager().hook.recplug_after_training(model=model, result=self.result)

    def _features(self, config: Any) -> dict[str, Any]:
        from recplug.adapters.features import find_tables

        if not self.names:
            return {}
        tables = find_tables(config["data_path"], self.dataset, config["features"] or {})
        return {name: {"file": path.name, "sha256": FeatureTable.load(path).sha256} for name, path in tables.items()}

    @contextmanager
    def _log_file(self, path: Path) -> Iterator[None]:
        """Everything that RecBole and we say, in ``run.log``; the console shows our lines alone."""
        root = logging.getLogger()
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handler.addFilter(_without_colours)
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
            handler.close()


def _without_colours(record: logging.LogRecord) -> bool:
    if isinstance(record.msg, str) and "\033[" in record.msg:
        import re

        record.msg = re.sub(r"\033\[[0-9;]*m", "", record.msg)
    return True


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _parameters(model: Any) -> dict[str, Any]:
    plugins = {
        name: sum(p.numel() for p in augmentation.parameters() if p.requires_grad)
        for name, augmentation in model.recplug.augmentations().items()
    }
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"backbone": total - sum(plugins.values()), "plugins": plugins}


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _mean(values: Iterator[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def _shown(parts: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in plain(parts).items())
