"""MAGNET on RecBole's models: pairs and items, from training to ranking, and through a checkpoint."""

import copy
import logging

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_trainer, init_seed

from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.plugins.errors import RecplugError
from recplug.plugins.magnet import MagnetNodes, MagnetPairs, MagnetTable

CASES = {
    "LightGCN, pairs": ("LightGCN", {"mode": "pair"}, MagnetPairs),
    "LightGCN, nodes": ("LightGCN", {"mode": "node"}, MagnetNodes),
    "BPR": ("BPR", {}, MagnetPairs),
    "NGCF": ("NGCF", {}, MagnetPairs),
    "SGL": ("SGL", {"mode": "node"}, MagnetNodes),
    "SASRec": ("SASRec", {"mode": "node"}, MagnetTable),
}
EVERY = pytest.mark.parametrize("case", CASES)
OFF = {"gamma": 0.0}
TRIGGER = "recplug.plugins.magnet.trigger."
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def made(build):
    """``made(case, **settings)``: (config, model, its MAGNET, train, test)."""

    def make(case, config=None, **settings):
        name, own, _ = CASES[case]
        found, model, train, _, test = build(name, "magnet", {"magnet": {**own, **settings}}, **(config or {}))
        return found, model, model.recplug.plugins["magnet"], train, test

    return make


def losses(model, batch, seed):
    """The parts of a training step's loss, with the host's noise from ``seed``."""
    init_seed(seed, True)
    parts = model.calculate_loss(copy.deepcopy(batch))
    return parts if isinstance(parts, tuple) else (parts,)


def epoch(model, optimiser, batch, seeds):
    """One epoch: a step a seed, all on one batch; the whole losses."""
    init_seed(seeds[0], True)  # SGL draws its graphs here
    model.train()
    found = []
    for seed in seeds:
        optimiser.zero_grad()
        loss = sum(part.sum() for part in losses(model, batch, seed))
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    return found


@torch.no_grad()
def ranked(model, interaction):
    """``[b, n_items]``, all items at once."""
    if model.training:
        model.eval()
    return model.full_sort_predict(copy.deepcopy(interaction)).reshape(len(interaction), -1)


@torch.no_grad()
def predicted(model, interaction):
    """``[b, n_items]``, pair by pair."""
    if model.training:
        model.eval()
    pairs = copy.deepcopy(interaction).repeat_interleave(model.n_items)
    pairs.update(Interaction({model.ITEM_ID: torch.arange(model.n_items).repeat(len(interaction))}))
    return model.predict(pairs).reshape(len(interaction), -1)


@EVERY
def test_it_trains(case, made, batch_of):
    _, model, magnet, train, test = made(case, gamma=0.3)
    assert type(magnet) is CASES[case][2]
    batch, before = batch_of(train), {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    found = epoch(model, optimiser, batch, range(20))
    assert found[-1] < found[0]
    for name, parameter in model.named_parameters():
        if name.startswith("recplug."):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()
            assert not torch.equal(parameter, before[name]), name
    parts = model.recplug.read_parts()
    assert {"backbone", "magnet.coverage", "magnet.confidence"} <= set(parts)
    assert ("magnet.view" in parts) == isinstance(magnet, MagnetPairs)
    assert ranked(model, batch_of(test)).isfinite().all()


@EVERY
def test_off_is_off_bit_by_bit(case, build, made, batch_of):
    _, bare, train, _, test = build(CASES[case][0])
    _, model, *_ = made(case, {"fast_propagation": False, "trim_padding": False}, **OFF)
    found = []
    for each in (bare, model):
        optimiser = torch.optim.SGD(each.parameters(), lr=0.1)
        values = epoch(each, optimiser, batch_of(train), range(2))
        host = [p.detach() for n, p in each.named_parameters() if not n.startswith("recplug.")]
        found.append((values, host, ranked(each, batch_of(test)), predicted(each, batch_of(test)[:4])))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))
    assert torch.equal(found[0][2], found[1][2])
    assert torch.equal(found[0][3], found[1][3])


@EVERY
def test_a_pair_has_one_score_however_asked(case, made, batch_of):
    _, model, magnet, train, test = made(case, gamma=0.5)
    some = batch_of(test)[:4]
    for _ in range(2):  # before and after the parameters have changed
        ranking = ranked(model, some)
        torch.testing.assert_close(predicted(model, some), ranking, **CLOSE)
        with torch.no_grad():
            held = magnet.gamma.clone()
            magnet.gamma.zero_()
            assert not torch.allclose(ranked(model, some), ranking, **CLOSE)
            magnet.gamma.copy_(held)
        epoch(model, torch.optim.Adam(model.parameters(), lr=0.01), batch_of(train), range(2))


