"""Ctrl-C and SIGTERM, once or several times, at work and while importing: one line, and 130 or 143."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

WORK = """
import sys, time
from recplug.adapters.console import command

@command
def main(arguments):
    try:
        print("ready", flush=True)
        {work}
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("kept", flush=True)
        raise

main([])
"""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def start(words, tmp_path):
    # A shell's background jobs ignore the signal, and their children with them.
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("work", ["time.sleep(60)", "import slow"])
def test_several_signals_are_one_line(number, work, tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    process = start(["-c", WORK.format(work=work)], tmp_path)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == CODES[number], (out, err)
    assert err.count("\n") == 1, err
    assert err.startswith("interrupted" if number == signal.SIGINT else "terminated")
    assert out == ("kept\n" if "sleep" in work else ""), "what has begun ends in peace"


FORKED = """
import os, signal, time
from recplug.adapters.stopping import stopping
with stopping():
    child = os.fork()
    if not child:
        time.sleep(1)
        os._exit(7)
    time.sleep(0.3)
    os.kill(child, signal.SIGINT)
    first = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    child = os.fork()
    if not child:
        time.sleep(60)
    time.sleep(0.3)
    os.kill(child, signal.SIGTERM)
    print(first, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_worker_leaves_ctrl_c_to_its_parent_and_ends_silently(tmp_path):
    out, err = start(["-c", FORKED], tmp_path).communicate(timeout=60)
    assert (out, err) == ("7 143\n", "")


TRAIN = """
import sys
from recplug.adapters.cli.run_recbole import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_training_that_is_stopped_says_so_and_goes_on(number, data, command, tmp_path):
    words = ["--model", "SASRec", "--dataset", "tiny", "--data_path", "data", "--epochs", "5000", "--output_dir", "out",
             "--stopping_step", "5000", "--hidden_size", "8", "--inner_size", "8", "--n_heads", "1"]  # fmt: skip
    process = start(["-c", TRAIN, *words], tmp_path)
    for line in process.stdout:
        if line.startswith("epoch   1"):
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == CODES[number], (out, err)
    assert err.count("\n") == 1, err
    assert "go on after epoch" in out
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "interrupted"
