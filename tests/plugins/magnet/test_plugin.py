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
    "paper": {"preset": "paper", "induced": 5, "neighbours": 4},
    "robust": {"preset": "robust", "top_k": 9},
    "node": {"mode": "node"},
    "node, replaced": {"mode": "node", "join": "replace"},
    "product": {"mode": "pair", "expert_input": "concat_prod", "structure": "free"},
    "dot": {"mode": "pair", "expert_input": "dot", "router_hidden": 0, "activation": "relu"},
    "single": {"structure": "single", "trigger": "fixed@1", "entropy_ema": 0.5},
    "joint": {"mode": "pair", "trigger": "joint", "clock": "epoch", "t_max": 2, "views": "sv"},
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
        ({"views": "dv"}, "views dv contrasts behaviour of pairs"),
        ({"expert_input": "dot"}, "expert_input dot is of pairs, and mean-ce takes node mode"),
        ({"rerank_top": 5}, "rerank_top is of pairs"),
        ({"modalities": ("imaeg",)}, "did you mean 'image'"),
        ({"modalities": ()}, "modalities is empty"),
    ],
    ids=["views", "dot", "rerank", "unknown", "empty"],
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
        ({"trigger": "armd"}, "choose paper, armed"),
        ({"delta": (0.5, 0.6)}, "add up to 1"),
        ({"delta": 1.5}, "between 0 and 1"),
        ({"rerank_top": 200, "join": "replace"}, "does not train"),
        ({"mode": "node", "expert_input": "dot"}, "is of pairs"),
        ({"lambda_rout": 0.1}, "did you mean 'lambda_route'"),
    ],
    ids=["fixed", "typo", "shares", "share", "rerank", "node", "unknown"],
)
def test_refusals_of_settings(values, message):
    with pytest.raises(RecplugError, match=message):
        parse_settings("magnet", MagnetSettings, values)


def test_presets_give_way_to_what_is_said():
    paper = MagnetSettings(preset="paper", induced=10)
    assert (paper.join, paper.trigger, paper.views, paper.neighbours, paper.induced) == (
        "replace",
        "paper",
        "dv",
        20,
        10,
    )
    assert MagnetSettings(preset="robust").coverage_floor == 0.1
    assert MagnetSettings(delta="0.2,0.8").delta == (0.2, 0.8)
    assert MagnetSettings(delta=0.4).delta == 0.4


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
