"""Mixed precision: every plugin on a sequential and a graph backbone, in RecBole's own trainer and by steps."""

import copy
import json

import pytest
import torch

from recplug.adapters.recbole import run
from recplug.adapters.recbole.train.precision import DTYPES
from recplug.plugins import available
from recplug.plugins.errors import RecplugError

SETTINGS = {"magnet": {"trigger": "fixed@1"}}  # both stages in two epochs
COMBINATIONS = [
    (name, host)
    for name in ("", *sorted(available()))
    for host in ("SASRec", "LightGCN")
    if (name, host) != ("itemgraph", "SASRec")  # of graph backbones
]


def losses(model, batch, dtype):
    """The parts of one training step's loss, with the draws of every other call."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        found = model.train().calculate_loss(copy.deepcopy(batch))
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("plugin", "host"), COMBINATIONS, ids=lambda value: value or "bare")
def test_every_plugin_trains_near_single_precision(plugin, host, dtype, build, batch_of):
    found = {}
    for kind in (None, DTYPES[dtype]):
        settings = {plugin: SETTINGS.get(plugin, {})} if plugin else {}
        _, model, train, *_ = build(host, plugin, settings, fast_propagation=True)
        batch = batch_of(train)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        history = []
        for _ in range(6):
            optimiser.zero_grad()
            parts = losses(model, batch, kind)
            total = sum(part.sum() for part in parts)
            total.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            assert all(bool(torch.isfinite(g).all()) for g in gradients)
            assert all(g.dtype == torch.float32 for g in gradients)
            optimiser.step()
            history.append([float(part.sum()) for part in parts])
        found[kind] = history
    single, mixed = found.values()
    assert mixed[-1][0] < mixed[0][0]  # it learns the batch; MAGNET's second stage has a loss more
    scale = sum(map(abs, single[0]))
    for mine, other in zip(single, mixed, strict=True):
        assert other == pytest.approx(mine, rel=2e-2, abs=2e-2 * scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_trainer_computes_in_the_named_type(dtype, tiny, tmp_path, monkeypatch):
    seen = set()
    from recbole.model.sequential_recommender import SASRec

    calculate = SASRec.calculate_loss

    def spy(self, interaction):
        seen.add((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return calculate(self, interaction)

    monkeypatch.setattr(SASRec, "calculate_loss", spy)
    before = torch.get_autocast_dtype("cpu")
    config = {
        "enable_amp": True,
        "amp_dtype": dtype,
        "epochs": 2,
        "hidden_size": 16,
        "inner_size": 32,
        "use_gpu": False,
    }
    config |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "state": "ERROR"}
    found = run("SASRec", "tiny", "prism", config, data_path=tiny, output_dir=tmp_path / "run")
    assert seen == {(True, DTYPES[dtype])}
    assert torch.get_autocast_dtype("cpu") == before
    assert found.result["status"] == "finished"
    assert f"amp_dtype: {dtype}" in (tmp_path / "run" / "config.yaml").read_text()
    assert all(
        value == value for value in json.loads((tmp_path / "run" / "result.json").read_text())["test_result"].values()
    )


def test_a_bare_graph_model_trains_in_mixed_precision_too(tiny, tmp_path):
    config = {"enable_amp": True, "epochs": 1, "embedding_size": 16, "use_gpu": False, "state": "ERROR"}
    config |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    found = run("LightGCN", "tiny", "", config, data_path=tiny, output_dir=tmp_path / "run")
    assert found.result["fast_propagation"] == ["norm_adj_matrix"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"enable_amp": True, "amp_dtype": "bf15"}, "no amp_dtype 'bf15'; did you mean 'bf16'"),
        ({"amp_dtype": "bf16"}, "add --enable_amp true"),
        ({"enable_amp": True, "enable_scaler": True, "clip_grad_norm": {"max_norm": 5}}, "leave one of"),
    ],
    ids=["unknown", "without amp", "clipped and scaled"],
)
def test_what_does_not_fit_is_refused_in_one_line(config, words, tiny, tmp_path):
    config |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "state": "ERROR"}
    with pytest.raises(RecplugError) as caught:
        run("SASRec", "tiny", "", config, data_path=tiny, output_dir=tmp_path / "run")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
