"""``run_recbole --resume``: which run, and whether what is said beside it is what the run has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recplug.adapters.console import UsageError, say

# What resuming reads itself; anything else that is given has to be what the run has.
OWN = ("resume", "epochs", "data_path", "config_files", "debug", "help", "baseline", "output_dir", "show_progress")


def resume(values: Mapping[str, str], given: Mapping[str, Any]) -> Any:
    """Go on with the run that ``--resume`` names; None for one that has nothing left to do, which is said.

    Args:
        values: the command line.
        given: settings of configuration files and of the command line, as the run would take them.

    Raises:
        UsageError: for keys that do not go with it.
        RecplugError: for settings that are not the run's, and whatever keeps it from going on.
    """
    from recplug.adapters.recbole.config.host_config import literal
    from recplug.adapters.recbole.state.previous_run import Before
    from recplug.adapters.recbole.train.resume import check_asked, is_finished, latest
    from recplug.adapters.recbole.train.resume import resume as go_on

    path = latest() if values["resume"] == "last" else Path(values["resume"])
    if "output_dir" in values and Path(values["output_dir"]).resolve() != path.resolve():
        raise UsageError("--resume writes to the directory that it names; leave --output_dir out")
    before = Before.read(path)
    if "baseline" in values and literal(values["baseline"]) is not (path / "baseline").is_dir():
        has = "with" if (path / "baseline").is_dir() else "without"
        raise UsageError(f"{path} was started {has} a baseline; leave --baseline out")
    check_asked(before, {key: value for key, value in given.items() if key not in OWN})
    epochs = given.get("epochs")
    if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int)):
        raise UsageError(f"--epochs {epochs} is no whole number")
    if is_finished(before, epochs):
        say(f"{path} has finished; its result is in {path / 'result.json'}, and --epochs N with more of them trains on")
        return None
    return go_on(path, epochs=epochs, data_path=values.get("data_path"))
