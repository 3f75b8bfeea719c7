"""From settings and a context to the right module, or to a message that says what to do."""

import functools
import re

import pytest
import torch

from recplug.plugins.contract import Context, Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import cooccurrence
from recplug.plugins.nn.propagation import Adjacency, lightgcn
from recplug.plugins.registry import get
from recplug.plugins.settings import parse_settings
from recplug.plugins.ssr.module import SsrNodes, SsrTables
from recplug.plugins.ssr.plugin import build, requirements
from recplug.plugins.ssr.settings import SsrSettings

USERS, ITEMS, D = 12, 10, 4
SETTINGS = {
    "graph": "auto",
    "bands": 2,
    "engine": "polynomial",
    "order": 4,
    "edges": "equal_width",
    "modalities": None,
    "content_width": 6,
    "item_layers": 1,
    "item_neighbours": 3,
    "image_weight": 0.2,
    "item_weight": 0.5,
    "content_blocks": True,
    "user_content": "none",
    "preferences": True,
    "fusion": "cp",
    "consistency": "repr_mse",
    "output": "auto",
}


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
        "propagate": functools.partial(lightgcn, layers=2),
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
    assert (ssr.balance is not None) == (n_users > 0)
    assert ssr.seams() == frozenset({"propagated" if host == "nodes" else "tables", "losses"})


@pytest.mark.parametrize(
    ("host", "graph"),
    [(h, g) for h in ("nodes", "tables", "sequence") for g in ("auto", "bipartite", "cooccurrence", "knn")],
)
def test_the_spectrum_is_of_the_graph_that_was_asked_for(host, graph):
    if (host, graph) == ("sequence", "bipartite"):
        return
    decomposition = made(host, graph=graph).decomposition
    n_users, rows = (0, ITEMS + 1) if host == "sequence" else (USERS, ITEMS)
    if graph == "bipartite" or (graph == "auto" and n_users):
        expected = Adjacency.bipartite(edges(), n_users=n_users, n_items=rows).dense()
        assert decomposition.split == n_users
    else:
        assert decomposition.split is None
        expected = torch.zeros(n_users + rows, n_users + rows)
        if graph == "knn":
            of_items = made(host, graph=graph).item_graph.dense().double()  # of equal weights, symmetrised
            of_items = (of_items + of_items.T) / 2
            degree = of_items.sum(dim=1).clamp(min=1e-12)
            of_items = (of_items / (degree.unsqueeze(1) * degree).sqrt()).float()
        else:
            of_items = cooccurrence(edges(), rows, 3).dense()
        expected[n_users:, n_users:] = of_items
    torch.testing.assert_close(decomposition.engine.graph.dense(), expected)
    assert torch.equal(decomposition.isolated, ~expected.any(dim=1))


@pytest.mark.parametrize("named", [("text",), ("text", "image"), ()])
def test_modalities_are_those_that_were_named(named):
    ssr = made(modalities=named)
    assert ssr.blocks == ("backbone", *named)
    assert (ssr.item_graph is not None) == bool(named)


def test_without_blocks_content_shapes_the_item_graph_alone():
    ssr = made(content_blocks=False)
    assert ssr.blocks == ("backbone",)
    assert ssr.item_graph is not None
    assert ssr.balance is ssr.preferences is ssr.content is None
    assert not ssr.concat


@pytest.mark.parametrize("user_content", ["none", "profile"])
def test_users_have_the_content_of_their_items_where_they_shall(user_content):
    ssr = made(user_content=user_content, item_layers=0)
    users = ssr.content.signals()[0][:USERS]
    if user_content == "none":
        assert not users.any()
        return
    graph = Adjacency.bipartite(edges(), n_users=USERS, n_items=ITEMS).dense()
    x = torch.zeros(USERS + ITEMS, 3)
    x[USERS:] = ssr.content.signals()[0][USERS:]
    torch.testing.assert_close(users, ((x + graph @ x + graph @ graph @ x) / 3)[:USERS])
    torch.testing.assert_close(made(user_content=user_content, graph="knn").content.signals()[0][:USERS], users)


def test_users_of_a_host_that_does_not_propagate_have_no_content():
    assert not made(user_content="profile", context={"propagate": None}).content.signals()[0][:USERS].any()


@pytest.mark.parametrize("names", [("image",), ("text", "image")])
def test_weight_of_images_counts_beside_others_alone(names):
    one, other = (made(names=names, image_weight=w).item_graph.dense() for w in (0.2, 0.9))
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
    assert requirements(settings_of(graph="knn")).modalities == 1
    assert requirements(settings_of()).one_of == {"propagated", "tables"}
    assert requirements(settings_of()).seams == {"losses"}


@pytest.mark.parametrize(
    ("host", "names", "settings", "message"),
    [
        ("nodes", ("image", "text"), {"modalities": ["imgae"]}, "feature tables: image, text; did you mean 'image'?"),
        ("nodes", (), {"modalities": ["text"]}, "ssr.modalities names 'text'; feature tables: none"),
        ("sequence", (), {"consistency": "score_kl"}, "ssr.consistency score_kl needs users and negatives; set it to"),
        ("sequence", (), {"consistency": "score_mse"}, "ssr.consistency score_mse needs users and negatives; set it"),
        ("sequence", (), {"graph": "bipartite"}, "Toy has no user vectors; set ssr.graph to cooccurrence or knn"),
        ("nodes", ("text",), {"graph": "knn", "modalities": []}, "ssr.graph knn needs a modality"),
        (
            "tables",
            ("text",),
            {"output": "concat"},
            "Toy reads its vectors by more than their dot product; set ssr.out",
        ),
        ("sequence", ("text",), {"output": "concat"}, "set ssr.output to add"),
        ("nodes", (), {"edges": [0.5, 1.2]}, "2 bands have 1 edges, not 2"),
        ("nodes", (), {"bands": 1, "edges": [0.5]}, "1 bands have 0 edges, not 1"),
        ("nodes", (), {"edges": [2.5]}, "ascending and strictly between 0 and 2"),
        ("nodes", (), {"edges": [0.5], "engine": "diffusion"}, "has no edges to choose"),
    ],
)
def test_what_cannot_be_is_refused(host, names, settings, message):
    with pytest.raises(RecplugError, match=re.escape(message)) as caught:
        made(host, names, **settings)
    assert "\n" not in str(caught.value)


def test_a_host_whose_width_is_fixed_is_refused_although_it_propagates():
    with pytest.raises(RecplugError, match=r"set ssr\.output to add"):
        made(output="concat", context={"free_width": False})
    assert not made(output="auto", context={"free_width": False}).concat


@pytest.mark.parametrize("host", ["tables", "sequence"])
def test_tables_keep_their_width_whatever_becomes_of_nodes(host):
    assert not made(host, output="auto", context={"free_width": True}).concat
    with pytest.raises(RecplugError, match=r"set ssr\.output to add"):
        made(host, output="concat", context={"free_width": True})


@pytest.mark.parametrize("changes", [{"names": ()}, {"content_blocks": False}])
def test_nothing_to_put_beside_it_is_no_reason_to_refuse(changes):
    names = changes.pop("names", ("text",))
    assert not made("tables", names, output="concat", **changes).concat


def test_one_edge_may_be_none():
    assert made(bands=1, edges=[]).decomposition.n_bands == 1


def test_a_modality_that_is_named_twice_is_refused():
    with pytest.raises(RecplugError, match="ssr: modalities names one twice: image, image"):
        parse_settings("ssr", SsrSettings, {"modalities": ("image", "image")})
