"""The command ``recplug``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from recplug.adapters.cli import compare, data, doctor, plugins, tune
from recplug.adapters.cli.factors import files
from recplug.adapters.cli.features import exchange
from recplug.adapters.cli.results import evaluate, export, recommend, report
from recplug.adapters.console import UsageError, command

app = typer.Typer(
    help=(
        "Plugins, data, features and factors for run_recbole; what its runs recommend, give away and show; and "
        "comparisons of several. Every command takes --debug: errors with traceback."
    ),
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(plugins.app, name="plugins")
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(exchange.app, name="features")
app.add_typer(files.app, name="factors")
app.command("recommend")(recommend.recommend)
app.command("export")(export.export)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("tune")(tune.tune)


@command
def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    words = [word for word in arguments if word != "--debug"] or ["--help"]
    group = typer.main.get_command(app)
    try:
        # Not typer's own start: it takes an interruption for a silent end.
        with group.make_context("recplug", words) as context:
            group.invoke(context)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except BrokenPipeError:  # whoever reads has had enough, as `| head`; Python would write what is left once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # The parser's own errors; typer brings click's classes along under another name than click's.
        if not hasattr(error, "format_message"):
            raise
        where = getattr(error, "ctx", None)
        path = where.command_path if where is not None else "recplug"
        raise UsageError(f"{error.format_message().rstrip('.')}; see: {path} --help") from error
