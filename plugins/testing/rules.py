"""What a check is: a function that raises one line, which names the rule of the contract that is broken."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recplug.plugins.errors import one_line

if TYPE_CHECKING:
    from recplug.plugins.testing.case import Case

Check = Callable[["Case"], None]
CHECKS: dict[str, Check] = {}


class BrokenContract(AssertionError):
    """One line a broken rule: the plugin, the toy backbone, the rule, and what was seen."""


def rule(text: str) -> Callable[[Check], Check]:
    """Register a check, named after its function; whatever goes wrong in it breaks the rule ``text``."""

    def register(check: Check) -> Check:
        @wraps(check)
        def checked(case: Case) -> None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                try:
                    check(case)
                except Exception as error:
                    seen = str(error) if isinstance(error, AssertionError) else one_line(error)
                    raise BrokenContract(f"{case}: {text}; {seen}") from error

        CHECKS[check.__name__.removeprefix("check_")] = checked
        return checked

    return register


def require(condition: bool | Tensor, seen: str) -> None:
    """Fail with ``seen`` unless ``condition``."""
    if not condition:
        raise AssertionError(seen)
