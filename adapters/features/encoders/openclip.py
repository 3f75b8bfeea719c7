"""Encoders of open_clip: the image and the text tower of one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recplug.adapters import optional_imports
from recplug.adapters.features.encoders import hub
from recplug.adapters.features.encoders.encoder import Kind, Tower
from recplug.adapters.features.encoders.preprocessing import ImagePrepare, TextPrepare
from recplug.plugins.errors import RecplugError, did_you_mean, one_line

CONFIG = "open_clip_config.json"
HUB = "hf-hub:"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SMALL_FILES = ["*.json", "*.txt", "*.model"]


@dataclass(frozen=True)
class _Found:
    """A model, and how open_clip is asked for it.

    Attributes:
        name, revision: which weights these are.
        model, pretrained: open_clip's words for them.
        quick_gelu: the weights were trained with that activation, whatever the model's configuration says.
    """

    name: str
    revision: str
    model: str
    pretrained: str | None = None
    quick_gelu: bool = False


def open_tower(given: str, modality: Kind, *, revision: str | None, pooling: str | None, prefix: str) -> Tower:
    """A tower of ``MODEL/PRETRAINED``, of ``hf-hub:ORG/NAME``, or of a folder with ``open_clip_config.json``.

    Args:
        given: PRETRAINED is one of open_clip's tags, or a file with weights.
        modality: which tower.
        revision: of the hub's model.
        pooling: must be None; the model has its own.
        prefix: put before every text.

    Raises:
        RecplugError: for an unknown model, and where weights cannot be had or read.
    """
    library = optional_imports.library("open_clip")
    if pooling is not None:
        raise RecplugError("open_clip's models pool in their own way; leave --pooling out")
    found = _find(library, given, revision)
    try:
        model, _, transform = library.create_model_and_transforms(
            found.model,
            pretrained=found.pretrained,
            require_pretrained=True,
            weights_only=True,
            force_quick_gelu=found.quick_gelu,
        )
        tokenizer = library.get_tokenizer(found.model) if modality == "text" else None
    except Exception as error:  # in the library's words: a damaged file, weights of another model, no network, ...
        raise RecplugError(
            f"open_clip cannot read {given} ({one_line(error)[:200]}); give weights that belong to the model"
        ) from error
    if tokenizer is None:
        return Tower(_Images(model), ImagePrepare(transform), found.name, found.revision, "projection")
    return Tower(_Texts(model), _ClipTokens(tokenizer, prefix=prefix), found.name, found.revision, "projection")


def _find(library: Any, given: str, revision: str | None) -> _Found:
    model, _, pretrained = given.partition("/")
    known = library.list_models()
    if not given.startswith(HUB) and (model in known or not Path(given).expanduser().is_dir()):
        if model not in known and given.startswith((".", "/", "~")):
            raise RecplugError(f"there is no folder {given}; give one with {CONFIG}, or MODEL/PRETRAINED")
        if model not in known:
            raise RecplugError(
                f"open_clip has no model {model!r}{did_you_mean(model, known)}; write open_clip:MODEL/PRETRAINED,"
                f" open_clip:{HUB}ORG/NAME, or open_clip: and a folder with {CONFIG}"
            )
        if revision is not None:
            raise RecplugError("open_clip's tags and files have no revisions; leave --revision out")
        return _built_in(library, model, pretrained)
    source = hub.find(given.removeprefix(HUB), must_have=CONFIG, revision=revision)
    if source.commit is None:
        return _Found(f"open_clip:{source.name}", source.revision(), f"local-dir:{source.where}")
    return _Found(f"open_clip:{HUB}{source.name}", source.commit, f"local-dir:{_fetched(source)}")


def _built_in(library: Any, model: str, pretrained: str) -> _Found:
    settings = library.get_pretrained_cfg(model, pretrained) if pretrained else {}
    if settings:
        return _tagged(library, model, pretrained, settings)
    file = Path(pretrained).expanduser()
    if not pretrained or not file.is_file():
        tags = library.list_pretrained_tags_by_model(model)
        hint = did_you_mean(pretrained, tags) if pretrained else ""
        raise RecplugError(
            f"{pretrained!r} names no weights of {model}{hint}; give a file, or one of: {', '.join(tags) or 'none'}"
        )
    return _Found(f"open_clip:{model}/{file.name}", hub.weights_hash(file), model, str(file))


def _tagged(library: Any, model: str, tag: str, settings: dict[str, Any]) -> _Found:
    # Where the tag's activation is not the model's, open_clip only warns, and the vectors are not what was trained.
    quick = bool(settings.get("quick_gelu", False))
    repository, _, filename = settings.get("hf_hub", "").rpartition("/")
    if repository:
        safe = Path(filename).with_suffix(".safetensors").name if filename else ""
        path = hub.fetch(repository, *((safe, filename) if filename else WEIGHTS))
    else:
        try:
            path = Path(library.download_pretrained(settings))
        except Exception as error:  # of urllib, or a checksum
            raise RecplugError(
                f"the weights {tag} of {model} cannot be fetched ({one_line(error)[:200]}); give a file"
            ) from error
    revision = hub.commit_of(path) or hub.weights_hash(path)
    return _Found(f"open_clip:{model}/{tag}", revision, model, tag, quick)


def _fetched(source: hub.Source) -> Path:
    """The folder in the hub's cache with the model's weights, configuration and tokenizer."""
    from huggingface_hub import snapshot_download

    weights = hub.fetch(source.where, *WEIGHTS, revision=source.commit)
    try:
        snapshot_download(source.where, revision=source.commit, allow_patterns=SMALL_FILES)
    except Exception as error:  # of the hub's HTTP client
        raise RecplugError(
            f"{source.given} cannot be read from the hub ({one_line(error)[:200]}); try again, or give a folder"
        ) from error
    return weights.parent


class _Images(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model.encode_image(inputs["pixel_values"], normalize=False)  # [b, width]


class _Texts(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model.encode_text(inputs["input_ids"], normalize=False)  # [b, width]


class _ClipTokens(TextPrepare):
    """Texts for open_clip's tokenizers, which cut and pad to the context the model was trained with."""

    def __init__(self, tokenizer: Any, *, prefix: str) -> None:
        super().__init__(tokenizer.context_length, prefix)
        self.tokenizer = tokenizer

    def _inputs(self, texts: list[str]) -> dict[str, Tensor]:
        ids: Tensor = self.tokenizer(texts)  # [b, context]
        return {"input_ids": ids}

    def _count(self, texts: list[str]) -> list[int]:
        if hasattr(self.tokenizer, "encode"):  # its own byte pairs, without the tokens for start and end
            return [len(self.tokenizer.encode(text)) + 2 for text in texts]
        cleaned = [self.tokenizer.clean_fn(text) for text in texts]  # around a tokenizer of transformers
        return [len(ids) for ids in self.tokenizer.tokenizer(cleaned, verbose=False)["input_ids"]]
