"""Directives whose content is read from the code, so that a page cannot say anything else.

* ``recplug-settings`` with a plugin's name: the table of its settings; without: every plugin, each in its own section.
* ``recplug-hooks``: the hook specifications.
* ``recplug-backbones``: what is known of every backbone of RecBole.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from recplug.plugins.search import search_text
from recplug.plugins.settings import conditions, limits, type_name

CODE = re.compile(r"``(?P<double>.+?)``|:[\w:]+:`~?(?P<role>.+?)`|`(?P<single>.+?)`", re.DOTALL)


def prose(text: str) -> list[nodes.Node]:
    """Inline nodes of a docstring's text: code and roles become literals, the rest stays as it is."""
    found: list[nodes.Node] = []
    end = 0
    for match in CODE.finditer(text):
        found += [nodes.Text(text[end : match.start()]), nodes.literal(text=next(filter(None, match.groups())))]
        end = match.end()
    return [*found, nodes.Text(text[end:])]


def cell(content: str | list[nodes.Node]) -> nodes.entry:
    return nodes.entry("", nodes.paragraph("", "", *(prose(content) if isinstance(content, str) else content)))


def table(header: Iterable[str], rows: Iterable[Iterable[str | list[nodes.Node]]], widths: list[int]) -> nodes.table:
    def row(cells: Iterable[str | list[nodes.Node]]) -> nodes.row:
        return nodes.row("", *(cell(content) for content in cells))

    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(widths))
    group += nodes.thead("", row(header))
    group += nodes.tbody("", *(row(cells) for cells in rows))
    return nodes.table("", group, classes=["colwidths-given"])


def section(title: list[nodes.Node], name: str, *content: nodes.Node) -> nodes.section:
    return nodes.section("", nodes.title("", "", *title), *content, ids=[nodes.make_id(name)], names=[name])


def code(text: Any) -> list[nodes.Node]:
    return [nodes.literal(text=str(text))]


def settings_table(plugin: Any) -> nodes.table:
    rows = []
    for name, field in plugin.settings.model_fields.items():
        more = field.json_schema_extra or {}
        kind, bounds, search = type_name(field.annotation), limits(field), more.get("search")
        allowed = f"{kind}, {bounds}" if bounds else kind
        description = field.description
        if search is not None:
            description = f"{description} (Worth searching: {search_text(search)}.)"
        if acts := conditions(field):
            description = f"{description} (Acts where {acts}.)"
        default = field.get_default(call_default_factory=True)
        rows.append([code(f"{plugin.name}.{name}"), code(default), allowed, more.get("paper", ""), description])
    return table(["field", "default", "range", "paper", "description"], rows, [26, 10, 18, 14, 42])


def presets_table(plugin: Any) -> list[nodes.Node]:
    """What each preset changes, of the plugin and of the host: made of the presets, so that it cannot go stale."""
    if not plugin.presets:
        return []
    names, fields = list(plugin.presets), plugin.settings.model_fields
    rows: list[list[str | list[nodes.Node]]] = []
    for key, field in fields.items():
        default = field.get_default(call_default_factory=True)
        values = [plugin.presets[name].settings.get(key, default) for name in names]
        if any(value != default for value in values):
            rows.append([code(f"{plugin.name}.{key}"), code(default), *map(code, values)])
    for key in dict.fromkeys(key for name in names for key in plugin.presets[name].host):
        values = [plugin.presets[name].host.get(key, "as given") for name in names]
        rows.append([code(key), "as given", *map(code, values)])
    said = [nodes.paragraph("", "", *code(name), nodes.Text(f": {plugin.presets[name].summary}")) for name in names]
    return [*said, table(["key", "recplug", *names], rows, [26, 18, *([18] * len(names))])]


def variants_table(plugin: Any) -> list[nodes.Node]:
    """The plugin's ablations in the paper's words, and its mechanisms with what switches each off."""
    both = {"ablation": plugin.ablations, "mechanism, off": plugin.mechanisms}
    rows = [
        [kind, name, code(" ".join(f"{plugin.name}.{key}={value}" for key, value in values.items()))]
        for kind, found in both.items()
        for name, values in found.items()
    ]
    return [table(["", "name", "settings"], rows, [16, 36, 48])] if rows else []


