"""Settings of SSR."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recplug.plugins.search import Range
from recplug.plugins.settings import NONZERO, PluginSettings, setting

MIXING = {"fusion": ("cp", "colsoftmax")}
OF_ITEM_GRAPH = {"item_layers": NONZERO}
OF_CONTENT = {"content": ("vectors", "encoders")}


class SsrSettings(PluginSettings):
    """Every choice of SSR; the defaults were chosen by validation (``docs/methods/ssr.rst``)."""

    bands: int = setting(3, "Number of bands; 1 is the control without bands.", paper="M", search=[2, 3, 4], ge=1, le=8)
    engine: Literal["auto", "spectral", "polynomial", "legacy_cheb", "random"] = setting(
        "auto",
        "How bands are computed: all eigenvectors, a Chebyshev polynomial, the public code's fixed polynomial, or (a "
        "control) random projections; 'auto' takes eigenvectors where the graph is small.",
        paper="GFT, sec. 3",
    )
    order: int = setting(
        16,
        "Order of the polynomial: sparse products a step, and sharpness of the bands.",
        paper="K",
        when={"engine": ("auto", "polynomial", "legacy_cheb")},
        ge=1,
        le=128,
    )
    modalities: tuple[str, ...] | None = setting(
        None, "Content sources by name; by default all there are; () leaves the backbone's signal alone."
    )
    content: Literal["graph", "vectors", "encoders"] = setting(
        "vectors",
        "What content does: it shapes the item graph alone; its frozen vectors are signals of their own too, to which "
        "users have free vectors; or it runs through trained, propagated encoders (the authors' code).",
        paper="Pref, code",
    )
    item_layers: int = setting(
        1, "Layers of the content graph over items that are added to the items' signal.", paper="n_mm, code", ge=0, le=4
    )
    item_neighbours: int = setting(
        10, "Neighbours in the content graph, the item itself included.", paper="k", when=OF_ITEM_GRAPH, ge=2, le=1000
    )
    image_weight: float = setting(
        0.1,
        "Share of the modality 'image' in the content graph; the others share the rest.",
        paper="code",
        when=OF_ITEM_GRAPH,
        ge=0,
        le=1,
    )
    item_source: Literal["table", "nodes"] = setting(
        "table",
        "What the content graph averages: the backbone's item table, where that is as wide as its nodes (as FREEDOM "
        "does), or the propagated nodes (the authors' code).",
        paper="code",
        when=OF_ITEM_GRAPH,
    )
    fusion: Literal["cp", "colsoftmax", "sum"] = setting(
        "sum",
        "How bands and modalities are mixed: a true low-rank residual, the public code's column softmax, or not.",
        paper="G-HSNO",
    )
    fusion_rank: int = setting(4, "Rank of the mixing.", paper="R", when=MIXING, ge=1, le=64)
    gate: bool = setting(False, "Whether every node weighs its bands.", paper="code", when=MIXING)
    mask_rate: float = setting(
        0.1,
        "Share of bands that the masked view lacks.",
        paper="ρ",
        search=Range(0.1, 0.4),
        when={"lambda_mask": NONZERO},
        ge=0,
        lt=1,
    )
    consistency: Literal["repr_mse", "score_kl"] = setting(
        "repr_mse",
        "Distance of the masked view from the full one: of representations, or of the scores' margin.",
        paper="v3, v1",
        when={"lambda_mask": NONZERO},
    )
    lambda_mask: float = setting(
        0.0,
        "Weight of the masked view's loss.",
        paper="λ_ma",
        search=[0.0, 1e-3, 1e-2, 1e-1],
        loss_weight=True,
        ge=0,
    )
    lambda_contrast: float = setting(
        1e-4,
        "Weight of the contrast of modalities.",
        paper="λ_cl",
        search=Range(1e-4, 1e-2, log=True),
        loss_weight=True,
        when=OF_CONTENT,
        ge=0,
    )
    lambda_operator: float = setting(
        1e-2, "Weight of the mixing's penalty.", paper="λ_reg", loss_weight=True, when=MIXING, ge=0
    )
    lambda_ridge: float = setting(
        3e-2,
        "Weight of the squared length of content in the batch's users and items.",
        search=Range(1e-3, 1e-1, log=True),
        loss_weight=True,
        when=OF_CONTENT,
        ge=0,
    )
    temperature: float = setting(
        0.2, "Of the contrast.", paper="τ", search=Range(0.1, 0.5), when={"lambda_contrast": NONZERO}, gt=0
    )
    anchors: int = setting(
        256, "Pairs of item and band in the contrast, a step.", when={"lambda_contrast": NONZERO}, ge=2
    )

    signal: bool = setting(
        False,
        "Whether the interaction signal, filtered band by band over the joint graph of interactions and content, is "
        "added to the ranking; its weight and the bands' gains are chosen after training, by validation.",
        paper="bands of r; ours",
    )

    @model_validator(mode="after")
    def _agree(self) -> SsrSettings:
        if self.modalities and len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities names one twice: {', '.join(self.modalities)}")
        return self
