"""One trial, in a process of its own: it trains, validates, and asks after every validation whether to go on."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recplug.adapters.console import command
from recplug.plugins import hookimpl
from recplug.plugins.registry import manager

GO, PRUNE = "go", "prune"  # answers to a line "EPOCH SCORE"


class Reports:
    """Tells scores to whoever started this process.

    Args:
        channel: a stream to write to and to read answers from.
    """

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    @hookimpl
    def recplug_evaluation_end(self, epoch: int, score: float) -> None:
        """Report, and end the training where that is the answer, or where nobody is left to answer."""
        from recplug.adapters.recbole.train.job import Pruned

        try:
            self.channel.write(f"{epoch} {float(score)!r}\n")
            self.channel.flush()
            answer = self.channel.readline().strip()
        except OSError:
            answer = ""
        if answer == PRUNE:
            raise Pruned(f"pruned after epoch {epoch}")
        if answer != GO:
            raise KeyboardInterrupt


@contextmanager
def reporting(channel: Any) -> Iterator[None]:
    """Have every validation reported meanwhile."""
    reports = Reports(channel)
    manager().register(reports, name="recplug.tune")
    try:
        yield
    finally:
        manager().unregister(reports)


@command
def main(arguments: Sequence[str]) -> None:
    """Train a trial: its description as JSON, and the number of an open socket."""
    from recplug.adapters.recbole.config.host_config import model_class, read_yaml
    from recplug.adapters.recbole.train.job import Pruned
    from recplug.adapters.recbole.train.run import bare_speed, run

    about, number = json.loads(arguments[0]), int(arguments[1])
    values = {**about["values"], "resumable": False}
    host = model_class(about["model"])
    if not about["plugins"]:
        values |= bare_speed(host, [read_yaml(about["settings"]), values])
    with socket.socket(fileno=number) as ours, ours.makefile("rw") as channel, reporting(channel):
        try:
            run(
                host.__name__,
                about["dataset"],
                about["plugins"],
                values,
                config_files=[Path(about["settings"])],
                data_path=about["data_path"],
                output_dir=about["folder"],
                test=False,
            )
        except Pruned as pruned:
            print(pruned, file=sys.stderr)
