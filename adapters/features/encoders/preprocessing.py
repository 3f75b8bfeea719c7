"""From pictures and texts to tensors: what worker processes do, without the model."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from recplug.adapters import optional_imports
from recplug.plugins.errors import RecplugError

# A picture is cropped to this many times its shorter side: resized by its shorter side, as most models want it, a
# hairline would take gigabytes. What is cut off lies far outside the square that such models then look at.
LONGEST_SIDE = 32
SMALLEST_SIDE = 4  # below, some processors take the sides for colour channels
TOGETHER = 1_000  # texts counted at once


@dataclass(frozen=True)
class Prepared:
    """Texts as a model reads them.

    Attributes:
        inputs: tensors ``[b, ...]`` by the name under which the model takes them, padded to one length.
        truncated: of each text, whether it was longer than the model reads.
    """

    inputs: dict[str, Tensor]
    truncated: list[bool]


class _Sendable:
    """Arrives in another process through the door for imports; the libraries' own objects would import torchvision."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[type, bytes]]:
        return _arrived, (type(self), pickle.dumps(self.__dict__))


def _arrived(kind: type, state: bytes) -> Any:
    optional_imports.torchvision()
    made: Any = object.__new__(kind)
    made.__dict__.update(pickle.loads(state))
    return made


class ImagePrepare(_Sendable):
    """One picture to ``[3, H, W]``.

    Args:
        transform: the library's own, for a PIL image in mode RGB.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        """``[3, H, W]`` of a PIL image in mode RGB; H and W are the same for every image."""
        return self.transform(_bounded(image))


def _bounded(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = LONGEST_SIDE * min(width, height)
    if max(width, height) > longest:
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
    if min(image.size) < SMALLEST_SIDE:
        width, height = image.size
        times = -(-SMALLEST_SIDE // min(width, height))
        image = image.resize((width * times, height * times), Image.Resampling.NEAREST)
    return image


class TextPrepare(_Sendable, ABC):
    """A list of texts to :class:`Prepared`.

    Args:
        max_length: tokens that the model reads, special ones included.
        prefix: put before every text.
    """

    def __init__(self, max_length: int, prefix: str) -> None:
        self.max_length = max_length
        self.prefix = prefix

    def __call__(self, texts: Sequence[str]) -> Prepared:
        """Tokens of ``texts``, cut at ``max_length`` and padded.

        Raises:
            RecplugError: where a text has no token at all.
        """
        lengths = self.lengths(texts)
        if 0 in lengths:
            text = texts[lengths.index(0)]
            raise RecplugError(f"the text {text[:40]!r} has no token that the encoder knows; leave this item out")
        return Prepared(self._inputs([self.prefix + text for text in texts]), [n > self.max_length for n in lengths])

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before it is cut, special ones and the prefix included."""
        counts: list[int] = []
        for start in range(0, len(texts), TOGETHER):
            counts += self._count([self.prefix + text for text in texts[start : start + TOGETHER]])
        return counts

    @abstractmethod
    def _inputs(self, texts: list[str]) -> dict[str, Tensor]: ...

    @abstractmethod
    def _count(self, texts: list[str]) -> list[int]: ...


class Tokens(TextPrepare):
    """Texts for a tokenizer of transformers.

    Args:
        tokenizer: with a token to pad with.
        max_length, prefix: as in :class:`TextPrepare`.
        names: the tensors that the model takes.
        fixed: pad every text to ``max_length``; otherwise to the longest of the batch.
        lower: in lower case.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        prefix: str = "",
        names: Collection[str],
        fixed: bool = False,
        lower: bool = False,
    ) -> None:
        super().__init__(max_length, prefix)
        self.tokenizer = tokenizer
        self.names = frozenset(names)
        self.padding = "max_length" if fixed else "longest"
        self.lower = lower

    def _inputs(self, texts: list[str]) -> dict[str, Tensor]:
        encoded = self.tokenizer(
            self._cased(texts),
            padding=self.padding,
            truncation="longest_first",
            max_length=self.max_length,
            return_tensors="pt",
        )
        return {name: tensor for name, tensor in encoded.items() if name in self.names}

    def _count(self, texts: list[str]) -> list[int]:
        # verbose=False: being longer than the model reads is what is asked about.
        encoded = self.tokenizer(self._cased(texts), return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def _cased(self, texts: list[str]) -> list[str]:
        return [text.lower() for text in texts] if self.lower else texts
