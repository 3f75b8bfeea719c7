"""From plugin names and settings to a chain of augmentations: the same for every host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from recplug.plugins.chain import Chain
from recplug.plugins.contract import Augmentation, Context, Plugin
from recplug.plugins.errors import RecplugError
from recplug.plugins.presets import settings_of
from recplug.plugins.registry import get
from recplug.plugins.settings import PluginSettings


def resolve(names: Sequence[str], values: Mapping[str, Mapping[str, Any]]) -> dict[str, PluginSettings]:
    """Validated settings of every plugin, in order.

    Args:
        names: plugin names.
        values: given settings by plugin name; others take their defaults.

    Raises:
        RecplugError: for an unknown plugin, an unknown setting or a value out of range.
    """
    return {name: settings_of(get(name), values.get(name) or {}) for name in names}


def check(
    plugin: Plugin,
    settings: PluginSettings,
    context: Context,
    *,
    seams: frozenset[str],
    encoder: bool,
    why: Mapping[Any, str] | None = None,
) -> None:
    """Compare what a plugin requires with what a host and a data set offer.

    Args:
        plugin: the plugin.
        settings: its settings.
        context: the host and the data.
        seams: what the host offers; of the score seam, ``context.halves``.
        encoder: whether the host can re-run its encoder and scores by dot product.
        why: for a seam, or a half of the score seam, that the host does not offer, the reason and what to do.

    Raises:
        RecplugError: naming what is missing and the command or choice that mends it.
    """
    needs = plugin.requirements(settings)
    if context.family not in needs.families:
        raise RecplugError(
            f"{plugin.name} with these settings works on {' and '.join(sorted(needs.families))} backbones; "
            f"{context.host} is {context.family}"
        )
    if missing := sorted(needs.seams - seams):
        reasons = "; ".join((why or {})[seam] for seam in missing if seam in (why or {}))
        raise RecplugError(
            f"{plugin.name} acts on {missing}, which {context.host} does not offer{reasons and ': '}{reasons}"
        )
    if "score" in needs.seams and (halves := sorted(needs.halves - context.halves)):
        reasons = "; ".join((why or {})[half] for half in halves if half in (why or {}))
        raise RecplugError(
            f"{plugin.name} changes scores in {' and '.join(halves)}, which {context.host} does not offer"
            f"{reasons and ': '}{reasons}"
        )
    if needs.one_of and not needs.one_of & seams:
        places = " or ".join(sorted(needs.one_of))
        raise RecplugError(f"{plugin.name} acts on {places}, neither of which {context.host} offers")
    if len(context.modalities) < needs.modalities:
        raise RecplugError(
            f"{plugin.name} needs {needs.modalities} feature table(s), found {len(context.modalities)}; "
            f"name one with --features.image FILE, or make one with: recplug features import --help"
        )
    if needs.factors and context.factors is None:
        raise RecplugError(f"{plugin.name} needs factor profiles; make them with: recplug factors import --help")
    if needs.second_domain == "required" and context.source is None:
        raise RecplugError(f"{plugin.name} needs a second domain; set --{plugin.name}.source=DATASET")
    if needs.backbone_in_loss and not encoder:
        raise RecplugError(
            f"{plugin.name} with these settings re-runs the encoder and needs dot-product scores, which "
            f"{context.host} does not offer; choose another loss level"
        )


def build_chain(
    settings: Mapping[str, PluginSettings],
    context: Context,
    *,
    seams: frozenset[str] = frozenset({"items", "tables", "losses"}),
    encoder: bool = True,
    why: Mapping[Any, str] | None = None,
) -> Chain:
    """Check every plugin's requirements and build the augmentations, without touching the host's random state.

    Args:
        settings: resolved settings by plugin name, in the order in which the plugins act.
        context: what the plugins are told.
        seams: what the host offers.
        encoder: whether the host can re-run its encoder and scores by dot product.
        why: as in :func:`check`.

    Raises:
        RecplugError: if a requirement is not met.
    """
    brought: dict[str, tuple[str, str]] = {}
    for name, values in settings.items():
        check(get(name), values, context, seams=seams, encoder=encoder, why=why)
        for what, without in get(name).requirements(values).brings.items():
            if what in brought:
                first, first_without = brought[what]
                raise RecplugError(
                    f"{first} and {name} both bring {what}, of which a model takes one; "
                    f"set --{first_without} or --{without}"
                )
            brought[what] = name, without
    augmentations: dict[str, Augmentation] = {}
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        for name, values in settings.items():
            torch.manual_seed(context.seed)
            augmentations[name] = get(name).build(values, _after(augmentations, context))
    scoring = [(name, each) for name, each in augmentations.items() if "score" in each.seams()]
    for (before, _), (name, each) in pairwise(scoring):
        if each.replaces:
            raise RecplugError(
                f"{name} with these settings makes scores of its own and would drop those of {before}; name {name} "
                "first, or leave one out"
            )
    return Chain(augmentations, context)


def _after(augmentations: Mapping[str, Augmentation], context: Context) -> Context:
    """The context as it stands behind these augmentations: with the width of the nodes that they leave."""
    if "propagated" not in context.width:
        return context
    width = context.width["propagated"]
    for augmentation in augmentations.values():
        width = augmentation.propagated_width(width)
    return replace(context, width={**context.width, "propagated": width})
