"""Attributes changed for the time of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_ABSENT = object()


@contextmanager
def replaced(owner: object, **attributes: object) -> Iterator[None]:
    """Set attributes of a module or class; on exit, also by an error, each is as it was, or absent as it was."""
    before = {name: vars(owner).get(name, _ABSENT) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not _ABSENT:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)
