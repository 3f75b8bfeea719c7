"""Start several processes on this machine that train one model together, and end them together."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import torch
from torch.multiprocessing import get_context, get_start_method, set_start_method
from torch.multiprocessing.spawn import start_processes

from recplug.adapters.ownership import read_result
from recplug.adapters.recbole.config.host_config import gpu_list, model_class, read_yaml
from recplug.adapters.recbole.processes import Place, check, here, is_first, leave
from recplug.adapters.recbole.state.run_directory import RunDirectory
from recplug.adapters.recbole.train.run import DEFAULT_DATASET, RunResult, new_directory, run
from recplug.adapters.stopping import reason, started_without_interrupt
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import parse_names

log = logging.getLogger("recplug")
GRACE = 10.0  # seconds that the others have to end by themselves
NOTICE = 0.5  # seconds in which a process that was killed is noticed


class _Elsewhere(Exception):
    """The traceback of an error in another process."""


def launch(
    arguments: Mapping[str, Any],
    *,
    nproc: int,
    world_size: int = -1,
    ip: str = "localhost",
    port: int | str | None = None,
    group_offset: int = 0,
    first: Callable[[], None] | None = None,
) -> RunResult | None:
    """``run(**arguments)`` in ``nproc`` processes of this machine.

    The first process writes the run directory. When one process ends by an error, so do all, and the error is raised
    here; so does an interruption. On several machines, start this on each, with the same ``arguments``.

    Args:
        arguments: of :func:`recplug.adapters.recbole.run`; they go to other processes and must be picklable.
        nproc: processes on this machine.
        world_size: processes on all machines; -1 for this machine's.
        ip: the machine of the first process.
        port: where its processes meet; by default any free port, on one machine.
        group_offset: how many processes are on the machines before this one.
        first: called in the first process before anything else.

    Returns:
        The result, without its model; None on a machine that does not hold the first process.

    Raises:
        RecplugError: for numbers that do not fit, what cannot train in several processes, and wrong input.
        RuntimeError: an error in one of the processes.
    """
    if here() is not None:
        raise RecplugError("torchrun has started the processes already; leave --nproc and --world_size out")
    size = nproc if world_size == -1 else world_size
    _check_numbers(nproc, size, group_offset, port, ip)
    names = parse_names(arguments.get("plugins", ()))
    host = arguments["model"] if isinstance(arguments["model"], type) else model_class(arguments["model"])
    files = [read_yaml(file) for file in arguments.get("config_files", ())]
    check(host, names, [dict(arguments.get("config_dict") or {}), *files])
    directory: RunDirectory | None = None
    if group_offset == 0:
        directory = new_directory(host, names, arguments.get("dataset", DEFAULT_DATASET), arguments.get("output_dir"))
        arguments = {**arguments, "output_dir": directory}
    meeting = str(port or _free_port())
    places = [Place(group_offset + index, index, size, nproc, ip, meeting) for index in range(nproc)]
    log.info("%d processes%s", nproc, "" if size == nproc else f" of {size}")
    pipes = [get_context("spawn").Pipe(duplex=False) for _ in places]
    # A process that is killed leaves what it had for itself; it goes with this folder.
    with tempfile.TemporaryDirectory(prefix="recplug-", ignore_cleanup_errors=True) as room:
        with started_without_interrupt():  # until they can take it
            context: Any = start_processes(
                _process,
                args=(dict(arguments), places, [pipe[1] for pipe in pipes], get_start_method(), room, first),
                nprocs=nproc,
                join=False,
                start_method="spawn",
            )
        for _, ours in pipes:
            ours.close()
        try:
            return _results(context, [pipe[0] for pipe in pipes], directory)
        except BaseException as error:
            _end(context.processes, signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
            _settle(directory, error)
            raise


def _check_numbers(nproc: int, size: int, offset: int, port: int | str | None, ip: str) -> None:
    for name, value, least in (("nproc", nproc, 1), ("world_size", size, 1), ("group_offset", offset, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RecplugError(f"{name}={value} is not a whole number of at least {least}")
    if nproc > (most := max(8, 4 * (os.cpu_count() or 1))):
        raise RecplugError(f"nproc={nproc} is more than {most}, four a core of this machine; use fewer")
    if offset + nproc > size:
        raise RecplugError(
            f"{offset} processes before this machine's {nproc} are more than the world_size {size}; set --world_size "
            "to the number on all machines"
        )
    if size > nproc and port is None:
        raise RecplugError("several machines meet at a port; give the same --port on each, such as 5678")
    if port is not None and not (str(port).isdigit() and 0 < int(port) < 2**16):
        raise RecplugError(f"port={port} is not a number from 1 to 65535")
    if port is not None and offset == 0:
        _check_free(int(port))
    try:
        socket.getaddrinfo(ip, None)
    except OSError as error:
        raise RecplugError(f"ip={ip} is no machine that can be found ({error.strerror}); give its address") from error
    if torch.cuda.is_available() and torch.cuda.device_count() < nproc:
        raise RecplugError(f"nproc {nproc} needs as many GPUs, and {torch.cuda.device_count()} are visible; use fewer")


def _check_free(port: int) -> None:
    """Whether the first process can wait for the others there; to find out otherwise takes them half a minute."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port of a run that has just ended is free
        try:
            probe.bind(("", port))
        except OSError as error:
            raise RecplugError(f"port {port} cannot be used ({error.strerror}); give another --port") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


