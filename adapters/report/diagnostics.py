"""Diagnostics as a run has left them: pictures with their words, and the numbers behind them."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Picture:
    """One diagnostic.

    Attributes:
        name: the plugin's word for it.
        title, caption: what it shows; empty where the picture does not say.
        labels: the rest of its panel (see :class:`recplug.plugins.contract.Panel`); empty where only pixels are left.
        values: the panel's numbers, or None.
        png: the picture, or nothing.
    """

    name: str
    title: str = ""
    caption: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict)
    values: np.ndarray[Any, Any] | None = None
    png: bytes = b""

    @property
    def url(self) -> str:
        """The picture within the page."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def read_pictures(folder: Path, missing: list[str]) -> dict[str, Sequence[Picture]]:
    """All diagnostics by plugin: first the pictures, then arrays without one.

    Args:
        folder: ``diagnostics`` in a run directory.
        missing: takes a line for each file that cannot be read.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    found: dict[str, Sequence[Picture]] = {}
    arrays = {file.stem: _arrays(file, missing) for file in sorted(folder.glob("*.npz"))}
    pngs = sorted(folder.glob("*.*.png"), key=lambda file: file.stat().st_mtime_ns)
    for plugin in dict.fromkeys([*arrays, *(file.name.partition(".")[0] for file in pngs)]):
        own = arrays.get(plugin, {})
        drawn = [file for file in pngs if file.name.startswith(f"{plugin}.")]
        names = [file.name[len(plugin) + 1 : -len(".png")] for file in drawn]
        pictures = [_picture(file, name, own.get(name), missing) for file, name in zip(drawn, names, strict=True)]
        found[plugin] = [*pictures, *(Picture(name, values=own[name]) for name in own if name not in names)]
    return found


def _arrays(file: Path, missing: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files if name != "allow_pickle"}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        missing.append(f"diagnostics/{file.name} cannot be read ({error}): pictures are shown as they were drawn.")
        return {}


def _picture(file: Path, name: str, values: np.ndarray[Any, Any] | None, missing: list[str]) -> Picture:
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG",)) as picture:
            picture.load()
            words = {key: str(value) for key, value in picture.info.items()}
        labels = json.loads(words.get("recplug", "{}"))
    except (OSError, ValueError, SyntaxError) as error:
        missing.append(f"diagnostics/{file.name} cannot be read ({error}): it is left out.")
        return Picture(name)
    return Picture(name, words.get("Title", ""), words.get("Description", ""), labels, values, file.read_bytes())
