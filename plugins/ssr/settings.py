"""Settings of SSR."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recplug.plugins.search import Range
from recplug.plugins.settings import PluginSettings, setting


class SsrSettings(PluginSettings):
    """Every choice of SSR; the defaults were chosen by validation (``docs/methods/ssr.rst``)."""

    graph: Literal["auto", "bipartite", "cooccurrence", "knn"] = setting(
        "auto",
        "Whose spectrum gives the bands: users and items by their interactions (the paper's; what 'auto' takes where "
        "the host has users), items by common users ('auto' on sequential hosts), or items by likeness of content.",
        paper="G, sec. 3",
    )
    bands: int = setting(3, "Number of bands; 1 is the control without bands.", paper="M", search=[2, 3, 4], ge=1, le=8)
    engine: Literal["auto", "spectral", "polynomial", "lowrank", "diffusion", "legacy_cheb", "random"] = setting(
        "auto",
        "How bands are computed: all eigenvectors, a Chebyshev polynomial, the leading eigenvectors, powers of a "
        "diffusion, the public code's polynomial, or (a control) random projections; 'auto' takes eigenvectors where "
        "the graph is small.",
        paper="GFT, sec. 3",
    )
    every: int = setting(
        4,
        "The masked view is made in one step of so many, and counts for all; with a mixing operator, whose bands enter "
        "the scores, the bands of one step serve for so many, and only the signal is fresh.",
        ge=1,
        le=1000,
    )
    order: int = setting(
        8, "Order of the polynomial: sparse products a step, and sharpness of the bands.", paper="K", ge=1, le=128
    )
    rank: int = setting(64, "With engine 'lowrank': eigenvectors.", ge=1, le=4096)
    edges: Literal["equal_energy", "equal_width", "equal_count"] | tuple[float, ...] = setting(
        "equal_energy",
        "Where one band ends and the next begins, in eigenvalues of the Laplacian from 0 to 2: by rule, or the "
        "numbers themselves.",
        paper="sec. 3",
    )
    edge_epochs: int = setting(5, "Epochs in which equal-energy edges are estimated; then they stay.", ge=1)
    modalities: tuple[str, ...] | None = setting(
        None, "Content sources by name; by default all there are; () leaves the backbone's signal alone."
    )
    content_width: int = setting(128, "Principal components kept of wider content vectors.", ge=1, le=4096)
    item_layers: int = setting(
        1, "Layers of the content graph over items that are added to the items' signal.", paper="n_mm, code", ge=0, le=4
    )
    item_neighbours: int = setting(
        10, "Neighbours in the content graph, the item itself included.", paper="k", ge=2, le=1000
    )
    image_weight: float = setting(
        0.1, "Share of the modality 'image' in the content graph; the others share the rest.", paper="code", ge=0, le=1
    )
    item_source: Literal["table", "nodes"] = setting(
        "table",
        "What the content graph averages: the backbone's item table, where that is as wide as its nodes (as FREEDOM "
        "does), or the propagated nodes (the authors' code).",
    )
    item_weight: float = setting(1.0, "Weight of what the content graph adds.", search=Range(0.3, 3.0, log=True), ge=0)
    content_blocks: bool = setting(
        True, "Whether content vectors are signals of their own; else content shapes the item graph alone."
    )
    user_content: Literal["profile", "none"] = setting(
        "none", "What users have in the content blocks: what the graph brings them from their items, or nothing."
    )
    preferences: bool = setting(
        True,
        "Whether users have free vectors in the content blocks, where these stand beside the backbone's.",
        paper="Pref, code",
    )
    content_scale: float = setting(0.4, "Length of a projected content vector at the start.", gt=0)
    fusion: Literal["cp", "colsoftmax", "sum"] = setting(
        "sum",
        "How bands and modalities are mixed: a true low-rank residual, the public code's column softmax, or not.",
        paper="G-HSNO",
    )
    fusion_rank: int = setting(4, "Rank of the mixing.", paper="R", ge=1, le=64)
    gate: bool = setting(False, "Whether every node weighs its bands.", paper="code")
    keep_length: bool = setting(
        True, "Whether mixing leaves every node's vector as long as it was, so that it cannot inflate scores."
    )
    mask_rate: float = setting(
        0.1, "Share of bands that the masked view lacks.", paper="ρ", search=Range(0.1, 0.4), ge=0, lt=1
    )
    mask_scope: Literal["node", "batch"] = setting("node", "Who shares one draw of the mask.")
    mask_unit: Literal["band", "band_modality"] = setting("band", "What one draw leaves out.")
    mask_triples: int = setting(128, "Triples (user, item, negative) of a batch in the masked view.", ge=1)
    consistency: Literal["repr_mse", "repr_cos", "score_mse", "score_kl"] = setting(
        "repr_mse", "Distance of the masked view from the full one: of representations, or of the scores' margin."
    )
    lambda_mask: float = setting(
        1e-3,
        "Weight of the masked view's loss.",
        paper="λ_ma",
        search=Range(1e-3, 1e-1, log=True),
        loss_weight=True,
        ge=0,
    )
    lambda_contrast: float = setting(
        1e-4,
        "Weight of the contrast of modalities.",
        paper="λ_cl",
        search=Range(1e-4, 1e-2, log=True),
        loss_weight=True,
        ge=0,
    )
    lambda_operator: float = setting(1e-2, "Weight of the mixing's penalty.", paper="λ_reg", loss_weight=True, ge=0)
    lambda_ridge: float = setting(
        3e-2,
        "Weight of the squared length of content in the batch's users and items.",
        search=Range(1e-3, 1e-1, log=True),
        loss_weight=True,
        ge=0,
    )
    temperature: float = setting(0.2, "Of the contrast.", paper="τ", search=Range(0.1, 0.5), gt=0)
    anchors: int = setting(256, "Pairs of item and band in the contrast, a step.", ge=2)
    output: Literal["auto", "concat", "add"] = setting(
        "auto",
        "How content joins the backbone's vectors: beside them, where the host scores by dot product alone, or added.",
        paper="code",
    )

    @model_validator(mode="after")
    def _agree(self) -> SsrSettings:
        if not isinstance(self.edges, str) and len(self.edges) != self.bands - 1:
            raise ValueError(f"{self.bands} bands have {self.bands - 1} edges, not {len(self.edges)}")
        if self.modalities and len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities names one twice: {', '.join(self.modalities)}")
        return self
