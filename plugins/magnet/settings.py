"""Settings of MAGNET."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from recplug.plugins.search import Range
from recplug.plugins.settings import NONZERO, PluginSettings, setting

STAGED = ("armed", "paper")  # triggers that watch the entropy
OF_PAIRS = {"mode": ("auto", "pair"), "family": "graph"}  # when pairs are routed, which is on graphs alone
SEVERAL = ("template", "free")  # structures with a router


class MagnetSettings(PluginSettings):
    """Every choice of MAGNET; the defaults add the mixture to the backbone's dot product (``docs/methods``)."""

    mode: Literal["auto", "pair", "node"] = setting(
        "auto",
        "What is routed: each pair of a user and an item (the paper), where the backbone lets scores be changed, or "
        "each item by itself; 'auto' takes pairs where it can.",
        paper="sec. 3.3",
    )
    modalities: tuple[str, ...] | None = setting(None, "Content sources by name; by default all there are.")
    base: Literal["views", "backbone", "none"] = setting(
        "views",
        "What MAGNET's part is added to: the dot product of the views' mean, the backbone's own score, or nothing (the "
        "paper). For items by themselves, and with one view, the first two are the same.",
        paper="eqs. 6, 21",
    )
    gamma: float = setting(
        1.0,
        "What MAGNET's part is multiplied by at the start, trained from there on; experts with a hidden layer want "
        "0.01. At 0 MAGNET is off.",
        search=Range(0.01, 2.0, log=True),
        when={"base": ("views", "backbone")},
    )
    # -- graphs
    neighbours: int = setting(
        10,
        "Nearest items by content, per item and modality.",
        paper="k, sec. 3.2.1",
        search=Range(5, 30),
        when=OF_PAIRS,
        ge=1,
        le=1000,
    )
    induced: int = setting(
        10,
        "Content-induced edges a user at most: behaviour vectors are the mean of those from the training graph and "
        "from the graph with these edges too; 0 for a single view.",
        paper="r, eq. 3",
        search=[0, 5, 10, 50, 150],
        when=OF_PAIRS,
        ge=0,
    )
    content_width: int = setting(
        256,
        "Principal components kept of wider content vectors; 0 keeps all columns. Not with channels.",
        ge=0,
        le=65536,
    )
    leave_one_out: bool = setting(
        True,
        "Whether, in training, a user's content profile leaves out the positive that is scored; without that the "
        "experts learn to find it there, and in the test it is not (the paper says nothing of it).",
        paper="eq. 8",
        when={**OF_PAIRS, "expert_input": ("product", "concat")},
    )
    # -- experts
    structure: Literal["template", "free", "single"] = setting(
        "template",
        "Fixed mixes of the sources, mixes that each expert learns, or one expert on their mean: the last two are the "
        "paper's controls.",
        paper="eqs. 12-15",
    )
    alpha: float = setting(
        0.6,
        "How far a dominant expert leans on its anchor.",
        paper="α, eq. 12",
        when={"structure": "template"},
        ge=0,
        le=1,
    )
    beta: float = setting(
        0.2,
        "How far a balanced expert leans on its anchor.",
        paper="β, eq. 13",
        when={"structure": "template"},
        ge=0,
        le=1,
    )
    delta: float = setting(
        0.5,
        "The first auxiliary's share in a complementary expert, the rest in equal parts.",
        paper="δ, eq. 14",
        when={"structure": "template"},
        ge=0,
        le=1,
    )
    expert_input: Literal["channels", "product", "concat"] = setting(
        "product",
        "What an expert makes of a pair: its mix of the channels' scores (ours: the user's behaviour with the item's, "
        "and with that of its nearest items by each modality), each column weighed anew; the same dot product of mixed "
        "content vectors (ours; node mode reads 'channels' so); or an MLP of these side by side (the paper).",
        paper="φ, eq. 11",
    )
    dropout: float = setting(
        0.1, "On the experts' hidden layer and the router's query.", paper="p_d", search=Range(0.0, 0.3), ge=0, lt=1
    )
    # -- router
    top_k: int = setting(
        4, "Experts that a pair keeps.", paper="K, eq. 18", search=[2, 4, 9], when={"structure": SEVERAL}, ge=1
    )
    # -- losses and stages
    lambda_route: float = setting(
        0.3,
        "Weight of the coverage and confidence losses.",
        paper="λ_r, eq. 31",
        search=Range(0.1, 0.6),
        loss_weight=True,
        when={"structure": SEVERAL},
        ge=0,
    )
    weighting: Literal["linear", "quadratic", "constant", "reversed"] = setting(
        "linear",
        "How the two losses' weights follow the entropy; the last three are the paper's controls.",
        paper="eq. 31",
        when={"lambda_route": NONZERO, "structure": SEVERAL},
    )
    trigger: str = setting(
        "armed",
        "When the second stage begins: 'paper' (high entropy in several steps in a row, which fires within the first "
        "steps), 'armed' (the same from the fourth epoch on), or 'fixed@T' (epoch T, from 0).",
        paper="eq. 26",
        when={"lambda_route": NONZERO, "structure": SEVERAL},
    )
    threshold: float = setting(
        0.9,
        "Normalised entropy that fires the trigger.",
        paper="H*, eq. 26",
        when={"trigger": STAGED, "lambda_route": NONZERO, "structure": SEVERAL},
        ge=0,
        le=1,
    )
    patience: int = setting(
        3,
        "Steps in a row that it must last.",
        paper="W, eq. 26",
        when={"trigger": STAGED, "lambda_route": NONZERO, "structure": SEVERAL},
        ge=1,
        le=1000,
    )
    lambda_view: float = setting(
        1e-5,
        "Weight of the contrast between the views; at the paper's 0.01 beside a mean it rules the training.",
        paper="λ_ctr, eq. 28",
        search=Range(1e-6, 1e-3, log=True),
        loss_weight=True,
        when={"induced": NONZERO, **OF_PAIRS},
        ge=0,
    )
    temperature: float = setting(
        0.5,
        "Of the contrast between the views.",
        paper="τ, eq. 28",
        search=Range(0.1, 1.5),
        when={"lambda_view": NONZERO, "induced": NONZERO, **OF_PAIRS},
        gt=0,
    )

    reduction: Literal["mean", "sum"] = setting(
        "mean",
        "What the weights of MAGNET's losses stand beside: the host's loss as a mean over the batch's pairs, or as the "
        "sum of eq. 27, which divides them by the batch.",
        paper="eq. 27",
    )

    @field_validator("trigger")
    @classmethod
    def _known_trigger(cls, value: str) -> str:
        if value not in STAGED and not re.fullmatch(r"fixed@\d+", value):
            raise ValueError(f"choose {', '.join(STAGED)} or fixed@T, such as fixed@10")
        return value

    @property
    def inert(self) -> bool:
        """Whether these settings leave every score and row as they are."""
        return self.base != "none" and self.gamma == 0
