import os
import pickle
import sys

import numpy as np
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.model.general_recommender import BPR
from recbole.utils import get_model

from recplug.adapters.recbole.config.host_config import literal, make_config, model_class, model_names
from recplug.plugins.errors import RecplugError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        (".5", 0.5),
        ("1_000", 1000),
        ("True", True),
        ("true", True),
        ("FALSE", False),
        ("None", None),
        ("null", None),
        (" 7 ", 7),
        ("[10, 20]", [10, 20]),
        ("['a', 'b']", ["a", "b"]),
        ("(1, 2)", (1, 2)),
        ("{'RS': [0.8, 0.1, 0.1]}", {"RS": [0.8, 0.1, 0.1]}),
        ("'quoted'", "quoted"),
        ("", ""),
        ("gelu", "gelu"),
        ("[0,inf)", "[0,inf)"),
        ("(0,1]", "(0,1]"),
        ("u1", "u1"),
        ("ml-100k", "ml-100k"),
        ("2020-01-02", "2020-01-02"),
        ("/data/x", "/data/x"),
        ("1 + 1", "1 + 1"),
        ("2**9", "2**9"),
        ("1j", "1j"),
        ("b'x'", "b'x'"),
        ("{1, 2}", "{1, 2}"),
        ("...", "..."),
        ("len", "len"),
        ("{[]: 1}", "{[]: 1}"),
        ("[" * 5000, "[" * 5000),
        ("a\0b", "a\0b"),
        ("__import__('os').system('x')", "__import__('os').system('x')"),
        ("[__import__('os')]", "[__import__('os')]"),
    ],
)
def test_literal(text, value):
    found = literal(text)
    assert found == value
    assert type(found) is type(value)


def build(model="BPR", dataset="toy", files=(), **overrides):
    return make_config(model, dataset, files, overrides)


def line(call, *parts):
    with pytest.raises(RecplugError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


def test_a_string_with_code_stays_a_string(tmp_path):
    code = f"open({str(tmp_path / 'made')!r}, 'w').close()"
    config = build(wandb_project=code, epochs="7")
    assert config["wandb_project"] == code
    assert config["epochs"] == 7
    assert not (tmp_path / "made").exists()


def test_the_callers_command_line_is_not_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mine.py", "--epochs=99", "--model=Pop", "stray"])
    assert build(epochs=3)["epochs"] == 3
    assert build()["epochs"] == 300
    assert sys.argv == ["mine.py", "--epochs=99", "--model=Pop", "stray"]


def test_it_is_recboles_own_config():
    config = build("sasrec")
    assert type(config) is Config
    again = pickle.loads(pickle.dumps(config))
    assert again["model"] == "SASRec"
    assert b"recplug" not in pickle.dumps(config)


def test_what_recbole_builds_itself_is_the_same(monkeypatch):
    from recplug.adapters.recbole.compat.remedies import recbole_compat

    monkeypatch.setattr(sys, "argv", ["x"])
    given = {"epochs": 3, "topk": [5, 10], "learning_rate": "1e-3"}
    with recbole_compat():
        bare = Config("BPR", "toy", config_dict=dict(given))
    assert build(**given).final_config_dict == bare.final_config_dict


def test_the_callers_values_numpy_and_yaml_are_left_alone():
    numpy_before = dict(vars(np))
    yaml_before = {key: list(value) for key, value in yaml.FullLoader.yaml_implicit_resolvers.items()}
    given = {"train_neg_sample_args": {"distribution": "uniform"}, "topk": "[5]"}
    make_config("BPR", "toy", [], given)
    assert given == {"train_neg_sample_args": {"distribution": "uniform"}, "topk": "[5]"}
    assert dict(vars(np)) == numpy_before
    assert yaml.FullLoader.yaml_implicit_resolvers == yaml_before


def test_files_and_overrides_in_their_order(tmp_path):
    first, second, empty = tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "c.yaml"
    first.write_text("epochs: 5\nlearning_rate: 1e-4\nseed: 1\n")
    second.write_text("seed: 2\ntrain_batch_size: 64\n")
    empty.write_text("# nothing yet\n")
    config = build(files=[first, str(second), empty], train_batch_size=32)
    assert [config[key] for key in ("epochs", "learning_rate", "seed", "train_batch_size")] == [5, 1e-4, 2, 32]


def test_model_and_dataset_may_stand_in_a_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model: lightgcn\ndataset: toy\n")
    config = make_config(None, None, [file], {})
    assert (config["model"], config["dataset"]) == ("LightGCN", "toy")
    line(lambda: make_config(None, "toy", [], {}), "no model", "--model")
    line(lambda: make_config("BPR", None, [], {}), "no dataset", "--dataset")


def test_wrong_files_are_named_with_their_line(tmp_path):
    bad, listed, binary = tmp_path / "bad.yaml", tmp_path / "list.yaml", tmp_path / "binary.yaml"
    bad.write_text("epochs: 5\nseed: 1\ntopk: [1, 2\nlearner: adam\n")
    listed.write_text("- epochs\n")
    binary.write_bytes(b"\xff\xfe\x00")
    line(lambda: build(files=[bad]), f"{bad}, line ", "YAML")
    line(lambda: build(files=[listed]), str(listed), "list")
    line(lambda: build(files=[tmp_path / "none.yaml"]), str(tmp_path / "none.yaml"), "No such file")
    line(lambda: build(files=[binary]), str(binary), "UTF-8")


def test_the_line_is_the_one_with_the_mistake(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("epochs: 5\nseed: 1\nlearner: a: b\n")
    line(lambda: build(files=[bad]), f"{bad}, line 3")


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "BERT4Rec", "CORE"])
def test_cross_entropy_needs_no_setting_of_the_user(model):
    assert build(model)["train_neg_sample_args"]["distribution"] == "none"


