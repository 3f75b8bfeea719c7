"""``recplug plugins`` and ``recplug plugins show NAME``."""

from __future__ import annotations

import textwrap
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
def show(name: Annotated[str, typer.Argument(help="A plugin's name.")]) -> None:
    """Settings, requirements and identity of one plugin."""
    from recplug.plugins.registry import get
    from recplug.plugins.search import search_text, searches
    from recplug.plugins.settings import limits, type_name

    plugin = get(name)
    say(f"{plugin.name}: {plugin.summary}")
    say(f"paper: {plugin.paper}")
    say(f"needs, with the default settings: {_needs(plugin.requirements(plugin.settings()))}")
    say(f"adds nothing at: {' '.join(f'--{name}.{key}={value}' for key, value in plugin.identity.items())}")
    say(f"settings, as --{name}.KEY VALUE or nested under '{name}:' in a configuration file:")
    worth = searches(plugin.settings)
    for key, field in plugin.settings.model_fields.items():
        paper = field.json_schema_extra["paper"] if isinstance(field.json_schema_extra, dict) else "ours"
        default = field.get_default(call_default_factory=True)
        shown = default if isinstance(default, str) else repr(default)
        allowed = ", ".join(filter(None, [type_name(field.annotation), limits(field)]))
        say(f"\n  {name}.{key} = {shown}    {allowed}    [{paper}]")
        say(textwrap.indent(textwrap.fill(field.description or "", 100), " " * 6))
        if key in worth:
            say(f"      recplug tune tries: {search_text(worth[key])}")


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
