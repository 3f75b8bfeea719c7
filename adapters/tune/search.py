"""``tune``: a search that can be stopped at any time and shared by several workers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recplug.adapters.tune.results import FinalCommand, Tuned, collect, final, run_best
from recplug.adapters.tune.spec import Asked, ask, check_same, remember, remembered
from recplug.adapters.tune.study import Study, alone, import_optuna
from recplug.adapters.tune.worker import Command, train, work
from recplug.plugins.errors import RecplugError


def tune(
    model: str | None = None,
    plugins: str | Sequence[str] = (),
    dataset: str = "amazon-scientific",
    *,
    output: str | Path,
    trials: int = 30,
    space: Iterable[str] = (),
    fixed: Mapping[str, Any] | None = None,
    data_path: str | Path | None = None,
    study: str | Path | None = None,
    sampler: str = "tpe",
    pruner: str = "median",
    seed: int = 0,
    timeout: float | None = None,
    final_seeds: int = 3,
    keep_checkpoints: bool = False,
    command: Command | None = None,
    final_command: FinalCommand = run_best,
) -> Tuned:
    """Search settings by validation, then train and test the best ones once.

    Call it again with the same ``output`` to go on, from as many processes at once as you like. The folder gets
    ``best.yaml``, ``trials.parquet`` and ``table.md``; run directories lie in ``trials/`` and ``final/``.

    Args:
        model: RecBole's name; None for the search that ``output`` holds.
        plugins: names in their order; nothing for the bare backbone.
        dataset: its name.
        output: the folder.
        trials: of the whole study.
        space: what to search, as ``--space`` takes it; by default all that is declared.
        fixed: what all trials have in common, as ``run`` takes it.
        data_path: as for ``run``.
        study: a file or URL for Optuna's study; by default a journal in ``output``.
        sampler: ``"tpe"`` or ``"random"``.
        pruner: ``"median"``, ``"hyperband"`` or ``"none"``.
        seed: of the sampler.
        timeout: seconds after which no further trial is begun.
        final_seeds: with how many seeds the best is trained and tested; 0: not at all.
        keep_checkpoints: of trials that are not the best.
        command: what trains a trial; by default a run without test.
        final_command: what trains and tests the best; by default ``run_recbole``.

    Raises:
        RecplugError: for wrong input, before anything is trained; and where nothing can be trained.
    """
    folder = Path(output).expanduser()
    import_optuna()
    for name, value, least in (("trials", trials, 1), ("final_seeds", final_seeds, 0), ("timeout", timeout, 0)):
        if value is not None and value < least:
            raise RecplugError(f"{name}={value} is below {least}; give a larger number")
    if final_command is run_best and any(character.isspace() for character in os.path.relpath(folder)):
        raise RecplugError(f"the path {os.path.relpath(folder)} has a space in it; choose an --output without")
    if model is None:
        asked = held(folder)
    else:
        asked = ask(model, plugins, dataset, words=space, fixed=fixed, data_path=data_path, storage=study,
                    sampler=sampler, pruner=pruner, seed=seed)  # fmt: skip
    with alone(folder):  # of two workers that begin at once, the second finds what the first has written
        asked = remember(folder, asked if model is None else plan(folder, asked))
    found = Study(folder, asked)
    try:
        work(found, trials=trials, command=command or train(asked, folder), timeout=timeout,
             keep_checkpoints=keep_checkpoints)  # fmt: skip
    finally:
        collect(found).save()
    whole = len(found.taken()) >= trials and not found.running()
    tests = final(found, final_seeds, final_command) if whole else {}
    tuned = collect(found, tests)
    tuned.save()
    return tuned


def plan(output: Path, asked: Asked) -> Asked:
    """The same, as one with what ``output`` holds already.

    Raises:
        RecplugError: where that is another search.
    """
    before = remembered(output)
    if before is None:
        return asked
    check_same(before.same(), asked, str(output))
    if asked.storage not in ("", before.storage):
        raise RecplugError(
            f"{output} keeps its study in {before.storage or 'a journal of its own'}; leave --study out, or choose "
            "another --output"
        )
    return replace(asked, folder=before.folder, storage=before.storage)


def held(output: Path) -> Asked:
    """The search of a folder.

    Raises:
        RecplugError: where there is none.
    """
    found = remembered(output)
    if found is None:
        raise RecplugError(f"{output} holds no search to go on with; name --model, --plugin and --dataset")
    return found
