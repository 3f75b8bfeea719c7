"""One training, from configuration to result."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import get_trainer, init_seed

from recplug.adapters.build import resolve
from recplug.adapters.factors import FactorTable, find_factors
from recplug.adapters.features import FeatureTable, find_tables
from recplug.adapters.recbole.augment import augment
from recplug.adapters.recbole.compat import recbole_compat
from recplug.adapters.recbole.config import make_config
from recplug.adapters.recbole.domains import Domain, is_host_row, source_hosts
from recplug.adapters.recbole.fingerprint import fingerprint
from recplug.adapters.recbole.grafted import KEYS, check_config
from recplug.adapters.recbole.hosts import check_installed
from recplug.adapters.recbole.ranks import ranks_everything, write_ranks
from recplug.adapters.recbole.rundir import RunDirectory, adapter_tensors
from recplug.adapters.recbole.sampling import use_fast_sampling, use_fused_adam
from recplug.adapters.recbole.scoped import replaced
from recplug.adapters.recbole.splits import make_loaders
from recplug.adapters.recbole.values import check_valid_metric
from recplug.adapters.recbole.watch import after_validation, log_file, peak_memory, shown, watch
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import get, manager

log = logging.getLogger("recplug")
# What RecBole works out for itself, and does not take as a value.
DERIVED = ("MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_neg_sample_args", "test_neg_sample_args",
           "device", "local_rank", "single_spec", "checkpoint_dir")  # fmt: skip
PACKAGES = ("recplug", "torch", "recbole", "numpy", "pandas", "scipy")


class Job:
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
        tables: tuple[str | None, str | None],
    ) -> None:
        self.host, self.dataset, self.names, self.given = host, dataset, names, given
        self.values, self.folder, self.files, self.directory, self.tables = values, folder, files, directory, tables
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

    def run(self) -> Any:
        """Train and test, and return the model; whatever happens, leave a ``result.json``."""
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
        return model

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """RecBole's remedies and the log; wrong input leaves no directory, another error its traceback in the log."""
        file = self.directory.path / "run.log"
        try:
            with recbole_compat(), log_file(file):
                try:
                    yield
                except Exception as error:
                    logging.getLogger().exception("the run failed")
                    error.run_log = file  # type: ignore[attr-defined]
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
        self._write_config(config)
        return config

    def _write_config(self, config: Any, ours: tuple[str, ...] = ()) -> None:
        """Every value and its origin, such that the file repeats the run: without what RecBole derives."""
        # Dotted keys of a file, like prism.scale, have found their way into what they belong to.
        values = {k: v for k, v in config.final_config_dict.items() if k not in DERIVED and "." not in k}
        negatives = values["train_neg_sample_args"]
        if not negatives or negatives.get("distribution") == "none":
            values["train_neg_sample_args"] = None  # as it was given: RecBole refuses its own resolved form
        origins = self._origins(values) | dict.fromkeys(ours, "recplug")
        if self.names:
            values["plugin"], origins["plugin"] = self.names, "the run"
        for name, settings in resolve(self.names, {name: config[name] for name in self.names}).items():
            values[name] = settings.model_dump()
            origins |= {f"{name}.{key}": "default" for key in values[name]}
            for file, found in self.files.items():
                origins |= {f"{name}.{key}": file.name for key in _merged({file: found}, name)}
            origins |= {f"{name}.{key}": "given" for key in self.given.get(name, {})}
        self.directory.write_config(values, origins)

    def _origins(self, resolved: Mapping[str, Any]) -> dict[str, str]:
        origins = dict.fromkeys(KEYS, "recplug")
        for file, settings in self.files.items():
            origins |= {key: file.name for key in settings if key in resolved}
        origins |= dict.fromkeys(self.values, "given")
        origins |= dict.fromkeys(("data_path", "dataset", "model"), "the run")
        return origins

    def _build(self) -> tuple[Any, tuple[Any, Any, Any], Any]:
        """Configuration, data (train, valid, test) and model."""
        config = self._configure()
        table, users = self.tables
        augmented: Any = augment(self.host, self.names, self.given, table=table, users=users)
        check_config(augmented.recplug_host, config)
        check_installed(augmented.recplug_host)
        init_seed(config["seed"], config["reproducibility"])
        given = config["eval_batch_size"]
        kept = self._is_given("eval_batch_size")
        data = make_loaders(config, self.host, augmented.recplug_host.family, keep_batch=kept)
        if config["eval_batch_size"] != given:
            self._write_config(config, ours=("eval_batch_size",))  # or the file would give other batches
        init_seed(config["seed"], config["reproducibility"])
        return config, data, augmented(config, data[0]._dataset).to(config["device"])

    def _train(self) -> Any:
        config, (train_data, valid_data, test_data), model = self._build()
        # RecBole itself ranks without a user's history, except for sequential models.
        masked = bool(config["mask_history"]) or model.recplug_host.family == "graph"
        log.info(
            "%s on %s: %s; history %s in evaluation; %s; %s",
            self.host.__name__,
            self.dataset,
            " + ".join(["backbone", *self.names]),
            "masked" if masked else "not masked",
            model.recplug_speed(),
            config["device"],
        )
        self.result |= {
            "seed": config["seed"],
            "mask_history": masked,
            "trim_padding": model.recplug_trim,
            "fast_propagation": model.recplug_fast,
            "shuffle_features": bool(config["shuffle_features"]),
            "factor_control": config["factor_control"],
            "settings": {name: s.model_dump() for name, s in model.recplug_resolved.items()},
            "parameters": _parameters(model),
            "data_fingerprint": fingerprint(train_data, valid_data, test_data),
            "features": self._features(config),
            "factors": self._factors(config),
        }
        trainer = self._trainer(config, model)
        if model.recplug_fast:
            use_fast_sampling(train_data)
            use_fused_adam(trainer.optimizer)
        hooks = manager().hook
        self.accepted = True
        if model.recplug_source is None and (alone := [n for n in self.names if _takes_source(model, n)]):
            log.info("one domain: %s without a second one; --%s.source=DATASET adds it", " and ".join(alone), alone[0])
        hooks.recplug_before_training(model=model, settings=self.result["settings"])
        with closing(trainer.tensorboard):
            score, best = self._fit(trainer, model, train_data, valid_data)
            test = trainer.evaluate(test_data, load_best_model=True, show_progress=config["show_progress"])
        self.result |= {
            "valid_metric": config["valid_metric"],
            "best_valid_score": score,
            "best_valid_result": best,
            "test_result": test,
            "epochs": len(self.directory.rows),
            "seconds_per_epoch": _mean(row["train_seconds"] for row in self.directory.rows),
            "peak_memory_bytes": peak_memory(config["device"]),
        }
        if model.recplug_source is not None:
            self.result["source"] = self._source(model.recplug_source)
        self._leave(model)
        if isinstance(test_data, FullSortEvalDataLoader) and ranks_everything(model):
            write_ranks(model, test_data, self.directory.path / "ranks.parquet")
        return model

    def _fit(self, trainer: Any, model: Any, train_data: Any, valid_data: Any) -> tuple[float, dict[str, float]]:
        try:
            return trainer.fit(
                train_data,
                valid_data,
                show_progress=trainer.config["show_progress"],
                callback_fn=after_validation(model, self.directory),
            )
        except ValueError as error:
            if "nan" not in str(error).lower():
                raise
            raise RecplugError(
                f"the training loss became NaN in epoch {model.recplug.epoch} "
                f"({shown(model.recplug.read_parts()) or 'first step'}); lower learning_rate or the plugin's weights"
            ) from error

    def _is_given(self, key: str) -> bool:
        """Whether the user gives a value for ``key``; the data set's own file does not count, it serves any model."""
        own = self.folder and self.folder / f"{self.dataset}.yaml"
        return key in self.values or any(key in settings for file, settings in self.files.items() if file != own)

    def _trainer(self, config: Any, model: Any) -> Any:
        import recbole.trainer.trainer as module
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.directory.path / "tensorboard"))
        with replaced(module, get_tensorboard=lambda logger: writer):
            trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.saved_model_file = str(self.directory.checkpoint)
        watch(trainer, model, writer, self.directory)
        return trainer

    def _leave(self, model: Any) -> None:
        """Adapter file and diagnostics of the best epoch, whose parameters the model now has."""
        model.eval()
        if self.names:
            tensors = adapter_tensors(model.recplug)
            manager().hook.recplug_export(model=model, tensors=tensors)
            keys = ("model", "dataset", "plugins", "settings", "features", "factors", "versions")
            about = {key: self.result[key] for key in keys}
            self.directory.write_adapter(tensors, about)
            model.recplug_encode()
            self.result["diagnostics"] = self.directory.write_diagnostics(model.recplug)
        manager().hook.recplug_after_training(model=model, result=self.result)

    def _source(self, source: Domain) -> dict[str, Any]:
        """The second domain of the best epoch, whose parameters the model now has; it is tested here, once."""
        test = source.evaluate("test")
        log.info("source %s in the best epoch: test %s", source.name, shown(test))
        return {
            "dataset": source.name,
            "data_fingerprint": fingerprint(*source.loaders.values()),
            "valid_result": source.evaluate("valid"),
            "test_result": test,
            "links": source.pairing.total,
            "links_held_out": len(source.held_out),
            "linked_by": "file" if source.pairing.by_file else "token",
            "share_seen": _mean(row["source/share_seen"] for row in self.directory.rows),
        }

    def _features(self, config: Any) -> dict[str, Any]:
        if not self.names:
            return {}
        tables = find_tables(config["data_path"], self.dataset, config["features"] or {})
        return {name: {"file": path.name, "sha256": FeatureTable.load(path).sha256} for name, path in tables.items()}

    def _factors(self, config: Any) -> dict[str, Any]:
        path = find_factors(config["data_path"], self.dataset, config["factors"]) if self.names else None
        return {} if path is None else {"file": path.name, "sha256": FactorTable.load(path).sha256}


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


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _takes_source(model: Any, name: str) -> bool:
    return get(name).requirements(model.recplug_resolved[name]).second_domain != "no"


def _parameters(model: Any) -> dict[str, Any]:
    """Trained numbers: of the backbone, of each plugin, and, where there is one, of a source's backbone."""
    plugins, source = {}, 0
    for name, augmentation in model.recplug.augmentations().items():
        hosts = source_hosts(augmentation)
        sizes = {key: p.numel() for key, p in augmentation.named_parameters() if p.requires_grad}
        of_host = sum(size for key, size in sizes.items() if is_host_row(key, hosts))
        plugins[name], source = sum(sizes.values()) - of_host, source + of_host
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = {"backbone": total - sum(plugins.values()) - source, "plugins": plugins}
    return {**found, "source": source} if source else found


def _mean(values: Iterator[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
