"""One training, from configuration to result."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import get_trainer, init_seed

from recplug.adapters.recbole import processes
from recplug.adapters.recbole.augment import augment
from recplug.adapters.recbole.compat.checkpoints import pretrained, trusted
from recplug.adapters.recbole.compat.patching import replaced
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.data.fingerprint import fingerprint
from recplug.adapters.recbole.data.loaders import make_loaders
from recplug.adapters.recbole.data.sampling import use_fast_sampling, use_fused_adam
from recplug.adapters.recbole.graft.base import check_config
from recplug.adapters.recbole.graft.hosts import check_installed
from recplug.adapters.recbole.graft.score_seam import ranks_everything
from recplug.adapters.recbole.state.adapter_file import load_adapter, warm_start
from recplug.adapters.recbole.state.previous_run import Before, check_same
from recplug.adapters.recbole.state.run_directory import RunDirectory
from recplug.adapters.recbole.state.run_state import Progress, can_be_kept, read_state
from recplug.adapters.recbole.state.spec import Asked, parameters, versions
from recplug.adapters.recbole.train import item_groups, precision
from recplug.adapters.recbole.train.after_training import Validation, fit_after_training, untrained
from recplug.adapters.recbole.train.artifacts import leave, mean, source_result
from recplug.adapters.recbole.train.callbacks import after_validation, log_file, peak_memory, shown, watch
from recplug.adapters.recbole.train.target_ranks import target_ranks, write_ranks
from recplug.adapters.stopping import reason
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import get, manager
from recplug.plugins.settings import idle

log = logging.getLogger("recplug")


class Pruned(Exception):
    """Raised by a package's ``recplug_evaluation_end``: this training is not worth going on with."""


