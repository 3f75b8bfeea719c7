"""Cells that train nothing: a script that leaves, at once, what a run leaves."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recplug.adapters.compare import compare
from recplug.adapters.compare.statistics import measure

USERS = 120
# What a cell does: python standin.py NAME FOLDER TEMPLATES. Started without site packages, it takes 30 ms.
SCRIPT = """
import json, os, pathlib, shutil, signal, sys, time
name, folder, templates = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
with open(templates / "begun.txt", "a") as file:
    file.write(name + "\\n")
folder.mkdir(parents=True)
(folder / "config.yaml").write_text("seed: 1\\n")
behaviour = templates / (name + ".behaviour")
does = behaviour.read_text() if behaviour.exists() else ""
if does == "wrong":
    print("error: no such thing; do another")
    sys.exit(2)
if does == "crash":
    print("Segmentation something")
    sys.exit(139)
if does == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if does == "hang":
    behaviour.unlink()  # the next time it works
    (templates / (name + ".hangs")).touch()
    time.sleep(600)
if does.startswith("meet "):
    (templates / (name + ".here")).touch()
    end = time.monotonic() + 60
    while not (templates / (does[5:] + ".here")).exists() and time.monotonic() < end:
        time.sleep(0.02)
template = templates / name
shutil.copy(template / "ranks.parquet", folder / "ranks.parquet")
shutil.copy(template / "result.json", folder / "result.json")
"""


class Standin:
    """Stands in for ``run_recbole``.

    ``strength`` maps a cell's name without its seed to how well it ranks; ``validation`` overrides its score.
    """

    def __init__(self, folder):
        self.folder = folder
        self.script = folder / "standin.py"
        self.script.write_text(SCRIPT)
        self.strength = {"bare": 0.0, "prism": 0.6, "mars": 0.3, "prism+mars": 0.6}
        self.validation, self.cells = {}, {}
        self.users = [f"u{user:03d}" for user in range(USERS)]
        self.fingerprint = "f" * 64

    @staticmethod
    def kind(cell):
        """``prism``, ``prism (mlp)``, ``prism (prism.scale=0.3)``."""
        about = ", ".join(([cell.control] if cell.control else []) + [f"{k}={v}" for k, v in cell.choice])
        return ("+".join(cell.plugins) or "bare") + (f" ({about})" if about else "")

    def name(self, cell):
        return f"{cell.dataset}_{cell.model}_{self.kind(cell)}_{cell.seed}"

    def ranks(self, kind, seed):
        """``[USERS]``: where each user's one target came."""
        user = np.random.default_rng(0).normal(size=USERS)
        noise = np.random.default_rng([seed, *kind.encode()]).normal(scale=0.4, size=USERS)
        strength = self.strength.get(kind, self.strength.get(kind.partition(" ")[0], 0.0) / 4)
        return np.clip(np.exp(3.0 - user - noise - strength), 1, 300).astype(int)

    def template(self, cell):
        name, kind = self.name(cell), self.kind(cell)
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        users, rank = np.array(self.users), self.ranks(kind, cell.seed)
        items = [f"i{place % 30}" for place in range(USERS)]
        pq.write_table(pa.table({"user": users, "item": items, "rank": rank}), folder / "ranks.parquet")
        test = {}
        for metric in ("ndcg@10", "recall@10"):
            compute, k = measure(metric)
            test[metric] = float(compute(users, rank, k)[1].mean())
        valid = self.validation.get(kind, 0.9 * test["ndcg@10"])
        sizes = {plugin: 5000 + 100 * len(plugin) for plugin in cell.plugins}
        result = {
            "status": "finished",
            "valid_metric": "NDCG@10",
            "best_valid_score": valid,
            "best_valid_result": {"ndcg@10": valid},
            "test_result": test,
            "epochs": 10 + cell.seed,
            "seconds_per_epoch": 1.0 + 0.25 * len(cell.plugins),
            "peak_memory_bytes": 1_000_000_000 + 100_000_000 * len(cell.plugins),
            "parameters": {"backbone": 100_000, "plugins": sizes},
            "data_fingerprint": self.fingerprint,
            "settings": {},
        }
        (folder / "result.json").write_text(json.dumps(result))
        return name

    def command(self, cell, folder):
        self.cells[cell.key] = cell
        words = [sys.executable, "-S", "-E", str(self.script)]
        return [*words, self.template(cell), str(folder), str(self.folder)]

    def behave(self, name, does):
        (self.folder / f"{name}.behaviour").write_text(does)

    def begun(self):
        """Names of cells in the order in which they began."""
        file = self.folder / "begun.txt"
        return file.read_text().splitlines() if file.exists() else []

    def compare(self, output, plugins="prism", **options):
        usual = {"models": "SASRec", "datasets": "amazon-scientific", "seeds": 2, "groups": False}
        options = {**usual, "controls": "mlp,shuffled,no_losses", **options}
        return compare(plugins=plugins, output=output, command=self.command, **options)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """One for all tests of a file."""
    return Standin(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def standin(tmp_path):
    folder = tmp_path / "standin"
    folder.mkdir()
    return Standin(folder)
