"""What is changed for the time of a block: attributes, random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

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


@contextmanager
def states_kept() -> Iterator[None]:
    """Random states, and what RecBole's seeding sets beside them, are as before when the block ends."""
    python, numpy = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        cudnn.benchmark, cudnn.deterministic = flags
