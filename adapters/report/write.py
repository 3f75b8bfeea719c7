"""From run directories to the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from recplug.adapters.files import replacing
from recplug.adapters.ownership import check_free
from recplug.adapters.page.frame import page, render
from recplug.adapters.report import curves, side_by_side
from recplug.adapters.report.charts import legend
from recplug.adapters.report.figures import figure
from recplug.adapters.report.run_contents import Run, read_run
from recplug.adapters.report.side_by_side import Column
from recplug.plugins.errors import RecplugError

StrPath = str | os.PathLike[str]
MOST_USERS = 50


def write_report(
    runs: StrPath | Sequence[StrPath],
    output: StrPath = "report.html",
    *,
    users: Sequence[str] | None = None,
    images: str | None = None,
    k: int = 10,
    data_path: StrPath | None = None,
    examples: bool = True,
    overwrite: bool = False,
) -> list[str]:
    """Write one HTML page about some runs; it needs no network, and takes nothing from anywhere when it is opened.

    What a run lacks (it failed, was interrupted, its data are gone) is said on the page, one line each. For example
    users the run is loaded.

    Args:
        runs: run directories; a run's ``baseline`` comes along.
        output: the page.
        users: example users, 50 at most; None: some of the test users, at fixed places of their ranking.
        images: a folder of pictures named by item token, or the column of ``DATASET.item`` that names files.
        k: how many items to recommend, and the first places that gains and losses are counted by.
        data_path: folder that holds ``DATASET/DATASET.inter``, where the data have moved.
        examples: whether to load the runs for example users.
        overwrite: whether a file that is there may be replaced, once the page is whole.

    Returns:
        What is missing, in one line each.

    Raises:
        RecplugError: for a directory that is no run, one named twice, an unknown user, ``images`` that are neither a
            folder nor a column, or an output that cannot be written.
    """
    paths = [Path(each) for each in ([runs] if isinstance(runs, (str, os.PathLike)) else runs)]
    target = Path(output)
    _check(paths, target, users, k, examples)
    check_free(target, overwrite=overwrite)
    shown = side_by_side.columns([read_run(path) for path in paths])
    missing = [f"{column.name}: {line}" for column in shown for line in column.run.missing]
    asked = None
    if examples:
        from recplug.adapters.report import example_users as asking

        asked = asking.examples(shown, users, images, k, None if data_path is None else Path(data_path))
        missing += asked.missing
    body = render("report.html", **_contents(shown, k, missing, asked))
    title = " and ".join(column.name for column in shown if column.given)
    _write(target, page(f"{title}: report", body))
    return missing


def _check(paths: Sequence[Path], target: Path, users: Sequence[str] | None, k: int, examples: bool) -> None:
    if not paths:
        raise RecplugError("no run to report on; name a directory that run_recbole has left")
    resolved = [path.resolve() for path in paths]
    if twice := [path for at, path in enumerate(paths) if path.resolve() in resolved[:at]]:
        raise RecplugError(f"{twice[0]} is named twice; name each run once")
    if users is not None and len(users) > MOST_USERS:
        raise RecplugError(f"--users names {len(users):,} users, and a page shows {MOST_USERS} at most; choose some")
    if k < 1:
        raise RecplugError(f"--k {k} has to be 1 or more")
    if users is not None and not users:
        raise RecplugError("--users names nobody; write A,B,C or a file with one a line, or leave it out")
    if users is not None and not examples:
        raise RecplugError("--users names example users, and --no_users leaves them out; choose one")
    if target.suffix.lower() not in (".html", ".htm"):
        raise RecplugError(f"the report {target} is a web page; let its name end with .html")
    if not target.parent.is_dir():
        raise RecplugError(f"no folder {target.parent} to write {target.name} to; make it first")
    if target.is_dir():
        raise RecplugError(f"cannot write {target}: it is a folder; choose another name")


def _write(target: Path, text: str) -> None:
    try:
        with replacing(target) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecplugError(f"cannot write {target}: {error.strerror}; choose another place") from error


def _contents(shown: Sequence[Column], k: int, missing: Sequence[str], asked: Any) -> dict[str, Any]:
    """What the template needs."""
    return {
        "shown": shown,
        "given": [column for column in shown if column.given],
        "k": k,
        "missing": missing,
        "asked": asked,
        "verdict": side_by_side.verdict(shown),
        "warnings": side_by_side.warnings(shown),
        "tests": side_by_side.results(shown, "test"),
        "valids": side_by_side.results(shown, "valid"),
        "costs": side_by_side.costs(shown),
        "differing": side_by_side.differing(shown) if len(shown) > 1 else [],
        "duels": list(side_by_side.duels(shown, k)),
        "curves": list(curves.groups(shown)),
        "epochs": [(column, _table(column.run)) for column in shown if column.run.epochs],
        "legend": legend([(column.name, column.style) for column in shown]),
        "diagnostics": [(column, list(_plugins(column))) for column in shown if column.run.pictures],
        "about": side_by_side.about,
    }


def _table(run: Run) -> list[list[str]]:
    """``metrics.csv`` as it is, a row an epoch."""
    return [
        ["" if value is None else f"{value:.6g}" for value in row] for row in zip(*run.epochs.values(), strict=True)
    ]


def _plugins(column: Column) -> Any:
    """(plugin, its summary, [(picture, HTML)], arrays without a picture)."""
    from recplug.plugins.registry import available

    for plugin, pictures in column.run.pictures.items():
        known = available().get(plugin)
        drawn: list[tuple[Any, Markup]] = []
        rest = []
        for place, picture in enumerate(pictures):
            if picture.png or picture.labels:
                drawn.append((picture, figure(picture, f"panel-{column.style}-{plugin}-{place}")))
            elif picture.values is not None:
                shape = " × ".join(map(str, picture.values.shape))
                rest.append((picture.name, f"[{shape}]" if shape else f"{float(picture.values):.4g}"))
        yield plugin, known.summary if known is not None else "", drawn, rest
