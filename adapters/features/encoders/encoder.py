"""An encoder: a frozen tower of some library, what it needs before it, and where its weights come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from recplug.adapters.features.encoders.preprocessing import Prepared, TextPrepare
from recplug.plugins.errors import RecplugError, did_you_mean, one_line

Kind = Literal["image", "text"]
Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Tower:
    """What a library gives.

    Attributes:
        forward: inputs by name to vectors ``[b, width]``; images are ``pixel_values [b, 3, H, W]``.
        prepare: see :class:`Encoder`.
        name, revision: which weights these are.
        pooling: how tokens or patches became one vector.
        normalised: the model itself gives vectors of length 1.
    """

    forward: nn.Module
    prepare: Callable[[Any], Any]
    name: str
    revision: str
    pooling: str
    normalised: bool = False


class Encoder:
    """Images or texts to vectors. Made by :func:`~recplug.adapters.features.encoders.open_encoder`.

    Args:
        tower: the model.
        modality: what it reads.
        normalise: scale vectors to length 1.
        device: where it runs.
        precision: of matrix products, by autocast; the weights stay in fp32.

    Attributes:
        name: of the model; the same on every machine.
        modality: ``"image"`` or ``"text"``.
        width: of the vectors.
        revision: the hub's commit, or ``sha256:`` and digits for weights on this machine.
        pooling: how tokens or patches became one vector.
        normalised: the vectors have length 1.
        device, precision: where and how it runs.
        prepare: what worker processes do; it can be pickled. Images: one PIL image in mode RGB to ``[3, H, W]``.
            Texts: a list of them to :class:`Prepared`.

    Raises:
        RecplugError: where the model does not give one vector for one input.
    """

    def __init__(
        self, tower: Tower, modality: Kind, *, normalise: bool, device: torch.device, precision: Precision
    ) -> None:
        self.name, self.revision, self.pooling = tower.name, tower.revision, tower.pooling
        self.modality: Kind = modality
        self.normalised = normalise or tower.normalised
        self.prepare = tower.prepare
        self.device, self.precision = device, precision
        self._normalise = normalise
        # Half-precision checkpoints keep their values; what is computed from them is no coarser than asked for.
        self._forward = tower.forward.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self.width = self._probed()

    def __repr__(self) -> str:
        return f"Encoder({self.name!r}, {self.modality}, width={self.width}, device={str(self.device)!r})"

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before it is cut, special ones included. A text with none cannot be encoded.

        Raises:
            RecplugError: of an image encoder.
        """
        if not isinstance(self.prepare, TextPrepare):
            raise RecplugError(f"{self.name} reads images here; lengths are of texts")
        return self.prepare.lengths(texts)

    def encode(self, batch: Tensor | Prepared) -> Tensor:
        """Vectors ``[b, width]``, float32 on the CPU, of ``[b, 3, H, W]`` stacked images or of prepared texts."""
        inputs = batch.inputs if isinstance(batch, Prepared) else {"pixel_values": batch}
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        half = self.precision != "fp32"
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=PRECISIONS[self.precision], enabled=half),
        ):
            vectors = self._forward(inputs).float()  # [b, width]
            vectors = (F.normalize(vectors, dim=-1) if self._normalise else vectors).cpu()
        # A tensor made in inference mode could not be written to outside of it.
        return vectors.clone()

    def _probed(self) -> int:
        batch: Tensor | Prepared
        if self.modality == "image":
            images = [self.prepare(Image.new("RGB", size)) for size in ((48, 32), (32, 64))]
            if any(image.ndim != 3 or image.shape != images[0].shape for image in images):
                shapes = " and ".join(str(tuple(image.shape)) for image in images)
                raise RecplugError(f"{self.name} prepares images to no one size ({shapes}); use another encoder")
            batch = torch.stack(images)  # [2, 3, H, W]
        else:
            batch = self.prepare(["one", "one and another"])
        try:
            vectors = self.encode(batch)
        except Exception as error:  # a model that was not made for this, in the words of its library
            raise RecplugError(f"{self.name} does not encode ({one_line(error)[:200]}); use another encoder") from error
        if vectors.ndim != 2 or len(vectors) != 2:
            raise RecplugError(
                f"{self.name} gives {tuple(vectors.shape)} for 2 inputs, no vectors; use another encoder"
            )
        return vectors.shape[1]


def open_device(device: str) -> torch.device:
    """``auto`` is the first GPU where there is one, otherwise the CPU.

    Raises:
        RecplugError: for a device that is unknown or not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except Exception as error:  # each backend has its own
        raise RecplugError(
            f"device {device!r} cannot be used ({one_line(error)[:200]}); say cpu, cuda or auto"
        ) from None
    return found


def one_of(word: str, known: Sequence[str], what: str) -> None:
    """Refuse a word that is not known.

    Raises:
        RecplugError: naming those that are.
    """
    if word not in known:
        raise RecplugError(f"{what} {word!r} is not known; say {', '.join(known)}{did_you_mean(word, known)}")
