"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A neighbour of ``path`` to write to.

    It takes the path's place when the block ends, and is removed when the block fails: a reader never sees half a file,
    and the old one stays until the new one is whole.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """Where things that are dear to compute are kept: ``$RECPLUG_CACHE``, or ``recplug`` in the user's cache folder.

    None where that cannot be written to: then they are computed each time.
    """
    given = os.environ.get("RECPLUG_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(given) if given else base / "recplug"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None
