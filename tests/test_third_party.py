"""A plugin of someone else's: built as a wheel, installed beside the package, found, checked and trained."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recplug.plugins import available

SOURCE = Path(__file__).parents[1] / "examples" / "third_party_plugin"
SCRIPT = """
import json, sys
import torch
from recplug.plugins import available, get
from recplug.plugins.testing import cases, check_plugin
from recplug.plugins.testing.case import step_loss

plugin = get("whiten")
module = sys.modules[plugin.build.__module__]
check_plugin(plugin)

case = cases(plugin, {"scale": 0.5}, ["mean-ce"])[0]
host, batch = case.build(), case.batch()
optimiser = torch.optim.Adam(host.parameters(), lr=0.01)
losses = []
for _ in range(10):
    loss = step_loss(host, batch)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
rows = host.chain.augmentations()["whiten"].rows
image = case.modalities()["image"]
white = rows[: len(image.present), : image.width]
print(json.dumps({
    "available": list(available()),
    "file": module.__file__,
    "losses": losses,
    "covariance": torch.cov(white[image.present].T).tolist(),
    "absent": white[~image.present].abs().max().item(),
}))
"""
RUN = """
import json, sys
from pathlib import Path
import torch
from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import run
from recplug.plugins import hookimpl
from recplug.plugins.registry import manager

calls = []

class Recorder:
    @hookimpl
    def recplug_before_training(self, model, settings):
        calls.append(["before_training", settings["whiten"]["scale"]])

    @hookimpl
    def recplug_epoch_start(self, model, epoch):
        calls.append(["epoch_start", epoch])

    @hookimpl
    def recplug_evaluation_end(self, epoch, score):
        calls.append(["evaluation_end", epoch])
        assert 0.0 <= score <= 1.0

    @hookimpl
    def recplug_export(self, model, tensors):
        calls.append(["export", sorted(tensors)])
        assert type(model).__name__ == "GRU4Rec"
        tensors["recorder.mark"] = torch.ones(1)

    @hookimpl
    def recplug_after_training(self, result):
        calls.append(["after_training", len(result["test_result"]) > 0])

manager().register(Recorder())
folder = Path("data/tiny")
folder.mkdir(parents=True)
rows = [f"u{u}\\ti{(3 * u + t) % 15}\\t{t}" for u in range(20) for t in range(6)]
(folder / "tiny.inter").write_text("\\n".join(["user_id:token\\titem_id:token\\ttimestamp:float", *rows]))
features = torch.randn(15, 4, generator=torch.Generator().manual_seed(0))
FeatureTable(features, tuple(f"i{i}" for i in range(15)), "text", {}).save(folder / "tiny.text.safetensors")
config = {
    "epochs": 2, "whiten": {"scale": 0.5}, "state": "ERROR", "show_progress": False,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "use_gpu": False,
}
result = run("GRU4Rec", "tiny", "whiten", config, data_path="data", output_dir="run")
from safetensors import safe_open
with safe_open(result.directory / "adapter.safetensors", "pt") as file:
    print(json.dumps({"calls": calls, "written": sorted(file.keys())}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed wheel."""
    root = tmp_path_factory.mktemp("third_party")
    source = shutil.copytree(SOURCE, root / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target"]
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*command, str(root / "site"), str(source)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "site"


def python(site, script, cwd=None, **more):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RECPLUG_")}
    env |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=cwd or site)


def test_it_is_found_checked_and_trained(site):
    done = python(site, SCRIPT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["available"]) == {*available(), "whiten"}
    assert Path(found["file"]).parent == site
    assert found["losses"][-1] < found["losses"][0]
    assert found["absent"] == 0.0
    width = len(found["covariance"])
    for row in range(width):
        for column in range(width):
            assert found["covariance"][row][column] == pytest.approx(float(row == column), abs=0.02)


def test_it_can_be_left_out(site):
    script = "from recplug.plugins import available; print(*available())"
    assert python(site, script, RECPLUG_PLUGINS="whiten").stdout.split() == ["whiten"]


def test_it_is_small():
    assert {path.name for path in SOURCE.iterdir() if path.is_file()} == {
        "README.md",
        "pyproject.toml",
        "recplug_whiten.py",
    }
    lines = (SOURCE / "recplug_whiten.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 50


def test_hooks_are_called_in_a_run(site, tmp_path):
    done = python(site, RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    mine = ["whiten.project.weight"]
    assert found["calls"] == [
        ["before_training", 0.5],
        *([name, epoch] for epoch in (0, 1) for name in ("epoch_start", "evaluation_end")),
        ["export", mine],
        ["after_training", True],
    ]
    assert found["written"] == ["recorder.mark", *mine]
