"""From settings and a context to the right module, or to a message that says what to do."""

import re

import pytest
import torch

from recplug.plugins.contract import Context, Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import cooccurrence
from recplug.plugins.nn.propagation import Adjacency
from recplug.plugins.presets import expand
from recplug.plugins.registry import get
from recplug.plugins.settings import idle, parse_settings
from recplug.plugins.ssr.hosts import SsrNodes, SsrTables
from recplug.plugins.ssr.plugin import build, requirements
from recplug.plugins.ssr.settings import SsrSettings

USERS, ITEMS, D = 12, 10, 4
SETTINGS = {"bands": 2, "engine": "polynomial", "order": 4, "item_neighbours": 3, "image_weight": 0.2, "fusion": "cp"}


def settings_of(**changes):
    return parse_settings("ssr", SsrSettings, SETTINGS | changes)


def edges():
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(1, n, (40,), generator=generator) for n in (USERS, ITEMS)])


def content(*names):
    present = torch.arange(ITEMS) > 0
    generator = torch.Generator().manual_seed(1)
    return {n: Modality(n, torch.randn(ITEMS, 3, generator=generator) * present.unsqueeze(1), present) for n in names}


def context_of(host="nodes", names=("image", "text"), **changes):
    width = {"items": D} if host == "sequence" else {"items": D, "users": D}
    given = {
        "host": "Toy",
        "family": "sequential" if host == "sequence" else "graph",
        "n_users": USERS,
        "n_items": ITEMS,
        "n_rows": {"items": ITEMS + 1} if host == "sequence" else {"items": ITEMS, "users": USERS},
        "width": {**width, "propagated": 2 * D} if host == "nodes" else width,
        "free_width": host == "nodes",
        "edges": edges(),
        "modalities": content(*names),
    }
    return Context(**(given | changes))


def made(host="nodes", names=("image", "text"), context=None, **settings):
    return build(settings_of(**settings), context_of(host, names, **(context or {})))


# -- what is built


def test_it_is_registered():
    plugin = get("ssr")
    assert plugin.settings is SsrSettings
    assert plugin.build is build
    assert plugin.name == "ssr"


@pytest.mark.parametrize(
    ("host", "kind", "n_users", "nodes", "width", "concat"),
    [
        ("nodes", SsrNodes, USERS, USERS + ITEMS, 2 * D, True),
        ("tables", SsrTables, USERS, USERS + ITEMS, D, False),
        ("sequence", SsrTables, 0, ITEMS + 1, D, False),
    ],
)
def test_each_host_gets_what_suits_it(host, kind, n_users, nodes, width, concat):
    ssr = made(host)
    assert type(ssr) is kind
    assert (ssr.n_users, ssr.decomposition.n_nodes, ssr.width, ssr.concat) == (n_users, nodes, width, concat)
    assert ssr.table_width == D
    assert ssr.blocks == ("backbone", "image", "text")
    assert (ssr.preferences is not None) == concat
    assert ssr.seams() == frozenset({"propagated" if host == "nodes" else "tables", "losses"})


@pytest.mark.parametrize("host", ["nodes", "tables", "sequence"])
def test_the_spectrum_is_of_the_interactions(host):
    """Of users and items; without users, of items that the same users had."""
    decomposition = made(host).decomposition
    if host == "sequence":
        expected, split = cooccurrence(edges(), ITEMS + 1, 3).dense(), None
    else:
        expected, split = Adjacency.bipartite(edges(), n_users=USERS, n_items=ITEMS).dense(), USERS
    assert decomposition.split == split
    torch.testing.assert_close(decomposition.engine.graph.dense(), expected)
    assert torch.equal(decomposition.isolated, ~expected.any(dim=1))


@pytest.mark.parametrize("named", [("text",), ("text", "image"), ()])
def test_modalities_are_those_that_were_named(named):
    ssr = made(modalities=named)
    assert ssr.blocks == ("backbone", *named)
    assert (ssr.item_graph is not None) == bool(named)


def test_without_blocks_content_shapes_the_item_graph_alone():
    ssr = made(content="graph")
    assert ssr.blocks == ("backbone",)
    assert ssr.item_graph is not None
    assert ssr.preferences is ssr.content is None
    assert not ssr.concat


@pytest.mark.parametrize("names", [("image",), ("text", "image")])
def test_weight_of_images_counts_beside_others_alone(names):
    one, other = (made(names=names, image_weight=w).item_graph.graph.dense() for w in (0.2, 0.9))
    assert torch.equal(one, other) == (len(names) == 1)


def test_presence_is_the_items_own():
    present = made().content.present
    assert present.shape == (USERS + ITEMS, 2)
    assert not present[: USERS + 1].any()
    assert present[USERS + 1 :].all()


def test_the_run_s_seed_decides():
    torch.manual_seed(0)
    one = made(context={"seed": 3})
    assert (one.noise.seed, one.choice.seed) == (3, 4)


