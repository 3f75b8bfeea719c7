"""PRISM's entry in the registry."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F

from recplug.plugins.contract import Context, Modality, Plugin, Requirements
from recplug.plugins.errors import RecplugError
from recplug.plugins.hookspecs import hookimpl
from recplug.plugins.prism.module import Prism
from recplug.plugins.prism.settings import PrismSettings
from recplug.plugins.settings import Preset

log = logging.getLogger("recplug")
SAMPLE = 1000  # items on which the modalities' likeness is judged


def requirements(settings: PrismSettings) -> Requirements:
    """What these settings need; a graph backbone has candidates alone."""
    off = settings.scale == 0 and not settings.learn_scale and not settings.interaction
    histories = settings.fusion == "sequence_pooled" or (settings.candidates == "id" and not off)
    return Requirements(
        seams=frozenset({"items", "losses"}),
        families=frozenset({"sequential"} if histories else {"sequential", "graph"}),
        modalities=1,
        backbone_in_loss=settings.interaction and settings.loss_level == "prediction",
    )


def build(settings: PrismSettings, context: Context) -> Prism:
    """Make PRISM for one backbone.

    Raises:
        RecplugError: for a modality or an expert that there is not.
    """
    modalities = context.content(settings.modalities or None, of="prism")
    names = [m.name for m in modalities]
    weights = settings.lambda_unique
    if isinstance(weights, dict) and (unknown := sorted(set(weights) - set(names))):
        raise RecplugError(f"prism.lambda_unique names {unknown}; the modalities are {names}")
    if context.family == "graph" and settings.fusion == "user" and settings.gate:
        log.info("prism: %s has no histories: each item's experts are weighed by its own row", context.host)
    if len(modalities) == 1 and settings.interaction:
        log.info("prism: one modality only (%s): interaction losses are undefined and off, the gate remains", names[0])
    for first in range(len(modalities)):
        for second in range(first + 1, len(modalities)):
            alike = likeness(modalities[first], modalities[second], context.seed)
            if alike > 0.99:
                log.warning(
                    "prism: %s and %s order the items alike (correlation %.3f of their similarities): what is unique "
                    "or synergistic is undefined",
                    names[first],
                    names[second],
                    alike,
                )
    return Prism(
        modalities=modalities,
        width=context.width["items"],
        settings=settings,
        n_rows=context.n_rows["items"],
        seed=context.seed,
        padding_id=context.padding_id,
        mask_id=context.mask_id,
    )


def likeness(first: Modality, second: Modality, seed: int) -> float:
    """Pearson correlation of the two modalities' item-item cosine similarities, on a sample of common items."""
    common = (first.present & second.present).nonzero().squeeze(-1)
    if len(common) < 3:
        return 0.0
    order = torch.randperm(len(common), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")[:SAMPLE]
    chosen = common[order.to(common.device)]
    similarities = []
    for modality in (first, second):
        rows = F.normalize(modality.values[chosen].float(), dim=-1)
        upper = torch.ones(len(chosen), len(chosen), dtype=torch.bool, device=rows.device).triu(1)
        similarities.append((rows @ rows.T)[upper])
    return float(torch.corrcoef(torch.stack(similarities))[0, 1].nan_to_num())


PAPER = Preset(
    "The equations as they stand: losses of every expert on recommendation outputs, a plain softmax, content added as "
    "it is, and scores against the backbone's own items. The paper gives no margin and, for these backbones, no "
    "weights; ours stay.",
    settings={
        "loss_level": "prediction",
        "prediction_experts": "all",
        "candidates": "id",
        "gate_dropout": 0.0,
        "temperature": 1.0,
        "learn_scale": False,
    },
)
CODE = Preset(
    "The authors' code with SASRec: one pooled vector a history, standard normal noise, Euclidean triplets, and the "
    "plain sum beside the experts. Its means over padding and over later items, and its loss on sampled negatives, are "
    "not repeated.",
    settings={
        "fusion": "sequence_pooled",
        "loss_level": "sequence_pooled",
        "candidates": "id",
        "mask": "gaussian",
        "triplet": "l2",
        "margin": 1.0,
        "learn_scale": False,
        "residual": True,
        "tune_features": True,
    },
    host={
        "hidden_size": 256,
        "inner_size": 1024,
        "n_layers": 1,
        "n_heads": 4,
        "hidden_dropout_prob": 0.3,
        "attn_dropout_prob": 0.0,
        "MAX_ITEM_LIST_LENGTH": 100,
        "train_batch_size": 256,
        "learning_rate": 0.001,
        "epochs": 500,
        "stopping_step": 10,
        "valid_metric": "NDCG@20",
        "topk": [10, 20],
        "mask_history": True,
    },
)
NO_LOSSES = {"lambda_unique": 0.0, "lambda_synergy": 0.0, "lambda_redundancy": 0.0}


@hookimpl
def recplug_plugin() -> Plugin:
    """PRISM."""
    return Plugin(
        name="prism",
        summary="experts for unique, redundant and synergistic content, weighed by a gate",
        paper="PRISM, arXiv 2601.10944",
        settings=PrismSettings,
        requirements=requirements,
        build=build,
        identity={
            "candidates": "id",
            "scale": 0.0,
            "learn_scale": False,
            "experts": None,
            "residual": False,
            **NO_LOSSES,
        },
        presets={"paper": PAPER, "code": CODE},
        ablations={
            "w/o uni-t": {"experts": ("unique_image", "synergy", "redundancy")},
            "w/o uni-i": {"experts": ("unique_text", "synergy", "redundancy")},
            "w/o syn": {"experts": ("unique", "redundancy")},
            "w/o rdn": {"experts": ("unique", "synergy")},
            "w/o gating": {"gate": False},
            "zero masking": {"mask": "zero"},
            "mean masking": {"mask": "mean"},
            "random masking": {"mask": "gaussian"},
        },
        mechanisms={
            "experts": {"experts": (), "residual": True},
            "unique, redundant and synergistic": NO_LOSSES,
            "weighed by a gate": {"gate": False},
        },
    )
