"""Pictures of items, from a folder of files to what a vision model is sent."""

from __future__ import annotations

import base64
import io
import logging
import os
from pathlib import Path

from recplug.plugins.errors import RecplugError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SIDE = 768  # pixels of the longer side; what vision models look at is about this large
MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000

log = logging.getLogger(__name__)


def find_images(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The pictures in ``folder`` by item token: files ``TOKEN.jpg``, ``.jpeg``, ``.png`` or ``.webp``.

    Raises:
        RecplugError: for no such folder, no picture in it, or two pictures of one item.
    """
    place = Path(folder)
    if not place.is_dir():
        raise RecplugError(f"no folder {place} with pictures; give one with --images DIR")
    found: dict[str, Path] = {}
    for file in sorted(place.iterdir()):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            if file.stem in found:
                raise RecplugError(f"{place} holds {found[file.stem].name} and {file.name}; keep one picture an item")
            found[file.stem] = file
    if not found:
        raise RecplugError(f"{place} holds no picture; name them by item token, TOKEN{' or TOKEN'.join(SUFFIXES)}")
    return found


def data_url(path: Path, *, side: int = SIDE) -> str | None:
    """A picture as a base64 data URL, or None, with a warning, where it cannot be read.

    It is made anew as a JPEG of at most ``side`` pixels a side, so that its size is bounded and nothing but the
    picture leaves: no place, camera or author.

    Raises:
        RecplugError: where Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise RecplugError(
            "pictures need Pillow; install it with `pip install pillow`, or leave --images out"
        ) from None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES // 1_000_000} MB")
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"more than {MAX_PIXELS // 1_000_000} million pixels")
            picture.draft("RGB", (side, side))
            small = picture.convert("RGBA")
        small.thumbnail((side, side))
        flat = Image.new("RGB", small.size, "white")
        flat.paste(small, mask=small.getchannel("A"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("picture %s is left out: %s", path, error)
        return None
    written = io.BytesIO()
    flat.save(written, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()
