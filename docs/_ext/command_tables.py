"""Directives that print the command line, the keys and the cards as they are in the code.

* ``recplug-commands``: every command of ``recplug`` with its options.
* ``recplug-run-usage``: what ``run_recbole --help`` prints.
* ``recplug-run-keys``: the keys that recplug adds to RecBole's, with their defaults.
* ``recplug-cards``: the reproduction cards under ``benchmarks/cards``.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from settings_tables import code, prose, section, table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

CARDS = Path(__file__).parents[2] / "benchmarks" / "cards.py"


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below ``command``, with the words that call it."""
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, f"{path} {name}")
    if not hasattr(command, "commands"):
        yield path, command


def block(text: str, language: str = "text") -> nodes.literal_block:
    made = nodes.literal_block(text=text)
    made["language"] = language
    return made


def said(text: str) -> list[nodes.Node]:
    """A command's help: paragraphs, and lines that show a call as they are."""
    found: list[nodes.Node] = []
    for part in inspect.cleandoc(text).split("\n\n"):
        shown = part.startswith(("recplug ", "run_recbole "))
        found.append(block(part, "console") if shown else nodes.paragraph("", "", *prose(" ".join(part.split()))))
    return found


class Commands(SphinxDirective):
    """``recplug-commands``."""

    def run(self) -> list[nodes.Node]:
        import typer

        from recplug.adapters.cli.main import app

        found: list[nodes.Node] = []
        for path, command in leaves(typer.main.get_command(app), "recplug"):
            rows = [self.row(each) for each in command.params if each.name != "help"]
            content = said(command.help or "")
            if rows:
                content.append(table(["argument", "default", "what it does"], rows, [24, 14, 62]))
            found.append(section(code(path), f"command {path}", *content))
        return found

    @staticmethod
    def row(parameter: Any) -> list[str | list[nodes.Node]]:
        option = parameter.param_type_name == "option"
        names = ", ".join([*parameter.opts, *parameter.secondary_opts]) if option else parameter.name.upper()
        default = parameter.default
        if parameter.required:
            shown: str | list[nodes.Node] = "required"
        elif default is None or callable(default) or isinstance(default, bool) or default in ("", [], ()):
            shown = ""
        else:
            shown = code(getattr(default, "value", default))
        return [code(names), shown, getattr(parameter, "help", None) or ""]


class Usage(SphinxDirective):
    """``recplug-run-usage``."""

    def run(self) -> list[nodes.Node]:
        from recplug.adapters.cli.run_recbole import USAGE

        return [block(USAGE)]


class Keys(SphinxDirective):
    """``recplug-run-keys``: what stands behind each key in the source is its description."""

    def run(self) -> list[nodes.Node]:
        from recplug.adapters.recbole.config import keys

        said_of = dict(re.findall(r'^    "(\w+)": .+?,  # (.+)$', inspect.getsource(keys), re.MULTILINE))
        rows = [[code(f"--{key}"), code(default), said_of[key]] for key, default in keys.KEYS.items()]
        return [table(["key", "default", "what it does"], rows, [26, 12, 62])]


class Cards(SphinxDirective):
    """``recplug-cards``."""

    def run(self) -> list[nodes.Node]:
        cards = module()
        found: list[nodes.Node] = []
        for card in cards.every().values():
            rows = [self.row(card, name, row) for name, row in card.rows.items()]
            head = ["row", "plugins, settings", "seeds", f"{card.metric}, as measured", "here within"]
            about = nodes.paragraph("", "", *prose(f"{card.about} Data: `{card.fingerprint[:12]}`. Made with"))
            common = [code(f"{key}={value}") for key, value in card.settings.items()]
            content: list[nodes.Node] = [about, block(card.command, "console")]
            if common:
                words: list[nodes.Node] = [nodes.Text("Settings of all rows: ")]
                for place, literal in enumerate(common):
                    words += [nodes.Text(", " if place else ""), *literal]
                content.append(nodes.paragraph("", "", *words))
            content.append(table(head, rows, [22, 42, 8, 16, 12]))
            found.append(section(code(card.name), f"card {card.name}", *content))
            self.env.note_dependency(str(cards.CARDS / f"{card.name}.yaml"))
        return found

    @staticmethod
    def row(card: Any, name: str, row: Any) -> list[str | list[nodes.Node]]:
        own = " ".join(f"{key}={value}" for key, value in row.settings.items())
        plugins = f"--plugin {','.join(row.plugins)}" if row.plugins else "none"
        measured = f"{row.mean:.4f}" + ("" if row.deviation is None else f" ± {row.deviation:.4f}")
        trained = min(card.seeds, row.seeds)
        words = [*code(plugins), *([nodes.Text(" "), *code(own)] if own else [])]
        return [name, words, str(row.seeds), measured, f"± {card.tolerance(row, trained):.4f}"]


def module() -> ModuleType:
    """``benchmarks/cards.py``, which is no part of the package."""
    if "recplug_cards" not in sys.modules:
        spec = importlib.util.spec_from_file_location("recplug_cards", CARDS)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules["recplug_cards"] = made
        spec.loader.exec_module(made)
    return sys.modules["recplug_cards"]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("recplug-commands", Commands)
    app.add_directive("recplug-run-usage", Usage)
    app.add_directive("recplug-run-keys", Keys)
    app.add_directive("recplug-cards", Cards)
    return {"version": "1", "parallel_read_safe": True}
