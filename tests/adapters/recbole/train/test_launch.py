"""Two processes that train one model: they equal one with the same batches, and agree about everything that decides."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recplug.adapters.recbole import processes
from recplug.adapters.recbole.train.launch import launch
from recplug.plugins.errors import RecplugError

SCRIPT = Path(__file__).with_name("train_jobs.py")
# No dropout and one order: then what is left to chance is nothing. A BPR loss has the negatives of train_jobs.py.
STILL = {
    "shuffle": False,
    "epochs": 2,
    "train_batch_size": 64,
    "stopping_step": 10,
    "use_gpu": False,
    "seed": 3,
    "state": "ERROR",
    "show_progress": False,
    "topk": [5, 10],
    "metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP", "GAUC", "ShannonEntropy"],
    "valid_metric": "NDCG@10",
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
}
SEQUENTIAL = {
    "hidden_size": 16,
    "inner_size": 32,
    "n_layers": 1,
    "n_heads": 1,
    "MAX_ITEM_LIST_LENGTH": 10,
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
}
GRAPH = {"embedding_size": 16, "n_layers": 2, "reg_weight": 1e-3, "require_pow": True}
WHOLE = {"loss_level": "prediction", "prediction_experts": "all"}
# Settings without chance, and without losses over the distinct items of a process's own batch.
JOBS = {
    "sasrec": ("SASRec", "", {}),
    "lightgcn": ("LightGCN", "", {}),
    "prism": ("SASRec", "prism", {"prism": {"gate_dropout": 0.0, "mask": "zero", **WHOLE}}),
    "mars": ("SASRec", "mars", {"mars": {"lambda_semantic": 0.0}}),
    "magnet": ("LightGCN", "magnet", {"magnet": {"dropout": 0.0, "lambda_view": 0.0}}),
    "ssr": ("LightGCN", "ssr", {"ssr": {"lambda_mask": 0.0, "lambda_contrast": 0.0, "lambda_ridge": 0.0}}),
    "micrec": ("LightGCN", "micrec", {"micrec": {}}),
    "itemgraph": ("LightGCN", "itemgraph", {"itemgraph": {"edge_dropout": 0.0}}),
}


def job(name, data, output):
    model, plugins, settings = JOBS[name]
    sizes = GRAPH if model == "LightGCN" else SEQUENTIAL
    return {
        "model": model,
        "dataset": "tiny",
        "plugins": plugins,
        "config_dict": {**STILL, **sizes, **settings},
        "data_path": str(data),
        "output_dir": str(output / name),
    }


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def several(words, n=2):
    """Start ``n`` processes as torchrun would, wait for them, and return how each ended."""
    port = str(free_port())
    started = []
    for rank in range(n):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
        own = {**{k: str(v) for k, v in places.items()}, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        given = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, words)]
        started.append(subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    return [(each.communicate(timeout=500)[0].decode(), each.returncode) for each in started]


@pytest.fixture(scope="module")
def even(tiny, tmp_path_factory):
    """The tiny data with one interaction more: an odd number is made even by repeating one in two processes."""
    root = tmp_path_factory.mktemp("even")
    shutil.copytree(tiny / "tiny", root / "tiny")
    with (root / "tiny" / "tiny.inter").open("a") as file:
        file.write("u1\ti39\t199\n")
    return root


@pytest.fixture(scope="module")
def trained(even, tmp_path_factory):
    """``trained(names)``: folders with a run directory for each of these jobs, by one process and by two."""
    done = {}

    def train(names):
        if names not in done:
            root = tmp_path_factory.mktemp("processes")
            for n in (1, 2):
                (root / f"{n}.json").write_text(json.dumps([job(name, even, root / str(n)) for name in names]))
                for output, code in several([SCRIPT, root / f"{n}.json"], n):
                    assert code == 0, output
            done[names] = root / "1", root / "2"
        return done[names]

    return train


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def state(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=False)["state_dict"]


QUICK = ("sasrec", "magnet")
REST = tuple(name for name in JOBS if name not in QUICK)
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name, trained):
    one, two = (folder / name for folder in trained(QUICK if name in QUICK else REST))
    first, second = rows(one), rows(two)
    assert len(first) == len(second) == 2
    for mine, other in zip(first, second, strict=True):
        assert mine.keys() == other.keys()
        for key in mine:
            if key.startswith("loss/"):
                assert float(other[key]) == pytest.approx(float(mine[key]), rel=2e-5, abs=1e-7), key
    mine, other = state(one), state(two)
    assert mine.keys() == other.keys()
    for key, value in mine.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                other[key], value, rtol=1e-4, atol=5e-6, msg=lambda text, key=key: f"{key}: {text}"
            )
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert [each["processes"] for each in results] == [1, 2]
    for part in ("best_valid_result", "test_result"):
        assert results[0][part] == pytest.approx(results[1][part], abs=1e-6), part
    assert results[0]["parameters"] == results[1]["parameters"]


def launched(model, data, output, epochs=4, words=(), **environment):
    """Start launch_models.py."""
    command = [sys.executable, str(SCRIPT.with_name("launch_models.py")), model, str(data), str(output), str(epochs)]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [*command, *words], env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process):
    out, err = process.communicate(timeout=500)
    deadline = time.monotonic() + 60
    while left := in_session(process.pid):  # Python's own resource tracker goes a moment later
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    return out, err, process.returncode


def in_session(session):
    """The processes of a session that still run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = file.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, _, of = rest.split()[:4]
        if int(of) == session and state != "Z":
            found.append(name)
    return found


