"""``recplug plugins`` and ``recplug plugins show NAME``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from recplug.adapters.console import say

if TYPE_CHECKING:
    from recplug.plugins.contract import Requirements

app = typer.Typer(help="The installed plugins; 'show NAME' has one's settings.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def table(context: typer.Context) -> None:
    """The installed plugins; 'show NAME' has one's settings."""
    if context.invoked_subcommand is not None:
        return
    from recplug.plugins.registry import available

    rows = [("name", "what it adds", "paper", "backbones")]
    for plugin in available().values():
        families = " and ".join(sorted(plugin.requirements(plugin.settings()).families, reverse=True))
        rows.append((plugin.name, plugin.summary, plugin.paper, families))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A plugin's name.")],
    preset: Annotated[
        str, typer.Option("--preset", help="Whose values to show; those unlike the defaults are marked.")
    ] = "recplug",
) -> None:
    """Settings, presets, ablations, requirements and identity of one plugin."""
    from recplug.plugins.presets import preset as preset_of
    from recplug.plugins.presets import presets, settings_of
    from recplug.plugins.registry import get
    from recplug.plugins.search import search_text, searches
    from recplug.plugins.settings import conditions, idle, limits, type_name

    plugin = get(name)
    chosen, settings = preset_of(plugin, preset), settings_of(plugin, {"preset": preset})
    say(f"{plugin.name}: {plugin.summary}")
    say(f"paper: {plugin.paper}")
    say(f"needs, with these settings: {_needs(plugin.requirements(settings))}")
    say(f"adds nothing at: {_flags(name, plugin.identity)}")
    for word, one in presets(plugin).items():
        say(f"preset {word}: {one.summary}")
    for word, values in plugin.ablations.items():
        say(f"ablation {word}: {_flags(name, values)}")
    for word, values in plugin.mechanisms.items():
        say(f"mechanism {word}: off at {_flags(name, values)}")
    if chosen.host:
        say(f"--{name}.preset {preset} also sets: {' '.join(f'--{key} {value}' for key, value in chosen.host.items())}")
    say(f"settings, as --{name}.KEY VALUE or nested under '{name}:' in a configuration file:")
    worth, unread = searches(plugin.settings), idle(settings)
    for key, field in plugin.settings.model_fields.items():
        paper = field.json_schema_extra["paper"] if isinstance(field.json_schema_extra, dict) else "ours"
        value, default = getattr(settings, key), field.get_default(call_default_factory=True)
        shown = value if isinstance(value, str) else repr(value)
        allowed = ", ".join(filter(None, [type_name(field.annotation), limits(field)]))
        mark = "" if value == default else f"    (default {default})"
        say(f"\n  {name}.{key} = {shown}{mark}    {allowed}    [{paper}]")
        say(textwrap.indent(textwrap.fill(field.description or "", 100), " " * 6))
        if acts := conditions(field):
            say(f"      acts where {acts}{'; not here' if key in unread else ''}")
        if key in worth:
            say(f"      recplug tune tries: {search_text(worth[key])}")


def _flags(name: str, values: Mapping[str, object]) -> str:
    """Settings as a command line takes them."""
    return " ".join(f"--{name}.{key}={value}" for key, value in values.items())


def _needs(needs: Requirements) -> str:
    """What a plugin needs, in a line."""
    parts = [f"a {' or '.join(sorted(needs.families, reverse=True))} backbone", f"its {', '.join(sorted(needs.seams))}"]
    if needs.one_of:
        parts.append(f"one of {', '.join(sorted(needs.one_of))}")
    if needs.optional:
        parts.append(f"acts on {', '.join(sorted(needs.optional))} too where there are any")
    if needs.modalities:
        parts.append(f"{needs.modalities} feature table{'s' if needs.modalities > 1 else ''} or more")
    if needs.factors:
        parts.append("factor profiles")
    if needs.second_domain != "no":
        parts.append(f"a second domain ({needs.second_domain})")
    if needs.backbone_in_loss:
        parts.append("an encoder that can be run again, and dot-product scores")
    return "; ".join(parts)
