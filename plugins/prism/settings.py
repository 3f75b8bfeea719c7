"""Settings of PRISM."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import field_validator, model_validator

from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.search import Range
from recplug.plugins.settings import NONZERO, PluginSettings, setting

UNIQUE = "unique"  # in ``experts``: every modality's expert for what is unique


class PrismSettings(PluginSettings):
    """Every choice of PRISM; the defaults were chosen by validation (``docs/methods/prism.rst``)."""

    fusion: Literal["item", "user", "sequence_pooled"] = setting(
        "user",
        "What weighs the experts: the item alone, the user's history, or (the authors' code) one vector a sequence. "
        "Graph backbones have no histories: there 'user' weighs by item, and a line says so.",
        paper="W, eq. (10)",
    )
    granularity: Literal["position", "sequence"] = setting(
        "position",
        "One weight vector for every position, or one for the whole history.",
        paper="w, eq. (10)",
        when={"fusion": "user", "gate": True, "family": "sequential"},
    )
    gate: bool = setting(
        True,
        "Whether a gate weighs the experts; without it each counts alike, and fusion 'user' and 'item' are one.",
        paper="W, eq. (10)",
    )
    experts: tuple[str, ...] | None = setting(
        None,
        "Which experts, of unique_MODALITY (unique: all of these), synergy and redundancy; by default all, () none.",
        paper="J, eq. (1)",
    )
    candidates: Literal["id", "fused"] = setting(
        "fused",
        "What is scored against: the fused item rows (which items without history need), or the backbone's own ones.",
        paper="P, eq. (2)",
        search=["id", "fused"],
        when={"family": "sequential"},
    )
    loss_level: Literal["item", "prediction", "sequence_pooled"] = setting(
        "item",
        "Where the interaction losses act: items of the batch, recommendation outputs, or pooled histories.",
        paper="eqs. (2)-(9)",
    )
    prediction_experts: Literal["all", "one"] = setting(
        "one",
        "Re-encode for every expert, or for one drawn each step (unbiased).",
        paper="S_j, eqs. (2)-(4)",
        when={"loss_level": "prediction"},
    )
    triplet: Literal["cosine", "l2"] = setting(
        "cosine",
        "Distance of the uniqueness triplets.",
        paper="dist, eqs. (5)(6)",
        when={"lambda_unique": NONZERO},
    )
    margin: float = setting(
        0.2, "Margin of the uniqueness triplets.", paper="m, eqs. (5)(6)", when={"lambda_unique": NONZERO}, ge=0
    )
    mask: Literal["matched", "gaussian", "shuffle", "mean", "zero"] = setting(
        "matched",
        "What stands in for a masked modality: Gaussian noise with the batch's mean and deviation, standard Gaussian "
        "noise, another item's vector, the batch mean, or zero.",
        paper="r, eqs. (3)(4)",
    )
    lambda_unique: float | dict[str, float] = setting(
        0.1,
        "Weight of the uniqueness losses; image:0.2,text:0.05 gives each modality its own.",
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
    gate_dropout: float = setting(0.3, "Dropout inside the gate.", paper="code", when={"gate": True}, ge=0, lt=1)
    temperature: float = setting(
        0.7,
        "Temperature of the gate's softmax.",
        paper="τ, code",
        search=Range(0.3, 2.0, log=True),
        when={"gate": True},
        gt=0,
    )
    scale: float = setting(
        1.0,
        "Initial weight s of the content beside the item's row.",
        paper="ours",
        search=Range(0.05, 2.0, log=True),
    )
    learn_scale: bool = setting(True, "Whether s is trained.", paper="ours")
    residual: bool = setting(
        False, "Add the sum of the projections to the experts' (the authors' code does).", paper="code"
    )
    tune_features: bool = setting(
        False, "Train the content vectors too, in float32 (the authors' code does).", paper="code"
    )
    loss_items: int = setting(
        512,
        "At most so many items a step enter the losses: of the batch, or of all items where the backbone's softmax "
        "needs every fused row anyway.",
        when={"loss_level": "item"},
        ge=2,
    )
    modalities: tuple[str, ...] = setting((), "Which feature tables to use; empty: all that the data set has.")

    @field_validator("lambda_unique", mode="before")
    @classmethod
    def _by_modality(cls, value: object) -> object:
        if not isinstance(value, str) or ":" not in value:
            return value
        return dict(pair.split(":", 1) for pair in re.split(r"[,;+\s]+", value.strip(" {}")) if ":" in pair)

    @model_validator(mode="after")
    def _check(self) -> PrismSettings:
        if any(weight < 0 for weight in self.unique_weights):
            raise ValueError("lambda_unique must not be negative")
        if self.experts == () and not self.residual:
            raise ValueError("without experts nothing is added; residual=true is the plain sum of the projections")
        if self.fusion == "sequence_pooled" and self.candidates == "fused":
            raise ValueError("fusion 'sequence_pooled' knows no item on the candidate side; set candidates to 'id'")
        if self.loss_level == "sequence_pooled" and self.fusion != "sequence_pooled":
            raise ValueError("loss_level 'sequence_pooled' belongs to fusion 'sequence_pooled'")
        if self.loss_level == "prediction" and self.fusion == "sequence_pooled":
            raise ValueError("loss_level 'prediction' needs fusion 'item' or 'user'")
        return self

    @property
    def unique_weights(self) -> list[float]:
        """The weights of the uniqueness losses, of all modalities or of those that have their own."""
        return list(self.lambda_unique.values()) if isinstance(self.lambda_unique, dict) else [self.lambda_unique]

    @property
    def interaction(self) -> bool:
        """Whether any interaction loss is on."""
        return self.experts != () and any(
            weight > 0 for weight in (*self.unique_weights, self.lambda_synergy, self.lambda_redundancy)
        )

    def chosen(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """The experts beside these modalities, in the order unique_MODALITY, synergy, redundancy.

        Raises:
            RecplugError: if one is named that there is not.
        """
        unique = [f"{UNIQUE}_{name}" for name in modalities]
        every = (*unique, "synergy", "redundancy")
        if self.experts is None:
            return every
        for name in self.experts:
            if name not in (UNIQUE, *every):
                raise RecplugError(
                    f"prism.experts names '{name}'; there are: {', '.join(every)}{did_you_mean(name, every)}"
                )
        return tuple(e for e in every if e in self.experts or (e in unique and UNIQUE in self.experts))
