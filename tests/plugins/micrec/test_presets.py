"""MICRec's presets, key by key, against what is known of the paper (arXiv 2510.21812) and INMO's code says."""

import pytest

from recplug.plugins import get
from recplug.plugins.presets import expand
from recplug.plugins.settings import idle, parse_settings
from recplug.plugins.testing.case import trained

OPEN = "not known, or not read: as in our defaults"
PAPER = {
    "templates": True,
    "share": OPEN,
    "join": "replace",  # a table of its own, and nothing beside it
    "annealing": OPEN,  # INMO's
    "edge_dropout": OPEN,
    "modalities": None,
    "neighbours": 3,  # K
    "text_weight": 0.9,  # w
    "isolated": "keep",  # nothing is said of borrowing
    "lambda_self": OPEN,  # INMO's
    "source": None,
    "source_path": None,
    "links": None,
    "overlap": 1.0,
    "gamma": 1.0,
    "warm_up": 0,
    "temperature": OPEN,
    "anchors": OPEN,
}
INMO = {
    "templates": True,
    "share": 1.0,  # every shipped configuration
    "join": "replace",
    "annealing": 0.99,
    "edge_dropout": 0.3,  # on Gowalla and Yelp; 0 on Amazon-book
    "modalities": None,
    "neighbours": 0,
    "text_weight": OPEN,
    "isolated": OPEN,  # without neighbours there is nothing to borrow
    "lambda_self": 0.01,
    "source": None,
    "source_path": None,
    "links": None,
    "overlap": OPEN,
    "gamma": 0.0,
    "warm_up": OPEN,
    "temperature": OPEN,
    "anchors": OPEN,
}
INMO_HOST = {
    "n_layers": 3,
    "embedding_size": 64,
    "reg_weight": 0.0,  # INMO-LightGCN
    "learning_rate": 1e-3,
    "train_batch_size": 2048,
    "epochs": 1000,
    "stopping_step": 50,
    "valid_metric": "NDCG@20",
    "topk": [20],
}


@pytest.mark.parametrize(("name", "wanted", "host"), [("paper", PAPER, {"n_layers": 3}), ("inmo", INMO, INMO_HOST)])
def test_a_preset_is_what_its_source_says(name, wanted, host):
    plugin = get("micrec")
    given, carried = expand(plugin, {"preset": name})
    assert carried == host
    found = parse_settings("micrec", plugin.settings, given).model_dump()
    default = plugin.settings().model_dump()
    assert found == {key: default[key] if value is OPEN else value for key, value in wanted.items()}
    assert given == {key: value for key, value in found.items() if value != default[key]}, "only what differs"


@pytest.mark.parametrize(
    ("settings", "unread"),
    [
        ({"source": "kitchen"}, set()),
        ({"source": "kitchen", "gamma": 0.0}, {"overlap", "warm_up", "temperature", "anchors"}),
        ({}, {"source_path", "links", "overlap", "gamma", "warm_up", "temperature", "anchors"}),
        ({"source": "kitchen", "neighbours": 0}, {"text_weight", "isolated"}),
        ({"source": "kitchen", "templates": False}, {"share", "join", "annealing", "edge_dropout", "lambda_self"}),
    ],
    ids=["all", "no contrast", "one domain", "no content", "no templates"],
)
def test_settings_that_nothing_reads(settings, unread):
    assert set(idle(parse_settings("micrec", get("micrec").settings, settings), family="graph")) == unread


@pytest.mark.parametrize("host", ["mean-ce", "graph-bpr", "nodes-bpr"])
@pytest.mark.parametrize("name", get("micrec").mechanisms)
def test_what_the_summary_claims_acts_at_the_defaults(make, name, host):
    plugin = get("micrec")
    assert name in plugin.summary
    cases = [make(host, join="residual", **values) for values in ({}, plugin.mechanisms[name])]
    with_it, without = (trained(case.build(), case.batch()).scores(case.batch()) for case in cases)
    assert (with_it - without).nan_to_num().abs().max() > 1e-4


@pytest.mark.parametrize("name", get("micrec").ablations)
def test_every_ablation_trains_and_scores_otherwise(make, name):
    values = get("micrec").ablations[name]
    cases = [make("nodes-bpr", source=True, warm_up=0, join="residual", **each) for each in ({}, values)]
    with_it, without = (trained(trained(c.build(), c.batch()), c.batch()).scores(c.batch()) for c in cases)
    assert (with_it - without).nan_to_num().abs().max() > 1e-6
