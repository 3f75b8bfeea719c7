"""What is worth trying of a setting in a hyper-parameter search, declared beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from recplug.plugins.errors import RecplugError


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, both included; whole ones where the setting is a whole number.

    Attributes:
        low, high: the ends.
        log: whether to draw from the logarithms, as for weights of losses and learning rates.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise RecplugError(f"the range {self} does not rise; write the lower end first")
        if self.log and self.low <= 0:
            raise RecplugError(f"the range {self} has no logarithm at its lower end; begin above 0")

    def __str__(self) -> str:
        return f"{self.low:g} .. {self.high:g}{', log' if self.log else ''}"


Search = Sequence[Any] | Range  # single values, or numbers between two


def searches(model: type[BaseModel]) -> dict[str, Search]:
    """What each setting that has something worth trying declares, by name."""
    extras = {name: field.json_schema_extra for name, field in model.model_fields.items()}
    found = {name: extra.get("search") for name, extra in extras.items() if isinstance(extra, Mapping)}
    return {name: search for name, search in found.items() if search is not None}  # type: ignore[misc]


def is_whole(annotation: Any) -> bool:
    """Whether a setting's numbers are whole ones."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return int in kinds and float not in kinds


def search_text(search: Search) -> str:
    """For readers: ``0.01 .. 1, log`` or ``a | b``."""
    return str(search) if isinstance(search, Range) else " | ".join(map(str, search))


def check_searches(model: type[BaseModel]) -> None:
    """Compare what a settings class declares with what its fields take.

    Raises:
        RecplugError: for a form that is neither a list nor a :class:`Range`, and for a value that the field refuses.
    """
    for name, search in searches(model).items():
        where = f"{model.__name__}.{name}"
        if not isinstance(search, (list, Range)) or search == []:
            raise RecplugError(f"{where}: search={search!r} is neither a list of choices nor Range(low, high)")
        ends = [search.low, search.high] if isinstance(search, Range) else search
        for value in ends:
            try:
                model.model_validate({name: value})
            except ValidationError as error:
                why = " ".join(error.errors()[0]["msg"].split())
                raise RecplugError(f"{where}: {value!r} of search is no value of it ({why}); correct one") from None
