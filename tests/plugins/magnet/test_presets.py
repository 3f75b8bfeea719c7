"""The preset ``paper`` against the paper's table 3 and section 4.3, key by key; the ablations against its tables."""

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.magnet import MagnetSettings
from recplug.plugins.magnet.plugin import PAPER
from recplug.plugins.settings import idle
from recplug.plugins.testing.case import step_loss

BABY = {  # table 3, and the equations where it is silent
    "neighbours": 20,  # k
    "induced": 150,  # r
    "alpha": 0.6,
    "beta": 0.2,
    "delta": 0.5,
    "top_k": 4,  # K of E = 9
    "dropout": 0.10,  # p_d
    "lambda_route": 0.30,
    "threshold": 0.90,  # H*
    "patience": 3,  # W
    "lambda_view": 0.01,  # lambda_ctr
    "temperature": 0.5,  # tau
    "mode": "pair",  # sec. 3.3
    "base": "none",  # eq. 21
    "structure": "template",  # eqs. 12-15
    "expert_input": "concat",  # eq. 11
    "weighting": "linear",  # eq. 31
    "trigger": "paper",  # eq. 26
    "reduction": "sum",  # eq. 27
    "leave_one_out": False,  # eq. 8
    "content_width": 0,  # eq. 7
    "modalities": None,
}
HOST = {  # table 3 and sec. 4.3
    "embedding_size": 64,
    "n_layers": 2,
    "learning_rate": 1e-3,
    "train_batch_size": 1024,
    "epochs": 200,
    "stopping_step": 5,
    "valid_metric": "NDCG@20",
    "topk": [10, 20],
    "reg_weight": 0.0,
}


def test_the_papers_values():
    found = MagnetSettings(**PAPER.settings).model_dump()
    del found["gamma"]  # nothing is added to
    assert found == BABY
    host = dict(PAPER.host)
    # lambda = 2e-5, eq. 32, beside a sum over the batch: the optimiser adds weight_decay * theta to a mean's gradient
    assert host.pop("weight_decay") * HOST["train_batch_size"] == pytest.approx(2 * 2e-5)
    assert host == HOST


def test_the_preset_says_what_differs_alone():
    plain = MagnetSettings().model_dump()
    assert all(plain[key] != value for key, value in PAPER.settings.items())
    assert not set(idle(MagnetSettings(**PAPER.settings), family="graph")) & set(PAPER.settings)


def test_weight_decay_is_the_gradient_of_eq_32():
    """One step of plain SGD on a sum over the batch with lambda |theta|^2, and on the mean with the preset's decay."""
    torch.manual_seed(0)
    lam, b = 2e-5, HOST["train_batch_size"]
    data = torch.randn(b, 3, dtype=torch.float64)
    theta = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    whole = torch.optim.SGD(theta[:1], lr=0.1 / b)
    mean = torch.optim.SGD(theta[1:], lr=0.1, weight_decay=PAPER.host["weight_decay"])
    (torch.nn.functional.softplus(-data @ theta[0]).sum() + lam * theta[0].square().sum()).backward()
    torch.nn.functional.softplus(-data @ theta[1]).mean().backward()
    whole.step()
    mean.step()
    torch.testing.assert_close(theta[0], theta[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", ["pair", "node"])
def test_beside_a_sum_the_losses_are_divided_by_the_batch(make, module_of, mode):
    values = {}
    for reduction in ("mean", "sum"):
        case = make("nodes-bpr", mode=mode, trigger="fixed@0", reduction=reduction, dropout=0.0)
        host, batch = case.build().eval(), case.batch()
        with host.chain.step(batch) as step:
            host.backbone.loss(batch)
            values[reduction] = module_of(host).losses(step)
    assert values["mean"].keys() == values["sum"].keys() != set()
    for name, value in values["mean"].items():
        assert torch.allclose(value / len(batch.positives), values["sum"][name]), name


@pytest.mark.parametrize("name", get("magnet").ablations)
def test_every_ablation_changes_what_is_trained(make, name):
    """Beside a run that reaches its second stage, with everything on, by the scores after a few steps."""
    own, scores = get("magnet").ablations[name], []
    base = {"mode": "pair", "trigger": "fixed@2", "lambda_view": 0.1, "dropout": 0.0}
    if name == "fixed switch":
        base = {**base, "trigger": "fixed@0"}
    for settings in (base, {**base, **own}):
        case = make("nodes-bpr", **settings)
        host, batch = case.build(), case.batch()
        optimiser = torch.optim.SGD(host.parameters(), lr=2.0)
        for _ in range(5):
            optimiser.zero_grad()
            step_loss(host, batch).backward()
            optimiser.step()
        scores.append(host.scores(batch))
    assert not torch.equal(*scores)
