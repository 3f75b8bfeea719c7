"""Read what a model answered, whatever its server promised: keep what is certainly meant, invent nothing.

Rows are JSON objects with an item's number. Where the JSON is broken (a comma too many, single quotes, a comment),
``json-repair`` reads it one row at a time, and the row counts only if every word of the text is in it, whole.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from recplug.adapters.factors.llm.content import singular
from recplug.adapters.factors.llm.prompts import first_index, index_key
from recplug.adapters.factors.schema import UNKNOWN, FactorSchema, FactorSpec, folded
from recplug.plugins.errors import RecplugError

LONGEST = 400_000  # characters of an answer that are looked at
STARTS = 1_000  # places where JSON may begin but does not
NOTHING = {"", UNKNOWN, "n/a", "na", "none", "null", "nil", "-", "?", "undefined", "unspecified", "not applicable",
           "not available", "not specified", "not stated", "not mentioned", "not given", "not known"}  # fmt: skip
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_START = re.compile(r"[{\[]")
_FLAT = re.compile(r"\{[^{}]*\}")
_KEY = re.compile(r"""[{,\s]["'“]?([^"'“”:{}\[\],]+?)["'”]?\s*:""")
_KEY_IN_LIST = re.compile(r"\[[^\]]*:[^\]]*\]")
_COMMENT = re.compile(r"(?<!:)//[^\n]*\n|/\*.*?\*/", re.DOTALL)
_WORD = re.compile(r"(?!(?:null|None)\b)\w+")
_DECLINED = re.compile(
    r"\W*(?:i.?m (?:sorry|unable|not able)|sorry|i (?:can.?t|cannot|won.?t|must decline|am (?:sorry|unable|not able))"
    r"|unfortunately|as an ai)\b",
    re.IGNORECASE,
)

Row = dict[str, tuple[str, ...]]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Reading:
    """What could be read of an answer.

    Attributes:
        rows: by an item's place in the request, its values by factor: one or more names of the vocabulary, or none
            where the model says unknown. A factor that could not be read is absent.
        problems: one line for each thing that could not be used, fit to be sent back to the model.
    """

    rows: dict[int, Row]
    problems: list[str]


def read_assignment(text: str, schema: FactorSchema, n: int) -> Reading:
    """Read the answer to an assignment request.

    JSON may stand in a fence, among prose, be broken or be cut off: rows that are whole count, factor by factor. A
    value counts where the vocabulary has its name or alias, whatever its case, number or underscores; ``N/A`` and the
    like are unknown. Two different rows for one item contradict each other and neither counts; rows beyond the request
    are dropped.

    Args:
        text: the raw answer.
        schema: what may be answered.
        n: items in the request.
    """

    def read(raw: dict[str, Any]) -> tuple[Row, list[str]]:
        given: dict[str, list[Any]] = {}
        for key, value in raw.items():
            spec = schema.factor(key)
            if spec is not None:
                given.setdefault(spec.name, []).append(value)
        return _each(schema.factors, lambda spec: spec.name, lambda spec: _values(spec, given.get(spec.name, [])))

    return _read_rows(text, index_key(schema), n, read)


def read_words(text: str, names: Sequence[str], n: int) -> Reading:
    """Read the answer to an extraction request: one free word under each of ``names``, or none where unknown."""

    def word(raw: dict[str, Any], name: str) -> tuple[str, ...]:
        if not isinstance(raw.get(name), str):
            raise ValueError("a value must be text" if name in raw else "is missing")
        found = " ".join(raw[name].split())
        return () if folded(found) in NOTHING else (found,)

    return _read_rows(text, "index", n, lambda raw: _each(names, str, lambda name: word(raw, name)))


def read_object(text: str, model: type[Model]) -> Model:
    """The one JSON object of an answer, checked against ``model``; of several that fit, the last.

    Raises:
        RecplugError: where there is none, saying what is wrong with the nearest.
    """
    import json_repair

    found: Model | None = None
    problem = "there is no JSON object in it"
    whole = list(_containers(text, []))
    if not any(isinstance(raw, dict) for raw in whole) and "{" in text:
        whole.append(json_repair.loads(_spoken(text)))
    for raw in whole:
        try:
            found = model.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    if found is None:
        raise RecplugError(problem)
    return found


def declined(text: str) -> bool:
    """Whether a model says in plain words, and without any JSON, that it will not answer."""
    spoken = _spoken(text)
    return not _START.search(spoken) and _DECLINED.match(spoken) is not None


T = TypeVar("T")


def _each(parts: Sequence[T], name: Callable[[T], str], read: Callable[[T], tuple[str, ...]]) -> tuple[Row, list[str]]:
    """What can be read of a row, and what is wrong with the rest of it."""
    row, problems = {}, []
    for part in parts:
        try:
            row[name(part)] = read(part)
        except ValueError as error:
            problems.append(f"{json.dumps(name(part), ensure_ascii=False)}: {error}")
    return row, problems


def _read_rows(text: str, key: str, n: int, read: Callable[[dict[str, Any]], tuple[Row, list[str]]]) -> Reading:
    first = first_index(n)
    rows: dict[int, Row] = {}
    contradicted: set[int] = set()
    problems: list[str] = []
    broken: list[str] = []
    for raw in _objects(text, key, broken):
        number = _integer(raw.get(key))
        if number is None or not first <= number < first + n:
            problems.append(f"a row's {key} is none of {first} to {first + n - 1}")
            continue
        row, wrong = read(raw)
        problems += [f"{key} {number}: {problem}" for problem in wrong]
        if rows.setdefault(number, row) != row:
            contradicted.add(number)
    for number in contradicted:
        del rows[number]
    problems += [f"{key} {number} stands there more than once, with different values" for number in contradicted]
    missing = [number for number in range(first, first + n) if number not in rows]
    problems += [f"the JSON is broken near {piece}" for piece in broken[:2] if missing]
    problems += [f"{key} {number} has no row that is right" for number in missing]
    return Reading({number - first: rows[number] for number in sorted(rows) if rows[number]},
                   list(dict.fromkeys(problems)))  # fmt: skip


def _values(spec: FactorSpec, given: list[Any]) -> tuple[str, ...]:
    """Names of the vocabulary for what was answered under a factor. Raises ``ValueError`` with what is wrong."""
    if len(given) != 1:
        raise ValueError("stands there twice" if given else "is missing")
    several = given[0] if isinstance(given[0], list) else [given[0]]
    found = {name for value in several if (name := _meant(spec, value)) is not None}
    if len(found) > 1 and not spec.multi:
        raise ValueError("only one value is possible")
    return tuple(name for name in spec.names if name in found)


def _meant(spec: FactorSpec, raw: Any) -> str | None:
    """The value's name; None where it says unknown."""
    if raw is None:
        return None
    if not isinstance(raw, (str, int)) or isinstance(raw, bool):
        raise ValueError("a value must be text")
    name = spec.resolve(str(raw))
    if name is not None or folded(str(raw)) in NOTHING:
        return name
    near = _spellings(spec).get(_loose(str(raw)), set())
    if len(near) != 1:
        raise ValueError(f"{json.dumps(str(raw)[:40], ensure_ascii=False)} is not one of its values")
    return next(iter(near))


@lru_cache(maxsize=256)
def _spellings(spec: FactorSpec) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for value in spec.values:
        for raw in (value.name, *value.aliases):
            found.setdefault(_loose(raw), set()).add(value.name)
    return found


def _loose(raw: str) -> str:
    """What two spellings share that differ in underscores, hyphens or number."""
    words = re.sub(r"[_\-\s]+", " ", folded(raw)).split()
    return " ".join([*words[:-1], *map(singular, words[-1:])])


def _objects(text: str, key: str, broken: list[str]) -> Iterator[dict[str, Any]]:
    """All rows of an answer, wherever they stand: objects that have ``key``, however wrapped."""
    for container in _containers(text, broken):
        waiting = [container]
        while waiting:
            part = waiting.pop()
            if isinstance(part, list):
                waiting.extend(reversed(part))
            elif isinstance(part, dict) and key in part:
                yield part
            elif isinstance(part, dict):
                waiting.extend(reversed(part.values()))


def _spoken(text: str) -> str:
    """An answer without the thoughts ahead of it, of which one that ends among them has nothing but."""
    return _THOUGHTS.sub("", text[:LONGEST])


def _containers(text: str, broken: list[str]) -> Iterator[Any]:
    """Every JSON object or array of a text, outermost first; of one that is cut off or broken, the ones inside it.

    Args:
        text: an answer.
        broken: gets the beginning of each object that could not be read.
    """
    text = _spoken(text)
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    place = failed = 0
    while failed < STARTS and (start := _START.search(text, place)):
        try:
            found, place = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            flat = _FLAT.match(text, start.start())
            found = _repaired(flat.group()) if flat else None
            if flat is None or found is None:
                failed, place = failed + 1, start.end()
                broken += [json.dumps(flat.group()[:60], ensure_ascii=False)] if flat else []
                continue
            place = flat.end()
        yield found


def _repaired(piece: str) -> dict[str, Any] | None:
    """A flat object of broken JSON; None where keys stand twice, or words were lost, cut or made up on the way."""
    import json_repair

    piece = _COMMENT.sub("\n", piece)
    keys = [folded(key) for key in _KEY.findall(piece)]
    lists = piece.count("[")
    if len(set(keys)) < len(keys) or not lists == piece.count("]") < 100 or _KEY_IN_LIST.search(piece):
        return None
    found = json_repair.loads(piece)
    if not isinstance(found, dict):
        return None
    parts = [part for key, value in found.items() for part in (key, *(value if isinstance(value, list) else [value]))]
    same = Counter(_WORD.findall(piece)) == Counter(_WORD.findall(" ".join(str(part) for part in parts)))
    return found if same else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once; JSON's own rule would silently keep the last of two answers."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _integer(raw: Any) -> int | None:
    if isinstance(raw, bool):
        return None
    if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,9}", raw.strip()):
        return int(raw)
    if isinstance(raw, float) and raw.is_integer():
        return int(raw)
    return raw if isinstance(raw, int) else None
