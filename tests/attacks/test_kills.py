"""Killed or terminated at moments drawn at random, and gone on with: the end is that of one that nobody stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
RUN = "import sys; from recplug.adapters.cli.run_recbole import main; main(sys.argv[1:])"
SIZES = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1}
LONG = ["--epochs=40", "--stopping_step=40", *(f"--{key}={value}" for key, value in SIZES.items())]
TRAIN = ["--model=SASRec", "--plugin=prism", "--dataset=tiny", "--data_path=data", *LONG]


def begin(words):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def whole(words):
    process = begin(words)
    out = process.communicate()[0]
    assert process.returncode == 0, out


def stopped_again_and_again(words, again, kills, seed, seconds):
    """Stop it ``kills`` times, by SIGKILL of all its processes or SIGTERM of the first; then let it end."""
    draw = random.Random(seed)
    for number in range(kills):
        process = begin(again() or words)
        try:
            process.communicate(timeout=draw.uniform(0.3, 1) * seconds)
        except subprocess.TimeoutExpired:
            if number % 3 == 2:
                process.terminate()
                assert process.wait(60) in (143, -signal.SIGTERM)
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    whole(again() or words)


def test_a_training(data):
    whole([*TRAIN, "--output_dir", "whole"])

    def again():
        if Path("out").is_dir() and not Path("out/config.yaml").is_file():  # it has not read its data yet
            shutil.rmtree("out")
        return ["--resume", "out"] if Path("out").is_dir() else None

    stopped_again_and_again([*TRAIN, "--output_dir", "out"], again, kills=20, seed=1, seconds=25)
    results = [json.loads(Path(folder, "result.json").read_text()) for folder in ("whole", "out")]
    for key in ("status", "test_result", "best_valid_score", "epochs", "data_fingerprint"):
        assert results[0][key] == results[1][key], key
    assert Path("whole/adapter.safetensors").read_bytes() == Path("out/adapter.safetensors").read_bytes()
