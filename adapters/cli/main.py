"""The command ``recplug``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from recplug.adapters.cli import data, doctor, evaluate, factors, features, plugins, recommend
from recplug.adapters.cli.common import UsageError, command

app = typer.Typer(
    help=(
        "Plugins, data, features and factors for run_recbole, and what its runs recommend. Every command takes "
        "--debug: errors with traceback."
    ),
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(plugins.app, name="plugins")
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(features.app, name="features")
app.add_typer(factors.app, name="factors")
app.command("recommend")(recommend.recommend)
app.command("evaluate")(evaluate.evaluate)


@command
def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    words = [word for word in arguments if word != "--debug"] or ["--help"]
    try:
        code = typer.main.get_command(app).main(words, prog_name="recplug", standalone_mode=False)
    except Exception as error:
        # The parser's own errors; typer brings click's classes along under another name than click's.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "recplug"
        raise UsageError(f"{error.format_message().rstrip('.')}; see: {path} --help") from error
    if code:
        sys.exit(code)
