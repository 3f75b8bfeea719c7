"""``recplug evaluate``: how well a finished run ranks for users and items that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recplug.adapters.cli.results.recommend import DataPath, Mode, ModeOption, Overwrite, Run, has_field, in_order
from recplug.adapters.console import say
from recplug.adapters.item_files import columns
from recplug.adapters.ownership import check_free

if TYPE_CHECKING:
    from recplug.adapters.recbole import LoadedRun


def evaluate(
    run: Run,
    support: Annotated[
        Path | None,
        typer.Option("--support", help="What the run may be shown; default: DATASET.support.inter of the data set."),
    ] = None,
    query: Annotated[
        Path | None, typer.Option("--query", help="What is asked for; default: DATASET.query.inter.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Of recall and NDCG.")] = 20,
    mode: ModeOption = Mode.fold_in,
    output: Annotated[Path | None, typer.Option("--output", help="A .json file for the numbers.")] = None,
    overwrite: Overwrite = False,
    data_path: DataPath = None,
) -> None:
    """Show a finished run what new users and items have had, and ask for the rest; no gradient step.

    recplug evaluate RUN, for a run on a data set that `recplug data holdout` has made.

    Tables by group, by how much is shown of a user, and by how many interactions an item has, beside popularity and the
    ranking for someone of whom nothing is known.
    """
    import json

    from recplug.adapters.files import replacing
    from recplug.adapters.recbole import load
    from recplug.adapters.recbole.finished.new_nodes import as_markdown, evaluate_new
    from recplug.adapters.recbole.infer.top_k import cannot_write, check_place
    from recplug.plugins.errors import RecplugError

    if output is not None:
        if output.suffix != ".json":
            raise RecplugError(f"--output {output} has to be a .json file")
        check_place(output)
        check_free(output, overwrite=overwrite)
    loaded = load(run, data_path=data_path)
    shown, asked = (_rows(loaded, given, part) for given, part in ((support, "support"), (query, "query")))
    report = evaluate_new(loaded, shown, asked, k=k, mode=mode.value)
    say(as_markdown(report))
    if output is not None:
        try:
            with replacing(output) as partial:
                partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise cannot_write(output, error) from error


def _rows(loaded: LoadedRun, given: Path | None, part: str) -> list[tuple[str, str, str]]:
    """User, item and group of every line, oldest first where there is a time."""
    from recplug.plugins.errors import RecplugError

    name = loaded.result["dataset"]
    file = given or Path(loaded.config["data_path"]) / f"{name}.{part}.inter"
    if not file.is_file():
        raise RecplugError(
            f"no {file}; name it with --{part}, or train on what `recplug data holdout {name} --to DIR` leaves"
        )
    user, item, time = (loaded.config[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"))
    rows = columns(file, user, item)
    groups = columns(file, "group") if has_field(file, "group") else [("all",)] * len(rows)
    found = [(who, what, group) for (who, what), (group,) in zip(rows, groups, strict=True)]
    return in_order(file, time, found)
