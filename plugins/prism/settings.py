"""Settings of PRISM."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from recplug.plugins.search import Range
from recplug.plugins.settings import PluginSettings, setting


class PrismSettings(PluginSettings):
    """Every choice of PRISM; the defaults were chosen by validation (``docs/methods/prism.rst``)."""

    fusion: Literal["item", "user", "sequence_pooled"] = setting(
        "user",
        "What weighs the experts: the item alone, the user's history, or (the authors' code) one vector a sequence.",
        paper="W, eq. (10)",
    )
    granularity: Literal["position", "sequence"] = setting(
        "position",
        "With fusion 'user': one weight vector for every position, or one for the whole history.",
        paper="w, eq. (10)",
    )
    candidates: Literal["id", "fused"] = setting(
        "fused",
        "What is scored against: the fused item rows (which items without history need), or the backbone's own ones.",
        paper="P, eq. (2)",
        search=["id", "fused"],
    )
    block: Literal["experts", "mlp", "sum"] = setting(
        "experts",
        "'mlp' (one MLP with as many parameters) and 'sum' (of the projections) are controls without experts.",
        paper="E_j, eq. (1)",
    )
    loss_level: Literal["item", "prediction", "sequence_pooled", "none"] = setting(
        "item",
        "Where the interaction losses act: items of the batch, recommendation outputs, pooled histories, or nowhere.",
        paper="eqs. (2)-(9)",
    )
    prediction_experts: Literal["all", "one"] = setting(
        "one",
        "With loss_level 'prediction': re-encode for every expert, or one drawn each step (unbiased).",
        paper="S_j, eqs. (2)-(4)",
    )
    triplet: Literal["cosine", "l2"] = setting(
        "cosine", "Distance of the uniqueness triplets.", paper="dist, eqs. (5)(6)"
    )
    margin: float = setting(0.2, "Margin of the uniqueness triplets.", paper="m, eqs. (5)(6)", ge=0)
    mask: Literal["matched", "gaussian", "shuffle", "mean", "zero"] = setting(
        "matched",
        "What stands in for a masked modality: Gaussian noise with the batch's mean and deviation, standard Gaussian "
        "noise, another item's vector, the batch mean, or zero.",
        paper="r, eqs. (3)(4)",
    )
    lambda_unique: float | dict[str, float] = setting(
        0.1,
        "Weight of the uniqueness losses; a mapping gives each modality its own.",
        paper="λ_uni, eq. (9)",
        search=Range(0.01, 1.0, log=True),
        loss_weight=True,
    )
    lambda_synergy: float = setting(
        0.1,
        "Weight of the synergy loss.",
        paper="λ_syn, eq. (9)",
        search=Range(0.01, 1.0, log=True),
        loss_weight=True,
        ge=0,
    )
    lambda_redundancy: float = setting(
        0.1,
        "Weight of the redundancy loss.",
        paper="λ_rdn, eq. (9)",
        search=Range(0.01, 1.0, log=True),
        loss_weight=True,
        ge=0,
    )
    hidden: int = setting(128, "Hidden width of an expert.", paper="h_e", search=[64, 128, 256], ge=1)
    dropout: float = setting(0.0, "Dropout inside the experts.", paper="ours", search=Range(0.0, 0.5), ge=0, lt=1)
    gate_dropout: float = setting(0.3, "Dropout inside the gate.", paper="code", ge=0, lt=1)
    temperature: float = setting(
        0.7, "Temperature of the gate's softmax.", paper="τ, code", search=Range(0.3, 2.0, log=True), gt=0
    )
    scale: float = setting(
        1.0,
        "Initial weight s of the fused content beside the item's row.",
        paper="ours",
        search=Range(0.05, 2.0, log=True),
    )
    learn_scale: bool = setting(True, "Whether s is trained.", paper="ours")
    residual: bool = setting(
        False, "Add the sum of the projections to the item's row as well (the authors' code does).", paper="code"
    )
    tune_features: bool = setting(False, "Train the content vectors too, in float32 (the authors' code does).")
    loss_items: int = setting(
        512,
        "At most so many items a step enter the item-level losses: of the batch, or of all items where the backbone's "
        "softmax needs every fused row anyway.",
        ge=2,
    )
    modalities: tuple[str, ...] = setting((), "Which feature tables to use; empty: all that the data set has.")

    @field_validator("modalities", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> PrismSettings:
        weights = self.lambda_unique.values() if isinstance(self.lambda_unique, dict) else [self.lambda_unique]
        if any(w < 0 for w in weights):
            raise ValueError("lambda_unique must not be negative")
        if self.fusion == "sequence_pooled" and self.candidates == "fused":
            raise ValueError("fusion 'sequence_pooled' knows no item on the candidate side; set candidates to 'id'")
        if self.loss_level == "sequence_pooled" and self.fusion != "sequence_pooled":
            raise ValueError("loss_level 'sequence_pooled' belongs to fusion 'sequence_pooled'")
        if self.loss_level == "prediction" and self.fusion == "sequence_pooled":
            raise ValueError("loss_level 'prediction' needs fusion 'item' or 'user'")
        return self

    @property
    def interaction(self) -> bool:
        """Whether any interaction loss is on."""
        weights = self.lambda_unique.values() if isinstance(self.lambda_unique, dict) else [self.lambda_unique]
        lambdas = [*weights, self.lambda_synergy, self.lambda_redundancy]
        return self.block == "experts" and self.loss_level != "none" and any(w > 0 for w in lambdas)
