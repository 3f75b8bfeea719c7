"""What is known of a data set's items without any model: titles, thumbnails, content vectors, factor values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.adapters.factors import FactorTable, find_factors
from recplug.adapters.factors.llm.content import data_url, find_images
from recplug.adapters.features import FeatureTable, find_tables
from recplug.adapters.item_files import columns
from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError, did_you_mean

THUMBNAIL = 96  # pixels of the longer side
TITLES = ("title", "name", "item_title", "item_name", "product_title", "product_name", "movie_title")
LONGEST = 100  # characters of a title
BLOCK = 65_536  # items that are compared at once


class Catalogue:
    """The items of one data set.

    Args:
        folder: where the data set lies.
        dataset: its name.
        tokens: ``[n_items]``, by the run's ids; the first is the padding's.
        config: the run's configuration.
        images: a folder of pictures named by item token, or the column of ``DATASET.item`` with their files.

    Raises:
        RecplugError: where ``images`` is neither.
    """

    def __init__(self, folder: Path, dataset: str, tokens: Sequence[str], config: Any, images: str | None) -> None:
        self.folder, self.dataset, self.tokens, self.config = folder, dataset, tokens, config
        self.files = {} if images is None else self._files(images)
        self._urls: dict[str, str | None] = {}

    @cached_property
    def titles(self) -> dict[str, str]:
        """The beginning of every item's title by token, where the data set has any."""
        text = next((name for name in TITLES if name in self._fields), None)
        text = text or next((name for name, kind in self._fields.items() if kind == "token_seq"), None)
        if text is None:
            return {}
        return {token: shortened(title) for token, title in self._column(text) if title.strip()}

    def thumbnail(self, token: str) -> str | None:
        """An item's picture, small, as a data URL."""
        if token not in self._urls:
            file = self.files.get(token)
            self._urls[token] = None if file is None else data_url(file, side=THUMBNAIL)
        return self._urls[token]

    @cached_property
    def content(self) -> dict[str, Modality]:
        """The data set's content vectors, in the order of ``tokens``."""
        tables = find_tables(self.config["data_path"], self.dataset, self.config["features"] or {})
        return {name: FeatureTable.load(path).align(self.tokens, name=name) for name, path in tables.items()}

    def cosines(self, modality: str, rows: Tensor) -> Tensor:
        """How like every item is to the ones at ``rows [h]``: ``[n_items, h]``; NaN where one has no vector."""
        values, present = self.content[modality].values, self.content[modality].present
        chosen = F.normalize(values[rows].float(), dim=1)  # [h, d]
        blocks = [F.normalize(block.float(), dim=1) @ chosen.T for block in values.split(BLOCK)]
        found = torch.cat(blocks)  # [n_items, h]
        return found.masked_fill(~(present.unsqueeze(1) & present[rows]), torch.nan)

    @cached_property
    def factors(self) -> dict[str, dict[str, frozenset[str]]]:
        """Factor values by item token, by factor; nothing where the data set has no profiles."""
        path = find_factors(self.config["data_path"], self.dataset, self.config["factors"])
        if path is None:
            return {}
        table = FactorTable.load(path)
        known = set(self.tokens)
        return {
            name: {
                token: frozenset(values) for token, values in zip(table.tokens, column, strict=True) if token in known
            }
            for name, column in table.values.items()
        }

    @cached_property
    def _file(self) -> Path:
        return self.folder / f"{self.dataset}.item"

    @cached_property
    def _fields(self) -> dict[str, str]:
        """The kinds of the columns of ``DATASET.item`` by name."""
        if not self._file.is_file():
            return {}
        with open(self._file, encoding="utf-8", errors="replace") as file:
            cells = [cell.partition(":") for cell in file.readline().rstrip("\r\n").split("\t")]
        return {name: kind for name, _, kind in cells}

    def _column(self, name: str) -> list[tuple[str, str]]:
        key = self.config["ITEM_ID_FIELD"]
        return [(row[0], row[1]) for row in columns(self._file, key, name)]

    def _files(self, images: str) -> dict[str, Path]:
        if Path(images).is_dir():
            return find_images(images)
        if images not in self._fields:
            has = ", ".join(self._fields) or "nothing"
            hint = did_you_mean(images, self._fields) or f"; it has: {has}"
            raise RecplugError(
                f"--images {images} is neither a folder of pictures nor a column of {self._file.name}{hint}"
            )
        return {token: self.folder / cell for token, cell in self._column(images) if cell and "://" not in cell}


def shortened(title: str) -> str:
    """A title on one line, cut where it is long."""
    words = " ".join(title[: 4 * LONGEST].split())
    return words if len(words) <= LONGEST else words[: LONGEST - 1].rstrip() + "…"
