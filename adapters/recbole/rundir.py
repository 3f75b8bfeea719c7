"""The run directory: what a run leaves behind, written so that a cut leaves whole files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import Tensor

from recplug.adapters.files import replacing
from recplug.adapters.panels import draw
from recplug.adapters.recbole.domains import is_host_row, source_hosts
from recplug.plugins.chain import Chain
from recplug.plugins.contract import Panel
from recplug.plugins.errors import RecplugError


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
    (RecBole's), ``adapter.safetensors`` and ``adapter.json`` (only what the plugins added), ``diagnostics/``,
    ``ranks.parquet`` (each test user's rank), ``tensorboard/`` and ``result.json``.
    """

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

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
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise RecplugError(f"the output directory {path} is not empty; choose a new one with --output_dir")
            probe = path / ".probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RecplugError(f"cannot write to {path}: {error.strerror}; choose another --output_dir") from error
        return cls(path)

    @property
    def checkpoint(self) -> Path:
        """RecBole's checkpoint of the best epoch."""
        return self.path / "checkpoint.pth"

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
        self.rows.append(dict(plain(row)))
        columns = list(dict.fromkeys(key for r in self.rows for key in r))
        out = io.StringIO()
        table = csv.DictWriter(out, columns, restval="")
        table.writeheader()
        table.writerows(self.rows)
        write(self.path / "metrics.csv", out.getvalue())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """``result.json``."""
        write(self.path / "result.json", json.dumps(plain(result), indent=2) + "\n")

    def write_adapter(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """``adapter.safetensors`` and ``adapter.json``."""
        stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write(self.path / "adapter.safetensors", to_safetensors(stored))
        write(self.path / "adapter.json", json.dumps(plain(about), indent=2) + "\n")

    def write_diagnostics(self, chain: Chain) -> list[str]:
        """Arrays (``PLUGIN.npz``) and pictures (``PLUGIN.NAME.png``) of every plugin; the pictures' names."""
        pictures = []
        with torch.no_grad(), chain.serving():
            for plugin, augmentation in chain.augmentations().items():
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
                        draw(panel, folder / picture)
                        pictures.append(picture)
        return pictures


def adapter_tensors(chain: Chain) -> dict[str, Tensor]:
    """Exactly the tensors that plugins added, by ``plugin.tensor``: no host row, no frozen content vector.

    Nor rows of a second domain's backbone, which a plugin holds.
    """
    hosts, found = source_hosts(chain.plugins), chain.plugins.state_dict()
    return {k: value for k, value in found.items() if isinstance(value, Tensor) and not is_host_row(k, hosts)}