def test_negatives_follow_the_resolved_loss(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("loss_type: BPR\n")
    assert build("SASRec", files=[file])["train_neg_sample_args"]["distribution"] == "uniform"
    assert build("SASRec", loss_type="BPR", train_neg_sample_args={"sample_num": 2, "distribution": "popularity"})[
        "train_neg_sample_args"
    ] == {"distribution": "popularity", "sample_num": 2, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    file.write_text("train_neg_sample_args: None\n")
    assert build("SASRec", files=[file])["train_neg_sample_args"]["distribution"] == "none"


def test_contradictory_negatives_are_told():
    line(lambda: build("SASRec", train_neg_sample_args={"sample_num": 1}), "CE", "train_neg_sample_args", "BPR")
    line(lambda: build("SASRec", loss_type="BPR", train_neg_sample_args="None"), "SASRec", "train_neg_sample_args")
    line(lambda: build("BPR", train_neg_sample_args=None), "BPR", "train_neg_sample_args")


def test_recboles_refusals_are_one_line():
    line(lambda: build(metrics=["Recal"]), "Recal")
    line(lambda: build(topk=[0]), "topk")
    line(lambda: build("SASRec", repeatable=False), "repeatable")
    line(lambda: build(eval_args="full"), "eval_args")


def test_every_model_name_leads_to_its_class():
    names = model_names()
    assert len(names) > 90
    for name in names:
        if name not in {"LightGBM", "XGBoost"}:
            assert model_class(name.upper()) is get_model(name)
            assert model_class(name).__name__ == name


def test_a_wrong_model_name_is_answered_with_the_nearest():
    line(lambda: build("sasrek"), "'sasrek'", "'SASRec'")
    line(lambda: build("qqqqqqqqq"), "'qqqqqqqqq'")


def test_a_users_own_class_is_taken_as_it_is():
    class Mine(BPR):
        pass

    config = build(Mine, embedding_size=8)
    assert config.model_class is Mine
    assert config["model"] == "Mine"


def test_the_visible_devices_are_set_as_recbole_does(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    build(gpu_id="")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_distributed_run_without_cuda_sits_on_the_cpu(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **given: asked.update(given, b=backend)
    )
    distributed = {"local_rank": 1, "nproc": 2, "offset": 0, "world_size": 2, "ip": "localhost", "port": "5678"}
    config = build(gpu_id="0,1", **distributed)
    assert (asked["b"], asked["rank"], asked["world_size"]) == ("gloo", 1, 2)
    assert config["device"] == torch.device("cpu")
    assert config["single_spec"] is False
    line(lambda: build(gpu_id="0", **distributed), "nproc", "gpu_id")
    build(gpu_id=[2, 3], **distributed)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    build(**distributed)  # as many as there are processes
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")  # as a cluster gives them out
    build(**distributed)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"
