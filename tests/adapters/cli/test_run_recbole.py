import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from recplug.adapters.cli.run_recbole import parse
from recplug.adapters.features import FeatureTable

RUN = Path(sys.executable).with_name("run_recbole")


def resolved(directory="out"):
    return yaml.safe_load((Path(directory) / "config.yaml").read_text())


def result(directory="out"):
    return json.loads((Path(directory) / "result.json").read_text())


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--a", "1", "--b=2"], {"a": "1", "b": "2"}),
        (["--learning_rate", "-1"], {"learning_rate": "-1"}),
        (["--a=--b"], {"a": "--b"}),
        (["--a=b=c"], {"a": "b=c"}),
        (["--topk", "[5, 10]", "--clip", "{'a': 1}"], {"topk": "[5, 10]", "clip": "{'a': 1}"}),
        (["--baseline", "--debug"], {"baseline": "true", "debug": "true"}),
        (["--prism.scale=0.5"], {"prism.scale": "0.5"}),
        (["--a="], {"a": ""}),
    ],
)
def test_both_ways_to_write_a_key(words, values):
    assert parse(words) == values


def test_a_run_leaves_its_directory(run_cli, data):
    ended = run_cli("--plugin", "prism", "--output_dir", "out", "--prism.scale=0.5", "--topk", "[3,5]",
                    "--valid_metric=ndcg@5", "--learning_rate", "1e-2")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert result()["status"] == "finished"
    assert set(result()["test_result"]) == {"recall@3", "recall@5", "ndcg@3", "ndcg@5"}
    assert result()["settings"]["prism"]["scale"] == 0.5
    assert resolved()["learning_rate"] == 0.01
    assert "image: 30 of 30 items have a vector" in ended.out
    assert "SASRec+prism: test result on tiny" in ended.out
    assert "run directory: out" in ended.out
    assert {"config.yaml", "run.log", "metrics.csv", "result.json", "checkpoint.pth", "adapter.safetensors"} <= set(
        os.listdir("out")
    )


def test_command_line_over_config_files_over_data_set_over_recbole(run_cli, data):
    settings = (
        data / "tiny.yaml"
    ).read_text() + "epochs: 1\nseed: 11\nstopping_step: 7\nprism:\n  margin: 0.4\n  scale: 0.3\n"
    (data / "tiny.yaml").write_text(settings)
    Path("a.yml").write_text("seed: 12\nweight_decay: 1e-4\nprism:\n  scale: 0.6\n  hidden: 16\n")
    Path("b.yaml").write_text("prism.hidden: 4\nlearner: sgd\n")
    ended = run_cli("--plugin=prism", "--output_dir=out", "--config_files", "a.yml b.yaml", "--seed", "13",
                    "--prism.gate_dropout", "0.1")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    config = resolved()
    assert (config["seed"], config["weight_decay"], config["learner"], config["stopping_step"]) == (13, 1e-4, "sgd", 7)
    settings = result()["settings"]["prism"]
    assert [settings[key] for key in ("margin", "scale", "hidden", "gate_dropout", "temperature")] == [
        0.4,
        0.6,
        4,
        0.1,
        0.7,
    ]
    lines = (Path("out") / "config.yaml").read_text().splitlines()
    origin = {line.partition(":")[0]: line.rpartition("  # ")[2] for line in lines}
    assert [origin[key] for key in ("seed", "weight_decay", "stopping_step", "shuffle")] == [
        "given", "a.yml", "tiny.yaml", "RecBole",
    ]  # fmt: skip


def test_a_configuration_file_can_name_everything(run_cli, data, command):
    Path("all.yaml").write_text(
        "model: gru4rec\nplugin: [prism]\ndataset: tiny\ndata_path: data\noutput_dir: out\nbaseline: true\nepochs: 1\n"
        "embedding_size: 8\nhidden_size: 8\nMAX_ITEM_LIST_LENGTH: 6\n"
    )
    from recplug.adapters.cli import run_recbole

    ended = command(run_recbole.main, "--config_files", "all.yaml")
    assert (ended.code, ended.err) == (0, "")
    assert (result()["model"], result()["plugins"], result()["dataset"]) == ("GRU4Rec", ["prism"], "tiny")
    bare = result("out/baseline")
    assert (bare["plugins"], bare["trim_padding"], bare["data_fingerprint"]) == (
        [], result()["trim_padding"], result()["data_fingerprint"],
    )  # fmt: skip
    assert "change" in ended.out


