"""Settings, presets (each value beside the paper's), ablations and mechanisms."""

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.errors import RecplugError
from recplug.plugins.mars.settings import MarsSettings
from recplug.plugins.presets import expand
from recplug.plugins.settings import idle, parse_settings
from recplug.plugins.testing.case import trained

# What the paper says, setting by setting, and where. What it leaves open is at recplug's default and not named here.
PAPER = {
    "h": "graphs",  # eq. 7: the weighted sum over graphs
    "pool": "group",  # eqs. 3, 4, 6: D^-1/2 A_k D^-1/2 X over items of equal value is their mean
    "strength": "mean",  # eq. 4, no other weight
    "other": "group",  # eq. 3: an edge wherever values are equal; no value is special
    "x": "ids_content",  # eq. 5: [z^v; z^t; z^id] W_0
    "content_width": None,  # eq. 5: of the vectors as they are
    "content_scale": None,  # eq. 5: no normalisation
    "gate": "learned",  # eq. 8: softmax(W_g X_i)
    "factor_weight": None,  # eq. 8: over all K + 1 branches
    "modalities": None,  # sec. 3.1.3: text and images
    "semantic_on": "fused",  # eq. 9: psi(H_i)
    "lambda_semantic": 1e-3,  # App. C.1.4, sec. 3.5: the best of .1, .01, .001, .0001
    "views": "auto",  # eq. 12, on
    "lambda_view": 1e-2,  # App. C.1.4: the best
    "neighbours": 10,  # sec. 2.1.3 gives no number; MMRec's FREEDOM: 10 with the item itself
    "image_weight": 0.1,  # not given; MMRec's FREEDOM
}
JOIN = {"paper": "replace", "mmrec": "add"}  # eq. 7: H is the item; MMRec's LATTICE and FREEDOM add it
# App. C.1.3; eq. 3 has an edge for every shared value, however rare.
SELECTION = {"topk": [10, 20], "valid_metric": "Recall@20", "factor_min_group": 0}
HOST = {
    "paper": SELECTION,
    "mmrec": {
        **SELECTION,
        "embedding_size": 64,
        "learner": "adam",
        "learning_rate": 1e-3,
        "train_batch_size": 2048,
        "epochs": 1000,
        "stopping_step": 20,
        "reg_weight": 0.0,
    },
}
MARS = get("mars")


@pytest.mark.parametrize("name", ["paper", "mmrec"])
def test_a_preset_is_the_paper_s_values_key_by_key(name):
    values, host = expand(MARS, {"preset": name})
    settings = parse_settings("mars", MarsSettings, values)
    expected = {**PAPER, "join": JOIN[name]}
    assert {key: getattr(settings, key) for key in expected} == expected
    assert host == HOST[name]
    left_open = MarsSettings.model_fields.keys() - expected.keys()
    assert left_open == {"structure", "lambda_free"}  # a graph of content where there is any; a baseline of ours
    assert not values.keys() & left_open


@pytest.mark.parametrize(("old", "new"), [("paper_literal", "paper"), ("paper_mmrec", "mmrec")])
def test_an_earlier_name_works(old, new):
    assert expand(MARS, {"preset": old}) == expand(MARS, {"preset": new})
    assert expand(MARS, {"preset": "plugin"}) == ({}, {})


def test_what_is_given_beside_a_preset_wins():
    values, _ = expand(MARS, {"preset": "paper", "join": "add", "content_width": 16})
    settings = parse_settings("mars", MarsSettings, values)
    assert (settings.join, settings.content_width, settings.x) == ("add", 16, "ids_content")


def test_an_unknown_preset_is_refused():
    with pytest.raises(RecplugError, match="mars has no preset 'papr'"):
        expand(MARS, {"preset": "papr"})


@pytest.mark.parametrize("preset", ["recplug", "paper"])
@pytest.mark.parametrize("name", MARS.ablations)
@pytest.mark.parametrize("host", ["mean-ce", "nodes-bpr"])
def test_every_ablation_differs_from_the_preset_it_is_taken_from(mars, host, name, preset):
    """After two steps; alike only where the preset has that part off already."""
    values, _ = expand(MARS, {"preset": preset})
    scores = []
    for given in (values, {**values, **MARS.ablations[name]}):
        toy = mars.make(host, moved=False, **given)
        scores.append(trained(toy.host, toy.batch).scores(toy.batch))
    off_already = preset == "recplug" and name == "w/o view consistency"
    assert torch.equal(*scores) is off_already


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"content_width", "content_scale", "lambda_view", "lambda_free"}),
        ({"x": "ids_content", "views": "auto"}, {"lambda_free"}),
        ({"pool": "free"}, {"content_width", "content_scale", "lambda_view", "strength"}),
        ({"lambda_semantic": 0.0, "x": "ids_content", "views": "auto"}, {"lambda_free", "semantic_on"}),
        ({"structure": "cooccurrence", "x": "ids_content", "views": "auto"}, {"lambda_free", "image_weight"}),
    ],
)
def test_idle_settings_are_known(values, expected):
    assert idle(MarsSettings(**values)).keys() == expected


def test_without_graphs_their_settings_are_idle():
    found = idle(MarsSettings(h="x"))
    assert {"pool", "strength", "structure", "neighbours", "gate", "factor_weight"} <= found.keys()
    assert found["gate"] == "h is graphs"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lamda_view": 0.1}, "lambda_view"),
        ({"pool": "groups"}, "group"),
        ({"lambda_semantic": -1.0}, "lambda_semantic"),
        ({"neighbours": 1}, "neighbours"),
        ({"views": "raw"}, "additive"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_in_one_line(values, said):
    with pytest.raises(RecplugError, match=said) as caught:
        parse_settings("mars", MarsSettings, values)
    assert "\n" not in str(caught.value)


def test_settings_are_typed_as_people_do():
    assert MarsSettings(modalities="image,text").modalities == ("image", "text")
    assert MarsSettings(modalities="").modalities == ()
    assert MarsSettings().modalities is None
    assert MarsSettings(content_width=None, structure=None).structure == "none"


def test_there_are_at_most_nineteen_settings():
    assert len(MarsSettings.model_fields) <= 19
