"""Read what a model answered, whatever its server promised: keep what is certainly meant, invent nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from recplug.adapters.factors.llm.prompts import first_index, index_key
from recplug.adapters.factors.schema import UNKNOWN, FactorSchema, FactorSpec, folded
from recplug.plugins.errors import RecplugError

LONGEST = 400_000  # characters of an answer that are looked at
STARTS = 1_000  # places where JSON may begin but does not
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_START = re.compile(r"[{\[]")

Row = dict[str, tuple[str, ...]]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Reading:
    """What could be read of an answer.

    Attributes:
        rows: by an item's place in the request, its values by factor: one or more names of the vocabulary, or none
            where the model says unknown. A row is here only where every factor of it could be read.
        problems: one line for each thing that could not be used, fit to be sent back to the model.
    """

    rows: dict[int, Row]
    problems: list[str]

    def missing(self, n: int) -> list[int]:
        """The places out of ``n`` without a row."""
        return [place for place in range(n) if place not in self.rows]


def read_assignment(text: str, schema: FactorSchema, n: int) -> Reading:
    """Read the answer to an assignment request.

    JSON may stand in a fence, among prose, or be cut off: rows that are whole count. A value counts where the
    vocabulary has its name or alias, whatever its case. Two different rows for one item contradict each other and
    neither counts; rows beyond the request are dropped.

    Args:
        text: the raw answer.
        schema: what may be answered.
        n: items in the request.
    """
    model = _row_model(schema.factors)

    def read(raw: dict[str, Any]) -> Row:
        values = model.model_validate(_renamed(raw, schema))
        return {spec.name: getattr(values, f"f{number}") for number, spec in enumerate(schema.factors)}

    return _read_rows(text, index_key(schema), n, read)


def read_words(text: str, names: Sequence[str], n: int) -> Reading:
    """Read the answer to an extraction request: one free word under each of ``names``, or none where unknown."""
    word = Annotated[str, Field(strict=True)]
    model = create_model("Words", **{f"f{i}": (word, Field(alias=name)) for i, name in enumerate(names)})  # type: ignore[call-overload]

    def read(raw: dict[str, Any]) -> Row:
        values = model.model_validate(raw)
        words = {name: " ".join(getattr(values, f"f{i}").split()) for i, name in enumerate(names)}
        return {name: () if folded(word) in (UNKNOWN, "") else (word,) for name, word in words.items()}

    return _read_rows(text, "index", n, read)


def _read_rows(text: str, key: str, n: int, read: Callable[[dict[str, Any]], Row]) -> Reading:
    first = first_index(n)
    rows: dict[int, Row] = {}
    contradicted: set[int] = set()
    problems: list[str] = []
    for raw in _objects(text, key):
        number = _integer(raw.get(key))
        if number is None or not first <= number < first + n:
            problems.append(f"a row's {key} is none of {first} to {first + n - 1}")
            continue
        try:
            row = read(raw)
        except ValidationError as error:
            problems += [f"{key} {number}: {_said(found)}" for found in error.errors(include_url=False)]
            continue
        if rows.setdefault(number, row) != row:
            contradicted.add(number)
    for number in sorted(contradicted):
        del rows[number]
        problems.append(f"{key} {number} stands there more than once, with different values")
    problems += [f"{key} {number} has no row that is right" for number in range(first, first + n) if number not in rows]
    return Reading({number - first: rows[number] for number in sorted(rows)}, list(dict.fromkeys(problems)))


def read_object(text: str, model: type[Model]) -> Model:
    """The one JSON object of an answer, checked against ``model``; of several that fit, the last.

    Raises:
        RecplugError: where there is none, saying what is wrong with the nearest.
    """
    found: Model | None = None
    problem = "there is no JSON object in it"
    for raw in _containers(text):
        try:
            found = model.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {_said(first)}"
    if found is None:
        raise RecplugError(problem)
    return found


def _objects(text: str, key: str) -> Iterator[dict[str, Any]]:
    """All rows of an answer, wherever they stand: objects that have ``key``, however wrapped."""
    for container in _containers(text):
        waiting = [container]
        while waiting:
            part = waiting.pop()
            if isinstance(part, list):
                waiting.extend(reversed(part))
            elif isinstance(part, dict) and key in part:
                yield part
            elif isinstance(part, dict):
                waiting.extend(reversed(part.values()))


def _containers(text: str) -> Iterator[Any]:
    """Every JSON object or array of a text, outermost first; of one that is cut off, the whole ones inside it."""
    text = _THOUGHTS.sub("", text[:LONGEST])
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    place = failed = 0
    while failed < STARTS and (start := _START.search(text, place)):
        try:
            found, place = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            failed, place = failed + 1, start.end()
            continue
        yield found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once; JSON's own rule would silently keep the last of two answers."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


@lru_cache(maxsize=8)
def _row_model(factors: tuple[FactorSpec, ...]) -> type[BaseModel]:
    """The pydantic model of one row; fields are numbered, since a factor's name need not be an identifier."""
    fields: dict[str, Any] = {}
    for number, spec in enumerate(factors):
        kind = Annotated[tuple[str, ...], BeforeValidator(_Values(spec)), Field(alias=spec.name)]
        fields[f"f{number}"] = (kind, ...)
    return create_model("Row", __config__=ConfigDict(extra="ignore", frozen=True), **fields)


class _Values:
    """Turn one answered value, or a list of them, into names of the vocabulary."""

    def __init__(self, spec: FactorSpec) -> None:
        self.spec = spec

    def __call__(self, raw: Any) -> tuple[str, ...]:
        given = raw if isinstance(raw, list) else [raw]
        found = [name for value in given if (name := self._name(value)) is not None]
        chosen = tuple(name for name in self.spec.names if name in found)
        if len(chosen) > 1 and not self.spec.multi:
            raise ValueError("only one value is possible")
        return chosen

    def _name(self, raw: Any) -> str | None:
        """The value's name; None where it says unknown."""
        if raw is None:
            return None
        if not isinstance(raw, (str, int)) or isinstance(raw, bool):
            raise ValueError("a value must be text")
        name = self.spec.resolve(str(raw))
        if name is None and folded(str(raw)) not in (UNKNOWN, ""):
            raise ValueError(f"{json.dumps(str(raw)[:40], ensure_ascii=False)} is not one of its values")
        return name


def _renamed(raw: dict[str, Any], schema: FactorSchema) -> dict[str, Any]:
    """Keys as the schema spells them. One factor under two spellings is no answer to it."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        spec = schema.factor(key)
        if spec is not None:
            found[spec.name] = value if spec.name not in found else object()
    return found


def _integer(raw: Any) -> int | None:
    if isinstance(raw, bool):
        return None
    if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,9}", raw.strip()):
        return int(raw)
    if isinstance(raw, float) and raw.is_integer():
        return int(raw)
    return raw if isinstance(raw, int) else None


def _said(error: Any) -> str:
    """One of pydantic's complaints, with the factor that it is about."""
    where = str(error["loc"][0]) if error["loc"] else "the row"
    what = "is missing" if error["type"] == "missing" else error["msg"].removeprefix("Value error, ")
    return f"{json.dumps(where, ensure_ascii=False)}: {what}"
