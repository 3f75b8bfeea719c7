"""Settings of MARS."""

from __future__ import annotations

from typing import Literal

from recplug.plugins.search import Range
from recplug.plugins.settings import NONZERO, PluginSettings, setting

GRAPHS = {"h": "graphs"}
FACTORS = {**GRAPHS, "pool": ("group", "cluster", "free")}  # where there is something to weigh


class MarsSettings(PluginSettings):
    """Every choice of MARS; the defaults were chosen by validation (``docs/methods/mars.rst``)."""

    h: Literal["graphs", "x"] = setting(
        "graphs",
        "What H is: the weighted means over factor graphs and structure, or X itself, the paper's plain concatenation "
        "in place of its graphs.",
        paper="H, eq. 7",
    )
    pool: Literal["group", "cluster", "free", "none"] = setting(
        "group",
        "What a factor's value says of an item: the mean of all items that share it (the paper's), the mean of its "
        "cluster by content in place of the value (the paper's ablation: as many clusters as the factor has values; "
        "the head predicts these), a free vector a value (the oldest baseline), or nothing (structural graph alone).",
        paper="P_k X, eq. 6",
        when=GRAPHS,
    )
    strength: Literal["auto", "mean", "root"] = setting(
        "auto",
        "How loud a group is: by its mean (the paper's), or by that times the root of its size, since the mean of "
        "unlike rows is so much shorter than a row; 'auto' takes the second on sequential hosts. On graph hosts, whose "
        "rows share a direction, it drowns the item.",
        paper="D^-1/2, eq. 4",
        search=["mean", "root"],
        when={**GRAPHS, "pool": ("group", "cluster")},
    )
    other: Literal["isolate", "group"] = setting(
        "isolate",
        "Whether items whose value is 'other' share a group, as eq. 3 has it, or only a label.",
        paper="A_k, eq. 3",
        when={**GRAPHS, "pool": ("group", "free")},
    )
    structure: Literal["auto", "knn", "cooccurrence", "none"] = setting(
        "auto",
        "The structural graph: nearest items by content, or items with common users; 'auto' takes content where there "
        "is any.",
        paper="S, sec. 2.1.3",
        search=["knn", "cooccurrence"],
        when=GRAPHS,
    )
    neighbours: int = setting(
        10,
        "Neighbours in the structural graph, the item itself included.",
        paper="top-k, sec. 2.1.3",
        ge=2,
        le=1000,
        when={**GRAPHS, "structure": ("auto", "knn", "cooccurrence")},
    )
    image_weight: float = setting(
        0.1,
        "Share of the modality 'image' in the content graph, as in MMRec's models; the others share the rest.",
        ge=0,
        le=1,
        when={**GRAPHS, "structure": ("auto", "knn")},
    )
    modalities: tuple[str, ...] | None = setting(
        None, "Content sources by name; by default all there are; () leaves content alone.", paper="z, eq. 5"
    )
    x: Literal["ids", "ids_content"] = setting(
        "ids",
        "What is averaged: the backbone's item rows, or these and content, each under a trained projection.",
        paper="X, eq. 5",
    )
    content_width: int | None = setting(
        128,
        "Principal components kept of wider content vectors; none: vectors stay as wide as they are.",
        ge=1,
        le=4096,
        when={"x": "ids_content"},
    )
    content_scale: float | None = setting(
        0.1,
        "Content enters X at unit length, and this long when projected at the start; none: vectors as they are, under "
        "Xavier projections.",
        paper="W_0, eq. 5",
        gt=0,
        when={"x": "ids_content"},
    )
    gate: Literal["learned", "uniform"] = setting(
        "learned", "How an item weighs its factors and the structural graph.", paper="a_i, eq. 8", when=FACTORS
    )
    factor_weight: float | None = setting(
        0.3,
        "What the factors weigh together beside structure's 1; none: the gate's softmax runs over structure and "
        "factors alike (the paper's).",
        paper="eq. 8",
        search=Range(0.1, 1.0),
        gt=0,
        when=FACTORS,
    )
    join: Literal["add", "replace"] = setting(
        "add", "How H meets the backbone's item: added to it, or in its place.", paper="eq. 7"
    )
    semantic_on: Literal["base", "fused"] = setting(
        "base",
        "What the head reads: the backbone's item before MARS, or H (the paper; it can read labels off the graph).",
        paper="eq. 9",
        search=["base", "fused"],
        when={"lambda_semantic": NONZERO},
    )
    lambda_semantic: float = setting(
        1e-3, "Weight of the semantic loss.", paper="λ", search=Range(1e-4, 1e-1, log=True), loss_weight=True, ge=0
    )
    views: Literal["off", "auto", "by_source", "additive"] = setting(
        "off",
        "Which views of an item are held together: structure against the factors read from text and from images, or "
        "the parts of H that come from ids and from each modality. 'auto' takes the first where profiles name both "
        "sources, else the second where X has content.",
        paper="H^id, H^v, H^t, eq. 12",
    )
    lambda_view: float = setting(
        1e-2,
        "Weight of the views' distance.",
        paper="η",
        search=Range(1e-4, 1e-1, log=True),
        loss_weight=True,
        ge=0,
        when={"views": ("auto", "by_source", "additive")},
    )
    lambda_free: float = setting(
        1e-3,
        "Weight of half the mean squared length of the values' free vectors.",
        loss_weight=True,
        ge=0,
        when={**GRAPHS, "pool": "free"},
    )
