import logging

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.errors import RecplugError
from recplug.plugins.magnet import MagnetNodes, MagnetPairs, MagnetSettings, MagnetTable
from recplug.plugins.settings import parse_settings
from recplug.plugins.testing import CHECKS, cases
from recplug.plugins.testing.case import step_loss

VARIANTS = {
    "paper": {"base": "none", "expert_input": "concat", "induced": 5, "trigger": "paper", "leave_one_out": False},
    "channels": {"expert_input": "channels"},
    "node": {"mode": "node", "top_k": 9},
    "node, replaced": {"mode": "node", "base": "none", "expert_input": "concat"},
    "free": {"mode": "pair", "structure": "free", "base": "backbone"},
    "single": {"structure": "single", "trigger": "fixed@1"},
    "one view": {"mode": "pair", "induced": 0},
    "one modality": {"modalities": ("text",), "weighting": "quadratic"},
}
SLOW = {"permutation", "deepcopy"}  # run at the defaults by test_every_plugin
CASES = [
    pytest.param(case, id=f"{name}-{case.host}")
    for name, values in VARIANTS.items()
    for case in cases(get("magnet"), values)
]


@pytest.mark.parametrize("case", CASES)
def test_contract_of_variants(case):
    for name, check in CHECKS.items():
        if name not in SLOW:
            check(case)


@pytest.mark.parametrize(
    ("host", "mode", "expected"),
    [
        ("mean-ce", "auto", MagnetTable),
        ("graph-bpr", "auto", MagnetPairs),
        ("graph-bpr", "node", MagnetTable),
        ("nodes-bpr", "auto", MagnetPairs),
        ("nodes-bpr", "node", MagnetNodes),
        ("nodes-bpr", "pair", MagnetPairs),
    ],
)
def test_modes_by_host(make, module_of, host, mode, expected):
    assert type(module_of(make(host, mode=mode).build())) is expected


def test_auto_says_that_it_took_node_mode(make, caplog):
    with caplog.at_level(logging.INFO, "recplug"):
        make("mean-ce").build()
    assert "mean-ce does not let plugins change scores; items are routed by themselves" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modalities": ("imaeg",)}, "did you mean 'image'"),
        ({"modalities": ()}, "modalities is empty"),
    ],
    ids=["unknown", "empty"],
)
def test_refusals_of_the_builder(make, values, message):
    with pytest.raises(RecplugError, match=message) as error:
        make("mean-ce", **values).build()
    assert "\n" not in str(error.value)


def test_pairs_are_refused_on_sequential_hosts():
    with pytest.raises(RecplugError):
        cases(get("magnet"), {"mode": "pair"}, ["mean-ce"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trigger": "fixed"}, "fixed@T, such as fixed@10"),
        ({"trigger": "armd"}, "choose armed, paper"),
        ({"delta": 1.5}, "less than or equal to 1"),
        ({"lambda_rout": 0.1}, "did you mean 'lambda_route'"),
    ],
    ids=["fixed", "typo", "share", "unknown"],
)
def test_refusals_of_settings(values, message):
    with pytest.raises(RecplugError, match=message):
        parse_settings("magnet", MagnetSettings, values)


@pytest.mark.parametrize("host", ["nodes-bpr", "mean-ce"])
def test_identity_trains_nothing_of_its_own(make, module_of, host):
    case = make(host).at_identity()
    built = case.build()
    step_loss(built, case.batch()).backward()
    assert all(p.grad is None or not p.grad.any() for p in module_of(built).parameters())


def test_the_induced_edges_are_counted_in_the_log(make, caplog):
    with caplog.at_level(logging.INFO, "recplug"):
        host = make("nodes-bpr", induced=3).build()
    (magnet,) = host.chain.augmentations().values()
    extra = magnet.induced.nnz // 2 - len(torch.unique(magnet.edges, dim=1).T)
    seen = len(torch.unique(magnet.edges, dim=1).T)
    assert f"{extra} content-induced edges, {extra / seen:.2f} times" in caplog.text
