"""``recplug report``: one HTML page about finished runs, or about those that ended early."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recplug.adapters.cli.results.recommend import Overwrite, listed
from recplug.adapters.console import say


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; baselines come along.", metavar="RUN...")],
    output: Annotated[Path, typer.Option("--output", help="The page.")] = Path("report.html"),
    users: Annotated[
        str | None,
        typer.Option(
            "--users", help="Example users: A,B,C, or a file with one a line; default: some test users.", metavar="WHO"
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            help="A folder of pictures named by item token, or the column of the .item file that names them.",
            metavar="DIR_OR_COLUMN",
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Items a user, and the places that gains are counted by.")] = 10,
    data_path: Annotated[
        Path | None, typer.Option("--data_path", help="Folder that holds the runs' data set, where it has moved.")
    ] = None,
    overwrite: Overwrite = False,
    no_users: Annotated[
        bool, typer.Option("--no_users", help="Load no run: no example users, and no checkpoint is opened.")
    ] = False,
) -> None:
    """One HTML page about one run or several: results, curves, diagnostics, example users, settings.

    recplug report runs/my-run other-run --output report.html
    """
    from recplug.adapters.page.frame import size
    from recplug.adapters.report import write_report

    chosen = None if users is None else listed(users)
    missing = write_report(
        runs, output, users=chosen, images=images, k=k, data_path=data_path, examples=not no_users,
        overwrite=overwrite,
    )  # fmt: skip
    for line in missing:
        say(f"note: {line}")
    say(f"{output}: {size(output.stat().st_size)}")
