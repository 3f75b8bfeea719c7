"""What a language model may read of an item: cleaned text of allowed columns, and a picture.

Only ``DATASET.item`` is ever opened. Reviews, users and interactions never leave the machine.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recplug.adapters.item_files import folder_of
from recplug.adapters.plain_text import is_missing, plain
from recplug.plugins.errors import RecplugError, did_you_mean

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SIDE = 768  # pixels of the longer side; what vision models look at is about this large
MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
CAP = 1_500  # characters of one item, all columns together
_PRIVATE = re.compile(r"(?:^|[^a-z])(?:user|review|interaction)")
# What chat templates tell turns by, tags aside: servers read it as such, wherever it stands.
_MARKS = re.compile(r"<\|[^<>|]{0,40}\|?>|\[/?(?:INST|SYSTEM_PROMPT)\]|<</?SYS>>")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# Plain runs of digits are sizes and part numbers far more often than telephones.
_PHONE = re.compile(
    r"\+\d[\d ().-]{6,}\d|(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"
    r"|(?<=\bcall )\d[\d ().-]{5,}\d|(?<=\btel )\d[\d ().-]{5,}\d|(?<=\bphone )\d[\d ().-]{5,}\d"
    r"|(?<=\bcall: )\d[\d ().-]{5,}\d|(?<=\btel: )\d[\d ().-]{5,}\d|(?<=\bphone: )\d[\d ().-]{5,}\d",
    re.IGNORECASE,
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One product as a model may see it.

    Attributes:
        token: its item token; never sent.
        text: cleaned text by column; empty columns are absent.
        image: a picture's file, or None.
    """

    token: str
    text: Mapping[str, str] = field(default_factory=dict)
    image: Path | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read: every factor of it is unknown, and no call is needed to say so."""
        return not self.text and self.image is None


def read_items(
    dataset: str,
    data_path: str | os.PathLike[str] | None,
    columns: Sequence[str] | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> list[Item]:
    """The items of ``DATASET.item``, in file order, each token once.

    Args:
        dataset, data_path: as for ``run_recbole``.
        columns: what may be read; default all text columns (``token_seq``). Picture captions are one more column.
        images: a folder with pictures named by item token, see :func:`find_images`.
        limit: only the first so many.

    Raises:
        RecplugError: where there is no such file or column, or a column holds what must not leave.
    """
    file = folder_of(dataset, None if data_path is None else Path(data_path)) / f"{dataset}.item"
    if not file.is_file():
        raise RecplugError(
            f"{dataset} has no {dataset}.item with texts to read; write one with the columns item_id:token and"
            " text:token_seq, or use `recplug factors import`"
        )
    pictures = find_images(images) if images is not None else {}
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = [cell.partition(":") for cell in next(rows, [])]
            chosen = _allowed({name: kind for name, _, kind in header[1:]}, columns, file, bool(pictures))
            places = {name: place for place, (name, _, _) in enumerate(header) if name in chosen}
            items: dict[str, Item] = {}
            for row in rows:
                if limit is not None and len(items) >= limit:
                    break
                if row and row[0] and row[0] not in items:
                    raw = {name: row[places[name]] for name in chosen if places[name] < len(row)}
                    items[row[0]] = Item(row[0], clean_fields(raw), pictures.get(row[0]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecplugError(f"cannot read {file}: {error}; it must be tab-separated UTF-8") from None
    if pictures and not any(item.image for item in items.values()):
        raise RecplugError(f"no picture in {images} is called like an item; name them TOKEN.jpg, as in {file.name}")
    if all(item.empty for item in items.values()):
        raise RecplugError(f"{file}: not one item has text in {', '.join(chosen)}; choose others with --columns A,B")
    return list(items.values())


def clean(text: str) -> str:
    """Plain text on one line: NFKC, no HTML, no control or zero-width characters, no marks of chat templates, mail and
    telephone redacted.

    Cleaning twice changes nothing, so a tag that was escaped twice does not come back.
    """
    before = None
    while text != before:
        before = text
        text = plain(_MARKS.sub(" ", unicodedata.normalize("NFKC", text)))
        text = _PHONE.sub("[phone]", _MAIL.sub("[mail]", text))
    return text


def singular(word: str) -> str:
    """An English word in the singular, as far as its ending tells."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def clean_fields(raw: Mapping[str, str]) -> dict[str, str]:
    """Clean every column and cap them together at :data:`CAP` characters; only the longest are cut."""
    texts = {name: text for name, value in raw.items() if (text := clean(value[: 20 * CAP])) and not is_missing(text)}
    left, share = CAP, {}
    for place, name in enumerate(sorted(texts, key=lambda name: len(texts[name]))):
        share[name] = min(len(texts[name]), left // (len(texts) - place))
        left -= share[name]
    cut = {name: text[: share[name]].rstrip() for name, text in texts.items()}
    return {name: text for name, text in cut.items() if text}


def content_hash(item: Item) -> str:
    """The digest of all that is sent of an item: equal products have equal hashes, whatever their tokens."""
    digest = hashlib.sha256(json.dumps(sorted(item.text.items())).encode())
    if item.image is not None:
        try:
            digest.update(b"\0" + hashlib.sha256(item.image.read_bytes()).digest())
        except OSError as error:
            raise RecplugError(
                f"cannot read {item.image}: {error.strerror}; restore it, or leave --images out"
            ) from None
    return digest.hexdigest()


def distinct(items: Sequence[Item]) -> list[Item]:
    """One item of each content, without those that have none."""
    return list({content_hash(item): item for item in items if not item.empty}.values())


def _allowed(kinds: Mapping[str, str], columns: Sequence[str] | None, file: Path, pictures: bool) -> list[str]:
    """The columns to read, after the names of what must not leave are refused."""
    if columns is None:
        chosen = [name for name, kind in kinds.items() if kind == "token_seq" and not _is_private(name)]
        if not chosen and not pictures:
            raise RecplugError(f"{file} has no text column (token_seq); name some of {_listed(kinds)} with --columns")
        return chosen
    for name in columns:
        if name not in kinds:
            raise RecplugError(
                f"{file} has no column {name!r}{did_you_mean(name, kinds) or f'; it has {_listed(kinds)}'}"
            )
        if _is_private(name):
            raise RecplugError(
                f"column {name!r} is about users, reviews or interactions, which are never sent; leave it out of"
                " --columns"
            )
    return list(dict.fromkeys(columns))


def _is_private(name: str) -> bool:
    return bool(_PRIVATE.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


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
