"""Settings of a plugin: a frozen pydantic model that refuses what it does not know."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.search import Search, check_searches

S = TypeVar("S", bound="PluginSettings")
NONZERO = "nonzero"  # of a weight: a condition in ``setting(when=...)``


class PluginSettings(BaseModel):
    """Base of every plugin's settings. Declare each field with :func:`setting`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse, when the class is made, a ``search`` that the setting would refuse later."""
        super().__pydantic_init_subclass__(**kwargs)
        check_searches(cls)

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {key: _typed(fields[key].annotation, v) if key in fields else v for key, v in values.items()}


def _typed(annotation: Any, value: Any) -> Any:
    """A value as the setting writes it; a configuration reads the word ``none`` as None."""
    if value is None and get_origin(annotation) is Literal and "none" in get_args(annotation):
        return "none"
    return _several(annotation, value)


def _several(annotation: Any, value: Any) -> Any:
    """Where several values may stand, ``image,text`` or a single one, as people type them, as a tuple."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    origins: list[Any] = [get_origin(kind) for kind in kinds]
    if tuple not in origins or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return value if {int, float} & set(kinds) else (value,)
    if not isinstance(value, str) or (Literal in origins and "," not in value):
        return value
    return tuple(filter(None, (part.strip(" '\"") for part in value.strip("()[] ").split(","))))


def setting(
    default: Any,
    description: str,
    *,
    paper: str = "ours",
    search: Search | None = None,
    loss_weight: bool = False,
    when: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Any:
    """One documented setting.

    Args:
        default: its default value.
        description: one sentence, with units and choices.
        paper: the paper's symbol and equation, or ``"ours"``.
        search: what ``recplug tune`` tries: a list of choices, or a :class:`~recplug.plugins.search.Range`.
        loss_weight: whether this multiplies a loss of the plugin's own, which 0 switches off: the control "no losses".
        when: when the setting acts at all: by another setting's name, the values of it (a tuple) at which this one is
            read, or :data:`NONZERO`; the key ``"family"`` is the backbone's family. All must hold; None: always.
        **limits: pydantic's constraints, such as ``ge=0``; pydantic refuses an unknown one with a warning.
    """
    extra: dict[str, Any] = {"paper": paper, "search": search, "loss_weight": loss_weight, "when": when}
    return Field(default, description=description, json_schema_extra=extra, **limits)


@dataclass(frozen=True)
class Preset:
    """A named set of values: a paper's equations as they stand, or its authors' code.

    Attributes:
        summary: one sentence: whose values these are, and what they differ in.
        settings: the plugin's settings where they differ from the defaults.
        host: the backbone's and the trainer's values that the source fixes, by the host's own keys.
        was: earlier names of this preset, which still work, with a note.
    """

    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    was: tuple[str, ...] = ()


def loss_weights(model: type[PluginSettings]) -> list[str]:
    """The settings that are weights of the plugin's own losses; all of them at 0 leave the host's loss alone."""
    extras = {name: field.json_schema_extra for name, field in model.model_fields.items()}
    return [name for name, extra in extras.items() if isinstance(extra, Mapping) and extra.get("loss_weight")]


def idle(settings: PluginSettings, *, family: str | None = None, free: Collection[str] = ()) -> dict[str, str]:
    """The settings that nothing reads at these values of the others, and the condition that is not met.

    Args:
        settings: the resolved settings.
        family: the backbone's family, where it is known; None takes conditions on it as met.
        free: settings whose values are still open: conditions on them count as met.

    Returns:
        By name, for example ``{"order": "fusion is cp"}``: what would have to hold.
    """
    found: dict[str, str] = {}
    for name, declared in type(settings).model_fields.items():
        missing = [
            _condition(key, wanted)
            for key, wanted in _when(declared).items()
            if key not in free
            and not _holds(family if key == "family" else getattr(settings, key), wanted, unknown=key == "family")
        ]
        if missing:
            found[name] = " and ".join(missing)
    return found


def conditions(field: FieldInfo) -> str:
    """When a setting acts, for readers: ``fusion is cp and order is not 0``; empty where it always does."""
    return " and ".join(_condition(key, wanted) for key, wanted in _when(field).items())


def _when(field: FieldInfo) -> Mapping[str, Any]:
    extra = field.json_schema_extra
    found = extra.get("when") if isinstance(extra, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _holds(value: Any, wanted: Any, *, unknown: bool) -> bool:
    if value is None and unknown:
        return True
    if wanted == NONZERO:
        return bool(value)
    return value in (wanted if isinstance(wanted, tuple) else (wanted,))


def _condition(key: str, wanted: Any) -> str:
    if wanted == NONZERO:
        return f"{key} is not 0"
    return f"{key} is {' or '.join(map(str, wanted if isinstance(wanted, tuple) else (wanted,)))}"


def parse_settings(plugin: str, model: type[S], values: Mapping[str, Any]) -> S:
    """Validate ``values`` (without the ``plugin.`` prefix).

    Raises:
        RecplugError: for an unknown key, with the nearest valid one, or a value that is out of range.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        # Pydantic names the branch of a union too, like tuple[float,...].
        key = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(key, model.model_fields) or f"; it has: {', '.join(model.model_fields)}"
            raise RecplugError(f"{plugin} has no setting '{key}'{hint}") from None
        problem = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # a check between settings
            raise RecplugError(f"{plugin}: {problem}") from None
        raise RecplugError(f"{plugin}.{key}={first.get('input')!r}: {problem}") from None


def type_name(annotation: Any) -> str:
    """An annotation for readers: ``Literal["a", "b"] | None`` to ``a | b | none``."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if origin in (Union, UnionType):
        return " | ".join(map(type_name, get_args(annotation)))
    if annotation is NoneType:
        return "none"
    return annotation.__name__ if origin is None else str(annotation)


def limits(field: FieldInfo) -> str:
    """The range that pydantic checks, for readers: ``>= 0, <= 1``."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
    found = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]
    lengths = {"min_length": "at least {} long", "max_length": "at most {} long"}
    found += [text.format(getattr(m, n)) for m in field.metadata for n, text in lengths.items() if hasattr(m, n)]
    return ", ".join(found)
