"""``recplug report``."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def trained(run_cli):
    ended = run_cli("--output_dir", "run", "--plugin", "prism")
    assert ended.code == 0, ended.err
    return "run"


def test_a_page_and_its_size(trained, recplug_cli):
    ended = recplug_cli("report", trained, "--users", "u1, u7", "--k", "3")
    assert ended.code == 0, ended.err
    (line,) = ended.out.splitlines()
    assert line.startswith("report.html: ")
    assert line.endswith(" kB")
    text = Path("report.html").read_text()
    assert "User <bdi>u1</bdi>" in text
    assert "Chosen as asked" in text

    Path("run/ranks.parquet").unlink()
    ended = recplug_cli("report", trained, "--output", "other.html", "--no_users")
    assert ended.code == 0, ended.err
    note, line = ended.out.splitlines()
    assert note.startswith("note: SASRec + prism: ranks.parquet is not there")
    assert 'id="users"' not in Path("other.html").read_text()


def test_wrong_words_are_one_line(trained, recplug_cli, refused):
    cases = [
        (("nowhere",), "no run at nowhere"),
        (("data",), "data is no run"),
        (("run", "run"), "run is named twice"),
        ((), "see: recplug report --help"),
        (("run", "--users", "u999"), "does not know the user 'u999'"),
        (("run", "--users", ","), "--users names nobody"),
        (("run", "--users", "u1", "--no_users"), "choose one"),
        (("run", "--k", "0"), "1 or more"),
        (("run", "--output", "a.pdf"), "end with .html"),
        (("run", "--output", "no/a.html"), "no folder no"),
        (("run", "--images", "nowhere"), "neither a folder of pictures nor a column of tiny.item"),
    ]
    for words, message in cases:
        assert message in refused(recplug_cli("report", *words))
    assert not Path("report.html").exists()


def test_help_does_not_load_what_is_heavy():
    code = (
        "import sys; from recplug.adapters.cli.results import report\n"
        "heavy = {'torch', 'recbole', 'jinja2', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
