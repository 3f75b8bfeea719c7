"""``recplug export``: the files that its page names, and one line for what a run cannot give."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from recplug.adapters.features import FeatureTable

SERVE = Path(__file__).parents[3] / "examples" / "serve_with_faiss.py"


@pytest.fixture
def trained(run_cli):
    """``trained(*words)``: a run directory."""

    def train(*words):
        ended = run_cli("--output_dir", "run", *words)
        assert ended.code == 0, ended.err
        return Path("run")

    return train


def test_every_file_of_a_sequential_run(trained, recplug_cli, refused):
    run = trained("--plugin", "micrec") / "export"
    ended = recplug_cli("export", "run", "--items", "--users", "--faiss", "--tower", "torch", "--plain")
    assert ended.code == 0, ended.err
    names = [
        "items.faiss",
        "items.faiss.tokens.json",
        "items.safetensors",
        "plain.pth",
        "tower.pt2",
        "users.safetensors",
    ]
    assert sorted(path.name for path in run.iterdir()) == names
    assert FeatureTable.load(run / "items.safetensors").features.shape == (30, 8)
    assert len(FeatureTable.load(run / "users.safetensors").tokens) == 40

    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert "export/users.safetensors is there already; add --overwrite" in refused(
        recplug_cli("export", "run", "--users")
    )
    (run / "items.faiss").unlink()
    assert "items.faiss.tokens.json is there already" in refused(recplug_cli("export", "run", "--faiss"))
    assert not (run / "items.faiss").exists()
    assert recplug_cli("export", "run", "--faiss", "--items", "--overwrite").code == 0
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_served_from_files_as_recommended(trained, recplug_cli, monkeypatch, capsys):
    trained("--model", "LightGCN", "--plugin", "micrec", "--embedding_size", "8")
    assert recplug_cli("export", "run", "--to", "out", "--faiss", "--users").code == 0
    answer = recplug_cli("recommend", "run", "--users", "u1,u7", "--k", "5").out.splitlines()
    expected = [(row.split("\t")[0], row.split("\t")[3].split()[0]) for row in answer if row.count("\t") == 3][1:]
    past = {user: [] for user in ("u1", "u7")}
    for line in Path("data/tiny/tiny.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        past.get(user, []).append(item)
    Path("past.json").write_text(json.dumps(past))
    monkeypatch.setattr(sys, "argv", ["serve", "out", "u1", "u7", "--k", "5", "--hidden", "past.json"])
    runpy.run_path(str(SERVE), run_name="__main__")
    served = [tuple(line.split("\t")[:2]) for line in capsys.readouterr().out.splitlines()]
    assert served == expected
    monkeypatch.setattr(sys, "argv", ["serve", "out", "u1", "u999"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SERVE), run_name="__main__")
    assert capsys.readouterr().err.splitlines()[-1].endswith("no vector of u999 in out/users.safetensors")


def test_what_a_run_cannot_give_is_one_line_and_the_rest_is_written(trained, recplug_cli, refused):
    trained("--plugin", "prism")
    line = refused(recplug_cli("export", "run", "--to", "out", "--items", "--plain"))
    assert line.startswith("error: no plain.pth: no plain SASRec: prism gives an item another row in a history")
    assert [path.name for path in Path("out").iterdir()] == ["items.safetensors"]
    assert "faiss makes no index 'Nonsense'" in refused(recplug_cli("export", "run", "--faiss_factory", "Nonsense"))
    assert "Invalid value for '--tower'" in refused(recplug_cli("export", "run", "--tower", "tensorflow"))
    Path("file").touch()
    assert "cannot make the folder file" in refused(recplug_cli("export", "run", "--to", "file"))
    assert "no run at nowhere" in refused(recplug_cli("export", "nowhere"))


def test_without_a_choice_and_without_faiss(trained, recplug_cli, refused, monkeypatch):
    trained()
    assert recplug_cli("export", "run").code == 0
    assert sorted(path.name for path in Path("run/export").iterdir()) == ["items.safetensors", "users.safetensors"]
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install faiss-cpu" in refused(recplug_cli("export", "run", "--faiss"))
    assert recplug_cli("recommend", "run", "--users", "u1").code == 0  # a run with files beside it is still a run
