"""``recplug compare``: plugins against the bare backbone and against controls, over models, data sets and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recplug.adapters.console import UsageError, say

if TYPE_CHECKING:
    from recplug.adapters.compare.spec import Asked


def compare(
    output: Annotated[Path, typer.Option("--output", help="The folder of the comparison; name it again to go on.")],
    models: Annotated[str | None, typer.Option("--models", help="RecBole models: SASRec,GRU4Rec.")] = None,
    plugins: Annotated[
        str | None, typer.Option("--plugins", help="Sets of plugins: prism,mars,prism+mars; bare is always there.")
    ] = None,
    datasets: Annotated[str | None, typer.Option("--datasets", help="Data sets: amazon-scientific.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="How many: 1, 2, ...; default 5.")] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            "--controls",
            help="Of every set of plugins: filter,itemgraph,mlp,shuffled,no_losses (the default), or none.",
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", help="KEY=VALUE,VALUE: validation chooses, for each set of plugins; may be repeated."),
    ] = None,
    ablations: Annotated[
        bool,
        typer.Option("--ablations", help="Compare with the ablations that plugins declare, in their papers' words."),
    ] = False,
    variants: Annotated[
        str | None,
        typer.Option("--variants", help="YAML file of named variants, or recplug:NAME; options win."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for all cells, such as epochs=20; may be repeated.")
    ] = None,
    config_files: Annotated[
        str, typer.Option("--config_files", help='YAML files for all cells, "a.yaml b.yaml"; --set wins.')
    ] = "",
    data_path: Annotated[str | None, typer.Option("--data_path", help="Folder that holds NAME/NAME.inter.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Cells at once; times compare only with 1.")] = 1,
    retry: Annotated[bool, typer.Option("--retry", help="Try cells that failed before again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="List the cells that are left, and how long.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Write the tables of what is there; train nothing.")] = False,
    metric: Annotated[
        str | None, typer.Option("--metric", help="To test on, such as ndcg@10; default: what validation used.")
    ] = None,
    activity: Annotated[
        str, typer.Option("--activity", help="Training interactions at which groups of users begin: 5,10.")
    ] = "",
    groups: Annotated[bool, typer.Option("--groups/--no_groups", help="Tell groups of users and targets.")] = True,
) -> None:
    """Train a grid of models, plugins, data sets and seeds, and say which gains are real and what they cost.

    recplug compare --models SASRec --plugins prism,mars --datasets amazon-scientific --seeds 5 --output out

    Every cell is a process of its own; the same command goes on after a stop. OUTPUT/index.html shows the tables.
    Ends with exit code 1 where cells failed.
    """
    from recplug.adapters.compare import experiment
    from recplug.adapters.compare.spec import flat, parse_grid
    from recplug.adapters.compare.variants import read_variants

    cuts = _cuts(activity)
    if show:
        if models or plugins or datasets:
            raise UsageError("--show takes the comparison of --output as it is; leave --models and its like out")
        found = experiment.show(output, metric=metric, activity=cuts, groups=groups)
    else:
        file = read_variants(variants) if variants else {}
        given = {"models": models, "plugins": plugins, "datasets": datasets}
        asked: dict[str, Any] = {key: value or file.pop(key, None) for key, value in given.items()}
        options: dict[str, Any] = {"seeds": seeds, "controls": controls, "data_path": data_path}
        options["ablations"] = ablations or None
        options["grid"] = parse_grid(grid or []) or None
        common = {**flat(file.pop("settings", {})), **common_settings(config_files, settings or [])}
        options["settings"] = common or None
        options = {**file, **{key: value for key, value in options.items() if value is not None}}
        if options and not any(asked.values()):
            names = ", ".join(f"--{'set' if key == 'settings' else key}" for key in options)
            raise UsageError(f"{names} belongs to --models, --plugins and --datasets; name these too, or leave it out")
        experiment.check_jobs(jobs)
        if dry_run:
            _list(output, experiment.plan(output, **asked, **options), jobs)
            return
        found = experiment.compare(**asked, **options, output=output, jobs=jobs, retry=retry, metric=metric,
                                   activity=cuts, groups=groups)  # fmt: skip
    say(found.to_markdown())
    say(f"tables: {output / 'index.html'}, table.md, table.tex, results.parquet")
    failed = sum(each.result is None for each in found.outcomes.values())
    if failed and not show:
        say(f"{failed} of {len(found.outcomes)} cells failed; the table says why, and --retry tries them again")
        raise typer.Exit(1)


def _cuts(word: str) -> tuple[int, ...]:
    parts = [part.strip() for part in word.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--activity {word} is no list of numbers; write --activity 5,10")
    return tuple(map(int, parts))


def common_settings(config_files: str, words: list[str]) -> dict[str, Any]:
    """Files in their order, then ``KEY=VALUE``."""
    from recplug.adapters.compare.spec import flat
    from recplug.adapters.recbole.config.host_config import literal, read_yaml

    found: dict[str, Any] = {}
    for file in config_files.split():
        found |= flat(read_yaml(file))
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {word} is no KEY=VALUE; write --set epochs=20")
        if key.strip() in given:
            raise UsageError(f"--set {key.strip()} is given twice; give it once")
        given[key.strip()] = literal(value)
    return {**found, **given}


def _list(output: Path, asked: Asked, jobs: int) -> None:
    """The cells that are left, and about how long they take, judged by those that have finished."""
    from recplug.adapters.compare.cells.plan import ready, total
    from recplug.adapters.compare.cells.status import seconds
    from recplug.adapters.compare.cells.workers import collect, finished_cells

    outcomes = collect(output, asked)
    left = ready(asked, outcomes)
    for cell in left:
        say(f"{cell.title()}, seed {cell.seed}")
    done = sum(each.result is not None for each in outcomes.values())
    cells = total(asked, outcomes)
    waiting = cells - len(outcomes) - len(left)
    failed, to_train = len(outcomes) - done, len(left) + waiting
    say(f"{cells} cells: {done} finished, {failed} failed, {to_train} to train ({waiting} wait for others)")
    times: dict[tuple[str, str], list[float]] = {}
    for cell in finished_cells(asked, outcomes):
        times.setdefault((cell.dataset, cell.model), []).append(seconds(output, cell.key))
    if not times:
        say("how long it takes is known after the first finished cell")
        return
    everyone = [each for several in times.values() for each in several]
    means = {place: sum(several) / len(several) for place, several in times.items()}
    mean = sum(everyone) / len(everyone)
    rest = sum(means.get((cell.dataset, cell.model), mean) for cell in left) + waiting * mean
    say(f"about {rest / jobs / 60:.0f} min with {jobs} at once, at {mean:.0f} s a cell so far")
