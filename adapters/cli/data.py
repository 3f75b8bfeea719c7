"""``recplug data list``, ``get`` and ``check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recplug.adapters.cli.common import say

app = typer.Typer(help="The bundled data sets, and a check for any other.", rich_markup_mode=None)


@app.command("list")
def list_() -> None:
    """The bundled data sets and their terms."""
    from recplug.adapters.data import RECBOLE_OWN, bundled

    for data_set in bundled().values():
        say(f"{data_set.name}: {data_set.summary}")
        say(f"    {data_set.users:,} users, {data_set.items:,} items, {data_set.interactions:,} interactions")
        say(f"    terms: {data_set.terms}, beside the files ({data_set.directory.parent})")
    say(f"{RECBOLE_OWN}: RecBole's own copy of MovieLens 100K, without feature tables; GroupLens' terms")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A bundled data set.")],
    directory: Annotated[Path, typer.Argument(help="Copied to DIRECTORY/NAME.")] = Path("dataset"),
) -> None:
    """Copy a bundled data set, with its terms, to look at it or to change it."""
    from recplug.adapters import data

    target = data.get(name, directory)
    say(f"{name} is in {target}; use it with: run_recbole --dataset {name} --data_path {directory}")


@app.command()
def check(name_or_dir: Annotated[str, typer.Argument(help="A bundled data set, or a folder with NAME.inter.")]) -> None:
    """Check files before RecBole reads them: headers, types, tokens, time, repeats, feature tables."""
    from recplug.adapters import data

    for line in data.check(name_or_dir):
        say(line)
