"""Encoders of sentence-transformers: a language model with its pooling, and what it was trained with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from recplug.adapters import optional_imports
from recplug.adapters.features.encoders import hub
from recplug.adapters.features.encoders.encoder import Kind, Tower
from recplug.adapters.features.encoders.preprocessing import Tokens
from recplug.adapters.features.encoders.transformer import check_whole, longest, noting_missing, quiet, unreadable
from recplug.plugins.errors import RecplugError

MODULES = "modules.json"
ORGANISATION = "sentence-transformers"  # a hub id without one means this


def open_tower(
    given: str,
    modality: Kind,
    *,
    revision: str | None,
    pooling: str | None,
    max_length: int | None,
    prefix: str,
) -> Tower:
    """A model of sentence-transformers, with its own pooling and the prompt that it uses by default.

    Args:
        given: a folder, or a hub id.
        modality: must be ``text``.
        revision: of the hub's model.
        pooling: must be None; the model has its own.
        max_length: cut texts at so many tokens; None: as the model says.
        prefix: put before every text, in place of the model's own prompt.

    Raises:
        RecplugError: where the model cannot be had, read, or used for this.
    """
    library = optional_imports.library("sentence_transformers")
    transformers = optional_imports.library("transformers")
    if modality != "text":
        raise RecplugError("sentence-transformers: reads texts; for images use open_clip: or transformers:")
    if pooling is not None:
        raise RecplugError("sentence-transformers' models pool in their own way; leave --pooling out")
    hub_id = given if "/" in given else f"{ORGANISATION}/{given}"
    source = hub.find(given, must_have=MODULES, revision=revision, hub_id=hub_id)
    try:
        with quiet(transformers), noting_missing(transformers) as missing:
            model: Any = library.SentenceTransformer(
                source.where, revision=source.commit, device="cpu", trust_remote_code=False
            )
    except Exception as error:  # in the library's words: a missing file, a module that is not its own, ...
        raise unreadable("sentence-transformers", given, error) from error
    check_whole(given, missing, pooler=False)
    first, last = model[0], model[len(model) - 1]
    _check_plain(given, model)
    limit = longest(given, first.auto_model, model.tokenizer, max_length)
    prepare = Tokens(
        model.tokenizer,
        max_length=limit if max_length else min(limit, model.max_seq_length or limit),
        prefix=prefix or model.prompts.get(model.default_prompt_name, ""),
        names=("input_ids", "attention_mask", "token_type_ids"),
        lower=bool(getattr(first, "do_lower_case", False)),
    )
    return Tower(
        _Sentences(model),
        prepare,
        f"sentence-transformers:{source.name}",
        source.revision(),
        _pooling(model),
        normalised=type(last).__name__ == "Normalize",
    )


def _check_plain(given: str, model: Any) -> None:
    """Models that begin with a transformer for texts. Others take their input in another form."""
    first = model[0]
    kinds = getattr(first, "modality_config", {"text": None})
    if type(first).__name__ != "Transformer" or "text" not in kinds or "message" in kinds:
        raise RecplugError(
            f"{given} does not begin with a transformer for plain texts ({type(first).__name__}); use another model"
        )
    for module in model:
        if model.default_prompt_name and not getattr(module, "include_prompt", True):
            raise RecplugError(f"{given} leaves its prompt out of its mean, which is not supported; use another model")


def _pooling(model: Any) -> str:
    for module in model:
        if type(module).__name__ == "Pooling":
            # Older releases have flags, and a method that puts them into words.
            mode = getattr(module, "pooling_mode", None) or module.get_pooling_mode_str()
            return mode if isinstance(mode, str) else "+".join(mode)
    return "its own"


class _Sentences(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(dict(inputs))["sentence_embedding"]  # [b, width]
