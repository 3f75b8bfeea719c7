"""Folders and files of people: what is not ours stays as it is, and of two who want a folder one gets it."""

import hashlib
import multiprocessing
from pathlib import Path

import pytest

from recplug.adapters import ownership
from recplug.adapters.recbole.state.run_directory import RunDirectory
from recplug.plugins.errors import RecplugError


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def _start(barrier, starts):
    """One of several processes that want the same folders; a second winner would fail at ``open("x")``."""
    for number in range(starts):
        folder = Path(str(number))
        barrier.wait(60)
        try:
            ownership.claim(folder, "run")
        except RecplugError:
            continue
        (folder / "winner").open("x").close()


@pytest.mark.parametrize("starts", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_of_synchronised_starts_one_wins_each_time(starts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(3)
    processes = [fork.Process(target=_start, args=(barrier, starts)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for number in range(starts):
        assert {each.name for each in (tmp_path / str(number)).iterdir()} == {".recplug-run", "winner"}


def test_the_loser_of_two_runs_takes_nothing_away(train, refused, tmp_path):
    winner = RunDirectory.create(tmp_path / "out")
    (winner.path / "run.log").write_text("at work")
    before = hashes(tmp_path / "out")
    refused(train("--output_dir", "out"), "is not empty")
    assert hashes(tmp_path / "out") == before


def test_a_refused_run_takes_back_what_it_made_and_no_more(train, refused, tmp_path):
    refused(train("--output_dir", "out", "--warm_start", "nowhere.pth"), "cannot read the checkpoint")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    refused(train("--output_dir", "mine", "--warm_start", "nowhere.pth"), "cannot read the checkpoint")
    assert list((tmp_path / "mine").iterdir()) == [], "the folder was there before, and stays"
    directory = RunDirectory.create(tmp_path / "new")
    (directory.path / "config.yaml").touch()
    (directory.path / "notes.txt").write_text("mine")
    directory.discard()
    assert [path.name for path in directory.path.iterdir()] == ["notes.txt"]


COMMANDS = {
    "train": ("--output_dir", "theirs"),
    "compare": ("compare", "--models", "SASRec", "--plugins", "prism", "--datasets", "tiny", "--data_path", "data",
                "--output", "theirs", "--retry"),
    "compare again": ("compare", "--output", "theirs", "--retry"),
    "tune": ("tune", "--model", "SASRec", "--dataset", "tiny", "--data_path", "data", "--output", "theirs"),
    "tune again": ("tune", "--output", "theirs"),
    "study": ("tune", "--model", "SASRec", "--dataset", "tiny", "--data_path", "data", "--output", "search",
              "--study", "theirs/notes.txt"),
    "resume": ("--resume", "theirs"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_persons_folder_survives_every_command(name, data, train, ask, refused, tmp_path):
    if name == "study":
        pytest.importorskip("optuna")
    mine = tmp_path / "theirs"
    files = ("notes.txt", "settings.yaml", "config.yaml", "table.md", "index.html", "failed/a.json", "trials/1/x",
             "logs/1.log", "run.log", "report.html")  # fmt: skip
    for file in files:
        (mine / file).parent.mkdir(parents=True, exist_ok=True)
        (mine / file).write_text("mine: 1\n")
    (mine / "config.yaml").write_text("model: SASRec\ndataset: tiny\nepochs: 1\n")
    before = hashes(tmp_path)
    words = COMMANDS[name]
    ended = ask(*words) if name in ("compare", "compare again", "tune", "tune again", "study") else train(*words)
    assert ended.code == 2, ended
    after = hashes(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert {path.relative_to(tmp_path).parts[0] for path in after.keys() - before.keys()} <= {"search"}


def test_files_are_replaced_on_request_alone_and_a_runs_own_never(data, train, ask, refused, tmp_path):
    assert train("--output_dir", "run").code == 0
    Path("mine.csv").write_text("mine")
    Path("mine.html").write_text("mine")
    before = hashes(tmp_path)
    refused(ask("recommend", "run", "--users", "u1", "--output", "mine.csv"), "mine.csv exists; add --overwrite")
    refused(ask("report", "run", "--output", "mine.html"), "mine.html exists; add --overwrite")
    words = ("recommend", "run", "--users", "u1", "--overwrite", "--output")
    refused(ask(*words, "run/ranks.parquet"), "is the run's own file")
    assert hashes(tmp_path) == before
    assert ask(*words, "mine.csv").code == 0
    assert ask("report", "run", "--no_users", "--output", "mine.html", "--overwrite").code == 0
    assert "mine" not in (Path("mine.csv").read_text(), Path("mine.html").read_text())


# -- bytes


def flipped(file, at=0.6):
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 4
    file.write_bytes(bytes(content))


def test_a_flipped_bit_in_any_file_of_a_run_is_seen(data, train, command, ask, refused, tmp_path):
    assert train("--output_dir", "run", "--plugin", "prism").code == 0
    run = tmp_path / "run"
    readers = {
        "result.json": ("recommend", "report"),
        "config.yaml": ("recommend", "report"),
        "checkpoint.pth": ("recommend", "warm_start", "resume"),
        "resume.pth": ("resume",),
        "adapter.safetensors": ("adapter",),
        "adapter.json": ("adapter",),
        "metrics.csv": ("report",),
        "ranks.parquet": ("report",),
        "diagnostics/prism.npz": ("report",),
    }
    for name, who in readers.items():
        whole = (run / name).read_bytes()
        flipped(run / name)
        for reader in who:
            if reader == "recommend":
                assert ask("recommend", "run", "--users", "u1").code == 2, name
            elif reader == "report":
                told = ask("report", "run", "--no_users", "--output", "r.html", "--overwrite").out
                assert any(f"{name} {why}" in told for why in ("cannot be read", "is not what the run has")), told
            elif reader == "resume":
                assert train("--plugin", "prism", "--epochs=2", "--resume", "run").code == 2, name
            else:
                ended = train("--plugin", "prism", "--output_dir", "other", f"--{reader}", "run")
                assert ended.code == 2, (name, ended)
        (run / name).write_bytes(whole)
    assert ask("recommend", "run", "--users", "u1").code == 0


def test_digests_say_which_file_it_is(tmp_path):
    (tmp_path / "a").write_text("1")
    found = ownership.sealed({"status": "finished"}, tmp_path, ["a", "gone"])
    assert list(found["files"]) == ["a"]
    (tmp_path / "a").write_text("2")
    with pytest.raises(RecplugError, match="a is not what the run has written"):
        ownership.check_bytes(tmp_path, found, "a")
