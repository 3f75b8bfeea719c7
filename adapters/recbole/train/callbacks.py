"""What is noted while RecBole's trainer works: losses, validation, seconds, memory, and the log file."""

from __future__ import annotations

import logging
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from recplug.adapters.recbole.domains.source_domain import Domain
from recplug.adapters.recbole.processes import mean_over_processes
from recplug.adapters.recbole.state.run_directory import RunDirectory, no_room, plain
from recplug.plugins.registry import manager

log = logging.getLogger("recplug")


def watch(trainer: Any, model: Any, writer: Any, directory: RunDirectory) -> None:
    """Note losses, validation and seconds of every epoch, around the trainer's own two methods.

    Args:
        trainer: RecBole's trainer; two of its methods are wrapped on this instance.
        model: the augmented model.
        writer: TensorBoard's writer.
        directory: where ``metrics.csv`` goes.
    """
    train, validate = trainer._train_epoch, trainer._valid_epoch
    model.recplug.on_epoch = lambda epoch: manager().hook.recplug_epoch_start(model=model, epoch=epoch)

    def timed_train(data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        loss = train(data, epoch, *args, **kwargs)
        parts = mean_over_processes(model.recplug.read_parts())
        losses = {f"loss/{name}": value for name, value in parts.items()}
        for name, value in losses.items():
            writer.add_scalar(name, value, epoch)
        trainer.wandblogger.log_metrics({"epoch": epoch, **losses}, head="train")
        seconds = time.perf_counter() - begun
        row = {"epoch": epoch, "train_seconds": round(seconds, 3), **losses}
        if model.recplug_source is not None:
            row |= _source_training(model.recplug_source)
        directory.add_epoch(row)
        return loss

    def timed_validate(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        score, result = validate(*args, **kwargs)
        row = directory.rows.pop()
        row |= {"valid_seconds": round(time.perf_counter() - begun, 3)}
        row |= {f"valid/{name}": value for name, value in result.items()}
        directory.add_epoch(row)
        best = max if trainer.valid_metric_bigger else min
        losses = {k.removeprefix("loss/"): v for k, v in row.items() if k.startswith("loss/")}
        log.info(
            "epoch %3d  %s  %s %.4f (best %.4f)  %.1f s",
            row["epoch"],
            shown(losses),
            trainer.valid_metric,
            score,
            best(score, trainer.best_valid_score),
            row["train_seconds"] + row["valid_seconds"],
        )
        return score, result

    trainer._train_epoch, trainer._valid_epoch = timed_train, timed_validate


def _source_training(source: Domain) -> dict[str, float]:
    """What an epoch of training did with the second domain."""
    losses = {f"source/loss/{name}": value for name, value in source.model.recplug.read_parts().items()}
    return {"source/share_seen": round(source.share_seen(), 4), **losses}


def after_validation(model: Any, directory: RunDirectory) -> Any:
    """RecBole's ``callback_fn``: validates a second domain, and tells augmentations and packages that this has ended.

    Args:
        model: the augmented model.
        directory: whose ``metrics.csv`` takes the second domain's columns.
    """

    def callback(epoch: int, score: float) -> None:
        model.recplug.on_evaluation_end(epoch, score)
        if model.recplug_source is not None:
            _validate_source(model.recplug_source, epoch, directory)
        manager().hook.recplug_evaluation_end(model=model, epoch=epoch, score=score)

    return callback


def _validate_source(source: Domain, epoch: int, directory: RunDirectory) -> None:
    begun = time.perf_counter()
    result = source.on_evaluation_end(epoch)
    row = directory.rows.pop()
    row |= {"source/valid_seconds": round(time.perf_counter() - begun, 3)}
    row |= {f"source/valid/{name}": value for name, value in result.items()}
    directory.add_epoch(row)
    log.info(
        "           source %s  %s  %.0f %% of its batches  %.1f s",
        source.name,
        shown(result),
        100 * row["source/share_seen"],
        row["source/valid_seconds"],
    )


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Everything that RecBole and we say, in ``run.log``; the console shows our lines alone."""
    root = logging.getLogger()
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_without_colours)
    level, others = root.level, list(root.handlers)

    def as_before(record: logging.LogRecord) -> bool:
        return record.levelno >= level

    # RecBole logs to the root logger: handlers that others have put there keep what they would have shown.
    for other in others:
        other.addFilter(as_before)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        for other in others:
            other.removeFilter(as_before)
        try:
            handler.close()
        except OSError as error:  # of a full disk, of which the error under way tells
            log.debug("%s is not whole: %s", path, error)


class _LogFile(logging.FileHandler):
    """On a full disk, what is being written fails with an error of its own; a log line is not worth a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        if no_room(sys.exc_info()[1]) is None:
            super().handleError(record)


def _without_colours(record: logging.LogRecord) -> bool:
    if isinstance(record.msg, str):
        record.msg = re.sub(r"\033\[[0-9;]*m", "", record.msg)
    return True


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that CUDA's allocator held, or this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def shown(parts: Mapping[str, float]) -> str:
    """Loss parts on one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in plain(parts).items())