def test_one_feature_file_of_the_command_line_leaves_the_others(run_cli, data):
    table = FeatureTable(torch.randn(30, 3), tuple(f"i{i}" for i in range(30)), "sound")
    table.save("here.safetensors")
    (data / "tiny.yaml").write_text((data / "tiny.yaml").read_text() + "features:\n  text: other.safetensors\n")
    (data / "tiny.text.safetensors").rename(data / "other.safetensors")
    ended = run_cli("--plugin", "prism", "--features.audio", "here.safetensors", "--output_dir", "out")
    assert (ended.code, ended.err) == (0, "")
    assert {name: about["file"] for name, about in result()["features"].items()} == {
        "image": "tiny.image.safetensors", "text": "other.safetensors", "audio": "here.safetensors",
    }  # fmt: skip


def test_settings_of_a_plugin_that_is_not_in_use_are_noted(run_cli, data):
    Path("a.yaml").write_text("prism:\n  scale: 0.5\nepochs: 1\nepoch: 3\n")
    ended = run_cli("--config_files", "a.yaml", "--output_dir", "out")
    assert (ended.code, ended.err) == (0, "")
    assert "note: a.yaml has settings for prism, which is not in use" in ended.out
    assert "documents the key 'epoch'; did you mean 'epochs'?" in ended.out


def test_an_unknown_key_like_no_other_is_passed_on_with_a_note(run_cli, data):
    ended = run_cli("--zzz_own", "5", "--output_dir", "out")
    assert ended.code == 0
    assert "documents the key 'zzz_own'; it is passed on" in ended.out
    assert resolved()["zzz_own"] == 5


