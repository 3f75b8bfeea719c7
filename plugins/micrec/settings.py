"""Settings of MICRec."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recplug.plugins.search import Range
from recplug.plugins.settings import NONZERO, PluginSettings, setting

TWO_DOMAINS = {"source": NONZERO}
CONTRAST = {"source": NONZERO, "gamma": NONZERO}


class MicrecSettings(PluginSettings):
    """Every choice of MICRec; which of them the paper gives, ``docs/methods/micrec.rst`` says."""

    templates: bool = setting(
        True, "Whether users are built from the items that they had, and items from their users.", paper="E"
    )
    share: float = setting(
        1.0,
        "Share of the training users, and of the training items, that are templates: those with many interactions, "
        "each discounted by how many the other side has (error-sort).",
        paper="ρ_T, INMO",
        search=[0.2, 0.5, 1.0],
        when={"templates": True},
        gt=0,
        le=1,
    )
    join: Literal["residual", "replace"] = setting(
        "residual",
        "What stands in the host's tables: its own rows plus a trained multiple of the representations, or the "
        "representations alone (the paper's).",
        search=["replace", "residual"],
        when={"templates": True},
    )
    annealing: float = setting(
        0.99,
        "Factor by which α = 2 - 2p shrinks after an epoch: representations are divided by count to the p, which moves "
        "from 1/2 to 1; with 1 it stays at 1/2.",
        paper="δ, INMO",
        when={"templates": True},
        ge=0,
        le=1,
    )
    edge_dropout: float = setting(
        0.0,
        "Share of the templates left out of each sum, in training.",
        paper="q, INMO",
        search=[0.0, 0.1, 0.3],
        when={"templates": True},
        ge=0,
        lt=1,
    )
    modalities: tuple[str, ...] | None = setting(
        None, "Content sources by name; by default all there are; () means no content."
    )
    neighbours: int = setting(
        3,
        "Content neighbours that a representation is refined with, of items and of users, whose content is that of the "
        "items that they had; 0: none.",
        paper="K",
        search=[1, 3, 5, 10],
        ge=0,
        le=100,
    )
    text_weight: float = setting(
        0.9,
        "Share of the modality 'text' in likeness; the others share the rest.",
        paper="w",
        when={"neighbours": NONZERO},
        ge=0,
        le=1,
    )
    isolated: Literal["borrow", "keep"] = setting(
        "borrow",
        "What an item without interactions has at the end: the mean of its neighbours' final vectors, or its own.",
        when={"neighbours": NONZERO},
    )
    lambda_self: float = setting(
        0.01,
        "Weight of the self-enhanced loss, on pairs of raw template rows.",
        paper="λ, INMO",
        search=Range(1e-3, 1e-1, log=True),
        loss_weight=True,
        when={"templates": True},
        ge=0,
    )
    source: str | None = setting(None, "A second domain to learn from: the name of its data set.")
    source_path: str | None = setting(None, "Its folder of data sets; by default that of the target.", when=TWO_DOMAINS)
    links: str | None = setting(
        None,
        "A file of two columns, user token of the source and of the target; by default equal tokens are linked.",
        when=TWO_DOMAINS,
    )
    overlap: float = setting(
        1.0,
        "Share of the linked users that the contrast is given; a smaller share is part of a larger one.",
        paper="overlap ratio",
        when=CONTRAST,
        ge=0,
        le=1,
    )
    gamma: float = setting(
        0.1,
        "Weight of the contrast of the two domains; the paper's 1 costs more in the target than the contrast gives.",
        paper="γ",
        search=Range(0.01, 2.0, log=True),
        loss_weight=True,
        when=TWO_DOMAINS,
        ge=0,
    )
    warm_up: int = setting(5, "Epochs over which gamma grows from a part of it to all; 0: none.", when=CONTRAST, ge=0)
    temperature: float = setting(0.2, "Of the contrast.", paper="τ", when=CONTRAST, gt=0)
    anchors: int | None = setting(
        None,
        "Linked users in the contrast, a step; by default at most 1024, and 256 on sequential hosts, which have to "
        "encode each of them.",
        paper="m",
        when=CONTRAST,
        ge=2,
    )

    @property
    def inert(self) -> bool:
        """Whether these settings leave every table as it is."""
        return not (self.templates or self.neighbours)

    @model_validator(mode="after")
    def _agree(self) -> MicrecSettings:
        if self.modalities and len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities names one twice: {', '.join(self.modalities)}")
        if self.source is None:
            for key in ("source_path", "links"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is of a second domain; name one with source")
        return self
