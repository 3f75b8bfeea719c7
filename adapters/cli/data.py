"""``recplug data list``, ``get`` and ``check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recplug.adapters.console import say

app = typer.Typer(help="Data sets: bundled ones, ones made from your files, a check for any.", rich_markup_mode=None)


@app.command("list")
def list_() -> None:
    """The data sets that recplug knows, and their terms."""
    from recplug.adapters.data import RECBOLE_OWN, RECIPES, TERMS, bundled

    for data_set in bundled().values():
        say(f"{data_set.name}: {data_set.summary}")
        say(f"    {data_set.users:,} users, {data_set.items:,} items, {data_set.interactions:,} interactions")
        say(f"    terms: {data_set.terms}, beside the files ({data_set.directory.parent})")
    for recipe in RECIPES.values():
        say(f"{recipe.name}: {recipe.summary}; not bundled")
        say(f"    {recipe.users:,} users, {recipe.items:,} items, {recipe.interactions:,} interactions")
        say(f"    made from your copy of its files: {recipe.advice}")
        say(f"    terms: {TERMS}")
    say(f"{RECBOLE_OWN}: RecBole's own copy of MovieLens 100K, without feature tables; GroupLens' terms")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A data set of `recplug data list`.")],
    directory: Annotated[Path | None, typer.Argument(help="The same as --to.", show_default=False)] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="The set goes to TO/NAME.", show_default="dataset", metavar="DIR")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="For a set that is not bundled: its original files.", metavar="DIR")
    ] = None,
) -> None:
    """Copy a bundled data set, with its terms, or make one from its original files.

    recplug data get amazon-baby --from amazon2014/baby --to dataset
    """
    from recplug.adapters import data
    from recplug.plugins.errors import RecplugError

    if directory is not None and to is not None:
        raise RecplugError(f"two places, {directory} and --to {to}; give one")
    place = directory or to or Path("dataset")
    target = data.get(name, place, source)
    say(f"{name} is in {target}; use it with: run_recbole --dataset {name} --data_path {place}")


@app.command()
def check(
    name_or_dir: Annotated[str, typer.Argument(help="A data set by name, or a folder with NAME.inter or its split.")],
) -> None:
    """Check files before RecBole reads them: headers, types, tokens, time, repeats, feature tables, graphs."""
    from recplug.adapters import data

    for line in data.check(name_or_dir):
        say(line)


@app.command()
def holdout(
    name: Annotated[str, typer.Argument(help="A data set of `recplug data list`, or one under --data_path.")],
    to: Annotated[Path, typer.Option("--to", help="The set goes to TO/NAME.", metavar="DIR")],
    data_path: Annotated[Path | None, typer.Option("--data_path", help="The folder that holds NAME.")] = None,
    new_users: Annotated[float, typer.Option("--new_users", help="Share of the users who are new.")] = 0.2,
    new_items: Annotated[float, typer.Option("--new_items", help="Share of the items that are new.")] = 0.2,
    cold_items: Annotated[
        float, typer.Option("--cold_items", help="Share of the new items that get no support: content alone.")
    ] = 0.25,
    support: Annotated[
        float, typer.Option("--support", help="Of a new one's interactions, the most that a model may be shown.")
    ] = 0.5,
    pair: Annotated[
        str | None, typer.Option("--pair", help="Another set with the same users: name the new ones it knows.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw.")] = 0,
) -> None:
    """Hold users and items out as new ones: train on the rest, then recommend without another gradient step.

    recplug data holdout amazon-baby-small --to held
    """
    from recplug.adapters import data

    draw = data.Draw(new_users=new_users, new_items=new_items, cold_items=cold_items, support=support, seed=seed)
    target, lines = data.holdout(name, to, draw, data_path=data_path, pair=pair)
    for line in lines:
        say(line)
    say(f"{name} is in {target}; use it with: run_recbole --dataset {name} --data_path {to}")
