"""Files of named variants: what ``recplug compare --variants FILE`` reads; the project's own tables are such files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from recplug.plugins.errors import RecplugError, did_you_mean

PUBLISHED = Path(__file__).with_name("published")
PREFIX = "recplug:"
KEYS = ("models", "plugins", "datasets", "seeds", "controls", "grid", "settings", "ablations", "variants")


def published() -> list[str]:
    """The names of the files that come with recplug."""
    return sorted(file.stem for file in PUBLISHED.glob("*.yaml"))


def read_variants(file: str) -> dict[str, Any]:
    """What a file asks for, by the names of :func:`recplug.adapters.compare.compare`'s arguments.

    Args:
        file: a YAML file, or ``recplug:NAME`` for one that comes with recplug.

    Raises:
        RecplugError: for a file that is not there, is no such file, or has a key that there is not.
    """
    path = Path(file).expanduser()
    if file.startswith(PREFIX):
        name = file.removeprefix(PREFIX)
        if name not in published():
            raise RecplugError(f"no variants '{file}'{did_you_mean(name, published())}; there are: {_listed()}")
        path = PUBLISHED / f"{name}.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise RecplugError(f"cannot read the variants in {path}: {why}; recplug's own are {_listed()}") from error
    if not isinstance(found, dict) or not isinstance(found.get("variants", {}), dict):
        raise RecplugError(f"{path}: expected {', '.join(KEYS)}, and under 'variants' names with keys and values")
    for key in found:
        if key not in KEYS:
            raise RecplugError(f"{path}: no key '{key}'{did_you_mean(str(key), KEYS)}; it takes {', '.join(KEYS)}")
    for name, changes in (found.get("variants") or {}).items():
        if not isinstance(changes, dict):
            raise RecplugError(f"{path}: variant '{name}' takes keys and values, nested under it; found {changes!r}")
    return {str(key): value for key, value in found.items() if value is not None}


def _listed() -> str:
    return ", ".join(f"{PREFIX}{name}" for name in published())
