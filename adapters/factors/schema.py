"""The schema of factors: ``DATASET.factors.json``, which a person reads and edits.

No edit needs the labels to be made again. *Rename* a value: change its name and put the old one into its ``aliases``.
*Merge*: put the other value's name and aliases into ``aliases`` and delete it. *Drop* a value: delete it and list it in
``dropped`` under its factor; its items become unknown. A factor is renamed in the same way, and dropped by deleting it
and naming it in ``dropped`` with an empty list.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from recplug.adapters.files import replacing
from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.factors import FactorSource

FORMAT = "recplug.factors/1"
UNKNOWN = "unknown"
ITEM, STATUS, CONTENT = "item_id", "status", "content_sha256"
RESERVED = (ITEM, STATUS, CONTENT)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def folded(text: str) -> str:
    """What two spellings of one name share: width and composition (NFKC), case and outer blanks do not count."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A changed copy, checked like a new one; pydantic's own would neither check nor forget what it looked up."""
        return type(self).model_validate(self.model_dump() | dict(update or {}))


class Value(_Part):
    """One value of a factor.

    Attributes:
        name: what a reader sees.
        definition: one line that tells it from the factor's other values.
        aliases: further spellings, and the names of values that were merged into this one.
        parent: the wider value that small groups roll up to.
    """

    name: str
    definition: str = ""
    aliases: tuple[str, ...] = ()
    parent: str | None = None


