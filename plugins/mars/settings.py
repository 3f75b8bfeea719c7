"""Settings of MARS, and the named readings of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from recplug.plugins.search import Range
from recplug.plugins.settings import PluginSettings, setting

Preset = Literal["plugin", "paper_literal", "paper_mmrec"]

PAPER = {
    "x": "ids_content",
    "content_scale": 1.0,
    "gate_over": "all",
    "strength": "mean",
    "semantic_on": "fused",
}
# What a preset says where the user says nothing; `plugin` is the defaults below.
PRESETS: dict[Preset, dict[str, Any]] = {
    "plugin": {},
    "paper_literal": {**PAPER, "join": "replace"},
    "paper_mmrec": {**PAPER, "join": "add"},
}


class MarsSettings(PluginSettings):
    """Every choice of MARS; the defaults were chosen by validation (``docs/methods/mars.rst``)."""

    preset: Preset = setting(
        "plugin",
        "A named reading: what validation chose, the equations as they stand (eq. 7 takes the place of the item), or "
        "these with H added to the backbone's item, as MMRec's models do. Other settings given beside it win.",
    )
    pool: Literal["group", "free", "none"] = setting(
        "group",
        "What a factor's value says of an item: the mean of all items that share it (the paper's), a free vector a "
        "value (the oldest baseline), or nothing (structural graph alone).",
        paper="P_k X, eq. 6",
    )
    self_loop: bool = setting(True, "Whether an item counts in the mean of its own group.", paper="A_k(i,i), eq. 3")
    several: Literal["mean", "hyper", "count"] = setting(
        "mean",
        "For items with several values of a factor: the mean of their groups' means, the symmetric form of it, or "
        "edges weighed by how many values two items share.",
    )
    strength: Literal["auto", "mean", "root"] = setting(
        "auto",
        "How loud a group is: by its mean (the paper's), or by that times the root of its size, since the mean of "
        "unlike rows is so much shorter than a row; 'auto' takes the second on sequential hosts. On graph hosts, whose "
        "rows share a direction, it drowns the item.",
        paper="D^-1/2, eq. 4",
        search=["mean", "root"],
    )
    other: Literal["isolate", "group"] = setting(
        "isolate", "Whether items whose value is 'other' share a group, or only a label."
    )
    contributors: Literal["all", "warm"] = setting(
        "all", "Whose rows enter a group's mean: everyone's, or those of items with training interactions."
    )
    structure: Literal["auto", "knn", "cooccurrence", "knn_cooccurrence", "none"] = setting(
        "auto",
        "The structural graph: nearest items by content, items with common users, or both; 'auto' takes content where "
        "there is any.",
        paper="S, sec. 2.1.3",
        search=["knn", "cooccurrence", "knn_cooccurrence"],
    )
    neighbours: int = setting(
        10, "Neighbours in the structural graph, the item itself included.", paper="top-k", ge=2, le=1000
    )
    image_weight: float = setting(
        0.1, "Share of the modality 'image' in the content graph; the others share the rest.", ge=0, le=1
    )
    modalities: tuple[str, ...] | None = setting(
        None, "Content sources by name; by default all there are; () leaves content alone.", paper="z, eq. 5"
    )
    x: Literal["ids", "ids_content"] = setting(
        "ids", "What is averaged: the backbone's item rows, or these and projected content.", paper="X, eq. 5"
    )
    content_width: int = setting(128, "Principal components kept of wider content vectors.", ge=1, le=4096)
    content_scale: float = setting(
        0.1, "Length of a projected content vector in X at the start.", paper="W_0, eq. 5", gt=0
    )
    gate: Literal["learned", "uniform"] = setting(
        "learned", "How an item weighs its factors and the structural graph.", paper="a_i, eq. 8"
    )
    gate_over: Literal["factors", "all"] = setting(
        "factors",
        "Which branches the gate's softmax runs over: the factors, with structure beside them at its full weight, or "
        "structure and factors alike.",
        paper="eq. 8",
    )
    factor_weight: float = setting(
        0.3,
        "What the factors weigh together beside structure's 1; with gate_over 'all' they share.",
        search=Range(0.1, 1.0),
        gt=0,
    )
    gate_input: Literal["x", "content"] = setting(
        "x", "What the gate reads: X, or its content part, which an unseen item has too."
    )
    join: Literal["add", "residual", "replace"] = setting(
        "add",
        "How H meets the backbone's item: added as it is, each branch under a trained vector that starts at zero, so "
        "that the first scores are the backbone's, or in the item's place.",
        paper="eq. 7",
    )
    residual_rate: float = setting(1.0, "How many times faster than other parameters these vectors move.", gt=0)
    length: Literal["none", "l2", "layernorm"] = setting(
        "none", "How H is normalised before it is added, or takes the item's place."
    )
    semantic: Literal["bce", "ce"] = setting(
        "bce",
        "Loss of the semantic head: one logit a value, summed over values, or one softmax a factor.",
        paper="L_sem, eq. 10",
    )
    semantic_on: Literal["fused", "base", "output"] = setting(
        "base",
        "What the head reads: H (the paper; it can read labels off the graph), the backbone's item before MARS, or "
        "the item that is scored.",
        paper="eq. 9",
        search=["fused", "base", "output"],
    )
    head: Literal["linear", "mlp"] = setting("linear", "The semantic head.", paper="psi, eq. 9")
    lambda_semantic: float = setting(
        1e-3, "Weight of the semantic loss.", paper="λ", search=Range(1e-4, 1e-1, log=True), loss_weight=True, ge=0
    )
    views: Literal["auto", "by_source", "additive", "raw", "off"] = setting(
        "auto",
        "Which views are held together: structure against the factors read from text and from images, the parts of H "
        "that come from ids and from each modality, or X's own parts. 'auto' takes the first where profiles name both "
        "sources, else the second where there is content.",
        paper="H^id, H^v, H^t, eq. 12",
    )
    view_length: Literal["none", "l2"] = setting("none", "Whether views are compared at unit length.")
    lambda_view: float = setting(
        1e-2, "Weight of the views' distance.", paper="η", search=Range(1e-4, 1e-1, log=True), loss_weight=True, ge=0
    )
    lambda_free: float = setting(
        1e-3,
        "With pool 'free': weight of half the mean squared length of the values' vectors.",
        loss_weight=True,
        ge=0,
    )
    seam: Literal["auto", "items", "propagated"] = setting(
        "auto",
        "Where it acts: on the item table, or on propagated items; 'auto' takes the latter where the host propagates "
        "items as wide as its table.",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        preset = values.get("preset")
        return {**PRESETS.get(preset, {}), **values} if isinstance(preset, str) else values  # type: ignore[call-overload]

    @model_validator(mode="after")
    def _length_of_something(self) -> MarsSettings:
        if self.join == "residual" and self.length != "none":
            # What is added starts at zero, where it has no direction: the first gradient would be about 1e12.
            raise ValueError(f"length {self.length} goes with join add or replace; the residual's scales make it idle")
        return self
