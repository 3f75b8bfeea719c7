"""The door for imports, in processes of their own: what an import leaves behind cannot be undone in this one."""

import importlib.util
import json
import subprocess
import sys

import pytest

from recplug.adapters import optional_imports
from recplug.plugins.errors import RecplugError

NEEDED = [name for name in ("torchvision", "open_clip", "sentence_transformers") if not importlib.util.find_spec(name)]
needs_extras = pytest.mark.skipif(bool(NEEDED), reason=f"the extras clip and text are not installed: {NEEDED}")

TRY = """
import json
def tried():
    found = {}
    for line in (
        "import torchvision.transforms.v2", "import timm", "import open_clip", "import sentence_transformers",
        "from transformers import BertModel", "from transformers import CLIPModel, AutoImageProcessor",
    ):
        try:
            exec(line)
            found[line] = "ok"
        except Exception as error:
            found[line] = repr(error)
    return found
"""
AFTER = (
    TRY
    + """
before = tried()
from recplug.adapters import optional_imports
state = optional_imports.torchvision()
print(json.dumps([before, state, tried()]))
"""
)
THREADS = """
import json, threading
import torch
describe = torch.library.register_fake
from recplug.adapters import optional_imports
found, start = [], threading.Barrier(8)
def call(number):
    start.wait()
    try:
        # Four through the door, four for what stands behind it.
        found.append(optional_imports.library("open_clip").__name__ if number % 2 else optional_imports.torchvision())
    except Exception as error:
        found.append(repr(error))
threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import torchvision
boxes, scores = torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1)
try:
    kept = torchvision.ops.nms(boxes, scores, 0.5).tolist()
except RuntimeError as error:
    kept = str(error)
print(json.dumps([sorted(found), torch.library.register_fake is describe, torchvision.extension._has_ops(), kept]))
"""


def said(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_extras
def test_everything_imports_after_everything_failed():
    before, state, after = said(AFTER)
    whole = before["import torchvision.transforms.v2"] == "ok"
    assert state == ("whole" if whole else "remedied")
    assert set(after.values()) == {"ok"}
    assert (set(before.values()) == {"ok"}) == whole
    if not whole:
        assert "operator torchvision::nms does not exist" in before["import open_clip"]


@pytest.mark.slow
@needs_extras
def test_threads_come_through_one_by_one_and_nothing_of_torch_stays_changed():
    found, restored, whole, kept = said(THREADS)
    assert found == sorted(["open_clip"] * 4 + ["whole" if whole else "remedied"] * 4)
    assert restored
    # What is missing says so itself when it is called.
    assert kept == [0] if whole else "Couldn't load custom C++ ops" in kept


PRETENDED = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from recplug.adapters import optional_imports
from recplug.plugins.errors import RecplugError
def state():
    try:
        said = optional_imports.torchvision()
    except RecplugError as error:
        said = str(error)
    loaded = sorted(name for name in sys.modules if name.split(".")[0] == "torchvision")
    return [said, loaded, *optional_imports._left_out]
package = Path(sys.argv[1]) / "torchvision"
package.mkdir()
(package / "part.py").touch()
def write(text):
    optional_imports._forget("torchvision")
    (package / "__init__.py").write_text("from . import part\\nimport torch\\n" + text)
    import importlib; importlib.invalidate_caches()
    sys.dont_write_bytecode = True
found = {}
write("raise RuntimeError('compiled with\\\\nanother CUDA')")
found["broken"] = state()
library = torch.library.Library("torchvision", "DEF")
library.define("there(Tensor x) -> Tensor")
lines = "@torch.library.register_fake('torchvision::%s')\\ndef described(x): return x.new_empty(7)\\n"
write(lines % "there")
found["whole"] = state()
with torch.device("meta"):
    found["described"] = torch.ops.torchvision.there(torch.empty(3)).shape[0]
write(lines % "gone")
found["remedied"] = state()
print(json.dumps(found))
"""


def test_every_way_an_import_can_end(tmp_path):
    """A package that stands in for torchvision: broken in another way, whole, and without its compiled part."""
    found = said(PRETENDED, str(tmp_path))
    message, left = found["broken"]
    assert message.startswith("torchvision does not import (RuntimeError: compiled with another CUDA)")
    assert left == []
    assert found["whole"] == ["whole", ["torchvision", "torchvision.part"]]
    assert found["described"] == 7
    assert found["remedied"] == ["remedied", ["torchvision", "torchvision.part"], "gone"]


@pytest.mark.parametrize("name", sorted(optional_imports.EXTRAS))
def test_a_library_that_is_not_there(name, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *rest: None if asked == name else real(asked, *rest))
    with pytest.raises(RecplugError) as caught:
        optional_imports.library(name)
    assert str(caught.value) == (
        f"{name} is not installed; pip install -c constraints.txt 'recplug[{optional_imports.EXTRAS[name]}]'"
    )


def test_a_library_that_does_not_import(monkeypatch, tmp_path):
    (tmp_path / "open_clip.py").write_text("raise OSError('libfoo.so:\\nno such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    with pytest.raises(
        RecplugError, match=r"open_clip does not import \(OSError: libfoo.so: no such file\); pip install"
    ):
        optional_imports.library("open_clip")


def test_without_torchvision_nothing_is_done(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert optional_imports.torchvision() == "absent"