class FactorSpec(_Part):
    """One factor and its closed vocabulary.

    Attributes:
        name: ``"material"``, ...
        description: what it tells about an item.
        source: what its values are read from.
        multi: whether an item may have several values.
        other: the value that means "something else", or None. An item *without* a value is unknown.
        aliases: earlier names.
        values: one or more, in an order that stays (ordinal scales in theirs).

    Raises:
        RecplugError: where two values are spelled alike, a value is called unknown, or a parent does not exist.
    """

    name: str
    description: str = ""
    source: FactorSource = "text"
    multi: bool = False
    other: str | None = None
    aliases: tuple[str, ...] = ()
    values: tuple[Value, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        here = f"factor {self.name!r}"
        if not self.values:
            raise RecplugError(f"{here} has no values; give it one or more")
        self._spellings  # noqa: B018 - made now, it refuses names that cannot be told apart
        if UNKNOWN in self._spellings:
            raise RecplugError(f"{here}: {UNKNOWN!r} means no value and cannot be one; leave it out")
        if self.other is not None and self.resolve(self.other) is None:
            raise RecplugError(f"{here}: other={self.other!r} is none of its values{self.near(self.other)}")
        for value in self.values:
            if value.parent is not None and self.resolve(value.parent) is None:
                raise RecplugError(
                    f"{here}: {value.name!r} has the parent {value.parent!r}, which is none of its values"
                    f"{self.near(value.parent)}"
                )
            self._ancestors(value.name)
        if self.other is not None and self.parents[self.other_name or ""]:
            raise RecplugError(f"{here}: {self.other!r} is its 'other' and cannot have a parent; remove that")
        return self

    def resolve(self, raw: str) -> str | None:
        """The name of the value that is spelled ``raw``, by name or alias; None where there is none."""
        return self._spellings.get(folded(raw))

    def near(self, raw: str) -> str:
        """``"; did you mean 'steel'?"`` among names and aliases, or nothing."""
        return did_you_mean(raw, [spelled for value in self.values for spelled in (value.name, *value.aliases)])

    @property
    def names(self) -> tuple[str, ...]:
        """The values' names, in order."""
        return tuple(value.name for value in self.values)

    @property
    def other_name(self) -> str | None:
        """The name of the value that :attr:`other` means, which may say so by alias."""
        return None if self.other is None else self.resolve(self.other)

    @cached_property
    def parents(self) -> dict[str, str | None]:
        """Each value's parent by name. One that was merged into its own child is no longer a parent."""
        found = {value.name: None if value.parent is None else self.resolve(value.parent) for value in self.values}
        return {name: None if parent == name else parent for name, parent in found.items()}

    @cached_property
    def depths(self) -> dict[str, int]:
        """How many ancestors each value has."""
        return {name: len(self._ancestors(name)) for name in self.names}

    @cached_property
    def _spellings(self) -> dict[str, str]:
        return _spellings(f"factor {self.name!r}", self.values)

    def _ancestors(self, name: str) -> list[str]:
        found: list[str] = []
        parent = self.parents[name]
        while parent is not None:
            if parent == name or parent in found:
                raise RecplugError(f"factor {self.name!r}: {name!r} is among its own ancestors; remove one parent")
            found.append(parent)
            parent = self.parents[parent]
        return found


class FactorSchema(_Part):
    """All factors of a data set.

    Attributes:
        format: the version of this file's form.
        factors: one or more, of different names.
        dropped: values that a person deleted, by factor; and deleted factors, with an empty list.
        provenance: who made it of what, with what, when and under which licence.

    Raises:
        RecplugError: where two factors are spelled alike, a name is reserved, or something dropped is still there.
    """

    format: Literal["recplug.factors/1"] = "recplug.factors/1"
    factors: tuple[FactorSpec, ...]
    dropped: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    provenance: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.factors:
            raise RecplugError("a factor schema needs one or more factors")
        self._by_name  # noqa: B018 - made now, it refuses names that cannot be told apart
        for name in (*RESERVED, UNKNOWN):
            if name in self._by_name:
                raise RecplugError(f"no factor can be called {name!r}, which the table uses itself; rename it")
        try:
            self.text().encode()
        except UnicodeEncodeError as error:
            near = error.object[max(0, error.start - 20) : error.start]
            raise RecplugError(f"the schema holds half a character (a surrogate) after {near!r}; remove it") from None
        for name, values in self.dropped.items():
            spec = self.factor(name)
            if spec is not None and not values:
                raise RecplugError(f"factor {spec.name!r} is both there and dropped; remove it from one of the two")
            for raw in values:
                if spec is not None and spec.resolve(raw) is not None:
                    raise RecplugError(
                        f"factor {spec.name!r}: {raw!r} is both a value and dropped; remove it from one of the two"
                    )
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FactorSchema:
        """Read and check a ``.factors.json``.

        Raises:
            RecplugError: for a missing or malformed file, saying where.
        """
        try:
            raw = json.loads(Path(path).read_text("utf-8-sig"), object_pairs_hook=_once)
        except FileNotFoundError:
            raise RecplugError(
                f"no factor schema at {path}; make one with `recplug factors import` or `recplug factors induce`"
            ) from None
        except (OSError, ValueError, RecursionError, RecplugError) as error:
            reason = " ".join(str(error).split())
            raise RecplugError(f"{path} is not readable as JSON ({reason}); mend or copy it again") from None
        written = raw.get("format") if isinstance(raw, dict) else None
        if written != FORMAT:
            raise RecplugError(f"{path} is not a factor schema (format {written!r}, expected {FORMAT!r})")
        try:
            return cls.model_validate(raw)
        except RecplugError as error:
            raise RecplugError(f"{path}: {error}") from None
        except ValidationError as error:
            raise RecplugError(f"{path}: {_first(error, raw)}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as indented UTF-8, one value a line; a reader never sees half a file.

        Raises:
            RecplugError: where the file cannot be written.
        """
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as partial:
                partial.write_bytes(self.text().encode())
        except OSError as error:
            raise RecplugError(f"cannot write {target}: {error.strerror}; choose another place") from None

    def text(self) -> str:
        """The file's contents."""
        factors = ",\n".join(map(_spread, self.factors)).replace("\n", "\n    ")
        dropped, provenance = (
            json.dumps(part, indent=2, ensure_ascii=False).replace("\n", "\n  ")
            for part in (self.dropped, self.provenance)
        )
        return (
            f'{{\n  "format": "{self.format}",\n  "factors": [\n    {factors}\n  ],\n'
            f'  "dropped": {dropped},\n  "provenance": {provenance}\n}}\n'
        )

    @cached_property
    def sha256(self) -> str:
        """The digest of the factors, whatever their provenance and what was dropped."""
        factors = [factor.model_dump(mode="json") for factor in self.factors]
        return hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()

    def factor(self, raw: str) -> FactorSpec | None:
        """The factor that is spelled ``raw``, by name or alias; None where there is none."""
        name = self._by_name.get(folded(raw))
        return next((factor for factor in self.factors if factor.name == name), None)

    def drops(self, factor: FactorSpec, raw: str) -> bool:
        """Whether ``raw`` is among the dropped values of ``factor``."""
        return folded(raw) in self._dropped.get(factor.name, ())

    def drops_factor(self, raw: str) -> bool:
        """Whether a factor spelled ``raw`` was deleted on purpose."""
        return self.factor(raw) is None and folded(raw) in map(folded, self.dropped)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return _spellings("the schema", self.factors)

    @cached_property
    def _dropped(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, values in self.dropped.items():
            spec = self.factor(name)
            if spec is not None:
                found.setdefault(spec.name, set()).update(map(folded, values))
        return found


def _spread(factor: FactorSpec) -> str:
    """A factor as indented JSON, but each of its values on a line of its own."""
    head = json.dumps(factor.model_dump(mode="json", exclude={"values"}), indent=2, ensure_ascii=False)
    values = ",\n    ".join(json.dumps(value.model_dump(mode="json"), ensure_ascii=False) for value in factor.values)
    return head.removesuffix("\n}") + f',\n  "values": [\n    {values}\n  ]\n}}'


def _spellings(where: str, parts: Sequence[Value | FactorSpec]) -> dict[str, str]:
    """Each folded name and alias to the name of what it belongs to."""
    found: dict[str, int] = {}
    for number, part in enumerate(parts):
        for raw in (part.name, *part.aliases):
            key = folded(raw)
            if not key or raw != raw.strip() or CONTROL.search(raw):
                raise RecplugError(
                    f"{where}: the name {raw!r} is empty, or has outer blanks or control characters; mend it"
                )
            holder = found.setdefault(key, number)
            if holder != number:
                raise RecplugError(
                    f"{where}: {parts[holder].name!r} and {part.name!r} are both spelled {raw!r} (case and width do"
                    " not count); merge them, or change one"
                )
    return {key: parts[number].name for key, number in found.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is written twice: JSON would quietly keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise RecplugError(f"the key {twice!r} stands twice in one object")
    return found


def _first(error: ValidationError, raw: Any) -> str:
    """Pydantic's first complaint in one line, with the names of the factor and the value it is about."""
    first = error.errors()[0]
    place, words = raw, []
    for part in first["loc"]:
        try:
            place = place[part]
        except (KeyError, IndexError, TypeError):
            place = None
        named = place.get("name") if isinstance(place, dict) else None
        words.append(repr(named) if isinstance(part, int) and isinstance(named, str) else str(part))
    if first["type"] == "extra_forbidden":
        known = (FactorSchema, FactorSpec, Value)[len(words) // 2].model_fields
        hint = did_you_mean(words[-1], known) or f"; it has: {', '.join(known)}"
        return f"{'.'.join(words[:-1]) or 'the schema'} has no key {words[-1]!r}{hint}"
    problem = first["msg"].removeprefix("Value error, ").replace("tuple", "list")
    return f"{'.'.join(words)}: {problem[:1].lower()}{problem[1:]}"
