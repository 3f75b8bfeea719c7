"""PRISM's presets, key by key, against what the paper (arXiv 2601.10944) and its authors' code say."""

import pytest

from recplug.plugins import get
from recplug.plugins.presets import expand
from recplug.plugins.settings import idle, parse_settings
from recplug.plugins.testing import Case
from recplug.plugins.testing.case import trained

OPEN = "left open by the source: as in our defaults"
PAPER = {
    "fusion": "user",  # e^id in eq. (10) is of the user's sequence
    "granularity": "position",  # eq. (11) weighs the experts of an item
    "gate": True,
    "experts": None,  # uni-i, uni-t, syn, rdn
    "candidates": "id",  # Alg. 1: Pred is the backbone's own
    "loss_level": "prediction",  # eqs. (2)-(8) are of y = P(S(...))
    "prediction_experts": "all",  # eq. (9) sums over all j
    "triplet": "cosine",  # dist = 1 - cos
    "margin": OPEN,
    "mask": "matched",  # r "in the same space", resampled every iteration, optionally scale-normalised
    "lambda_unique": OPEN,  # a grid of .01 to 1; values for Yelp with InDiRec alone
    "lambda_synergy": OPEN,
    "lambda_redundancy": OPEN,
    "hidden": OPEN,
    "gate_dropout": 0.0,  # W is an MLP and nothing else
    "temperature": 1.0,
    "scale": 1.0,  # (e^id, e^m) without a weight
    "learn_scale": False,
    "residual": False,
    "tune_features": False,  # pre-trained encoders
    "loss_items": OPEN,
    "modalities": (),
}
CODE = {
    "fusion": "sequence_pooled",  # PRISM.py:128-136
    "granularity": OPEN,  # nothing reads it there
    "gate": True,
    "experts": None,
    "candidates": "id",  # trainers.py:145-148
    "loss_level": "sequence_pooled",  # PRISM.py:142-160
    "prediction_experts": OPEN,  # nothing reads it there
    "triplet": "l2",  # PRISM.py:79
    "margin": 1.0,
    "mask": "gaussian",  # PRISM.py:38
    "lambda_unique": 0.1,  # PRISM.py:72-75
    "lambda_synergy": 0.1,
    "lambda_redundancy": 0.1,
    "hidden": 128,  # PRISM.py:18-24
    "gate_dropout": 0.3,  # PRISM.py:206-241
    "temperature": 0.7,
    "scale": 1.0,  # SASRec.py:59-65: id + e^m + p_img + p_txt
    "learn_scale": False,
    "residual": True,
    "tune_features": True,  # STOSA.py:26-30
    "loss_items": OPEN,
    "modalities": (),
}
CODE_HOST = {  # SASRec + PRISM
    "hidden_size": 256,
    "inner_size": 4 * 256,
    "n_layers": 1,
    "n_heads": 4,
    "hidden_dropout_prob": 0.3,
    "attn_dropout_prob": 0.0,
    "MAX_ITEM_LIST_LENGTH": 100,
    "train_batch_size": 256,
    "learning_rate": 1e-3,
    "epochs": 500,
    "stopping_step": 10,
    "valid_metric": "NDCG@20",
    "topk": [10, 20],
    "mask_history": True,
}


@pytest.mark.parametrize(("name", "wanted", "host"), [("paper", PAPER, {}), ("code", CODE, CODE_HOST)])
def test_a_preset_is_what_its_source_says(name, wanted, host):
    plugin = get("prism")
    given, carried = expand(plugin, {"preset": name})
    assert carried == host
    found = parse_settings("prism", plugin.settings, given).model_dump()
    default = plugin.settings().model_dump()
    assert found == {key: default[key] if value is OPEN else value for key, value in wanted.items()}
    assert given == {key: value for key, value in found.items() if value != default[key]}, "only what differs"


def test_what_is_given_beside_a_preset_wins():
    given, _ = expand(get("prism"), {"preset": "code", "margin": 0.5})
    assert given["margin"] == 0.5
    assert given["triplet"] == "l2"


@pytest.mark.parametrize(("settings", "family", "unread"), [
    ({}, "sequential", {"prediction_experts"}),
    ({}, "graph", {"granularity", "candidates", "prediction_experts"}),
    ({"fusion": "item"}, "sequential", {"granularity", "prediction_experts"}),
    ({"gate": False}, "sequential", {"granularity", "gate_dropout", "temperature", "prediction_experts"}),
    ({"loss_level": "prediction"}, "sequential", {"loss_items"}),
    ({"lambda_unique": 0.0}, "sequential", {"margin", "triplet", "prediction_experts"}),
])  # fmt: skip
def test_settings_that_nothing_reads(settings, family, unread):
    assert set(idle(parse_settings("prism", get("prism").settings, settings), family=family)) == unread


@pytest.mark.parametrize("name", get("prism").ablations)
def test_every_ablation_trains_and_scores_otherwise(name):
    plugin = get("prism")
    full, other = (
        Case(plugin, parse_settings("prism", plugin.settings, values), "mean-ce")
        for values in ({}, plugin.ablations[name])
    )
    scores = [trained(case.build(), case.batch()).scores(case.batch()) for case in (full, other)]
    assert all(each.isfinite().any() for each in scores)
    assert (scores[0] - scores[1]).abs().max() > 1e-4


@pytest.mark.parametrize("host", ["mean-ce", "graph-bpr"])
@pytest.mark.parametrize("name", get("prism").mechanisms)
def test_what_the_summary_claims_acts_at_the_defaults(name, host):
    plugin = get("prism")
    cases = [
        Case(plugin, parse_settings("prism", plugin.settings, values), host) for values in ({}, plugin.mechanisms[name])
    ]
    assert name in plugin.summary
    with_it, without = (trained(case.build(), case.batch()).scores(case.batch()) for case in cases)
    assert (with_it - without).nan_to_num().abs().max() > 1e-4


def test_a_graph_backbone_says_that_it_has_no_histories(caplog):
    plugin = get("prism")
    with caplog.at_level("INFO", "recplug"):
        Case(plugin, plugin.settings(), "mean-ce").build()
        assert "no histories" not in caplog.text
        Case(plugin, plugin.settings(), "graph-bpr").build()
    assert "graph-bpr has no histories: each item's experts are weighed by its own row" in caplog.text
    needs = plugin.requirements(parse_settings("prism", plugin.settings, {"candidates": "id"}))
    assert needs.families == {"sequential"}, "on a graph backbone nothing would be left to do"
