import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recplug.adapters import doctor
from recplug.adapters.data import RECIPES, bundled
from recplug.adapters.features import FeatureTable
from recplug.plugins.registry import available, get

RECPLUG = Path(sys.executable).with_name("recplug")
TOKENS = [f"i{i}" for i in range(30)]


def process(*words, folder, stdout=subprocess.PIPE):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kept = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    return subprocess.run([RECPLUG, *words], cwd=folder, **kept, env=environment, check=False)


@pytest.mark.parametrize("words", [["--help"], ["plugins", "--help"], ["features", "import", "--help"], ["bogus"]])
def test_help_and_usage_errors_load_no_heavy_library(words, tmp_path):
    code = (
        "import sys\nfrom recplug.adapters.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'recbole', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_installed_command_refuses_in_one_line(tmp_path):
    done = process("plugins", "show", "prsm", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no plugin 'prsm'; did you mean 'prism'?")
    assert done.stderr.count("\n") == 1


def test_a_reader_who_has_enough_is_no_error(tmp_path):
    """``recplug plugins | head``: whoever reads the output closes it."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = process("plugins", folder=tmp_path, stdout=writes)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_interruption_is_one_line(recplug_cli, monkeypatch):
    def pressed():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "report", pressed)
    ended = recplug_cli("doctor")
    assert (ended.code, ended.err) == (130, "interrupted; what was written so far is kept\n")


def test_no_word_is_help(recplug_cli):
    assert recplug_cli().out == recplug_cli("--help").out


def test_plugins(recplug_cli):
    lines = recplug_cli("plugins").out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *available()]
    (prism,) = (line for line in lines if line.startswith("prism "))
    assert get("prism").summary in prism
    assert "arXiv 2601.10944" in prism
    assert prism.endswith("sequential and graph")


def test_plugins_show_has_every_setting(recplug_cli):
    out = recplug_cli("plugins", "show", "prism").out
    for key, field in get("prism").settings.model_fields.items():
        assert f"\n  prism.{key} = " in out
        assert " ".join(field.description.split()) in " ".join(out.split())
    default = get("prism").settings()
    assert f"prism.fusion = {default.fusion}    item | user | sequence_pooled    [W, eq. (10)]" in out
    assert f"prism.gate_dropout = {default.gate_dropout}    float, >= 0, < 1    [code]" in out
    identity = [f"--prism.{key}={value}" for key, value in get("prism").identity.items()]
    assert f"adds nothing at: {' '.join(identity)}\n" in out
    assert "needs, with these settings: a sequential or graph backbone; its items, losses; 1 feature table" in out


def test_doctor(recplug_cli, monkeypatch):
    fine, bad = doctor.Finding("a", "ok", "1.0"), doctor.Finding("b", "problem", "gone", "pip install b")
    monkeypatch.setattr(doctor, "report", lambda: [fine])
    assert (recplug_cli("doctor").code, recplug_cli("doctor").err) == (0, "")
    monkeypatch.setattr(doctor, "report", lambda: [fine, bad])
    ended = recplug_cli("doctor")
    assert (ended.code, ended.err) == (1, "")
    assert "BAD   b: gone\n      -> pip install b\n1 to mend" in ended.out


def test_data_list_shows_the_terms(recplug_cli):
    out = recplug_cli("data", "list").out
    assert out.count("research only, not commercial, cite the papers") == len(bundled()) + len(RECIPES) == 10
    assert "amazon-scientific: " in out
    assert "2,928 users, 1,585 items, 19,712 interactions" in out
    assert "ml-100k" in out


def test_data_get_and_check(recplug_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = recplug_cli("data", "get", "amazon-scientific")
    assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "dataset" / "amazon-scientific" / "TERMS.md").is_file()
    here, bundled = (
        recplug_cli("data", "check", "dataset/amazon-scientific"),
        recplug_cli("data", "check", "amazon-scientific"),
    )
    assert here.out == bundled.out
    assert "image: 1,585 of 1,585 items have a vector (100.0 %)" in here.out


def sources(folder):
    """The same vectors in every format that can be imported."""
    vectors = torch.randn(30, 5, generator=torch.Generator().manual_seed(6)).numpy()
    vectors[7] = 0
    np.save(folder / "v.npy", vectors)
    (folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    np.savez(folder / "v.npz", vectors=vectors, ids=np.array(TOKENS))
    mmrec = folder / "mm"
    mmrec.mkdir()
    np.save(mmrec / "image_feat.npy", vectors)
    (mmrec / "i_id_mapping.csv").write_text("asin\titemID\n" + "".join(f"{t}\t{i}\n" for i, t in enumerate(TOKENS)))
    pq.write_table(pa.table({"id": TOKENS, "v": list(vectors)}), folder / "v.parquet")
    return vectors


FORMATS = {
    "npy": ["npy", "v.npy", "--tokens", "tokens.txt"],
    "npz": ["npz", "v.npz", "--features_array", "vectors", "--tokens_array", "ids"],
    "mmrec": ["mmrec", "mm"],
    "parquet": ["parquet", "v.parquet", "--token_column", "id", "--feature_columns", "v"],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_features_import(kind, recplug_cli, data):
    vectors = sources(Path())
    source, path, *more = FORMATS[kind]
    ended = recplug_cli("features", "import", "--from", source, path, *more, "--dataset", "tiny", "--data_path", "data",
                        "--modality", "image", "--output", "out.safetensors", "--encoder", "CLIP")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    table = FeatureTable.load("out.safetensors")
    kept = [i for i in range(30) if i != 7]
    assert table.tokens == tuple(TOKENS[i] for i in kept)
    assert np.array_equal(table.features.numpy(), vectors[kept])
    assert table.metadata["encoder"] == "CLIP"
    assert "29 items, 5 wide; left out: 1 all-zero rows" in ended.out
    assert "image: 29 of 30 items have a vector (96.7 %)" in ended.out
    assert "run_recbole --dataset tiny --features.image out.safetensors" in ended.out


def test_features_import_puts_the_table_where_run_recbole_finds_it(recplug_cli, data):
    sources(Path())
    words = ["features", "import", "--from=npy", "v.npy", "--tokens=tokens.txt", "--modality=sound", "--dataset=tiny"]
    ended = recplug_cli(*words, "--data_path", "data")
    assert (ended.code, "use it with" in ended.out) == (0, False)
    before = (data / "tiny.sound.safetensors").read_bytes()
    ended = recplug_cli(*words, "--data_path", "data")
    assert (ended.code, ended.err) == (2, f"error: {Path('data/tiny/tiny.sound.safetensors')} exists; "
                                          "add --overwrite, or choose another --output\n")  # fmt: skip
    assert recplug_cli(*words, "--data_path", "data", "--overwrite").code == 0
    assert (data / "tiny.sound.safetensors").read_bytes() == before


def test_features_inspect(recplug_cli, data):
    (data / "tiny.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"{t}\tThing {t}\n" for t in TOKENS))
    vectors = torch.eye(30)[:, :29]
    vectors[29] = vectors[0] * 3
    vectors[28, 0] = 1.0
    FeatureTable(vectors, tuple(TOKENS), "image", {"encoder": "planted"}).save("t.safetensors")
    ended = recplug_cli("features", "inspect", "t.safetensors", "--dataset", "tiny", "--data_path", "data")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "image: 30 items x 29, float32"
    assert "encoder: planted" in lines
    assert "coverage of tiny: image: 30 of 30 items have a vector (100.0 %)" in lines
    assert "lengths: 1.000 to 3.000, median 1.000" in lines
    assert "duplicates: none" in lines
    place = lines.index("nearest to i0  Thing i0")
    assert lines[place + 1 : place + 3] == ["    1.000  i29  Thing i29", "    0.707  i28  Thing i28"]
    vectors[5] = vectors[6]
    FeatureTable(vectors, tuple(TOKENS), "image").save("t.safetensors")
    assert "duplicates: 2 items share their vector" in recplug_cli("features", "inspect", "t.safetensors").out


def test_features_inspect_of_one_item(recplug_cli, tmp_path):
    FeatureTable(torch.ones(1, 2), ("a",), "image").save(tmp_path / "t.safetensors")
    ended = recplug_cli("features", "inspect", tmp_path / "t.safetensors")
    assert (ended.code, ended.err) == (0, "")


def test_features_inspect_knows_recboles_own_data_set(recplug_cli, tmp_path):
    FeatureTable(torch.ones(2, 2), ("1", "2"), "image").save(tmp_path / "t.safetensors")
    ended = recplug_cli("features", "inspect", tmp_path / "t.safetensors", "--dataset", "ml-100k")
    assert "image: 2 of 1,682 items have a vector" in ended.out
    assert "Toy Story" in ended.out


IMPORT = ["features", "import", "--modality", "image", "--output", "out.safetensors", "--from"]
ANYWHERE = ["features", "import", "--from", "npy", "v.npy", "--positional"]
TINY = ["--dataset", "tiny", "--data_path", "data"]
WRONG = {
    "unknown command": (["plugin"], "No such command 'plugin'"),
    "unknown subcommand": (["data", "fetch"], "No such command 'fetch'"),
    "no subcommand": (["features"], "Missing command; see: recplug features --help"),
    "unknown option": (["data", "list", "--all"], "No such option"),
    "missing argument": (["plugins", "show"], "Missing argument"),
    "misspelt subcommand": (["features", "exprot"], "No such command 'exprot'"),
    "unknown format": ([*IMPORT, "csv", "v.csv"], "'csv'"),
    "unknown bundled set": (["data", "get", "amazon-scientifc"], "did you mean 'amazon-scientific'?"),
    "nothing to check": (["data", "check", "none"], "neither a folder nor a bundled data set"),
    "no file": ([*IMPORT, "npy", "none.npy", "--tokens", "tokens.txt"], "cannot read none.npy"),
    "no tokens": ([*IMPORT, "npy", "v.npy"], "give --tokens FILE, or --positional"),
    "tokens twice": ([*IMPORT, "npy", "v.npy", "--tokens", "tokens.txt", "--positional"], "choose one"),
    "tokens of another format": ([*IMPORT, "npz", "v.npz", "--tokens", "tokens.txt"], "--tokens belongs to --from npy"),
    "positional parquet": ([*IMPORT, "parquet", "v.parquet", "--positional"], "names its items"),
    "array missing": ([*IMPORT, "npz", "v.npz"], "has no array 'features'"),
    "column missing": ([*IMPORT, "parquet", "v.parquet", "--token_column", "idd"], "did you mean 'id'?"),
    "wrong format": ([*IMPORT, "npy", "v.npz", "--tokens", "tokens.txt"], "import it with --from npz"),
    "nothing shared": ([*IMPORT, "npy", "v.npy", "--positional", *TINY], "holds none of the dataset's 30 items"),
    "unknown data set": ([*IMPORT, "npy", "v.npy", "--positional", "--dataset", "tinny"], "no tinny.inter"),
    "no place": ([*ANYWHERE, "--modality", "image"], "give --output FILE"),
    "bad name": ([*ANYWHERE, "--modality", "a.b", "--output", "o"], "a modality's name"),
    "inspect nothing": (["features", "inspect", "none.safetensors"], "no feature table at none.safetensors"),
    "inspect another file": (["features", "inspect", "v.npy"], "truncated or corrupt"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(case, recplug_cli, refused, data):
    sources(Path())
    words, told = WRONG[case]
    assert told in refused(recplug_cli(*words))
    assert not Path("out.safetensors").exists()


def test_debug_shows_the_traceback(recplug_cli):
    ended = recplug_cli("--debug", "plugins", "show", "prsm")
    assert ended.code == 2
    assert ended.err.startswith("Traceback (most recent call last)")
    assert ended.err.splitlines()[-1].startswith("error: no plugin 'prsm'; did you mean 'prism'?")


def test_a_bug_is_one_line_with_code_1(recplug_cli, monkeypatch):
    def broken():
        raise KeyError("planted")

    monkeypatch.setattr(doctor, "report", broken)
    ended = recplug_cli("doctor")
    assert (ended.code, ended.err) == (1, "error: KeyError: 'planted'; run with --debug for the traceback\n")
