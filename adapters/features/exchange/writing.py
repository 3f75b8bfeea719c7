"""What every exporter needs: rows in an order, files that are free, tokens that a format can hold, and writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recplug.adapters.features.exchange.reading import reason_of
from recplug.adapters.features.table import FeatureTable
from recplug.adapters.features.tokens import PADDING, Array, token_problem
from recplug.adapters.files import replacing
from recplug.plugins.errors import RecplugError

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Exported:
    """What was written; ``str()`` gives the report line.

    Attributes:
        path: the file, or the folder.
        items: how many items it names.
        present: how many of them have a vector.
        zeros: how many vectors are all zeros, which reads back as none.
        left_out: vectors of the table whose items were not asked for.
    """

    path: Path
    items: int
    present: int
    zeros: int
    left_out: int

    def __str__(self) -> str:
        line = f"{self.path}: {self.items:,} items, {self.present:,} with a vector"
        line += f", {self.zeros:,} of them zeros and so without one for who reads it" if self.zeros else ""
        return line + (f"; {self.left_out:,} vectors of other items left out" if self.left_out else "")


@dataclass(frozen=True)
class Rows:
    """``matrix [n, d]`` in the order of ``tokens``, zeros where ``present [n]`` is False."""

    tokens: list[str]
    matrix: Array
    present: Array
    left_out: int

    def report(self, path: Path) -> Exported:
        """What to say of them once they are written."""
        zeros = int((~self.matrix[self.present].any(axis=1)).sum())
        return Exported(path, len(self.tokens), int(self.present.sum()), zeros, self.left_out)


def placed(table: FeatureTable, items: Sequence[str] | None) -> Rows:
    """A table's vectors in the order of ``items``; in its own where that is None.

    Raises:
        RecplugError: for items that are named twice, or none of which has a vector.
    """
    if items is None:
        return Rows(list(table.tokens), table.features.numpy(), np.ones(len(table.tokens), bool), 0)
    problem = token_problem(items, len(items))
    if problem:
        raise RecplugError(f"items: {problem}")
    aligned = table.align([PADDING, *items])
    present = aligned.present[1:].numpy()
    return Rows(list(items), aligned.values[1:].numpy(), present, len(table.tokens) - int(present.sum()))


def check_free(overwrite: bool, *paths: Path) -> None:
    """Refuse to replace what is there.

    Raises:
        RecplugError: for a folder, and for a file unless it may be overwritten.
    """
    for path in paths:
        if path.is_dir():
            raise RecplugError(f"{path} is a folder, and a file of that name is wanted; choose another --output")
        if path.exists() and not overwrite:
            raise RecplugError(f"{path} exists; add --overwrite, or choose another --output")


def refuse_tokens(what: str, tokens: Iterable[str], wrong: Callable[[str], bool]) -> None:
    """Refuse tokens that a format cannot hold.

    Raises:
        RecplugError: naming the first that is ``wrong``.
    """
    found = next((token for token in tokens if wrong(token)), None)
    if found is not None:
        raise RecplugError(f"{what} cannot hold the item token {found!r}; export with --to parquet, or rename the item")


def breaks_lines(token: str) -> bool:
    """Whether a list of tokens, one a line, would be read as other tokens."""
    # At the start of a file the last of them would be taken for a mark of its encoding.
    return "\n" in token or "\r" in token or token.startswith("\ufeff")


def text_of(lines: Iterable[str]) -> Write:
    """Writes a text file, line by line."""

    def write(file: Path) -> None:
        with open(file, "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{line}\n" for line in lines)

    return write


def matrix_of(matrix: Array) -> Write:
    """Writes a ``.npy``."""

    def write(file: Path) -> None:
        with open(file, "wb") as stream:  # numpy.save would add a suffix to the name
            np.save(stream, matrix)

    return write


def write_files(files: Mapping[Path, Write]) -> None:
    """Write all files, each whole, or none of them.

    Raises:
        RecplugError: where one cannot be written.
    """
    try:
        with ExitStack() as stack:
            for path, write in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                write(stack.enter_context(replacing(path)))
    except OSError as error:
        reason = error.strerror or reason_of(error)  # NumPy's own has no strerror
        raise RecplugError(f"cannot write {next(reversed(list(files)))}: {reason}; choose another place") from None
