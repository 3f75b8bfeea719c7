"""Pictures from web addresses into a cache folder, within bounds of size, time and patience."""

from __future__ import annotations

import hashlib
import http.client
import string
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from recplug.adapters.files import cache_folder, replacing
from recplug.plugins.errors import RecplugError, one_line

MAX_BYTES = 30_000_000
SILENCE = 15.0  # seconds without a byte
WHOLE = 120.0  # seconds for one picture
ATTEMPTS = 3
AT_ONCE = 8
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


def image_cache() -> Path:
    """Where downloaded pictures are kept.

    Raises:
        RecplugError: where there is no place for them.
    """
    folder = cache_folder()
    if folder is None:
        raise RecplugError("no cache folder for downloaded pictures; name one that can be written in RECPLUG_CACHE")
    return folder / "images"


def fetch_all(addresses: Mapping[int, str], cache: Path) -> dict[int, Path | str]:
    """Each picture's file, or in a few words why there is none; several are under way at once."""
    distinct = dict.fromkeys(addresses.values())  # no two threads write one file
    with ThreadPoolExecutor(AT_ONCE) as pool:
        got = dict(zip(distinct, pool.map(lambda address: fetch(address, cache), distinct), strict=True))
    return {place: got[address] for place, address in addresses.items()}


def fetch(address: str, cache: Path) -> Path | str:
    """One picture's file in ``cache``, downloaded where it is not there yet; or why there is none.

    Raises:
        RecplugError: where the cache cannot be written.
    """
    name = hashlib.sha256(address.encode()).hexdigest()
    file = cache / name[:2] / name
    if file.is_file():
        return file
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        try:
            data = _read(address)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}"
            if error.code not in _AGAIN:
                return reason
        except _Refused as error:
            return str(error)
        except (ValueError, http.client.InvalidURL) as error:
            return one_line(error)[:200]
        except (OSError, http.client.HTTPException) as error:
            told = getattr(error, "reason", None) or error
            reason = " ".join(f"{type(error).__name__}: {told}".split())[:200]
        else:
            return _kept(file, data)
    return f"{reason}, {ATTEMPTS} times"


def _kept(file: Path, data: bytes) -> Path:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise RecplugError(f"cannot write {file}: {error.strerror}; make room, or set RECPLUG_CACHE") from None
    return file


class _Refused(Exception):
    """What no second attempt would change."""


def _read(address: str) -> bytes:
    until = time.monotonic() + WHOLE
    request = urllib.request.Request(
        quote(address, safe=string.punctuation), headers={"User-Agent": "recplug", "Accept": "image/*"}
    )
    with urllib.request.urlopen(request, timeout=SILENCE) as answer:
        told = answer.headers.get("Content-Length") or "0"
        parts, size = [], int(told) if told.isdigit() else 0
        if size > MAX_BYTES:
            raise _Refused(f"{size:,} bytes, more than {MAX_BYTES:,}")
        read = 0
        while part := answer.read1(1 << 16):
            read += len(part)
            parts.append(part)
            if read > MAX_BYTES:
                raise _Refused(f"more than {MAX_BYTES:,} bytes")
            if time.monotonic() > until:
                raise _Refused(f"not there after {WHOLE:g} seconds")
        if read < size:
            raise ConnectionError(f"{read:,} of {size:,} bytes came")
    return b"".join(parts)