WRONG = {
    "unknown plugin": (["--plugin", "prsm"], "no plugin 'prsm'; did you mean 'prism'?"),
    "plugin twice": (["--plugin", "prism,prism"], "plugin 'prism' is named twice"),
    "plugin key given twice": (["--plugin", "prism", "--plugin", "prism"], "--plugin is given twice"),
    "misspelt plugin key": (["--plugin", "prism", "--prism.lambda_sinergy", "1"], "did you mean 'lambda_synergy'?"),
    "plugin value out of range": (["--plugin", "prism", "--prism.gate_dropout", "1.5"], "prism.gate_dropout=1.5"),
    "plugin value of a wrong type": (["--plugin", "prism", "--prism.hidden", "many"], "prism.hidden='many'"),
    "plugin key without its plugin": (["--prism.scale", "1"], "add it with --plugin prism"),
    "key of no plugin": (["--plugin", "prism", "--prims.scale", "1"], "did you mean 'prism'?"),
    "misspelt key": (["--epoch", "3"], "no key 'epoch'; did you mean 'epochs'?"),
    "no number": (["--epochs", "abc"], "epochs='abc' is not a whole number"),
    "no whole number": (["--epochs", "1.5"], "epochs=1.5 is not a whole number"),
    "no value": (["--epochs"], "epochs=True is not a whole number"),
    "no switch": (["--shuffle", "maybe"], "shuffle='maybe' is not true or false"),
    "own switch": (["--mask_history", "5"], "mask_history=5 is not true or false"),
    "no learning rate": (["--learning_rate", "fast"], "learning_rate='fast' is not a number"),
    "negative learning rate": (["--learning_rate", "-1"], "learning_rate=-1 is below"),
    "batch of none": (["--train_batch_size", "0"], "train_batch_size=0 is below"),
    "no cutoff": (["--topk", "abc"], "topk='abc' is no positive whole number"),
    "mixed cutoffs": (["--topk", "[5,'a']"], "is no positive whole number"),
    "cutoff zero": (["--topk", "0"], "topk=0 is no positive whole number"),
    "unknown metric": (["--metrics", "Foo"], "RecBole has no metric 'Foo'; there are: "),
    "misspelt metric": (["--metrics", "['Recal']"], "did you mean 'Recall'?"),
    "metric not computed": (["--valid_metric", "NDCG@7"], "valid_metric NDCG@7 is not computed"),
    "metric without cutoff": (["--valid_metric", "NDCG"], "valid_metric NDCG is not computed"),
    "unknown model": (["--model", "SASRek"], "RecBole has no model 'SASRek'; did you mean 'SASRec'?"),
    "refused model": (["--model", "FPMC", "--plugin", "prism"], "use SASRec, GRU4Rec"),
    "untrained model": (["--model", "EASE", "--plugin", "prism"], "use LightGCN, NGCF"),
    "other family": (["--model", "FM", "--plugin", "prism"], "neither a sequential nor a general model"),
    "no model": (["--model"], "--model has no value"),
    "unknown data set": (["--dataset", "tinny"], "no tinny.inter in"),
    "no config file": (["--config_files", "none.yaml"], "none.yaml: No such file"),
    "stray word": (["epochs", "3"], "'epochs' belongs to no key"),
    "baseline of nothing": (["--baseline", "true"], "name a plugin with --plugin"),
    "baseline of perhaps": (["--plugin", "prism", "--baseline", "perhaps"], "baseline='perhaps' is not true or false"),
    "propagation of perhaps": (["--fast_propagation", "perhaps"], "fast_propagation='perhaps' is not true or false"),
    "no process": (["--nproc", "0"], "nproc=0 is not a whole number of at least 1"),
    "several processes": (["--resume", "out", "--nproc", "2"], "--resume goes on in one process; leave --nproc out"),
    "resume": (["--resume", "out"], "out is no run"),
    "missing feature file": (["--plugin", "prism", "--features.image", "none.safetensors"], "none.safetensors"),
    "missing modality": (["--plugin", "prism", "--prism.modalities", "('image','txt')"], "did you mean 'text'?"),
    "repeated key": (["--seed", "1", "--seed", "2"], "--seed is given twice, as '1' and '2'"),
    "trimming where it is not exact": (["--model", "STAMP", "--trim_padding", "true"], "trim_padding is not exact"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(case, run_cli, refused, data, tmp_path):
    words, told = WRONG[case]
    line = refused(run_cli(*words))
    assert told in line
    assert not (tmp_path / "runs").exists() or not os.listdir(tmp_path / "runs")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: 1\nb: [1,\n", "c.yaml, line 3: not valid YAML"),
        (b"seed: 1\n\tx: 2\n", "c.yaml, line 2: not valid YAML"),
        (b"name: caf\xe9\n", "it is not UTF-8 text"),
        (b"- a\n- b\n", "c.yaml, line 1: expected 'key: value' lines"),
        (b"epochs: abc\n", "epochs='abc' is not a whole number"),
        (b"prism: 5\n", "'prism' takes names and values, nested under it"),
        (b"prism:\n  lambda_sinergy: 1\n", "did you mean 'lambda_synergy'?"),
        (b"features: 5\n", "features=5 is no mapping"),
    ],
)
def test_a_wrong_configuration_file(content, told, run_cli, refused, data):
    Path("c.yaml").write_bytes(content)
    assert told in refused(run_cli("--plugin", "prism", "--config_files", "c.yaml"))


def test_an_output_folder_that_cannot_be_used(run_cli, refused, data):
    Path("file").write_text("mine")
    assert "cannot write to file/out" in refused(run_cli("--output_dir", "file/out"))
    Path("full").mkdir()
    Path("full", "mine.txt").write_text("mine")
    assert "full is not empty" in refused(run_cli("--output_dir", "full"))
    assert Path("full", "mine.txt").read_text() == "mine"


def vectors(count=30, width=4):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2))


def broken_tables(folder):
    """How each broken feature table is written in place of the text vectors, and what must be said of it."""
    path = folder / "tiny.text.safetensors"
    tokens = tuple(f"i{i}" for i in range(30))

    def rewritten(change):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            header = file.metadata()
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, header)

    def duplicate(tensors):
        text = tensors["item_tokens"].numpy().tobytes().replace(b"i11", b"i10")
        tensors["item_tokens"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)

    return {
        "no match": (
            lambda: FeatureTable(vectors(), tuple(f"x{t}" for t in tokens), "text").save(path),
            "look like 'xi0'",
        ),
        "NaN": (lambda: rewritten(lambda t: t["features"][3].fill_(torch.nan)), "hold NaN or infinity (first: 'i3')"),
        "truncated": (lambda: path.write_bytes(path.read_bytes()[:-40]), "truncated or corrupt"),
        "one dimension": (lambda: rewritten(lambda t: t.update(features=vectors().flatten())), "has 1 dimensions"),
        "rows missing": (lambda: rewritten(lambda t: t.update(features=vectors(20))), "20 rows but 30 item tokens"),
        "altered width": (lambda: rewritten(lambda t: t.update(features=vectors(30, 5))), "sha256"),
        "duplicate token": (lambda: rewritten(duplicate), "1 item tokens occur more than once (first: 'i10')"),
        "no table": (lambda: path.write_bytes(b"not a table"), "truncated or corrupt"),
    }