@EVERY
@pytest.mark.parametrize("epochs", [1, 2], ids=["first stage", "second stage"])
def test_restored_from_a_checkpoint_it_takes_the_same_next_steps(case, epochs, made, batch_of, tmp_path):
    """Stage 2 begins at the second step of the second epoch: in what follows, or in what the file holds."""
    rule = {"trigger": "paper", "patience": 5, "threshold": 0.5}
    runs = [range(10, 13), range(20, 23), range(30, 33)]
    config, whole, magnet, train, test = made(case, **rule)
    batch, file = batch_of(train), str(tmp_path / "saved.pth")
    config["checkpoint_dir"] = str(tmp_path)
    trainer_class = get_trainer(config["MODEL_TYPE"], config["model"])
    with pytest.MonkeyPatch.context() as patch, recbole_compat():
        patch.chdir(tmp_path)  # trainers write their logs beside them
        trainer = trainer_class(config, whole)
        for seeds in runs[:epochs]:
            epoch(whole, trainer.optimizer, batch, seeds)
        trainer._save_checkpoint(epochs - 1, verbose=False, saved_model_file=file)
        held = torch.load(file, weights_only=False)["state_dict"]
        assert int(held[f"{TRIGGER}stage"]) == epochs
        assert int(held[f"{TRIGGER}step"]) == 3 * epochs
        assert int(held[f"{TRIGGER}switch_step"]) == (-1 if epochs == 1 else 5)
        torch.testing.assert_close(held[f"{TRIGGER}curve"][:3, 0], torch.tensor([3.0, 3.0 * (epochs - 1), 0.0]))

        _, other, restored, *_ = made(case, **rule)
        again = trainer_class(config, other)
        again.resume_checkpoint(file)
        other.recplug.start_epoch = again.start_epoch
    for seeds in runs[epochs:]:
        assert epoch(whole, trainer.optimizer, batch, seeds) == epoch(other, again.optimizer, batch, seeds)
    assert magnet.trigger.state() == restored.trigger.state()
    assert restored.trigger.state() | {"step": 0} == {
        "stage": 2,
        "step": 0,
        "switch_step": 5,
        "switch_epoch": 1,
    }
    assert torch.equal(magnet.trigger.curve, restored.trigger.curve)
    for one, same in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
    assert torch.equal(ranked(whole, batch_of(test)), ranked(other, batch_of(test)))


def fired(caplog):
    """Warnings of the trigger."""
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [line for line in found if "fired" in line]


@EVERY
@pytest.mark.parametrize("trigger", ["paper", "armed"])
def test_the_literal_rule_is_warned_of(case, trigger, made, batch_of, caplog):
    """It fires as soon as it has counted to its patience; the armed one waits for its epoch."""
    _, model, magnet, train, _ = made(case, trigger=trigger, patience=3)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    with caplog.at_level(logging.INFO, logger="recplug"):
        epoch(model, optimiser, batch_of(train), range(4))
        assert not fired(caplog)
        for _ in range(2):
            epoch(model, optimiser, batch_of(train), range(1))
    warnings = fired(caplog)
    if trigger == "armed":
        assert not warnings
        assert magnet.trigger.state()["stage"] == 1
    else:
        (warning,) = warnings  # once
        assert "fired inside the first epoch, at step 3" in warning
        assert "armed" in warning
        assert magnet.trigger.state()["switch_step"] == 3


@pytest.mark.parametrize("name", ["SGL", "SASRec"])
def test_pairs_are_refused_by_name_with_what_to_do(name, build):
    with pytest.raises(RecplugError) as refusal:
        build(name, "magnet", {"magnet": {"mode": "pair"}})
    text = str(refusal.value)
    assert f"which {name} does not offer: it " in text
    assert "node mode" in text
    assert "LightGCN" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["SGL", "SASRec"])
def test_left_to_itself_it_takes_items_there_and_says_so(name, build, caplog):
    with caplog.at_level(logging.INFO, logger="recplug"):
        _, model, *_ = build(name, "magnet")
    assert isinstance(model.recplug.plugins["magnet"], (MagnetNodes, MagnetTable))
    assert f"{name} does not let plugins change scores; items are routed by themselves" in caplog.text