# -- in each process


def _process(
    index: int,
    arguments: dict[str, Any],
    places: list[Place],
    pipes: list[Connection],
    workers: str,
    room: str,
    first: Callable[[], None] | None,
) -> None:
    """One process: its place is told as ``torchrun`` tells it, and how it ended goes through its pipe."""
    signal.signal(signal.SIGINT, _interrupt_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    set_start_method(workers, force=True)  # of loaders' workers; to spawn them too fails on RecBole's data
    tempfile.tempdir = room
    os.environ.update(places[index].variables())
    if (listed := (arguments.get("config_dict") or {}).get("gpu_id")) is not None:
        # RecBole says it too, but after CUDA was asked whether it is there, which settles what it shows.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_list(listed)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(places)))
    for other in pipes[:index] + pipes[index + 1 :]:
        other.close()  # or the end of its process would not be seen while this one lives

    def tell(kind: str, value: object) -> None:
        pipes[index].send((time.monotonic(), kind, value))

    try:
        if not is_first():
            warnings.simplefilter("ignore")  # the first process says the same
        elif first is not None:
            first()
        result = run(**arguments)
        leave()
        tell("result", _plain(result) if is_first() else None)
    except KeyboardInterrupt:
        tell("interrupted", None)
    except Exception as error:
        text, tail = " ".join(str(error).split()), "".join(traceback.format_exception(error))
        refused = isinstance(error, RecplugError)
        tell("refused" if refused else "failed", (text if refused else f"{type(error).__name__}: {text}", tail))


def _interrupt_once(number: int, frame: object) -> NoReturn:
    """A second Ctrl-C does not cut short what the first one leaves to be written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _plain(result: RunResult) -> RunResult:
    bare = None if result.baseline is None else _plain(result.baseline)
    return RunResult(result.directory, result.result, None, bare)


# -- in the process that started them


def _results(context: Any, pipes: list[Connection], directory: RunDirectory | None) -> RunResult | None:
    """What the first process returns, when all have ended well; else the error of the one that failed first."""
    found: RunResult | None = None
    open_ = {pipe: index for index, pipe in enumerate(pipes)}
    while open_:
        ended = [(*_read(pipe), open_.pop(pipe)) for pipe in _ready(open_, None)]
        if any(kind != "result" for _, kind, _, _ in ended):
            # The others notice: whoever was killed says nothing, and whoever missed it says something else.
            ended += [(*_read(pipe), open_.pop(pipe)) for pipe in _ready(open_, NOTICE)]
        for _, kind, value, index in sorted(ended, key=lambda each: each[0]):
            if kind == "result":
                found = value or found
            elif kind == "interrupted":
                raise KeyboardInterrupt
            elif kind == "refused":
                raise RecplugError(value[0]) from _Elsewhere(value[1])
            else:
                _raise_failure(context.processes[index], index, value, directory)
    for process in context.processes:
        process.join()
    return found


def _ready(open_: Mapping[Connection, int], seconds: float | None) -> list[Connection]:
    ready = wait(list(open_), seconds)
    return [pipe for pipe in open_ if pipe in ready]


def _read(pipe: Connection) -> tuple[float, str, Any]:
    """When a process ended, how, and what it says of it."""
    try:
        when, kind, value = pipe.recv()
        return when, kind, value
    except EOFError:
        return -math.inf, "gone", None


def _raise_failure(process: Any, index: int, value: Any, directory: RunDirectory | None) -> NoReturn:
    if value is None:
        process.join()
        code = process.exitcode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        error = RuntimeError(f"process {index} {how}; was there enough memory? see dmesg, and try fewer processes")
    else:
        error = RuntimeError(f"process {index}: {value[0]}")
        error.__cause__ = _Elsewhere(value[1])
    if directory is not None:
        error.run_log = directory.path / "run.log"  # type: ignore[attr-defined]
        if value is not None and index and directory.path.is_dir():  # the first process writes its own
            with (directory.path / "run.log").open("a", encoding="utf-8") as file:
                file.write(f"process {index} failed\n{value[1]}")
    raise error


def _end(processes: list[Any], number: int | None) -> None:
    """Give the others time to end by themselves, told by the signal ``number`` if there is one; then end them."""
    if number is not None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)
    for stop in (lambda process: None, lambda process: process.terminate(), lambda process: process.kill()):
        until = time.monotonic() + GRACE
        for process in processes:
            if process.is_alive():
                stop(process)
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))


def _settle(directory: RunDirectory | None, error: BaseException) -> None:
    """What ``result.json`` says of the end: the first process may have been ended, or know only that others left."""
    if directory is None or not directory.path.is_dir():
        return
    if isinstance(error, RecplugError) and not any(directory.path.rglob("metrics.csv")):
        directory.discard()  # refused before any training, as by one process
        return
    file = directory.path / "result.json"
    result = read_result(directory.path) if file.is_file() else {}
    ended = {"status": "failed", "error": " ".join(str(error).split())}
    if isinstance(error, KeyboardInterrupt):
        ended = {"status": "interrupted", "error": reason(error)}
    directory.write_result({**result, **ended})
