"""Encoders by name: frozen models of open_clip, transformers and sentence-transformers, behind one interface."""

from __future__ import annotations

from recplug.adapters.features.encoders.encoder import (
    PRECISIONS,
    Encoder,
    Kind,
    Precision,
    Tower,
    one_of,
    open_device,
)
from recplug.adapters.features.encoders.preprocessing import Prepared
from recplug.plugins.errors import RecplugError

LIBRARIES = ("open_clip", "transformers", "sentence-transformers")

__all__ = ["LIBRARIES", "Encoder", "Prepared", "open_encoder"]


def open_encoder(
    spec: str,
    modality: Kind,
    *,
    revision: str | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    normalise: bool = False,
    device: str = "auto",
    precision: Precision = "fp32",
    prefix: str = "",
) -> Encoder:
    """Open an encoder by its name. Code that comes with a model is never run.

    Args:
        spec: ``open_clip:MODEL/PRETRAINED`` (a tag or a file), ``open_clip:hf-hub:ORG/NAME``,
            ``transformers:ID_OR_FOLDER`` or ``sentence-transformers:ID_OR_FOLDER``.
        modality: ``"image"`` or ``"text"``.
        revision: of a model on the hub: branch, tag or commit.
        pooling: ``cls``, ``mean``, ``max``, ``last`` or ``pooler``, for models of transformers that are no CLIP or
            SigLIP; None: by the kind of model.
        max_length: cut texts at so many tokens; None: as many as the model reads.
        normalise: scale vectors to length 1.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        precision: of matrix products; the weights and what comes out stay in fp32.
        prefix: put before every text, for models that were trained with one, like ``"query: "``.

    Raises:
        RecplugError: for a spec or an option that is wrong or does not fit the model, where the library is not
            installed, and where the model cannot be had or read.
    """
    kind, _, given = spec.partition(":")
    one_of(modality, ("image", "text"), "modality")
    one_of(precision, tuple(PRECISIONS), "precision")
    one_of(kind, LIBRARIES, "encoder")
    if not given:
        raise RecplugError(f"{spec!r} names no model; write {kind}: and a model")
    if modality == "image" and (max_length is not None or prefix):
        raise RecplugError("max_length and prefix are for texts; leave them out for images")
    if max_length is not None and max_length < 1:
        raise RecplugError(f"max_length {max_length} leaves nothing of a text; give at least 1")
    place = open_device(device)
    tower = _opened(kind, given, modality, revision, pooling, max_length, prefix)
    return Encoder(tower, modality, normalise=normalise, device=place, precision=precision)


def _opened(
    kind: str,
    given: str,
    modality: Kind,
    revision: str | None,
    pooling: str | None,
    max_length: int | None,
    prefix: str,
) -> Tower:
    # Here, so that each library is imported only for its own models.
    if kind == "open_clip":
        from recplug.adapters.features.encoders import openclip

        if max_length is not None:
            raise RecplugError("open_clip's models read texts of one length; leave --max_length out")
        return openclip.open_tower(given, modality, revision=revision, pooling=pooling, prefix=prefix)
    from recplug.adapters.features.encoders import sentences, transformer

    room = transformer if kind == "transformers" else sentences
    return room.open_tower(given, modality, revision=revision, pooling=pooling, max_length=max_length, prefix=prefix)
