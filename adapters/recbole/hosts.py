"""Which RecBole models can be grafted onto, how far, and why; the docs' table and the errors are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recplug.plugins.contract import Family
from recplug.plugins.errors import RecplugError

Status = Literal["supported", "restricted", "refused"]


@dataclass(frozen=True)
class Host:
    """What the adapter knows of one RecBole model.

    Attributes:
        name: RecBole's class name.
        family: its family.
        status: ``"supported"``, ``"restricted"`` (``reason`` says to what) or ``"refused"``.
        reason: one line; empty where nothing needs saying.
        table: the attribute that holds the item embedding.
        trim: whether encoding without padding is exact for it (tested).
        dot: whether ``forward`` returns one vector a user, scored by its dot product with the candidate table.
        losses: the ``loss_type`` values that work; empty where the model has only one loss.
        last_item: whether the encoder reads the last item alone, as a one-dimensional index.
    """

    name: str
    family: Family = "sequential"
    status: Status = "supported"
    reason: str = ""
    table: str = "item_embedding"
    trim: bool = False
    dot: bool = False
    losses: tuple[str, ...] = ("CE", "BPR")
    last_item: bool = False


def _refused(name: str, reason: str) -> Host:
    return Host(name, status="refused", reason=reason)


def _restricted(name: str, reason: str, **more: object) -> Host:
    return Host(name, status="restricted", reason=reason, **more)  # type: ignore[arg-type]


_PENALTY = "with fused candidates its L2 penalty on the item table acts on the fused table"
_FEATURES = "the item table only; its own feature fields need an .item file"

HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        Host("SASRec", trim=True, dot=True),
        Host("GRU4Rec", trim=True, dot=True),
        Host("LightSANs", dot=True),
        Host("NARM", trim=True, dot=True),
        Host("STAMP", dot=True),
        Host("CORE", trim=True, losses=("CE",)),
        Host("SINE", dot=True),
        Host("SRGNN", trim=True, dot=True),
        Host("FEARec", dot=True),
        Host("SHAN", dot=True),
        Host("HRM", dot=True),
        Host("FOSSIL"),
        Host("NPE"),
        Host("GCSAN", trim=True, dot=True, reason=_PENALTY),
        Host("NextItNet", dot=True, reason=_PENALTY),
        Host("Caser", dot=True, reason=_PENALTY),
        Host("SASRecF", dot=True, reason=_FEATURES),
        Host("GRU4RecF", dot=True, reason=_FEATURES),
        Host("FDSA", dot=True, reason=_FEATURES),
        Host("GRU4RecKG", dot=True, reason="the item table only; needs pretrained entity vectors"),
        Host("KSR", reason="the item table only; needs a knowledge graph with pretrained vectors"),
        Host("SASRecCPR", losses=("CE",), reason="its predict() fails upstream: full ranking only"),
        Host("GRU4RecCPR", losses=("CE",), reason="its predict() fails upstream: full ranking only"),
        _restricted("BERT4Rec", "cross-entropy only: its BPR loss reads candidates as sequences", losses=("CE",)),
        _restricted("TransRec", "no history: modules see the last item alone", losses=(), last_item=True),
        _restricted("HGN", "input side only: it scores against a table of its own", losses=("CE",)),
        _restricted("RepeatNet", "input side only: it scores by a linear layer", table="item_matrix", losses=()),
        _restricted("S3Rec", "fine-tuning only (train_stage: finetune): pre-training reads candidates as sequences"),
        _refused("FPMC", "it has four factor tables and no item embedding"),
        _refused("DIN", "it embeds all item fields together and has no item table"),
        _refused("DIEN", "it embeds all item fields together and has no item table"),
    )
}


def host_of(name: str) -> Host:
    """What is known of one of RecBole's sequential models.

    Raises:
        RecplugError: if it is refused, naming alternatives.
    """
    host = HOSTS[name]
    if host.status == "refused":
        raise RecplugError(
            f"plugins cannot be grafted onto {name}: {host.reason}; use {', '.join(first_choices())} instead"
        )
    return host


def first_choices() -> list[str]:
    """The models to name when another is refused."""
    return ["SASRec", "GRU4Rec", "BERT4Rec", "NARM", "CORE"]
