"""The one door through which libraries of encoders and language models come in.

PyPI's torchvision wheel is compiled against PyPI's torch. Next to a CPU build of torch its compiled part does not load.
torchvision goes on without it, until it describes the operators of that part to ``torch.library``, which refuses:
``operator torchvision::nms does not exist`` (https://github.com/pytorch/vision/issues/8985). With it fall open_clip,
timm, sentence-transformers, and most models of transformers, none of which calls those operators: images are decoded by
PIL and resized by PIL or torch. So descriptions of operators that are not there are left out while torchvision is
imported, and nothing else is changed. Whoever calls such an operator is told so by torchvision itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal

from recplug.plugins.errors import RecplugError, one_line

Vision = Literal["absent", "whole", "remedied"]

# By the name that is imported: the extra that brings it.
EXTRAS = {"open_clip": "clip", "sentence_transformers": "text", "transformers": "text"}

_lock = threading.RLock()
_left_out: list[str] = []


def library(name: str) -> ModuleType:
    """Import a library that may need torchvision.

    Args:
        name: one of :data:`EXTRAS`.

    Raises:
        RecplugError: where it is not installed, or does not import, with what to install.
    """
    install = f"pip install -c constraints.txt 'recplug[{EXTRAS[name]}]'"
    if importlib.util.find_spec(name) is None:
        raise RecplugError(f"{name} is not installed; {install}")
    torchvision()
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a broken installation throws
        raise RecplugError(f"{name} does not import ({one_line(error)[:200]}); {install}") from error


def torchvision() -> Vision:
    """Import torchvision, if it is installed, so that other libraries find it imported.

    It is imported again where an earlier attempt failed. Threads may call this at the same time.

    Returns:
        ``absent``; ``whole``; or ``remedied``, where its compiled part does not load.

    Raises:
        RecplugError: where it does not import for another reason.
    """
    with _lock:
        if "torchvision" not in sys.modules:
            if importlib.util.find_spec("torchvision") is None:
                return "absent"
            _forget("torchvision")
        try:
            with _known_operators_only():
                importlib.import_module("torchvision")
        except Exception as error:  # whatever a broken installation throws
            _forget("torchvision")
            raise RecplugError(
                f"torchvision does not import ({one_line(error)[:200]}); `recplug doctor` says which release fits"
            ) from error
        return "remedied" if _left_out else "whole"


def _forget(package: str) -> None:
    """Drop what a failed import left behind: whole modules under a package that is gone."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


@contextmanager
def _known_operators_only() -> Iterator[None]:
    import torch

    describe = torch.library.register_fake

    def register_fake(op: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        package, _, name = str(op).partition("::")
        if package == "torchvision" and not hasattr(torch.ops.torchvision, name):
            _left_out.append(name)
            return lambda function: function
        return describe(op, *args, **kwargs)

    torch.library.register_fake = register_fake
    try:
        yield
    finally:
        torch.library.register_fake = describe
