"""The encoder of histories as one program, by ``torch.export`` or in ONNX: what the plugins add is inside."""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recplug.adapters.recbole.compat.patching import replaced
from recplug.adapters.recbole.infer.top_k import put
from recplug.adapters.recbole.infer.vectors import Tower, alike
from recplug.plugins.errors import RecplugError

TOLERANCE = 1e-4  # of the largest number: another engine multiplies in another order

Answer = Callable[[Tensor, Tensor], Tensor]


class _Program(nn.Module):
    """A tower without submodules: of the model's tensors a program then keeps those that it reads."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.__dict__["tower"] = tower

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        tower: Tower = self.__dict__["tower"]
        return tower(items, lengths)


def write_tower(path: Path, model: Any, tower: Tower, sequence: Tensor, lengths: Tensor) -> None:
    """Write a program ``(items [b, L], lengths [b]) -> [b, w]`` for any b, and try it.

    Args:
        path: a ``.pt2`` or ``.onnx`` file.
        model: augmented, at work.
        tower: its encoder.
        sequence, lengths: histories ``[n, L]`` and ``[n]`` on which it is tried.

    Raises:
        RecplugError: if it cannot be traced, answers otherwise, or cannot be written.
    """
    if path.suffix == ".onnx":
        _check_installed()
    given = sequence.to(model.device), lengths.to(model.device)
    with replaced(model, recplug_trim=False), model.recplug.asking():
        # What depends on the item alone is computed now, and a constant of the program.
        expected = tower(*given)
        program = _traced(model, tower, *given)
    content, answer = _as_onnx(program) if path.suffix == ".onnx" else _as_torch(program)
    for rows in (slice(None), slice(0, 1)):  # any batch, and the smallest
        if not alike(answer(sequence[rows], lengths[rows]), expected[rows].cpu(), TOLERANCE):
            raise RecplugError(
                f"the program of {model.recplug_host.name} encodes otherwise than the model does, so it was not "
                "written; export the users' vectors instead"
            )
    put(path, content)


def _traced(model: Any, tower: Tower, sequence: Tensor, lengths: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1, max=2**20)
    shapes = {"items": {0: batch}, "lengths": {0: batch}}
    try:
        with _quiet():
            one = torch.cat([sequence, sequence])[:2], torch.cat([lengths, lengths])[:2]  # a batch of 1 would stay 1
            return torch.export.export(_Program(tower), one, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever a host's own code does that cannot be traced
        raise RecplugError(
            f"{model.recplug_host.name} cannot be traced ({_line(error)}); export the users' vectors, "
            "or use a backbone such as SASRec or GRU4Rec"
        ) from error


def _as_torch(program: Any) -> tuple[bytes, Answer]:
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    return stored.getvalue(), torch.export.load(stored).module()


def _as_onnx(program: Any) -> tuple[bytes, Answer]:
    try:
        with _quiet():
            converted: Any = torch.onnx.export(program, dynamo=True, verbose=False)
            content: bytes = converted.model_proto.SerializeToString()
    except (RuntimeError, ValueError) as error:  # an operation that ONNX lacks; more than the 2 GB of one file
        raise RecplugError(f"ONNX cannot hold this program ({_line(error)}); export a .pt2 file") from error
    if importlib.util.find_spec("onnxruntime") is None:
        from onnx.reference import ReferenceEvaluator

        session: Any = ReferenceEvaluator(content)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answer(sequence: Tensor, lengths: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"items": sequence.numpy(), "lengths": lengths.numpy()})[0])

    return content, answer


def _check_installed() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise RecplugError(f"ONNX needs {' and '.join(missing)}, not installed; pip install {' '.join(missing)}")


def _line(error: BaseException) -> str:
    """What went wrong first; the exporters wrap it in advice of many lines."""
    error = error.__cause__ or error
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines()
    return (lines or [type(error).__name__])[0][:200].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on their own progress."""
    loud = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(loud)
