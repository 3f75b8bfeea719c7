"""A search whose trials train nothing: a script that reports, waits for answers, and leaves what a run leaves."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recplug.adapters.tune import tune
from recplug.adapters.tune.spec import ask

# What a trial does: python SCRIPT VALUES FOLDER FOLLOWED SOCKET. Its score has its maximum at scale 0.3, and grows with
# the epochs. Started without site packages, it takes 30 ms.
SCRIPT = """
import json, math, os, pathlib, signal, socket, sys, time
values, folder, behaviours = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
folder.mkdir(parents=True)
number = folder.name
with open(behaviours / "begun.txt", "a") as file:
    file.write(number + "\\n")
behaviour = behaviours / (number + ".behaviour")
does = behaviour.read_text() if behaviour.exists() else ""
if does == "wrong":
    print("error: no such thing; do another")
    sys.exit(2)
if does == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
(folder / "checkpoint.pth").write_text("rows")
score = 1 - math.log10(values.get("prism.scale", 1.0) / 0.3) ** 2 + 0.01 * (values["prism.candidates"] == "fused")
status, epochs = "finished", 4
with socket.socket(fileno=int(sys.argv[4])) as ours, ours.makefile("rw") as channel:
    for epoch in range(4):
        channel.write(f"{epoch} {score * (epoch + 1) / 4!r}\\n")
        channel.flush()
        if does == "hang":
            behaviour.unlink()
            (behaviours / (number + ".hangs")).write_text(str(os.getpid()))
            time.sleep(600)
        if channel.readline() != "go\\n":
            status, epochs = "pruned", epoch + 1
            break
left = {"status": status, "best_valid_score": score * epochs / 4, "epochs": epochs, "valid_metric": "ndcg@10"}
(folder / "result.json").write_text(json.dumps(left))
"""
FINAL = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
with open(folder.parent / "tested.txt", "a") as file:
    file.write(sys.argv[2] + "\\n")
result = {"status": "finished", "test_result": {"ndcg@10": 0.1 * int(sys.argv[2])}}
(folder / "result.json").write_text(json.dumps(result))
"""
SPACE = ("prism.scale=0.01..10:log", "prism.candidates=id,fused", "hidden_dropout_prob")


@dataclass
class Search:
    """A search over stand-ins.

    Attributes:
        output: its folder.
        behaviours: where trials find how to misbehave.
    """

    output: Path
    behaviours: Path
    asked: dict = field(default_factory=lambda: {"space": SPACE, "fixed": {"epochs": 4}})

    def command(self, trial, channel):
        script = self.behaviours / "trial.py"
        return [sys.executable, "-I", "-S", str(script), json.dumps(trial.values), str(trial.folder),
                str(self.behaviours), str(channel)]  # fmt: skip

    def final_command(self, best, seed, folder):
        return [sys.executable, "-I", "-S", str(self.behaviours / "final.py"), str(folder), str(seed)]

    def __call__(self, trials=4, **options):
        options = {"pruner": "none", "final_seeds": 0, **self.asked, **options}
        return tune("SASRec", "prism", output=self.output, trials=trials, command=self.command,
                    final_command=self.final_command, **options)  # fmt: skip

    def behave(self, number, how):
        (self.behaviours / f"{number}.behaviour").write_text(how)

    def begun(self):
        file = self.behaviours / "begun.txt"
        return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.fixture
def searches(tmp_path):
    """``searches(name)``: a search in a folder of that name."""

    def make(name="out"):
        behaviours = tmp_path / f"{name}-behaviours"
        behaviours.mkdir()
        (behaviours / "trial.py").write_text(SCRIPT)
        (behaviours / "final.py").write_text(FINAL)
        return Search(tmp_path / name, behaviours)

    return make


@pytest.fixture
def search(searches):
    return searches()


@pytest.fixture(scope="session")
def asked():
    """What the stand-ins' search asks for."""
    return ask("SASRec", "prism", words=SPACE, fixed={"epochs": 4})
