"""``recplug tune``: search settings by validation, then train and test the best ones once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recplug.adapters.console import UsageError, say

if TYPE_CHECKING:
    from recplug.adapters.tune.spec import Asked


def tune(
    model: Annotated[str | None, typer.Option("--model", help="A RecBole model.")] = None,
    plugin: Annotated[str | None, typer.Option("--plugin", help="Plugins: prism,mars; none for the bare one.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Default amazon-scientific.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The folder of the search; name it again to go on.")
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="How many in all.")] = 30,
    space: Annotated[
        list[str] | None,
        typer.Option("--space", help="KEY,KEY or KEY=low..high[:log] or KEY=a,b,c; may be repeated; default: all."),
    ] = None,
    show_space: Annotated[bool, typer.Option("--show_space", help="Print what would be searched.")] = False,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--fixed", "--set", help="KEY=VALUE for all trials, such as epochs=20; may be repeated."),
    ] = None,
    config_files: Annotated[
        str, typer.Option("--config_files", help='YAML files for all trials, "a.yaml b.yaml"; --fixed wins.')
    ] = "",
    data_path: Annotated[str | None, typer.Option("--data_path", help="Folder that holds NAME/NAME.inter.")] = None,
    study: Annotated[
        str | None, typer.Option("--study", help="FILE, FILE.db or URL; default: a journal in the folder.")
    ] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="tpe (the default) or random.")] = None,
    pruner: Annotated[str | None, typer.Option("--pruner", help="median (the default), hyperband or none.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the sampler; default 0.")] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Seconds after which this worker begins no further trial.")
    ] = None,
    final_seeds: Annotated[
        int, typer.Option("--final_seeds", help="Seeds with which the best is trained and tested; 0: not at all.")
    ] = 3,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep_checkpoints", help="Also of trials that are not the best.")
    ] = False,
) -> None:
    """Search the settings of plugins and backbone by validation, then train and test the best ones once.

    recplug tune --model SASRec --plugin prism --dataset amazon-scientific --trials 30 --output out

    The same command goes on after a stop, and several at once share the work; "recplug tune --output out" will do.
    """
    from recplug.adapters.cli.compare import common_settings
    from recplug.adapters.tune.search import tune as search

    asked: dict[str, Any] = {"plugins": plugin, "dataset": dataset, "data_path": data_path, "sampler": sampler,
                             "pruner": pruner, "seed": seed}  # fmt: skip
    asked |= {"space": space or None, "fixed": common_settings(config_files, fixed or []) or None}
    asked = {key: value for key, value in asked.items() if value is not None}
    if show_space:
        _show(output, model, asked)
        return
    if output is None:
        raise UsageError("--output is missing; name the folder of the search")
    if model is None and (asked or study):
        words = {"plugins": "plugin"}
        names = ", ".join(f"--{words.get(key, key)}" for key in asked) or "--study"
        raise UsageError(f"{names} belongs to --model; name it too, or leave it out to go on with the folder's search")
    found = search(model, **asked, study=study, output=output, trials=trials, timeout=timeout,
                   final_seeds=final_seeds, keep_checkpoints=keep_checkpoints)  # fmt: skip
    say(found.to_markdown())
    told = f"tables: {output / 'table.md'}, trials.parquet"
    say(told if found.best is None else f"{told}; the best: run_recbole --config_files {output / 'best.yaml'}")
    if len(found.trials) < trials or any(row["state"] == "running" for row in found.trials):
        say(f"not all of {trials} trials have ended; recplug tune --output {output} --trials {trials} goes on")


def _show(output: Path | None, model: str | None, asked: dict[str, Any]) -> None:
    """A line a key: what is drawn from, and what it is without a search."""
    from recplug.adapters.tune.search import held
    from recplug.adapters.tune.spec import ask

    if model is None:
        found: Asked | None = held(output) if output is not None else None
        if found is None:
            _show_declared(asked.get("plugins"))
            return
    else:
        words = asked.pop("space", ())
        found = ask(model, **asked, words=words)
    assert found is not None
    rows = [("key", "searched", "without a search")]
    rows += [(each.key, each.text(), str(each.default)) for each in found.dimensions]
    _table(rows)


def _show_declared(plugins: str | None) -> None:
    """What plugins declare, whatever the model."""
    from recplug.plugins.registry import get, parse_names
    from recplug.plugins.search import search_text, searches

    if plugins is None:
        raise UsageError("--show_space needs --plugin, or --model too, or the --output of a search")
    rows = [("key", "searched", "without a search")]
    for name in parse_names(plugins):
        fields = get(name).settings.model_fields
        for key, search in searches(get(name).settings).items():
            default = fields[key].get_default(call_default_factory=True)
            rows.append((f"{name}.{key}", search_text(search), str(default)))
    _table(rows)
    say("with --model, RecBole's own keys too")


def _table(rows: list[tuple[str, str, str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
