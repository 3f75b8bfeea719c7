"""Settings of MICRec."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recplug.plugins.search import Range
from recplug.plugins.settings import PluginSettings, setting


class MicrecSettings(PluginSettings):
    """Every choice of MICRec; which of them the paper gives, ``docs/methods/micrec.rst`` says."""

    templates: bool = setting(
        True, "Whether users are built from the items that they had, and items from their users.", paper="E"
    )
    share: float = setting(
        1.0,
        "Share of the training users, and of the training items, that are templates.",
        paper="ρ_T, INMO",
        search=[0.2, 0.5, 1.0],
        gt=0,
        le=1,
    )
    selection: Literal["error_sort", "degree", "random"] = setting(
        "error_sort",
        "Which of them, below a share of 1: those with many interactions, each discounted by how many the other side "
        "has; those with many; or any.",
        paper="INMO",
    )
    join: Literal["residual", "replace"] = setting(
        "residual",
        "What stands in the host's tables: its own rows plus a trained multiple of the representations, or the "
        "representations alone (the paper's).",
        search=["replace", "residual"],
    )
    gate: float = setting(1.0, "That multiple at the start.", ge=0)
    annealing: float = setting(
        0.99,
        "Factor by which α = 2 - 2p shrinks after an epoch: representations are divided by count to the p, which moves "
        "from 1/2 to 1; with 1 it stays at 1/2.",
        paper="δ, INMO",
        ge=0,
        le=1,
    )
    edge_dropout: float = setting(
        0.0,
        "Share of the templates left out of each sum, in training.",
        paper="q, INMO",
        search=[0.0, 0.1, 0.3],
        ge=0,
        lt=1,
    )
    global_rows: bool = setting(
        True, "Whether one more row enters every user, and one every item: what a node without interactions has."
    )
    modalities: tuple[str, ...] | None = setting(
        None, "Content sources by name; by default all there are; () means no content."
    )
    neighbours: int = setting(
        3,
        "Content neighbours that an item's representation is refined with; 0: none.",
        paper="K",
        search=[1, 3, 5, 10],
        ge=0,
        le=100,
    )
    user_neighbours: int | None = setting(
        None, "The same of users, whose content is that of the items that they had; by default as many.", ge=0, le=100
    )
    text_weight: float = setting(
        0.9,
        "Share of the modality 'text' in likeness; the others share the rest.",
        paper="w",
        search=[0.0, 0.5, 0.9, 1.0],
        ge=0,
        le=1,
    )
    refinement: Literal["similarity", "mean", "residual"] = setting(
        "similarity",
        "How: the mean of a node and its neighbours weighed by likeness, their plain mean, or the node plus its "
        "neighbours' mean by softmax.",
    )
    isolated: Literal["borrow", "keep"] = setting(
        "borrow",
        "What an item without interactions has at the end: the mean of its neighbours' final vectors, or its own.",
    )
    lambda_self: float = setting(
        0.01,
        "Weight of the self-enhanced loss, on pairs of raw template rows.",
        paper="λ, INMO",
        search=Range(1e-3, 1e-1, log=True),
        loss_weight=True,
        ge=0,
    )
    source: str | None = setting(None, "A second domain to learn from: the name of its data set.")
    source_path: str | None = setting(None, "Its folder of data sets; by default that of the target.")
    links: str | None = setting(
        None, "A file of two columns, user token of the source and of the target; by default equal tokens are linked."
    )
    gamma: float = setting(
        0.1,
        "Weight of the contrast of the two domains; the paper's 1 costs more in the target than the contrast gives.",
        paper="γ",
        search=Range(0.01, 2.0, log=True),
        loss_weight=True,
        ge=0,
    )
    warm_up: int = setting(5, "Epochs over which gamma grows from a part of it to all; 0: none.", ge=0)
    temperature: float = setting(0.2, "Of the contrast.", paper="τ", gt=0)
    anchors: int | None = setting(
        None,
        "Linked users in the contrast, a step; by default at most 1024, and 256 on sequential hosts, which have to "
        "encode each of them.",
        paper="m",
        ge=2,
    )
    hidden: int | None = setting(None, "Hidden width of the two projections; by default the vectors' own.", ge=1)
    projection: int | None = setting(None, "Width of what is compared; by default the vectors' own.", ge=1)
    anchor: Literal["none", "source", "target"] = setting(
        "none", "Which domain stands still in the contrast, when one is much richer: the other alone is moved."
    )

    @property
    def inert(self) -> bool:
        """Whether these settings leave every table as it is."""
        return not (self.templates or self.neighbours or self.user_neighbours)

    @model_validator(mode="after")
    def _agree(self) -> MicrecSettings:
        if self.modalities and len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities names one twice: {', '.join(self.modalities)}")
        if self.source is None:
            for key in ("source_path", "links"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is of a second domain; name one with source")
        return self
