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
        only: a configuration key and the one value that works, or None.
        beyond_batch: whether its loss encodes histories of other users too, whose items the batch does not hold.
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
    only: tuple[str, str] | None = None
    beyond_batch: bool = False


def _refused(name: str, reason: str) -> Host:
    return Host(name, status="refused", reason=reason)


def _restricted(name: str, reason: str, **more: object) -> Host:
    return Host(name, status="restricted", reason=reason, **more)  # type: ignore[arg-type]


_PENALTY = "with fused candidates its L2 penalty on the item table acts on the fused table"
_FEATURES = "the item table only; its own feature fields need an .item file"
_NO_PREDICT = "its predict() fails upstream: full ranking only"

# `trim` and `dot` are measured, model by model, in tests/adapters/recbole/test_trim.py; a comment says why not.
HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        Host("SASRec", trim=True, dot=True),
        Host("GRU4Rec", trim=True, dot=True),
        Host("LightSANs", dot=True),  # its low-rank attention averages over padding too
        Host("NARM", trim=True, dot=True),
        Host("STAMP", dot=True),  # it sums the padding row, which its initialisation makes non-zero
        Host("CORE", trim=True, losses=("CE",)),  # scores by cosine
        Host("SINE", dot=True),  # it attends to padding, and reshapes to the full length
        Host("SRGNN", trim=True, dot=True),
        Host("FEARec", dot=True, beyond_batch=True),  # it filters frequencies of the full length
        Host("SHAN", dot=True),  # it reads the last places, and what stands there depends on the length
        Host("HRM", dot=True),  # it takes the maximum over the last two places, padding where there is one item
        Host("FOSSIL", dot=True),  # it counts places from the full length, and sums the padding row
        Host("NPE"),  # it sums the padding row; scores by rectified rows
        Host("GCSAN", trim=True, dot=True, reason=_PENALTY),
        Host("NextItNet", dot=True, reason=_PENALTY),  # it reads its convolutions' last place, which is padding
        Host("Caser", dot=True, reason=_PENALTY),  # its filters are as long as the full length
        Host("SASRecF", trim=True, dot=True, reason=_FEATURES),
        Host("GRU4RecF", trim=True, dot=True, reason=_FEATURES),
        Host("FDSA", trim=True, dot=True, reason=_FEATURES),
        Host("KSR", trim=True, reason="the item table only; needs a knowledge graph with pretrained vectors"),
        Host("GRU4RecKG", trim=True, dot=True, reason="the item table only; needs pretrained entity vectors"),
        # Both read the last place for their mixture of softmaxes, which is padding.
        Host("SASRecCPR", losses=("CE",), reason=_NO_PREDICT),
        Host("GRU4RecCPR", losses=("CE",), reason=_NO_PREDICT),
        # An output bias beside the dot product.
        _restricted(
            "BERT4Rec", "cross-entropy only: its BPR loss reads candidates as sequences", trim=True, losses=("CE",)
        ),
        # Nothing to trim: it gathers one item. Scores by distance.
        _restricted("TransRec", "no history: modules see the last item alone", losses=(), last_item=True),
        # It sums and averages over padding.
        _restricted("HGN", "input side only: it scores against a table of its own", losses=("CE",)),
        # Its layers are as long as the full length.
        _restricted("RepeatNet", "input side only: it scores by a linear layer", table="item_matrix", losses=()),
        _restricted(
            "S3Rec",
            "fine-tuning only: pre-training reads candidates as sequences",
            trim=True,
            only=("train_stage", "finetune"),
        ),
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
