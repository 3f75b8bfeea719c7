import logging

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec import MicrecSettings
from recplug.plugins.settings import parse_settings
from recplug.plugins.testing import CHECKS, cases

VARIANTS = {
    "added": {"join": "residual"},
    "replaced": {"join": "replace", "annealing": 0.5},
    "few templates": {"share": 0.4, "edge_dropout": 0.3, "modalities": ("text",)},
    "no templates": {"templates": False, "isolated": "keep"},
    "no content": {"modalities": (), "lambda_self": 0.0},
    "half of the links": {"overlap": 0.5, "anchors": 4, "warm_up": 0},
}
SLOW = {"permutation", "deepcopy"}  # run at the defaults by test_every_plugin
HOSTS = ("mask-ce", "graph-bpr", "nodes-bpr")  # the others are much like these
TWO = {"half of the links"}  # what is of a second domain
CASES = [
    pytest.param(case, id=f"{name}-{case.host}")
    for name, values in VARIANTS.items()
    for case in cases(get("micrec"), values, HOSTS)
    if case.second_domain == (name in TWO)
]


@pytest.mark.parametrize("case", CASES)
def test_contract_of_variants(case):
    for name, check in CHECKS.items():
        if name not in SLOW:
            check(case)


@pytest.mark.parametrize("host", ["mean-ce", "nodes-bpr"])
def test_templates_follow_the_nodes_when_these_are_numbered_otherwise(make, host):
    CHECKS["permutation"](make(host, share=0.5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modalities": ("imaeg",)}, "did you mean 'image'"),
        ({"modalities": ("image",), "text_weight": 0.9}, None),
        ({"modalities": ("image",), "text_weight": 0.5}, "there is image alone"),
        ({"modalities": ("text",), "text_weight": 1.0}, "there is text alone"),
    ],
    ids=["unknown", "one at the default", "image alone", "text alone"],
)
def test_modalities_by_name(make, module_of, values, message):
    case = make("graph-bpr", **values)
    if message is None:
        assert module_of(case.build()).contents["items"].names == ("image",)
        return
    with pytest.raises(RecplugError, match=message) as error:
        case.build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0.0}, "greater than 0"),
        ({"source_path": "somewhere"}, "source_path is of a second domain"),
        ({"links": "who.csv"}, "links is of a second domain"),
        ({"modalities": ("text", "text")}, "names one twice"),
        ({"neighbors": 3}, "did you mean 'neighbours'"),
        ({"overlap": 1.5}, "less than or equal to 1"),
    ],
    ids=["share", "path", "links", "twice", "typo", "overlap"],
)
def test_refusals_of_settings(values, message):
    with pytest.raises(RecplugError, match=message):
        parse_settings("micrec", MicrecSettings, values)


def test_a_source_that_is_named_is_required():
    needs = get("micrec").requirements
    assert needs(MicrecSettings()).second_domain == "optional"
    assert needs(MicrecSettings(source="kitchen")).second_domain == "required"


def test_hubs_and_missing_content_are_told(make, caplog):
    with caplog.at_level(logging.INFO, "recplug"):
        make("graph-bpr").build()
        assert "items have content neighbours" in caplog.text
        assert "users have content neighbours" in caplog.text
        caplog.clear()
        make("graph-bpr", modalities=()).build()
    assert "no content here" in caplog.text


def test_tables_of_other_widths_are_refused(make):
    case = make("graph-bpr")
    backbone = case.backbone()
    backbone.users = torch.nn.Embedding(backbone.users.num_embeddings, 9)
    with pytest.raises(RecplugError, match="users of width 9 and items of width 16"):
        case.build(backbone=backbone)