ENDS = {
    "Failing": (1, "error: RuntimeError: process 1: ValueError: the second process cannot go on; run with --debug"),
    "Killed": (1, "error: RuntimeError: process 1 was killed by signal 9"),
    "Refusing": (2, "error: this machine's data are others; copy them\n"),
}


@pytest.mark.parametrize(
    "model", ["Failing", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Killed", "Refusing"))]
)
def test_an_error_in_one_process_ends_all_with_one_line(model, even, tmp_path):
    (tmp_path / "own").mkdir()
    _, err, code = ended(launched(model, even, tmp_path / "run", TMPDIR=str(tmp_path / "own")))
    assert not list((tmp_path / "own").glob("recplug-*"))
    expected, line = ENDS[model]
    assert (code, err.count("\n")) == (expected, 1), err
    assert err.startswith(line)
    if model == "Refusing":
        assert not (tmp_path / "run").exists()
        return
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["error"] in line or line.removeprefix("error: RuntimeError: ") in result["error"]
    assert len(rows(tmp_path / "run")) == 2  # what was trained is kept
    assert (tmp_path / "run" / "checkpoint.pth").is_file()
    if model == "Failing":
        assert "ValueError: the second process cannot" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.slow
def test_an_interruption_ends_all(even, tmp_path):
    process = launched("Waiting", even, tmp_path / "run", 10**6, MARKS=str(tmp_path))
    deadline = time.monotonic() + 240
    while not all((tmp_path / f"training-{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)  # to the one that started them; a terminal tells all
    _, err, code = ended(process)
    assert (code, err) == (130, "interrupted; what was written so far is kept\n")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_the_first_process_hands_back_the_result(even, tmp_path):
    out, err, code = ended(launched("Well", even, tmp_path / "run", 1))
    assert code == 0, err
    assert "test_result" in out
    assert f" None {tmp_path / 'run'}" in out
    assert out.count("epoch   0") == 1


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RecplugError, match=f"port {port} cannot be used .*; give another --port"):
            launch({**ASKED, "output_dir": tmp_path / "run"}, nproc=2, port=port)
    assert not (tmp_path / "run").exists()


ASKED = {"model": "BPR", "dataset": "tiny"}
REFUSED = {
    "no process": ({}, {"nproc": 0}, "nproc=0 is not a whole number"),
    "a word": ({}, {"nproc": "two"}, "nproc=two is not a whole number"),
    "too few": ({}, {"nproc": 2, "world_size": 2, "group_offset": 1, "port": 5678}, "set --world_size to the number"),
    "no port": ({}, {"nproc": 1, "world_size": 2}, "give the same --port on each"),
    "port": ({}, {"nproc": 2, "port": 70000}, "port=70000 is not a number from 1 to 65535"),
    "trainer": ({"model": "Pop"}, {"nproc": 2}, "Pop trains in a trainer of its own"),
    "clusters": ({"model": "NCL"}, {"nproc": 2}, "NCL trains in a trainer of its own"),
    "a second domain": (
        {"model": "LightGCN", "plugins": "micrec", "config_dict": {"micrec.source": "other"}},
        {"nproc": 2},
        "a second domain trains in one process; leave --nproc and --world_size out, or --micrec.source",
    ),
    "nested": (
        {"model": "LightGCN", "plugins": ["micrec"], "config_dict": {"micrec": {"source": "other"}}},
        {"nproc": 2},
        "a second domain trains in one process",
    ),
}


@pytest.mark.parametrize(("arguments", "asked", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_before_anything_starts(arguments, asked, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecplugError) as caught:
        launch({**ASKED, **arguments}, **asked)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def place(monkeypatch):
    """``place(**values)``: the environment that torchrun makes."""

    def put(**values):
        given = {
            "RANK": 5,
            "LOCAL_RANK": 1,
            "WORLD_SIZE": 8,
            "LOCAL_WORLD_SIZE": 4,
            "MASTER_ADDR": "a",
            "MASTER_PORT": 9,
        }
        for name, value in {**given, **values}.items():
            monkeypatch.setenv(name, str(value))

    return put


def test_a_process_alone_has_no_place(place, monkeypatch):
    assert processes.here() is None
    assert processes.values_here() == {}
    place(WORLD_SIZE=1, RANK=0)  # torchrun with one process
    assert processes.here() is None
    assert processes.is_first()
    place()
    monkeypatch.delenv("MASTER_PORT")  # RANK alone, as other programs set it
    assert processes.here() is None


def test_recbole_is_told_the_place(place):
    place()
    told = processes.values_here()
    assert {key: told[key] for key in processes.KEYS} == {
        "local_rank": 1, "world_size": 8, "nproc": 4, "offset": 4, "ip": "a", "port": "9"
    }  # fmt: skip
    assert told["local_rank"] + told["offset"] == 5  # RecBole's sum
    assert not processes.is_first()
    assert processes.how_many() == 8
    with pytest.raises(RecplugError, match="torchrun has started"):
        launch(ASKED, nproc=2)
    place(RANK="first")
    with pytest.raises(RecplugError, match="are no numbers"):
        processes.here()


def test_parts_of_a_ranking_are_whole_together():
    for n, size in ((7, 2), (10, 3), (4, 4), (101, 7)):
        parts = []
        for rank in range(size):
            sampler = torch.utils.data.distributed.DistributedSampler(range(n), num_replicas=size, rank=rank)
            sampler.__class__ = processes._Part
            parts.append(list(sampler))
            assert len(sampler) == len(parts[-1]) > 0
        assert [each for part in parts for each in part] == list(range(n))


@pytest.mark.slow
def test_torchrun_starts_it_too(even, tmp_path):
    words = [
        "--model",
        "BPR",
        "--dataset",
        "tiny",
        "--data_path",
        even,
        "--epochs",
        "1",
        "--output_dir",
        tmp_path / "run",
    ]
    words += ["--load_col", "{'inter': ['user_id', 'item_id', 'timestamp']}", "--use_gpu", "false"]
    command = Path(sys.executable).with_name("run_recbole")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    start += ["--no-python", command, *words]
    done = subprocess.run(list(map(str, start)), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory:") == 1  # the first process alone tells
    assert json.loads((tmp_path / "run" / "result.json").read_text())["processes"] == 2