@pytest.mark.parametrize("case", broken_tables(Path()))
def test_a_broken_feature_table(case, run_cli, refused, data):
    make, told = broken_tables(data)[case]
    make()
    assert told in refused(run_cli("--plugin", "prism", "--output_dir", "out", "--baseline", "true"))
    assert not Path("out").exists(), "the same --output_dir must work once the input is mended"


def test_a_row_without_an_item_is_dropped_and_never_an_invalid_id(run_cli, data):
    rows = (data / "tiny.inter").read_text().splitlines()
    whole = run_cli("--output_dir", "whole", "--plugin", "prism")
    (data / "tiny.inter").write_text("\n".join([rows[0], "u0\t\t0.5", *rows[1:], "u1\t\t9"]) + "\n")
    gaps = run_cli("--output_dir", "gaps", "--plugin", "prism")
    assert (whole.code, gaps.code) == (0, 0)
    assert result("gaps")["data_fingerprint"] == result("whole")["data_fingerprint"]
    assert result("gaps")["best_valid_score"] == result("whole")["best_valid_score"]


def test_a_failure_of_recbole_is_one_line_with_its_traceback_in_the_log(run_cli, data):
    ended = run_cli("--hidden_size", "9", "--n_heads", "2", "--output_dir", "out")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("error: ValueError: The hidden size (9) is not a multiple")
    assert "run with --debug for the traceback; see out/run.log" in ended.err
    assert "Traceback (most recent call last)" in Path("out/run.log").read_text()
    assert result()["status"] == "failed"
    shown = run_cli("--hidden_size", "9", "--n_heads", "2", "--output_dir", "again", "--debug")
    assert shown.code == 1
    assert "Traceback (most recent call last)" in shown.err


def test_a_failure_midway_keeps_what_there_was(run_cli, data, monkeypatch):
    from recplug.plugins.chain import Chain

    ticks = []

    def fail_in_the_second_epoch(chain, step):
        ticks.append(step)
        if len(ticks) > 1:
            raise MemoryError("planted")

    monkeypatch.setattr(Chain, "total_loss", fail_in_the_second_epoch)
    ended = run_cli("--epochs", "3", "--plugin", "prism", "--output_dir", "out")
    assert ended.code == 1
    assert "MemoryError: planted" in ended.err
    assert (result()["status"], result()["checkpoint"]) == ("failed", "checkpoint.pth")
    assert len(Path("out/metrics.csv").read_text().splitlines()) == 2


def test_an_interruption_is_one_line(run_cli, data, monkeypatch):
    from recplug.plugins.chain import Chain

    def interrupted(chain, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(Chain, "total_loss", interrupted)
    ended = run_cli("--output_dir", "out")
    assert (ended.code, ended.err.count("\n")) == (130, 1)
    assert result()["status"] == "interrupted"


def test_help_needs_nothing(command):
    from recplug.adapters.cli import run_recbole

    assert command(run_recbole.main, "--help").out.startswith("run_recbole --model SASRec --plugin prism")
    assert command(run_recbole.main).out == command(run_recbole.main, "--help").out


def process(*words, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([RUN, *words], cwd=folder, capture_output=True, text=True, env=environment, check=False)


def test_the_installed_command_on_bundled_data(tmp_path):
    done = process("--model", "SASRec", "--plugin", "prism", "--epochs", "1", "--hidden_size=16", "--n_layers=1",
                   "--train_batch_size", "4096", folder=tmp_path)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (directory,) = (tmp_path / "runs").iterdir()
    assert result(directory)["mask_history"] is True
    assert result(directory)["features"].keys() == {"image", "text"}
    assert os.listdir(tmp_path) == ["runs"], "RecBole's own folders appear nowhere"


def test_the_installed_command_refuses_in_one_line(tmp_path):
    done = process("--model", "SASRec", "--plugin", "prism", "--prism.lambda_sinergy", "1", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: prism has no setting 'lambda_sinergy'; did you mean 'lambda_synergy'?\n"
    assert os.listdir(tmp_path) == []
