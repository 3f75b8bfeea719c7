"""The closed vocabularies behind the factor profiles, from ``vocabularies.yaml``: words by value, and departments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_READ: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
Words = dict[str, str]  # by value, its words with commas between

MATERIALS: Words = _READ["materials"]
FORMS: Words = _READ["forms"]
USES: Words = _READ["uses"]
COLOURS: Words = _READ["colours"]
TRAITS: Words = _READ["traits"]
THEMES: Words = _READ["themes"]
ORIGINS: Words = _READ["origins"]
DEPARTMENTS: dict[str, list[str]] = _READ["departments"]  # of Amazon Scientific, each with its shelves
