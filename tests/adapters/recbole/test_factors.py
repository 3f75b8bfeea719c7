"""Factor profiles from a data set's folder to a plugin, and MARS over RecBole's models."""

import csv
import shutil

import numpy as np
import pytest
import torch

from recplug.adapters.factors import FactorTable
from recplug.adapters.recbole import run
from recplug.adapters.recbole.graft.hosts import HOSTS
from recplug.plugins import get
from recplug.plugins.errors import RecplugError

CONFIG = {
    "epochs": 1,
    "train_batch_size": 64,
    "embedding_size": 16,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "show_progress": False,
}
MODELS = [name for name, host in HOSTS.items() if host.table and host.status != "refused"]


def mars_of(model):
    return model.recplug.augmentations()["mars"]


def parts(loss):
    return loss if isinstance(loss, tuple) else (loss,)


@pytest.mark.parametrize("name", MODELS)
def test_mars_trains_on_every_model_with_an_item_table_and_is_off_at_its_identity(name, build, batch_of):
    _, model, train, *_ = build(name, "mars", {"mars": {"lambda_semantic": 0.1}})
    torch.manual_seed(1)
    sum(part.sum() for part in parts(model.train().calculate_loss(batch_of(train)))).backward()
    mars = mars_of(model)
    assert mars.head.out.weight.grad.abs().sum() > 0
    assert mars.fusion.gate.weight.grad.abs().sum() > 0, "the host's own loss reads what H adds"
    losses = []
    for plugins, settings in (("mars", {"mars": dict(get("mars").identity)}), ("", None)):
        _, other, train, *_ = build(name, plugins, settings, trim_padding=False, fast_propagation=False)
        torch.manual_seed(1)
        losses.append(parts(other.train().calculate_loss(batch_of(train))))
    for mine, bare in zip(*losses, strict=True):
        assert torch.equal(mine, bare)


@pytest.mark.parametrize(("given", "least"), [({}, None), ({"mars": {"preset": "paper"}}, 0)], ids=["default", "paper"])
def test_rare_values_are_rolled_up_by_default_and_kept_by_the_paper_s_preset(given, least, tiny, tmp_path):
    result = run("LightGCN", "tiny", "mars", {**CONFIG, **given}, data_path=tiny, output_dir=tmp_path / "run")
    assert result.result["factor_min_group"] == least
    said = "values of fewer than 5 items are rolled up (factor_min_group)"
    assert (said in (result.directory / "run.log").read_text()) is (least is None)


def test_profiles_are_aligned_by_token_and_the_items_without_one_are_unknown(build, tiny):
    _, model, train, *_ = build("LightGCN", "mars")
    table = FactorTable.load(tiny / "tiny" / "tiny.factors.json")
    profiles, tokens = mars_of(model).profiles, train.dataset.field2id_token["item_id"]
    assert [factor.name for factor in profiles.factors] == ["genre", "price"]
    assert profiles.n_items == len(tokens)
    known = dict(zip(tokens, profiles.known.any(dim=1).tolist(), strict=True))
    assert known == {token: token in table.tokens for token in tokens}
    assert list(known.values()).count(False) >= 3
    names = profiles.factors[0].values
    row = next(row for row, token in enumerate(tokens) if token == table.tokens[0])
    held = profiles.values[profiles.items == row]
    assert {names[v] for v in held.tolist() if v < len(names)} == set(table.values["genre"][0])


def test_a_run_says_which_factors_and_which_control_it_had(tiny, tmp_path):
    results = {}
    for control in (None, "shuffled", "random"):
        config = {**CONFIG, "factor_control": control, "mars": {"lambda_semantic": 1.0}}
        results[control] = run("LightGCN", "tiny", "mars", config, data_path=tiny, output_dir=tmp_path / str(control))
        assert results[control].result["factor_control"] == control
    table = FactorTable.load(tiny / "tiny" / "tiny.factors.json")
    assert results[None].result["factors"] == {"file": "tiny.factors.json", "sha256": table.sha256}
    losses = []
    for control, result in results.items():
        (row,) = csv.DictReader((result.directory / "metrics.csv").open())
        losses.append(float(row["loss/mars.semantic"]))
        assert ("control: factor profiles are" in (result.directory / "run.log").read_text()) == (control is not None)
    assert len(set(losses)) == 3
    pictures = {path.name for path in (results[None].directory / "diagnostics").glob("mars.*.png")}
    assert {"mars.gate.png", "mars.branches.png"} <= pictures
    with np.load(results[None].directory / "diagnostics" / "mars.npz") as arrays:
        assert all(np.isfinite(arrays[name]).any() for name in arrays.files)


def test_the_factors_may_lie_elsewhere(tiny, tmp_path):
    for end in ("json", "parquet"):
        shutil.copy(tiny / "tiny" / f"tiny.factors.{end}", tmp_path / f"mine.factors.{end}")
    config = {**CONFIG, "factors": str(tmp_path / "mine.factors.json")}
    result = run("BPR", "tiny", "mars", config, data_path=tiny, output_dir=tmp_path / "run")
    assert result.result["factors"]["file"] == "mine.factors.json"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"factor_control": "shufled"}, "no factor_control 'shufled'; did you mean 'shuffled'?"),
        ({"factors": "nowhere.factors.json"}, "no factors of tiny at .*nowhere.factors.json; make them with"),
    ],
)
def test_what_is_wrong_with_factors_is_said_before_training(tiny, tmp_path, given, message):
    with pytest.raises(RecplugError, match=message):
        run("BPR", "tiny", "mars", {**CONFIG, **given}, data_path=tiny, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_factors_the_command_that_makes_them_is_named(tiny, tmp_path):
    (tmp_path / "tiny").mkdir()
    shutil.copy(tiny / "tiny" / "tiny.inter", tmp_path / "tiny")
    with pytest.raises(RecplugError, match="mars needs factor profiles; make them with: recplug factors"):
        run("BPR", "tiny", "mars", CONFIG, data_path=tmp_path, output_dir=tmp_path / "run")
