"""Encoders of transformers: both towers of CLIP and SigLIP, vision transformers, and language models."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from recplug.adapters import optional_imports
from recplug.adapters.features.encoders import hub
from recplug.adapters.features.encoders.encoder import Kind, Tower, one_of
from recplug.adapters.features.encoders.pooling import POOLINGS, pool
from recplug.adapters.features.encoders.preprocessing import ImagePrepare, Tokens
from recplug.plugins.errors import RecplugError, one_line

CONFIG = "config.json"
LONGEST_TEXT = 1_000_000  # a tokenizer says more than this where it knows no limit
# Models of both: the class of each tower, and its output that is comparable with the other tower's.
PAIRS = {
    "clip": {
        "image": ("CLIPVisionModelWithProjection", "image_embeds", "projection"),
        "text": ("CLIPTextModelWithProjection", "text_embeds", "projection"),
    },
    "siglip": {
        "image": ("SiglipVisionModel", "pooler_output", "pooler"),
        "text": ("SiglipTextModel", "pooler_output", "pooler"),
    },
}
# Trained with every text padded to one length, and not told what is padding.
FIXED_LENGTH = ("siglip", "siglip_text_model")


def open_tower(
    given: str,
    modality: Kind,
    *,
    revision: str | None,
    pooling: str | None,
    max_length: int | None,
    prefix: str,
) -> Tower:
    """A model of transformers, or the fitting tower of a model of both.

    Args:
        given: a folder, or a hub id.
        modality: what it is to read.
        revision: of the hub's model.
        pooling: one of :data:`POOLINGS`; None: the model's own for CLIP and SigLIP, ``cls`` for images, ``last`` for
            language models that read from left to right, ``mean`` for the others.
        max_length: cut texts at so many tokens; None: as many as the model reads.
        prefix: put before every text.

    Raises:
        RecplugError: where the model cannot be had, read, or used for this.
    """
    library = optional_imports.library("transformers")
    if pooling is not None:
        one_of(pooling, POOLINGS, "pooling")
    source = hub.find(given, must_have=CONFIG, revision=revision)
    try:
        with quiet(library):
            config = library.AutoConfig.from_pretrained(source.where, **_only(source))
            pair = _pair(given, config, modality, pooling)
            model = _model(library, source, _half(config, modality) if pair else config, pair, pooling)
            _check_modality(given, model, modality)
            tool = library.AutoImageProcessor if modality == "image" else library.AutoTokenizer
            before: Any = tool.from_pretrained(source.where, **_only(source))
    except RecplugError:
        raise
    except Exception as error:  # in the library's words: a missing file, damaged weights, code of its own, ...
        raise unreadable("transformers", given, error) from error
    name, kept = f"transformers:{source.name}", source.revision()
    output, word = pair[1:] if pair else ("", pooling or _default_pooling(library, config, modality))
    tower = _Tower(model, output, word)
    if modality == "image":
        return Tower(tower, ImagePrepare(_Processed(before)), name, kept, word)
    prepare = Tokens(
        padded(before),
        max_length=longest(given, model, before, max_length),
        prefix=prefix,
        names=inspect.signature(model.forward).parameters,
        fixed=config.model_type in FIXED_LENGTH,
    )
    return Tower(tower, prepare, name, kept, word)


def _only(source: hub.Source) -> dict[str, Any]:
    """Files of one commit, and no code that comes with them."""
    return {"revision": source.commit or "main", "trust_remote_code": False}


def unreadable(library: str, given: str, error: Exception) -> RecplugError:
    """What the library said, in one line."""
    return RecplugError(
        f"{library} cannot read {given} ({one_line(error)[:200]}); the folder is incomplete, or of a kind that"
        " it does not know without code from elsewhere, which is never run"
    )


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Without notes on weights of the other tower, which nobody asked for, and without bars while reading weights."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def noting_missing(library: Any) -> Iterator[list[str]]:
    """The weights that files do not have, of all models that are read meanwhile by someone who does not ask."""
    kind = library.PreTrainedModel
    read = kind.__dict__["from_pretrained"]
    missing: list[str] = []

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        model, loaded = read.__func__(cls, *args, **{**kwargs, "output_loading_info": True})
        missing.extend(loaded["missing_keys"])
        return model

    kind.from_pretrained = classmethod(from_pretrained)
    try:
        yield missing
    finally:
        kind.from_pretrained = read


def _pair(given: str, config: Any, modality: Kind, pooling: str | None) -> tuple[str, str, str] | None:
    if config.model_type in PAIRS:
        if pooling is not None:
            raise RecplugError(f"{config.model_type}'s towers pool in their own way; leave --pooling out")
        return PAIRS[config.model_type][modality]
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        raise RecplugError(
            f"{given} is a {config.model_type} model of images and texts; of those, {' and '.join(PAIRS)} can be used"
        )
    return None


def _half(config: Any, modality: Kind) -> Any:
    """One tower's configuration. CLIP's says how wide the projection is in a place of its own, and in the whole's."""
    half = config.vision_config if modality == "image" else config.text_config
    if hasattr(half, "projection_dim") and hasattr(config, "projection_dim"):
        half.projection_dim = config.projection_dim
    return half


