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

log = logging.getLogger("recplug")
SAMPLE = 1000  # items on which the modalities' likeness is judged


def requirements(settings: PrismSettings) -> Requirements:
    """What these settings need."""
    return Requirements(
        seams=frozenset({"items", "losses"}),
        families=frozenset({"sequential"} if settings.fusion == "sequence_pooled" else {"sequential", "graph"}),
        modalities=1,
        backbone_in_loss=settings.interaction and settings.loss_level == "prediction",
    )


def build(settings: PrismSettings, context: Context) -> Prism:
    """Make PRISM for one backbone."""
    modalities = context.content(settings.modalities or None, of="prism")
    names = [m.name for m in modalities]
    weights = settings.lambda_unique
    if isinstance(weights, dict) and (unknown := sorted(set(weights) - set(names))):
        raise RecplugError(f"prism.lambda_unique names {unknown}; the modalities are {names}")
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
        edges=context.edges,
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


@hookimpl
def recplug_plugin() -> Plugin:
    """PRISM."""
    return Plugin(
        name="prism",
        summary="experts for unique, redundant and synergistic content, weighed per user",
        paper="PRISM, arXiv 2601.10944",
        settings=PrismSettings,
        requirements=requirements,
        build=build,
        identity={
            "candidates": "id",
            "scale": 0.0,
            "learn_scale": False,
            "residual": False,
            "lambda_unique": 0.0,
            "lambda_synergy": 0.0,
            "lambda_redundancy": 0.0,
        },
    )
