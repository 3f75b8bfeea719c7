"""``run``: what a run directory holds, and that a run leaves nothing else changed."""

import csv
import io
import json
import logging
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from recbole.utils import InputType
from safetensors import safe_open
from torch import nn

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import run
from recplug.adapters.recbole.train.result_table import result_table
from recplug.plugins.errors import RecplugError

RESULT_KEYS = {
    "model",
    "dataset",
    "plugins",
    "seed",
    "best_valid_score",
    "best_valid_result",
    "test_result",
    "epochs",
    "seconds_per_epoch",
    "peak_memory_bytes",
    "parameters",
    "checkpoint",
    "data_fingerprint",
    "versions",
}
FILES = {
    "config.yaml",
    "run.log",
    "metrics.csv",
    "checkpoint.pth",
    "adapter.safetensors",
    "adapter.json",
    "diagnostics",
    "tensorboard",
    "result.json",
}
SMALL = {
    "hidden_size": 16,
    "inner_size": 32,
    "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 10,
    "train_batch_size": 64,
    "epochs": 2,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "seed": 5,
    "use_gpu": False,
    "show_progress": False,
}


class Averages(SequentialRecommender):
    """A user's own model, with a table that is not called like RecBole's."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.my_items = nn.Embedding(self.n_items, config["hidden_size"], padding_idx=0)
        self.loss = BPRLoss()

    def forward(self, item_seq, item_seq_len):
        return self.my_items(item_seq).sum(dim=1) / item_seq_len.unsqueeze(1)

    def calculate_loss(self, interaction):
        user = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        wanted, other = (self.my_items(interaction[field]) for field in (self.POS_ITEM_ID, self.NEG_ITEM_ID))
        return self.loss((user * wanted).sum(dim=1), (user * other).sum(dim=1))

    def full_sort_predict(self, interaction):
        return self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]) @ self.my_items.weight.T


def surroundings():
    root = logging.getLogger()
    return dict(vars(np)), torch.load, torch.save, root.level, list(root.handlers), list(sys.argv)


@pytest.fixture
def go(tiny, tmp_path, monkeypatch):
    """``go(**settings)``: a run on the tiny set, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def start(plugins="prism", *, model="SASRec", output_dir="run", **settings):
        more = {key: settings.pop(key) for key in ("baseline", "table", "config_files") if key in settings}
        return run(
            model,
            "tiny",
            plugins,
            {**SMALL, **settings},
            data_path=tiny,
            output_dir=tmp_path / output_dir,
            **more,
        )

    return start


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """One finished run with its surroundings before and after, and its working directory."""
    working = tmp_path_factory.mktemp("working")
    arguments = ["pytest", "--epochs=77", "--learning_rate=9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(working)
        patch.setattr(sys, "argv", arguments)
        before = surroundings()
        result = run(
            "SASRec",
            "tiny",
            "prism",
            {**SMALL, "prism.scale": 0.5, "mask_history": True},
            data_path=tiny,
            output_dir="runs/one",
        )
        after = surroundings()
    return result, before, after, working


def test_nothing_but_the_run_directory_changes(finished):
    _, before, after, working = finished
    assert after == before
    assert [path.relative_to(working).as_posix() for path in working.iterdir()] == ["runs"]
    assert [path.name for path in (working / "runs").iterdir()] == ["one"]


def test_the_files_of_a_run(finished):
    result, *_, working = finished
    folder = working / "runs" / "one"
    assert {path.name for path in folder.iterdir()} >= FILES
    assert [path.name for path in folder.rglob("*") if path.name.startswith(".")] == [".recplug-run"]
    stored = json.loads((folder / "result.json").read_text())
    assert set(stored) >= RESULT_KEYS
    assert stored["status"] == "finished"
    assert (stored["model"], stored["dataset"], stored["plugins"], stored["seed"]) == ("SASRec", "tiny", ["prism"], 5)
    assert stored["epochs"] == 2  # not the 77 of the caller's command line
    assert stored["checkpoint"] == "checkpoint.pth"
    assert stored["test_result"] == result.test_result
    assert stored["best_valid_score"] == result.best_valid_score == stored["best_valid_result"]["mrr@10"]
    assert stored["mask_history"] is True
    assert stored["trim_padding"] is True
    assert stored["parameters"]["backbone"] > 0 < stored["parameters"]["plugins"]["prism"]
    assert set(stored["features"]) == {"image", "text"}
    log = (folder / "run.log").read_text()
    assert "history masked" in log
    assert "\x1b" not in log


def test_a_row_an_epoch(finished):
    folder = finished[3] / "runs" / "one"
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    parts = {"loss/backbone", "loss/prism.unique_image", "loss/prism.synergy", "loss/prism.redundancy"}
    assert parts | {"train_seconds", "valid_seconds", "valid/mrr@10"} <= set(rows[0])
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    best = max(float(row["valid/mrr@10"]) for row in rows)
    assert best == finished[0].best_valid_score


def test_the_adapter_file_holds_what_plugins_added_and_no_more(finished):
    result, *_, working = finished
    folder = working / "runs" / "one"
    with safe_open(folder / "adapter.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    plugin = {f"prism.{n}": p for n, p in result.model.recplug.plugins["prism"].named_parameters()}
    assert set(stored) >= set(plugin)
    assert all(torch.equal(stored[name], value) for name, value in plugin.items())
    n_items = result.model.n_items
    assert [name for name, value in stored.items() if value.dim() and value.shape[0] == n_items] == []
    about = json.loads((folder / "adapter.json").read_text())
    assert about["settings"]["prism"]["scale"] == 0.5


def test_the_configuration_says_where_values_come_from(finished):
    text = (finished[3] / "runs" / "one" / "config.yaml").read_text()
    values = yaml.safe_load(text)
    origin = {line.split(":")[0]: line.rpartition("# ")[2] for line in text.splitlines() if not line.startswith("#")}
    assert (values["epochs"], origin["epochs"]) == (2, "given")
    assert (values["learning_rate"], origin["learning_rate"]) == (0.001, "RecBole")
    assert (values["prism"]["scale"], origin["  scale"]) == (0.5, "given")
    assert (values["prism"]["margin"], origin["  margin"]) == (0.2, "default")
    assert values["plugin"] == ["prism"]
    assert (values["shuffle_features"], origin["shuffle_features"]) == (False, "recplug")
    assert set(origin) == {*values, *(f"  {key}" for key in values["prism"])}


def test_the_configuration_repeats_the_run(finished, tmp_path):
    file = finished[3] / "runs" / "one" / "config.yaml"
    names = yaml.safe_load(file.read_text())
    again = run(names["model"], names["dataset"], names["plugin"], config_files=[file], data_path=names["data_path"],
                output_dir=tmp_path / "again")  # fmt: skip
    assert again.test_result == finished[0].test_result
    assert again.result["settings"] == finished[0].result["settings"]


def test_a_file_without_times_is_refused_in_one_line(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "bare.inter").write_text("user_id:token\titem_id:token\n" + "u1\ti1\nu1\ti2\nu1\ti3\nu1\ti4\n")
    with pytest.raises(RecplugError, match="TIME_FIELD 'timestamp'"):
        run("SASRec", "bare", [], {}, data_path=tmp_path, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_diagnostics_are_drawn(finished):
    folder = finished[3] / "runs" / "one" / "diagnostics"
    pictures = sorted(folder.glob("*.png"))
    assert [path.name for path in pictures] == sorted(finished[0].result["diagnostics"])
    assert len(pictures) >= 4
    for path in pictures:
        pixels = matplotlib.image.imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 0.02
    with np.load(folder / "prism.npz", allow_pickle=False) as arrays:
        assert {path.name.split(".")[1] for path in pictures} <= set(arrays)


def test_the_same_seed_gives_the_same_metrics_and_another_does_not(finished, go):
    again = go(**{"prism.scale": 0.5, "mask_history": True})
    assert again.test_result == finished[0].test_result
    assert again.result["best_valid_result"] == finished[0].result["best_valid_result"]
    assert again.result["data_fingerprint"] == finished[0].result["data_fingerprint"]
    other = go(output_dir="other", seed=6, **{"prism.scale": 0.5, "mask_history": True})
    assert other.result["best_valid_result"] != again.result["best_valid_result"]


def losses_of(result):
    rows = csv.DictReader((result.directory / "metrics.csv").read_text().splitlines())
    return [float(row["loss/backbone"]) for row in rows]


def test_shuffled_features_and_the_mask_change_results(go):
    plain = go(epochs=1, **{"prism.scale": 1.0})
    shuffled = go(output_dir="shuffled", epochs=1, shuffle_features=True, **{"prism.scale": 1.0})
    assert shuffled.result["shuffle_features"], "a control says that it is one"
    assert losses_of(shuffled) != losses_of(plain)
    masked = go(output_dir="masked", epochs=1, mask_history=True, **{"prism.scale": 1.0})
    assert losses_of(masked) == losses_of(plain)
    assert masked.result["test_result"] != plain.result["test_result"]


def test_the_bare_backbone_beside_it(go):
    result = go(baseline=True, epochs=1)
    bare = result.baseline
    assert bare.directory == result.directory / "baseline"
    assert (bare.result["plugins"], bare.result["status"], bare.result["seed"]) == ([], "finished", 5)
    assert bare.result["trim_padding"] is True
    assert not (bare.directory / "adapter.safetensors").exists()
    assert bare.result["data_fingerprint"] == result.result["data_fingerprint"]
    text = result_table(result)
    for metric, value in bare.test_result.items():
        line = next(line for line in text.splitlines() if line.startswith(metric))
        assert f"{value:.4f}" in line
        assert f"{result.test_result[metric]:.4f}" in line
    assert "history not masked" in text


def test_a_run_that_fails_keeps_what_it_had(go, tmp_path, monkeypatch):
    from recbole.trainer import Trainer

    train = Trainer._train_epoch

    def spoiled(self, data, epoch, *args, **kwargs):
        if epoch == 1:
            with torch.no_grad():
                self.model.item_embedding.raw.fill_(torch.nan)
        return train(self, data, epoch, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_train_epoch", spoiled)
    before = surroundings()
    with pytest.raises(RecplugError, match="NaN in epoch 1") as failure:
        go()
    assert surroundings() == before
    assert "\n" not in str(failure.value)
    folder = tmp_path / "run"
    stored = json.loads((folder / "result.json").read_text())
    assert stored["status"] == "failed"
    assert "NaN" in stored["error"]
    assert stored["checkpoint"] == "checkpoint.pth"
    weights = torch.load(folder / "checkpoint.pth", weights_only=False)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values() if isinstance(value, torch.Tensor))
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2
    assert "NaN" in (folder / "run.log").read_text()


def test_an_absurd_learning_rate_is_one_line(go):
    with pytest.raises(RecplugError, match=r"NaN in epoch .*lower learning_rate") as failure:
        go(learning_rate=1e20, epochs=20, stopping_step=50)
    assert "\n" not in str(failure.value)


def test_a_directory_that_is_not_empty_is_refused(go, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all of it")
    with pytest.raises(RecplugError, match="is not empty; choose a new one with --output_dir"):
        go()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    assert (tmp_path / "run" / "thesis.txt").read_text() == "all of it"


def test_an_output_that_cannot_be_written_is_one_line(go, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecplugError, match=r"cannot write to .*choose another --output_dir") as failure:
        go(output_dir="file/run")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"features": {"image": "nowhere.safetensors"}}, "no image features of tiny at .*nowhere.safetensors"),
        ({"prism.modalities": ["audio"]}, "prism.modalities names 'audio'"),
        ({"prism.scael": 1}, "scael"),
        ({"prism.temperature": -1}, "temperature"),
        ({"loss_type": "BCE"}, "SASRec takes loss_type CE or BPR, not BCE; set --loss_type CE"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(settings, line, go, tmp_path):
    with pytest.raises(RecplugError, match=line) as failure:
        go(**settings)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "run").exists()


def test_features_may_lie_elsewhere(go, tiny, tmp_path):
    table = FeatureTable.load(tiny / "tiny" / "tiny.image.safetensors")
    table.save(tmp_path / "elsewhere.safetensors")
    result = go(epochs=1, features={"sketch": str(tmp_path / "elsewhere.safetensors")})
    assert list(result.result["features"]) == ["image", "text", "sketch"]
    assert result.result["features"]["sketch"]["sha256"] == table.sha256
    assert list(result.model.recplug.plugins["prism"].names) == ["image", "text", "sketch"]


@pytest.mark.parametrize("plugins", ["prism", ""])
def test_a_model_of_ones_own_runs(plugins, go):
    result = go(plugins, model=Averages, table="my_items", epochs=1)
    assert result.result["status"] == "finished"
    assert (result.directory / "adapter.safetensors").exists() == bool(plugins)
    assert np.isfinite(losses_of(result)).all()


def test_a_wrong_table_is_one_line(go, tmp_path):
    with pytest.raises(RecplugError, match=r"Averages has no nn.Embedding called 'item_embedding'; pass .*table"):
        go(model=Averages)
    assert not (tmp_path / "run").exists()


def test_every_second_epoch_may_be_validated(go, monkeypatch):
    from recplug.plugins.chain import Chain

    told = []
    monkeypatch.setattr(Chain, "on_evaluation_end", lambda self, epoch, score: told.append((epoch, score)))
    result = go(epochs=4, eval_step=2)
    rows = list(csv.DictReader((result.directory / "metrics.csv").read_text().splitlines()))
    assert [bool(row["valid/mrr@10"]) for row in rows] == [False, True, False, True]
    assert told == [(int(row["epoch"]), float(row["valid/mrr@10"])) for row in rows if row["valid/mrr@10"]]
    assert all(row["loss/prism.synergy"] for row in rows)


@pytest.mark.slow
def test_the_bundled_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("SASRec", plugins="prism", config_dict={"epochs": 1, "seed": 5}, output_dir="run")
    assert result.result["dataset"] == "amazon-scientific"
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES
    assert set(result.result["features"]) == {"image", "text"}
    assert result.test_result["recall@10"] > 0.01  # chance is 10 of 1,585


def test_other_peoples_log_handlers_show_what_they_showed_before(go):
    """RecBole logs to the root logger; a notebook's or a server's own handler there must not fill with it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        result = go(epochs=1)
    finally:
        root.removeHandler(handler)
    assert "epoch 0 training" in (result.directory / "run.log").read_text()
    assert stream.getvalue() == ""
