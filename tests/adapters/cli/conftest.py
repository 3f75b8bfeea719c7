"""A data set small enough to train on in a second, and commands run inside the test process."""

import random

import pytest
import torch

from recplug.adapters.cli import main as recplug
from recplug.adapters.cli import run_recbole
from recplug.adapters.features import FeatureTable

USERS, ITEMS = 40, 30
SMALL = {
    "--train_batch_size": "256",
    "--epochs": "1",
    "--MAX_ITEM_LIST_LENGTH": "6",
    "--hidden_size": "8",
    "--inner_size": "8",
    "--n_layers": "1",
    "--n_heads": "1",
}


def interactions():
    """A user's items in time order; what is near in number follows each other."""
    draw = random.Random(3)
    rows = []
    for user in range(USERS):
        item = draw.randrange(ITEMS)
        for time in range(4 + user % 4):
            rows.append((f"u{user}", f"i{item}", time))
            item = (item + draw.choice((1, 2, 3))) % ITEMS
    return rows


def write(path, rows, header=("user_id:token", "item_id:token", "timestamp:float")):
    path.write_text("\n".join("\t".join(map(str, row)) for row in (header, *rows)) + "\n")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The current folder, empty but for ``data/tiny``: interactions, settings and two feature tables."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    write(folder / "tiny.inter", interactions())
    (folder / "tiny.yaml").write_text(
        "load_col:\n  inter: [user_id, item_id, timestamp]\ntopk: [5, 10]\nmetrics: [Recall, NDCG]\n"
        "valid_metric: NDCG@10\nuse_gpu: false\n"
    )
    generator = torch.Generator().manual_seed(1)
    for modality, width in (("image", 6), ("text", 4)):
        vectors = torch.randn(ITEMS, width, generator=generator)
        table = FeatureTable(vectors, tuple(f"i{i}" for i in range(ITEMS)), modality)
        table.save(folder / f"tiny.{modality}.safetensors")
    return folder


class Ended:
    """How a command ended."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


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
def run_cli(command, data):
    """``run_cli(*words)``: run_recbole on the tiny data."""

    def run(*words):
        given = {word.partition("=")[0] for word in words if str(word).startswith("--")}
        named = {"--model", "--config_files"} & given  # other models have other keys
        small = [] if named else [part for key, value in SMALL.items() if key not in given for part in (key, value)]
        names = [] if "--model" in given else ["--model", "SASRec"]
        where = [] if "--dataset" in given else ["--dataset", "tiny"]
        path = [] if "--data_path" in given else ["--data_path", "data"]
        return command(run_recbole.main, *names, *where, *path, *small, *words)

    return run


@pytest.fixture
def recplug_cli(command):
    """``recplug_cli(*words)``."""
    return lambda *words: command(recplug.main, *words)


@pytest.fixture
def refused():
    """``refused(ended)``: the one line of an error with exit code 2."""

    def line(ended):
        assert ended.code == 2, (ended.code, ended.out, ended.err)
        assert ended.err.count("\n") == 1, ended.err
        assert ended.err.startswith("error: ")
        assert "Traceback" not in ended.out
        return ended.err.strip()

    return line
