"""The run directory: what a run leaves behind, written so that a cut leaves whole files."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import Tensor

from recplug.adapters.files import replacing
from recplug.adapters.ownership import FILES, claim, marker, sealed
from recplug.adapters.panels import draw
from recplug.adapters.recbole.domains.source_domain import is_host_row, source_hosts
from recplug.plugins.chain import Chain
from recplug.plugins.contract import Panel
from recplug.plugins.errors import RecplugError, one_line

log = logging.getLogger("recplug")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def no_room(error: BaseException | None) -> str | None:
    """Why nothing more can be written, if that is behind ``error``: torch tells it as an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def write(path: Path, content: bytes | str) -> None:
    """Write a whole file or none."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def plain(value: Any) -> Any:
    """Numbers, lists and mappings of Python's own, for JSON and YAML."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def _untaken(path: Path) -> Path:
    """Make ``path``, or the first of ``path-2``, ``path-3``, ... that nobody else has made, even at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found, number = path, 1
    while True:
        try:
            found.mkdir()
            return found
        except FileExistsError:
            number += 1
            found = path.with_name(f"{path.name}-{number}")


def _line(key: str, value: Any) -> str:
    return yaml.safe_dump({key: plain(value)}, default_flow_style=True, width=10_000).strip()[1:-1]


@dataclass
class RunDirectory:
    """Files of one run.

    ``config.yaml`` (every value with its origin), ``run.log``, ``metrics.csv`` (a row an epoch), ``checkpoint.pth``
    (RecBole's), ``resume.pth`` (everything that the next epoch depends on), ``adapter.safetensors`` and
    ``adapter.json`` (only what the plugins added), ``diagnostics/``, ``ranks.parquet`` (each test user's rank),
    ``tensorboard/`` and ``result.json``.
    """

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    made: bool = False  # whether this process made the folder

    @classmethod
    def create(cls, path: Path, *, beside: bool = False) -> RunDirectory:
        """Make a new directory.

        Args:
            path: where.
            beside: whether to take ``path-2``, ``path-3``, ... where another run has taken ``path`` already.

        Raises:
            RecplugError: if it holds files already, or cannot be written.
        """
        try:
            path = _untaken(path) if beside else path
            return cls(path, made=claim(path, "run") or beside)
        except OSError as error:
            raise RecplugError(f"cannot write to {path}: {error.strerror}; choose another --output_dir") from error

    def discard(self) -> None:
        """Take back what a refused run has left, and nothing else: the folder too, if this process made it."""
        for name in (*FILES, "run.log", "resume.pth", "resume.sha256", "result.json"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("tensorboard", "diagnostics", "baseline"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.sweep()
        marker(self.path, "run").unlink(missing_ok=True)
        if self.made and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    @property
    def checkpoint(self) -> Path:
        """RecBole's checkpoint of the best epoch."""
        return self.path / "checkpoint.pth"

    @property
    def state(self) -> Path:
        """Everything that the next epoch depends on."""
        return self.path / "resume.pth"

    @property
    def digests(self) -> Path:
        """SHA-256 of the state, and of the one before it."""
        return self.path / "resume.sha256"

    def waiting(self, epoch: int) -> Path:
        """The checkpoint of an epoch whose state is not written yet."""
        return self.path / f".checkpoint-{epoch}.pth"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from working on this run meanwhile; a process that is killed lets go.

        Raises:
            RecplugError: if another process is at it, or nothing can be written.
        """
        try:
            file = (self.path / "run.log").open("a")
        except OSError as error:
            raise RecplugError(f"cannot write to {self.path}: {error.strerror}; change that, or copy it") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecplugError(f"another process is at work on {self.path}; wait for it, or stop it") from None
            except OSError as error:  # a file system without locks
                log.debug("no lock on %s: %s", self.path, error)
            yield

    def go_on(self) -> str:
        """The command that goes on with this run."""
        return f"run_recbole --resume {self.path}"

    @contextmanager
    def room(self, begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """A full disk is one line.

        Args:
            begun: whether there is anything to go on with; what is refused before that is taken back.

        Raises:
            RecplugError: for it; any other error stays what it is.
        """
        try:
            yield
        except Exception as error:
            if (reason := no_room(error)) is None:
                raise
            kept = f"what is whole is kept: make room, then {self.go_on()}" if begun() else "make room, and start again"
            raise RecplugError(f"cannot write to {self.path} ({reason}); {kept}") from error

    def sweep(self) -> None:
        """Remove what a killed process had not finished writing, and checkpoints that no state names."""
        for pattern in (".*.part", "diagnostics/.*.part", ".checkpoint-*.pth"):  # not those of a baseline below it
            for left in self.path.glob(pattern):
                left.unlink()

    def write_config(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        """``config.yaml``: one key a line, with the value's origin as a comment; ``--config_files`` reads it again.

        Args:
            values: by key.
            origins: where they come from, by key, or by ``KEY.NAME`` where a mapping is written as a block.
        """
        lines = ["# The resolved configuration; the comment says where each value comes from."]
        for key in sorted(values):
            if any(origin.startswith(f"{key}.") for origin in origins):
                lines.append(f"{key}:")
                lines += [
                    f"  {_line(name, value)}  # {origins[f'{key}.{name}']}" for name, value in values[key].items()
                ]
            else:
                lines.append(f"{_line(key, values[key])}  # {origins.get(key, 'RecBole')}")
        write(self.path / "config.yaml", "\n".join(lines) + "\n")

    def add_epoch(self, row: Mapping[str, Any]) -> None:
        """Append one epoch to ``metrics.csv``; columns appear as they first occur."""
        self.set_rows([*self.rows, dict(plain(row))])

    def set_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write ``metrics.csv`` anew, with these epochs."""
        self.rows = [dict(row) for row in rows]
        columns = list(dict.fromkeys(key for r in self.rows for key in r))
        out = io.StringIO()
        table = csv.DictWriter(out, columns, restval="")
        table.writeheader()
        table.writerows(self.rows)
        write(self.path / "metrics.csv", out.getvalue())

    def write_result(self, result: Mapping[str, Any], *, going_on: bool = False) -> None:
        """``result.json``, with the SHA-256 of everything else that the run has left.

        Args:
            result: what it is to say.
            going_on: whether the files are about to change; then their digests are left out.
        """
        pictures = (f"diagnostics/{file.name}" for file in self.path.glob("diagnostics/[!.]*"))
        content = sealed(plain(result), self.path, () if going_on else (*FILES, "resume.pth", *pictures))
        write(self.path / "result.json", json.dumps(content, indent=2) + "\n")

    def write_adapter(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """``adapter.safetensors`` and ``adapter.json``."""
        stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        content = to_safetensors(stored)
        write(self.path / "adapter.safetensors", content)
        described = {**plain(about), "sha256": hashlib.sha256(content).hexdigest()}
        write(self.path / "adapter.json", json.dumps(described, indent=2) + "\n")

    def write_diagnostics(self, chain: Chain) -> tuple[list[str], list[str]]:
        """Arrays (``PLUGIN.npz``) and pictures (``PLUGIN.NAME.png``) of every plugin.

        Returns:
            The pictures' names; and a line for each that could not be made, as of one vector that has no range.
        """
        pictures: list[str] = []
        notes: list[str] = []
        with torch.no_grad(), chain.serving():
            for plugin, augmentation in chain.augmentations().items():
                with _noted(f"no diagnostics of {plugin}", notes):
                    found = augmentation.diagnostics()
                    if not found:
                        continue
                    folder = self.path / "diagnostics"
                    folder.mkdir(exist_ok=True)
                    arrays = {k: (v.values if isinstance(v, Panel) else v).cpu().numpy() for k, v in found.items()}
                    np.savez(folder / f"{plugin}.npz", allow_pickle=False, **arrays)
                    for name, panel in found.items():
                        if isinstance(panel, Panel):
                            picture = f"{plugin}.{name}.png"
                            with _noted(f"no picture {picture}", notes):
                                draw(panel, folder / picture)
                                pictures.append(picture)
        return pictures, notes


@contextmanager
def _noted(what: str, notes: list[str]) -> Iterator[None]:
    """A training that went well does not fail by what is made of it afterwards; but for a full disk, which is told."""
    try:
        yield
    except Exception as error:
        if no_room(error) is not None:
            raise
        notes.append(f"{what}: {one_line(error)}")
        log.warning("%s", notes[-1])
        log.debug("where it went wrong", exc_info=True)


def adapter_tensors(chain: Chain) -> dict[str, Tensor]:
    """Exactly the tensors that plugins added, by ``plugin.tensor``: no host row, no frozen content vector.

    Nor rows of a second domain's backbone, which a plugin holds.
    """
    hosts, found = source_hosts(chain.plugins), chain.plugins.state_dict()
    return {k: value for k, value in found.items() if isinstance(value, Tensor) and not is_host_row(k, hosts)}