class Settings(SphinxDirective):
    """``recplug-settings [NAME]``."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        from recplug.plugins import registry

        if self.arguments:
            plugin = registry.get(self.arguments[0])
            return [settings_table(plugin), *presets_table(plugin), *variants_table(plugin)]
        found: list[nodes.Node] = []
        ours = {n: p for n, p in registry.available().items() if p.settings.__module__.startswith("recplug.plugins.")}
        for name, plugin in sorted(ours.items()):
            identity = ", ".join(f"{plugin.name}.{key}={value}" for key, value in plugin.identity.items())
            about = nodes.paragraph("", "", *prose(f"{plugin.summary[:1].upper()}{plugin.summary[1:]}."))
            paper = nodes.paragraph("", "", nodes.strong(text="Paper: "), *prose(plugin.paper))
            off = nodes.paragraph("", "", nodes.strong(text="Adds nothing at: "), nodes.literal(text=identity))
            found.append(section([nodes.Text(name)], f"plugin-{name}", about, paper, off, settings_table(plugin)))
        return found


def docstring(text: str) -> list[nodes.Node]:
    """Paragraphs of a docstring, with its ``Args:`` as a definition list."""
    text, _, arguments = inspect.cleandoc(text).partition("Args:\n")
    found: list[nodes.Node] = [
        nodes.paragraph("", "", *prose(" ".join(block.split()))) for block in text.split("\n\n") if block.strip()
    ]
    if arguments:
        listed = nodes.definition_list()
        for match in re.finditer(r"^ {4}(\w[\w, ]*): (.+(?:\n {8}.+)*)", arguments, re.MULTILINE):
            name, meaning = match.group(1), " ".join(match.group(2).split())
            definition = nodes.definition("", nodes.paragraph("", "", *prose(meaning)))
            listed += nodes.definition_list_item("", nodes.term("", "", nodes.literal(text=name)), definition)
        found.append(listed)
    return found


class Hooks(SphinxDirective):
    """``recplug-hooks``."""

    def run(self) -> list[nodes.Node]:
        from recplug.plugins import hookspecs

        found: list[nodes.Node] = []
        for name, hook in vars(hookspecs).items():
            if inspect.isfunction(hook) and hook.__module__ == hookspecs.__name__ and name.startswith("recplug_"):
                signature = nodes.literal_block(text=f"{name}{inspect.signature(hook)}".replace("'", ""))
                signature["language"] = "text"
                found.append(section(code(name), f"hook-{name}", signature, *docstring(hook.__doc__ or "")))
        return found


class Backbones(SphinxDirective):
    """``recplug-backbones``."""

    def run(self) -> list[nodes.Node]:
        from recplug.adapters.recbole.graft.hosts import HOSTS

        order = {"supported": 0, "restricted": 1, "refused": 2}
        found: list[nodes.Node] = []
        for family, title in (("sequential", "Sequential backbones"), ("graph", "General and graph backbones")):
            hosts = [host for host in HOSTS.values() if host.family == family]
            hosts.sort(key=lambda host: (order[host.status], host.name.lower()))
            rows = [self.row(host) for host in hosts]
            header = ["backbone", "status", "plugins act on", *self.more[family], "remarks"]
            found.append(section([nodes.Text(title)], f"{family}-backbones", table(header, rows, [14, 12, 24, 12, 38])))
        return found

    more: ClassVar[dict[str, list[str]]] = {"sequential": ["padding trimmed"], "graph": ["faster products"]}

    def row(self, host: Any) -> list[str | list[nodes.Node]]:
        from recplug.adapters.recbole.graft.fast_products import ANSWERED

        seams = host.seams() if host.status != "refused" else frozenset()
        places = [name for seam, name in SEAMS.items() if seam in seams]
        fast = host.trim if host.family == "sequential" else host.name in ANSWERED
        return [code(host.name), host.status, ", ".join(places) or "-", "yes" if fast else "no", host.reason]


SEAMS = {"items": "items", "users": "users", "graph": "the graph", "propagated": "propagated nodes", "score": "scores"}


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("recplug-settings", Settings)
    app.add_directive("recplug-hooks", Hooks)
    app.add_directive("recplug-backbones", Backbones)
    return {"version": "1", "parallel_read_safe": True}