# -- what is needed, and what is refused


def test_what_it_needs():
    assert requirements(settings_of()).modalities == 0
    assert requirements(settings_of(modalities=["text"])).modalities == 1
    assert requirements(settings_of()).one_of == {"propagated", "tables"}
    assert requirements(settings_of()).seams == {"losses"}


@pytest.mark.parametrize(
    ("host", "names", "settings", "message"),
    [
        ("nodes", ("image", "text"), {"modalities": ["imgae"]}, "feature tables: image, text; did you mean 'image'?"),
        ("nodes", (), {"modalities": ["text"]}, "ssr.modalities names 'text'; feature tables: none"),
        (
            "sequence",
            (),
            {"consistency": "score_kl", "lambda_mask": 1.0},
            "ssr.consistency score_kl needs users and negatives; set it to repr_mse",
        ),
    ],
)
def test_what_cannot_be_is_refused(host, names, settings, message):
    with pytest.raises(RecplugError, match=re.escape(message)) as caught:
        made(host, names, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "free", "concat"),
    [("nodes", True, True), ("nodes", False, False), ("tables", True, False), ("sequence", True, False)],
)
def test_content_stands_beside_nodes_of_free_width_alone(host, free, concat):
    assert made(host, context={"free_width": free}).concat == concat
    assert not made(host, content="graph", context={"free_width": free}).concat


def test_a_modality_that_is_named_twice_is_refused():
    with pytest.raises(RecplugError, match="ssr: modalities names one twice: image, image"):
        parse_settings("ssr", SsrSettings, {"modalities": ("image", "image")})


# -- presets, ablations, and what acts when

HOST = {
    "embedding_size": 64,
    "n_layers": 2,
    "learning_rate": 1e-4,
    "weight_decay": 0.0,
    "reg_weight": 0.0,
    "train_batch_size": 2048,
    "epochs": 1000,
    "stopping_step": 20,
    "eval_step": 1,
    "metrics": ["Recall", "NDCG"],
    "topk": [10, 20],
    "valid_metric": "Recall@20",
}
REPORTED = {
    "bands": 3,
    "engine": "auto",  # eigenvectors or Chebyshev filters, of equal energy
    "order": 16,  # ours: at the code's 5 the low-passes do not tell three bands apart
    "modalities": None,
    "content": "encoders",
    "item_layers": 1,
    "item_neighbours": 10,
    "image_weight": 0.1,
    "item_source": "nodes",
    "fusion": "cp",
    "fusion_rank": 4,
    "gate": True,
    "mask_rate": 0.1,
    "consistency": "repr_mse",
    "lambda_mask": 1e-3,
    "lambda_contrast": 1e-4,
    "lambda_operator": 0.1,
    "lambda_ridge": 0.0,  # no such term
    "temperature": 0.2,
    "anchors": 6144,  # all: three bands of 2048 items
    "signal": False,  # ours
}
IN_CODE = {"engine": "legacy_cheb", "order": 5, "fusion": "colsoftmax"}


@pytest.mark.parametrize(("name", "expected"), [("paper", REPORTED), ("code", REPORTED | IN_CODE)])
def test_a_preset_is_its_source_key_by_key(name, expected):
    values, host = expand(get("ssr"), {"preset": name})
    assert parse_settings("ssr", SsrSettings, values).model_dump() == expected
    assert host == HOST
    assert idle(parse_settings("ssr", SsrSettings, values)) == {}


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_every_ablation_takes_something_away(preset):
    full, _ = expand(get("ssr"), {"preset": preset})
    for name, change in get("ssr").ablations.items():
        less = parse_settings("ssr", SsrSettings, full | change)
        assert less != parse_settings("ssr", SsrSettings, full), name
        build(less, context_of())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"fusion_rank", "gate", "lambda_operator", "mask_rate", "consistency"}),
        ({"lambda_mask": 1.0, "fusion": "cp"}, set()),
        ({"lambda_mask": 1.0, "fusion": "cp", "engine": "random"}, {"order"}),
        (
            {"lambda_mask": 1.0, "fusion": "cp", "item_layers": 0},
            {"item_neighbours", "image_weight", "item_source"},
        ),
        ({"lambda_mask": 1.0, "fusion": "cp", "content": "graph"}, {"lambda_contrast", "lambda_ridge"}),
        ({"lambda_mask": 1.0, "fusion": "cp", "lambda_contrast": 0.0}, {"temperature", "anchors"}),
    ],
)
def test_settings_that_nothing_reads_are_known(given, expected):
    assert idle(SsrSettings(**given)).keys() == expected


def test_the_summary_names_what_acts():
    plugin = get("ssr")
    assert all(mechanism in plugin.summary for mechanism in plugin.mechanisms)
    assert len(SsrSettings.model_fields) <= 21
