"""Settings of MAGNET, and the named readings of the paper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator, model_validator

from recplug.plugins.search import Range
from recplug.plugins.settings import PluginSettings, setting

Preset = Literal["plugin", "paper", "robust"]
OF_NODES = ("product", "concat")  # forms of experts that make an item's vector without a user
_OR = " or ".join(OF_NODES)
TRIGGERS = ("paper", "armed", "joint", "below", "plateau")

# What a preset says where the user says nothing; `plugin` is the defaults below.
PRESETS: dict[Preset, dict[str, Any]] = {
    "plugin": {},
    "paper": {
        "mode": "pair",
        "join": "replace",
        "views": "dv",
        "neighbours": 20,
        "induced": 150,
        "content_width": 0,
        "contrast_rows": 1024,
        "lambda_view": 0.01,
        "trigger": "paper",
        "expert_input": "concat",
        "router_hidden": 64,
        "leave_one_out": False,
    },
    "robust": {"coverage_floor": 0.1},
}


class MagnetSettings(PluginSettings):
    """Every choice of MAGNET; the defaults add the mixture to the backbone's dot product (``docs/methods``)."""

    preset: Preset = setting(
        "plugin",
        "A named reading: an addition to the backbone; the paper as printed (Baby's values, its scores in the "
        "backbone's place); or the addition with a coverage loss in both stages. Other settings given beside it win.",
    )
    mode: Literal["auto", "pair", "node"] = setting(
        "auto",
        "What is routed: each pair of a user and an item (the paper), where the backbone lets scores be changed, or "
        "each item by itself; 'auto' takes pairs where it can.",
        paper="sec. 3.3",
    )
    modalities: tuple[str, ...] | None = setting(None, "Content sources by name; by default all there are.")
    join: Literal["residual", "replace"] = setting(
        "residual", "Whether MAGNET's score (or item) is added to the backbone's or takes its place (the paper)."
    )
    base: Literal["views", "backbone"] = setting(
        "views",
        "With join 'residual' and two views: what MAGNET's part is added to, the dot product of the views' mean or "
        "the backbone's own score.",
        paper="eq. 6",
    )
    gamma: float = setting(
        1.0,
        "With join 'residual': what MAGNET's part is multiplied by at the start; experts with a hidden layer want "
        "0.01.",
        search=Range(0.01, 2.0, log=True),
    )
    learn_gamma: bool = setting(True, "Whether gamma is trained; fixed at 0 it leaves the backbone as it is.")
    # -- graphs
    views: Literal["auto", "sv", "dv"] = setting(
        "auto",
        "Behaviour vectors from the training graph alone (sv), or their mean with those from the graph that has "
        "content-induced edges too (dv); 'auto' is dv for pairs.",
        paper="eqs. 4-6",
    )
    neighbours: int = setting(
        10,
        "Nearest items by content, per item and modality.",
        paper="k, sec. 3.2.1",
        search=Range(5, 30),
        ge=1,
        le=1000,
    )
    induced: int = setting(
        10, "Content-induced edges a user at most; 0 for none.", paper="r, eq. 3", search=[5, 10, 50, 150], ge=0
    )
    induced_score: Literal["full", "neighbour"] = setting(
        "full",
        "What ranks a candidate edge: its cosine with every item of the history, or with those alone whose neighbour "
        "it is, which suits content that was fitted to a kNN graph.",
        paper="eq. 2",
    )
    content_width: int = setting(
        256, "Principal components kept of wider content vectors; 0 keeps all columns.", ge=0, le=65536
    )
    leave_one_out: bool = setting(
        True,
        "Whether, in training, a user's content profile leaves out the positive that is scored; without that the "
        "experts learn to find it there, and in the test it is not (the paper says nothing of it).",
        paper="eq. 8",
    )
    # -- experts
    structure: Literal["template", "free", "single"] = setting(
        "template",
        "Fixed mixes of the sources, mixes that each expert learns, or one expert on their mean: the last two are the "
        "paper's controls.",
        paper="eqs. 12-15",
    )
    alpha: float = setting(0.6, "How far a dominant expert leans on its anchor.", paper="α, eq. 12", ge=0, le=1)
    beta: float = setting(0.2, "How far a balanced expert leans on its anchor.", paper="β, eq. 13", ge=0, le=1)
    delta: float | tuple[float, ...] = setting(
        0.5,
        "The first auxiliary's share in a complementary expert, the rest in equal parts; or the share of each.",
        paper="δ, eq. 14",
    )
    epsilon: float = setting(0.1, "The anchor's share in a complementary expert.", paper="ε, eq. 14", ge=0, le=1)
    expert_input: Literal["product", "concat", "concat_prod", "dot"] = setting(
        "product",
        "What an expert makes of a pair: the dot product of its two vectors, each column weighed anew (ours); an MLP "
        "of both side by side (the paper), of their product too, or the dot product of two projections, all of which "
        "need more data than reviews have.",
        paper="φ, eq. 11",
    )
    hidden: int = setting(64, "Width of an expert's hidden layer, where it has one.", ge=1, le=4096)
    activation: Literal["gelu", "relu"] = setting("gelu", "Of experts and router; ReLU ranks faster.")
    dropout: float = setting(
        0.1, "On the experts' hidden layer and the router's query.", paper="p_d", search=Range(0.0, 0.3), ge=0, lt=1
    )
    # -- router
    top_k: int = setting(4, "Experts that a pair keeps.", paper="K, eq. 18", search=[2, 4, 9], ge=1)
    router_hidden: int = setting(16, "Width of the router's hidden layer; 0 for a linear router.", ge=0, le=4096)
    detach_router_input: bool = setting(False, "Whether the router's losses stay out of the encoder.")
    # -- losses and stages
    lambda_route: float = setting(
        0.3,
        "Weight of the coverage and confidence losses.",
        paper="λ_r, eq. 31",
        search=Range(0.1, 0.6),
        loss_weight=True,
        ge=0,
    )
    lambda_view: float = setting(
        1e-5,
        "Weight of the contrast between the views. The paper's 0.01 stands beside a sum over a batch of a thousand "
        "pairs, where everything here is a mean; at 0.01 it rules the training.",
        paper="λ_ctr, eq. 28",
        search=Range(1e-6, 1e-3, log=True),
        loss_weight=True,
        ge=0,
    )
    temperature: float = setting(
        0.5, "Of the contrast between the views.", paper="τ, eq. 28", search=Range(0.1, 1.5), gt=0
    )
    contrast_rows: int = setting(
        512, "Rows of a batch whose nodes are contrasted, each with all others: the cost is its square.", ge=2
    )
    weighting: Literal["linear", "quadratic", "constant", "reversed"] = setting(
        "linear",
        "How the two losses' weights follow the entropy; the last three are the paper's controls.",
        paper="eq. 31",
    )
    coverage_floor: float = setting(
        0.0,
        "Share of lambda_route that coverage keeps in the second stage; 0 is the paper's, which lets the routing "
        "collapse to an expert or two; 0.1 changes little, and it takes 0.5 or more to keep a second one.",
        ge=0,
        le=1,
    )
    trigger: str = setting(
        "armed",
        "When the second stage begins: 'paper' (high entropy in several checks in a row, which fires within the first "
        "steps), 'armed' (the same from epoch t_min on), 'joint' (and single pairs are decided), 'below' (low "
        "entropy), 'plateau' (entropy at rest), or 'fixed@T' (epoch T).",
        paper="eq. 26",
    )
    threshold: float = setting(0.9, "Normalised entropy that fires the trigger.", paper="H*, eq. 26", ge=0, le=1)
    patience: int = setting(3, "Checks in a row that it must last.", paper="W, eq. 26", ge=1, le=1000)
    clock: Literal["step", "epoch"] = setting("step", "When the entropy is checked.", paper="Alg. 2")
    t_min: int = setting(3, "With trigger 'armed': the first epoch that counts, from 0.", ge=0)
    t_max: int = setting(0, "Epoch at which the second stage is forced; 0 for never.", ge=0)
    entropy_ema: float = setting(
        0.0, "Decay of a running mean of the entropy that begins at 0, for the trigger; 0 for none.", ge=0, lt=1
    )
    # -- ranking
    rank_memory: int = setting(256, "Megabytes that the ranking of all items may use at once.", ge=1)
    rerank_top: int = setting(
        0, "Rank without MAGNET's part and let it reorder so many items a user; 0 scores all items, exactly.", ge=0
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("preset") in PRESETS:
            return {**PRESETS[values["preset"]], **values}
        return values

    @field_validator("trigger")
    @classmethod
    def _known_trigger(cls, value: str) -> str:
        if value not in TRIGGERS and not re.fullmatch(r"fixed@\d+", value):
            raise ValueError(f"choose {', '.join(TRIGGERS)} or fixed@T, such as fixed@10")
        return value

    @field_validator("delta")
    @classmethod
    def _shares(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        shares = value if isinstance(value, tuple) else (value,)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("shares lie between 0 and 1")
        if isinstance(value, tuple) and abs(sum(value) - 1) > 1e-6:
            raise ValueError("the shares of all auxiliaries add up to 1; give a single number for the first one's")
        return value

    @model_validator(mode="after")
    def _fits(self) -> MagnetSettings:
        if self.rerank_top and self.join == "replace":
            raise ValueError("rerank_top ranks by the backbone's scores, which join 'replace' does not train")
        if self.mode == "node" and self.expert_input not in OF_NODES:
            raise ValueError(
                f"expert_input {self.expert_input} is of pairs; with mode 'node' choose {' or '.join(OF_NODES)}"
            )
        return self

    @property
    def inert(self) -> bool:
        """Whether these settings leave every score and row as they are."""
        return self.join == "residual" and self.gamma == 0 and not self.learn_gamma