def _model(
    library: Any, source: hub.Source, config: Any, pair: tuple[str, str, str] | None, pooling: str | None
) -> nn.Module:
    if getattr(config, "is_encoder_decoder", False):
        raise RecplugError(
            f"{source.given} writes texts ({config.model_type}); use an encoder, or sentence-transformers:"
        )
    kind = getattr(library, pair[0] if pair else "AutoModel")
    model, loaded = kind.from_pretrained(source.where, config=config, output_loading_info=True, **_only(source))
    check_whole(source.given, loaded["missing_keys"], pooler=pooling == "pooler")
    return model


def check_whole(given: str, missing: Iterable[str], *, pooler: bool) -> None:
    """Refuse a model whose file lacks weights: the library fills them with random numbers, and only warns.

    Args:
        given: the model, as asked for.
        missing: names of weights.
        pooler: the pooler is needed, too.

    Raises:
        RecplugError: naming the first.
    """
    needed = sorted(name for name in missing if pooler or "pooler" not in name)
    if needed:
        other = ", or another pooling" if "pooler" in needed[0] else ""
        raise RecplugError(f"{given} has no weights for {needed[0]} ({len(needed)} missing); use a whole model{other}")


def _check_modality(given: str, model: Any, modality: Kind) -> None:
    reads = {"pixel_values": "image", "input_ids": "text"}.get(model.main_input_name)
    if reads != modality:
        what = f"{reads}s" if reads else f"neither images nor texts ({model.main_input_name})"
        raise RecplugError(f"{given} reads {what}; use another model for --modality {modality}")


def _default_pooling(library: Any, config: Any, modality: Kind) -> str:
    if modality == "image":
        return "cls"
    causal = type(config) in library.MODEL_FOR_CAUSAL_LM_MAPPING
    return "last" if causal and type(config) not in library.MODEL_FOR_MASKED_LM_MAPPING else "mean"


def padded(tokenizer: Any) -> Any:
    """The tokenizer, padding on the right, where no token looks, and with a token to pad with."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def longest(given: str, model: nn.Module, tokenizer: Any, asked: int | None) -> int:
    """Tokens that the model reads, or the fewer that were asked for.

    Raises:
        RecplugError: for more than it reads, or where nobody knows.
    """
    known = [limit for limit in (_positions(model), tokenizer.model_max_length) if limit and limit < LONGEST_TEXT]
    if asked is None:
        if not known:
            raise RecplugError(f"{given} says nowhere how many tokens it reads; give --max_length")
        return min(known)
    limit = _positions(model)
    if limit is not None and asked > limit:
        raise RecplugError(f"{given} reads {limit} tokens, not {asked}; give a smaller --max_length")
    return asked


def _positions(model: Any) -> int | None:
    """Places of the position embedding; RoBERTa's kin begin to count behind the padding token's number."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)


class _Processed:
    """A processor of transformers for one image."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]  # [3, H, W]


class _Tower(nn.Module):
    """A model and what is taken from it: an output by name, or its last states pooled."""

    def __init__(self, model: nn.Module, output: str, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.output = "pooler_output" if pooling == "pooler" else output
        self.pooling = pooling

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        out = self.model(**inputs)
        if self.output:
            return out[self.output].flatten(1)  # [b, width]
        states = out.last_hidden_state  # [b, t, width], or [b, width, h, w] of a convolution
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
        mask = inputs.get("attention_mask")
        if mask is None:
            mask = torch.ones(states.shape[:2], device=states.device)
        return pool(states, mask, self.pooling)
