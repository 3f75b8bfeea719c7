"""What an attack needs: a small data set, commands in this process, and payloads that leave a trace if they run."""

import os
import random

import pytest
import torch

from recplug.adapters.cli import run_recbole
from recplug.adapters.cli.main import main as recplug
from recplug.adapters.features import FeatureTable

USERS, ITEMS = 30, 20
SMALL = ("--model", "SASRec", "--dataset", "tiny", "--data_path", "data", "--epochs", "1", "--hidden_size", "8",
         "--inner_size", "8", "--n_layers", "1", "--n_heads", "1")  # fmt: skip


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path_factory):
    """Where a payload that runs leaves its mark; none may."""
    place = tmp_path_factory.mktemp("trace") / "it-ran"
    yield place
    assert not place.exists(), "the payload ran"


def fill(folder, name="tiny"):
    """``NAME.inter``, its settings and a feature table."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, rows = random.Random(3), ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(USERS):
        rows += [f"u{user}\ti{item}\t{time}" for time, item in enumerate(draw.sample(range(ITEMS), 5))]
    (folder / f"{name}.inter").write_text("\n".join(rows) + "\n")
    settings = "load_col: {inter: [user_id, item_id, timestamp]}\ntopk: [5, 10]\nmetrics: [Recall, NDCG]\n"
    more = "valid_metric: NDCG@10\nuse_gpu: false\ntrain_batch_size: 256\nMAX_ITEM_LIST_LENGTH: 5\n"
    (folder / f"{name}.yaml").write_text(settings + more)
    vectors = torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(1))
    FeatureTable(vectors, tuple(f"i{i}" for i in range(ITEMS)), "image").save(folder / f"{name}.image.safetensors")
    return folder


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The current folder, empty but for ``data/tiny``."""
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path / "data" / "tiny")


class Ended:
    """How a command ended."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n{self.out}{self.err}"


@pytest.fixture
def command(capsys):
    """``command(main, *words)``: run in this process."""

    def run(main, *words):
        capsys.readouterr()
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def train(command, data):
    """``train(*words)``: one small training."""
    return lambda *words: command(run_recbole.main, *SMALL, *words)


@pytest.fixture
def ask(command):
    """``ask(*words)``: a command of ``recplug``'s."""
    return lambda *words: command(recplug, *words)


@pytest.fixture
def payload(trace):
    """An object that leaves ``trace`` when it is unpickled."""
    return Payload(trace)


@pytest.fixture
def refused():
    """``refused(ended, *parts)``: exit code 2, and one line, which has these parts."""

    def check(ended, *parts):
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended
        for part in parts:
            assert part in ended.err, ended

    return check
