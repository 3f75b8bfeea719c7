"""One picture from a file to RGB, whatever its kind; what is broken or far too large is told and refused."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 50_000_000  # of one decoded picture: 200 MB with an alpha channel
MAX_JPEG_PIXELS = 150_000_000  # a JPEG is decoded at a fraction of its size
DRAFT = 2_048  # pixels of a side that such a fraction keeps at least
MAX_EXIF = 1_000_000
_ORIENTATION = 0x0112


class BrokenImage(Exception):
    """A picture that cannot be used; the message is the reason, in a few words."""


def decode(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in ``path`` as RGB: turned as its EXIF says, transparency on white, the first frame of several.

    Raises:
        BrokenImage: where it is damaged, no picture, or larger than it may be.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of much that it then reads well
            with Image.open(path, formats=_known(FORMATS)) as image:
                _check_size(image)
                turn = _turn(image)
                image.load()
                flat = _flat(image)
                return flat if turn is None else flat.transpose(turn)
    except BrokenImage:
        raise
    except Exception as error:  # damaged bytes lead the decoders into errors of every kind
        reason = " ".join(str(error).replace(os.fspath(path), "it").split())
        raise BrokenImage(f"{type(error).__name__}: {reason}"[:200]) from None


def _known(formats: tuple[str, ...]) -> list[str]:
    """Those that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return [name for name in formats if name in Image.OPEN]


def _check_size(image: Image.Image) -> None:
    """Refuse before anything is decoded; a large JPEG is told to decode at a fraction."""
    width, height = image.size
    if len(image.info.get("exif") or b"") > MAX_EXIF:
        raise BrokenImage(f"{len(image.info['exif']):,} bytes of EXIF")
    most = MAX_PIXELS
    if image.format in ("JPEG", "MPO") and width * height > MAX_PIXELS:
        most = MAX_JPEG_PIXELS
    if width * height > most:
        raise BrokenImage(f"{width:,} x {height:,} pixels, more than {most:,}")
    if most == MAX_JPEG_PIXELS:
        # Smaller ones are decoded in full, so that their vectors are those that the encoder's library gives.
        image.draft("RGB", (DRAFT, DRAFT))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How the EXIF block says that the picture is to be turned."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # as many kinds as there are damaged blocks; the picture itself may be sound, and is not turned
        return None
    return turns.get(orientation) if isinstance(orientation, int) else None


def _flat(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats, as 8 bits: Pillow's own conversion cuts off above 255."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)  # [height, width]
    if not np.isfinite(values).all():
        raise BrokenImage("holds NaN or infinity")
    top = 65_535.0 if image.mode.startswith("I;16") else max(values.max(), 1.0)
    if image.mode == "I":  # Pillow's mode for some 16-bit files, and for 32 bits
        top = next((bound for bound in (255.0, 65_535.0) if top <= bound), top)
    elif image.mode == "F" and top > 1:
        top = max(top, 255.0)
    return Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))
