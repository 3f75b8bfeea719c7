"""The control's entry in the registry."""

from __future__ import annotations

import logging

from recplug.plugins.contract import Context, Plugin, Requirements
from recplug.plugins.control.module import ContentMlp
from recplug.plugins.control.settings import MlpSettings
from recplug.plugins.hookspecs import hookimpl

log = logging.getLogger("recplug")


def requirements(settings: MlpSettings) -> Requirements:
    """Content, and the item table."""
    return Requirements(seams=frozenset({"items"}), modalities=1)


def build(settings: MlpSettings, context: Context) -> ContentMlp:
    """Make the control for one backbone."""
    made = ContentMlp(
        modalities=context.content(settings.modalities, of="mlp"),
        width=context.width["items"],
        n_rows=context.n_rows["items"],
        parameters=settings.parameters,
        scale=settings.scale,
    )
    found = sum(parameter.numel() for parameter in made.parameters())
    log.info("mlp: %d parameters of %d asked for; %s", found, settings.parameters, made.layers)
    return made


@hookimpl
def recplug_plugin() -> Plugin:
    """The control."""
    return Plugin(
        name="mlp",
        summary="a control: an MLP on the same content, with as many parameters as a method",
        paper="ours",
        settings=MlpSettings,
        requirements=requirements,
        build=build,
        identity={"scale": 0.0},
        mechanisms={"an MLP on the same content": {"scale": 0.0}},
    )