class Job(Asked):
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
        before: Before | None = None,
        test: bool = True,
    ) -> None:
        super().__init__(host, dataset, names, given, values, folder, files, directory, before)
        self.tables, self.test = tables, test
        self.progress: Progress | None = None
        self.result: dict[str, Any] = {
            "status": "failed",
            "model": host.__name__,
            "dataset": dataset,
            "plugins": names,
            "checkpoint": None,
            "versions": versions(),
            "resumed": 0 if before is None else before.resumed,
        }
        self.accepted = False  # whether the input turned out right
        self.refused = False  # or wrong, and what was written is taken back

    def rehearse(self) -> None:
        """Build everything once, and train nothing: what is wrong is said before a long training of something else."""
        with replaced(log, disabled=True), self._at_work():
            self._build()
        self.accepted = True

    def run(self) -> Any:
        """Train and test, and return the model; whatever happens, leave a ``result.json``."""
        try:
            with self._at_work(), self.directory.room(lambda: self.accepted or self.before is not None):
                model = self._train()
            self.result["status"] = "finished"
        except Pruned:
            self.result["status"] = "pruned"
            raise
        except KeyboardInterrupt as stopped:
            self.result.update(status="interrupted", error=reason(stopped))
            if self.progress is not None and self.progress.settled >= 0:
                log.info("go on after epoch %d with: %s", self.progress.settled, self.directory.go_on())
            raise
        except Exception as error:
            self.result["error"] = " ".join(f"{type(error).__name__}: {error}".split())
            raise
        finally:
            self._close()
        return model

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.drop()
        if self.directory.checkpoint.is_file():
            self.result["checkpoint"] = self.directory.checkpoint.name
        # A run that could not be taken up again stays as it was.
        if self.directory.path.is_dir() and (self.accepted or self.before is None) and not self.refused:
            try:
                self.directory.write_result(self.result)
            except OSError as error:  # of a full disk, of which the error under way tells
                log.debug("no result.json: %s", error)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """RecBole's remedies and the log; wrong input leaves no directory, another error its traceback in the log."""
        file = self.directory.path / "run.log"
        with self.directory.held():  # refused, it is another process's, and stays as it is
            try:
                with recbole_compat(), log_file(file):
                    try:
                        yield
                    except Pruned:
                        raise
                    except Exception as error:
                        logging.getLogger().exception("the run failed")
                        error.run_log = file  # type: ignore[attr-defined]
                        raise
            except RecplugError:
                if not self.accepted and self.before is None:
                    self.directory.discard()
                    self.refused = True
                raise

    def _build(self) -> tuple[Any, tuple[Any, Any, Any], Any]:
        """Configuration, data (train, valid, test) and model."""
        config = self._configure()
        table, users = self.tables
        augmented: Any = augment(self.host, self.names, self.given, table=table, users=users)
        check_config(augmented.recplug_host, config)
        check_installed(augmented.recplug_host)
        item_groups.check(config, self.host)
        precision.check(config)
        init_seed(config["seed"], config["reproducibility"])
        given = config["eval_batch_size"]
        kept = self._is_given("eval_batch_size")
        data = make_loaders(config, self.host, augmented.recplug_host.family, keep_batch=kept)
        # A value that is ours stands there too, or the file would give other batches.
        self._write_config(config, ours=("eval_batch_size",) if config["eval_batch_size"] != given else ())
        init_seed(config["seed"], config["reproducibility"])
        with pretrained(config, trust=config["trust_checkpoint"]):
            model = augmented(config, data[0]._dataset).to(config["device"])
        self.result["begun_from"] = self._begin_from(config, model)
        return config, data, model

    def _begin_from(self, config: Any, model: Any) -> dict[str, Any]:
        """Put a checkpoint's backbone and a trained adapter into the model; the files, for ``result.json``."""
        if self.before is not None and self.before.about is not None:
            return dict(self.before.about["begun_from"])
        found = {}
        if config["warm_start"] is not None:
            found["warm_start"] = warm_start(
                model, config["warm_start"], config=config, trust=config["trust_checkpoint"]
            )
        if config["adapter"] is not None and self.names:  # not into the bare backbone beside it
            found["adapter"] = load_adapter(model, config["adapter"])
        return found

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
        self._tell_presets(model)
        self.result |= {
            "seed": config["seed"],
            "processes": processes.how_many(),
            "mask_history": masked,
            "trim_padding": model.recplug_trim,
            "fast_propagation": model.recplug_fast,
            "shuffle_features": bool(config["shuffle_features"]),
            "drop_features": float(config["drop_features"] or 0.0),
            "factor_min_group": config["factor_min_group"],
            "factor_control": config["factor_control"],
            "settings": {name: s.model_dump() for name, s in model.recplug_resolved.items()},
            "parameters": parameters(model),
            "data_fingerprint": fingerprint(train_data, valid_data, test_data),
            "features": self._features(config),
            "factors": self._factors(config),
        }
        about = self._about(self.result, model)
        if self.before is not None and self.before.epochs:
            check_same(self.directory.path, self.before.about, about)
        trainer = self._trainer(config, model)
        if model.recplug_fast:
            use_fast_sampling(train_data)
            use_fused_adam(trainer.optimizer)
        hooks = manager().hook
        self._follow(trainer, model, (train_data, valid_data, test_data), about)
        self.accepted = True
        if model.recplug_source is None and (alone := [n for n in self.names if _takes_source(model, n)]):
            log.info("one domain: %s without a second one; --%s.source=DATASET adds it", " and ".join(alone), alone[0])
        hooks.recplug_before_training(model=model, settings=self.result["settings"])
        with closing(trainer.tensorboard):
            try:
                with precision.amp_dtype(config):
                    score, best = self._fit(trainer, model, train_data, valid_data)
            except Pruned:
                self._validated(config, trainer.best_valid_score, trainer.best_valid_result)
                raise
            self._validated(config, score, best)
            self._fit_plugins(trainer, model, valid_data)
            if not self.test:
                return model
            # Another process's is read as weights only; this one's may hold what a plugin of somebody else's keeps.
            with trusted(self.directory.checkpoint) if self.before is None else nullcontext():
                test = trainer.evaluate(test_data, load_best_model=True, show_progress=config["show_progress"])
        self.result |= {"test_result": test or None, "peak_memory_bytes": peak_memory(config["device"])}
        if model.recplug_source is not None:
            self.result["source"] = source_result(model.recplug_source, self.directory.rows)
        if not test:
            self._note("the data have no test part: nothing is tested, and test_result is null")
        elif isinstance(test_data, FullSortEvalDataLoader) and ranks_everything(model):
            ranks = target_ranks(model, test_data)
            write_ranks(ranks, self.directory.path / "ranks.parquet")
            if config["cold_below"]:
                self.result["item_groups"] = item_groups.item_groups(ranks, train_data._dataset, config)
        if processes.is_first():
            leave(model, self.directory, self.result)
        return model

    def _tell_presets(self, model: Any) -> None:
        """A line for whatever a preset has set, and for each given setting that nothing reads."""
        for key, value in self.preset_values().items():
            log.info("preset: %s %s, where nothing else was given", key, value)
        for name, settings in model.recplug_resolved.items():
            given = self.plugin_values(name)
            if "preset" in given:
                log.info("%s: preset %s", name, given["preset"])
            for key, condition in idle(settings, family=model.recplug_host.family).items():
                if key in given:
                    log.info("note: %s.%s is not read; it acts where %s", name, key, condition)

    def _note(self, line: str) -> None:
        self.result["notes"] = [*self.result.get("notes", ()), line]
        log.warning("%s", line)

    def _validated(self, config: Any, score: float, best: dict[str, float]) -> None:
        """Note how far training has come."""
        self.result |= {
            "valid_metric": config["valid_metric"],
            "best_valid_score": score if math.isfinite(score) else None,
            "best_valid_result": best or None,
            "epochs": len(self.directory.rows),
            "seconds_per_epoch": mean(row["train_seconds"] for row in self.directory.rows),
            "peak_memory_bytes": peak_memory(config["device"]),
        }

    def _fit(self, trainer: Any, model: Any, train_data: Any, valid_data: Any) -> tuple[float, dict[str, float]]:
        if self.progress is not None and self.progress.ended:
            trainer.eval_collector.data_collect(train_data)  # which fitting begins with; the test needs it too
            return trainer.best_valid_score, trainer.best_valid_result
        try:
            found: tuple[float, dict[str, float]] = trainer.fit(
                train_data,
                valid_data,
                show_progress=trainer.config["show_progress"],
                callback_fn=after_validation(model, self.directory),
            )
            if self.progress is not None:
                self.progress.settle(self.directory.rows[-1]["epoch"])
            return found
        except ValueError as error:
            if "nan" not in str(error).lower():
                raise
            raise RecplugError(
                f"the training loss became NaN in epoch {model.recplug.epoch} "
                f"({shown(model.recplug.read_parts()) or 'first step'}); lower learning_rate or the plugin's weights"
            ) from error

    def _fit_plugins(self, trainer: Any, model: Any, valid_data: Any) -> None:
        """Let plugins fit what they do by validation; the result's validation is of the model with it."""
        validation = Validation(trainer, valid_data, self.result["data_fingerprint"])
        fitted = fit_after_training(trainer, model, validation, self.directory, self.progress)
        if fitted is not None:
            self.result["fitted"], score = fitted
            self._validated(trainer.config, score if trainer.valid_metric_bigger else -score, validation.result)

    def _follow(self, trainer: Any, model: Any, loaders: tuple[Any, Any, Any], about: dict[str, Any]) -> None:
        """Write the state after every epoch, and go on from the one that an earlier process has written."""
        if untrained(model):
            trainer.epochs = 0
        elif can_be_kept(trainer) and trainer.config["resumable"]:
            self.progress = Progress(self.directory, trainer, model, loaders, about=about)
            if self.before is not None and self.before.epochs:
                self.progress.restore(read_state(self.directory))
        if self.before is not None:
            self.before.begin(trainer.epochs)

    def _trainer(self, config: Any, model: Any) -> Any:
        import recbole.trainer.trainer as module
        from torch.utils.tensorboard import SummaryWriter

        done = None if self.before is None else self.before.epochs
        writer = SummaryWriter(str(self.directory.path / "tensorboard"), purge_step=done)
        with replaced(module, get_tensorboard=lambda logger: writer):
            trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.saved_model_file = str(self.directory.checkpoint)
        processes.join(trainer, model)
        watch(trainer, model, writer, self.directory)
        return trainer


def _takes_source(model: Any, name: str) -> bool:
    return get(name).requirements(model.recplug_resolved[name]).second_domain != "no"
