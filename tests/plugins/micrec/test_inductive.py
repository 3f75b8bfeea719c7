"""New users and items: against loops, against a model that has them in its graph, and that nothing else moves."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from recplug.plugins.contract import Context, Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec.content import new_content
from recplug.plugins.micrec.inductive import Inductive, across
from recplug.plugins.micrec.neighbours import chosen, mean_of, nobody
from recplug.plugins.micrec.new_nodes import Trained
from recplug.plugins.micrec.plugin import build
from recplug.plugins.micrec.settings import MicrecSettings
from recplug.plugins.nn.knn import Neighbours
from recplug.plugins.nn.propagation import Adjacency, lightgcn

USERS, ITEMS, WIDTH, LAYERS = 40, 31, 8, 3  # with the padding rows
COLD = (29, 30)  # items without interactions


def draw(seed=0, n_users=USERS, n_items=ITEMS):
    """Interactions, each once, of users who like items near a point of theirs on a circle."""
    generator = torch.Generator().manual_seed(seed)
    where = torch.rand(n_users, generator=generator) * (n_items - 3)
    pairs = set()
    for user in range(1, n_users):
        for _ in range(3 + user % 5):
            step = torch.randn(1, generator=generator).item() * 2.5
            pairs.add((user, 1 + int(where[user].item() + step) % (n_items - 3)))
    return torch.tensor(sorted(pairs)).T


def contents(n, seed=1, start=0):
    generator = torch.Generator().manual_seed(seed)
    angle = (torch.arange(start, start + n).float() / (ITEMS - 3)) * 6.2832
    noise = 0.1 * torch.randn(n, 6, generator=generator)
    text = torch.stack([angle.cos(), angle.sin(), *[torch.ones(n)] * 4], dim=1) + noise
    image = torch.randn(n, 5, generator=generator)
    present = torch.ones(n, dtype=torch.bool)
    present[0] = start > 0
    return {"text": Modality("text", text, present), "image": Modality("image", image, present)}


def rule(layers):
    def propagate(edges, users, items):
        graph = Adjacency.bipartite(edges, n_users=len(users), n_items=len(items))
        return lightgcn(graph, users, items, layers)

    return propagate


def make(
    edges, *, layers=LAYERS, content=True, sequential=False, source=None, n_users=USERS, n_items=ITEMS, **settings
):
    """A MICRec with random parameters on a host of LightGCN's rule, or a sequential one."""
    torch.manual_seed(3)
    width = {"items": WIDTH} if sequential else {"items": WIDTH, "users": WIDTH}
    context = Context(
        host="Toy",
        family="sequential" if sequential else "graph",
        n_users=n_users,
        n_items=n_items,
        n_rows={"items": n_items} if sequential else {"items": n_items, "users": n_users},
        width=width | ({"propagated": WIDTH} if layers and not sequential else {}),
        edges=edges,
        modalities=contents(n_items) if content else {},
        source=source,
    )
    micrec = build(MicrecSettings(**{"join": "residual" if sequential else "replace", **settings}), context).eval()
    micrec.templates.alpha.fill_(0.6)
    users, items = (0.3 * torch.randn(n, WIDTH) for n in (n_users, n_items))
    with torch.no_grad():
        if sequential:
            return Trained(micrec, None, items, (None, micrec.tables(None, items)[1]))
        nodes = micrec.tables(users, items)
        if layers:
            nodes = micrec.propagated(*rule(layers)(edges, *nodes))
    return Trained(micrec, users, items, nodes, layers, rule(layers))


def naive(trained, side, support, content=None):
    """r of one new node, by loops over its neighbours."""
    micrec, edges = trained.micrec, trained.micrec.templates.edges
    templates, place = micrec.templates, 0 if side == "users" else 1
    raw = trained.items if side == "users" else trained.users
    row = templates.user_global if side == "users" else templates.item_global
    power = 1 - templates.alpha.item() / 2
    h = (row + sum((raw[other] for other in support), torch.zeros(WIDTH))) / (len(support) + 1) ** power
    known_h = micrec.represented(trained.users, trained.items)[place]
    total, refined, lent = 1.0, h.clone(), torch.zeros(WIDTH)
    if content is not None and side in micrec.neighbours:
        known = torch.bincount(edges[place], minlength=USERS) > 0
        likeness = (micrec.contents[side].values @ content).tolist()
        order = sorted((row for row in range(len(known_h)) if known[row]), key=lambda row: -likeness[row])
        for other in order[: micrec.neighbours[side].index.shape[1]]:
            share = max(likeness[other], 0.0)
            refined, total = refined + share * known_h[other], total + share
            lent = lent + share * trained.nodes[place][other]
    z = [refined / total]
    users, items = micrec.tables(trained.users, trained.items)
    for _ in range(trained.layers):
        theirs = items if side == "users" else users
        degree = torch.bincount(edges[1 - place], minlength=len(theirs))
        z.append(sum((theirs[o] / (len(support) * max(degree[o], 1)) ** 0.5 for o in support), torch.zeros(WIDTH)))
        new_users, new_items = torch.zeros_like(users), torch.zeros_like(items)
        degrees = [torch.bincount(each, minlength=max(USERS, ITEMS)) for each in edges]
        for user, item in edges.T.tolist():
            norm = (degrees[0][user] * degrees[1][item]) ** 0.5
            new_users[user] += items[item] / norm
            new_items[item] += users[user] / norm
        users, items = new_users, new_items
    if not support and side == "items" and total > 1:
        return lent / (total - 1)
    return torch.stack(z).mean(dim=0)


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("side", ["users", "items"])
@torch.no_grad()
def test_fold_in_is_the_formula(side, layers):
    trained = make(draw(), layers=layers, content=side == "items")
    inductive = Inductive(trained)
    support = [[3, 7, 8], [2], [], [5, 6, 7, 9, 11, 12]]
    edges = torch.tensor([(at, row) for at, rows in enumerate(support) for row in rows]).T
    given = contents(4, seed=5, start=6)
    content = new_content(trained.micrec.contents["items"], given, 4) if side == "items" else None
    nodes = inductive.fold(side, 4, edges.repeat(1, 2)[:, torch.randperm(20)], content=content)
    for at, rows in enumerate(support):
        expected = naive(trained, side, rows, None if content is None else content.values[at])
        torch.testing.assert_close(nodes.vectors[at], expected, rtol=1e-4, atol=1e-6)
    assert nodes.degrees.tolist() == nodes.templates.tolist() == [3, 1, 0, 6]


@pytest.mark.parametrize("layers", [0, 3])
@pytest.mark.parametrize("content", [False, True], ids=["ids", "content"])
@torch.no_grad()
def test_known_nodes_do_not_move_by_a_bit(layers, content):
    trained = make(draw(), layers=layers, content=content)
    inductive = Inductive(trained)
    before = [each.clone() for each in trained.nodes]
    own = new_content(trained.micrec.contents["items"], contents(2, start=4), 2) if content else None
    inductive.extend("items", inductive.fold("items", 2, torch.tensor([[0, 0, 1], [4, 5, 6]]), content=own))
    inductive.extend("users", inductive.fold("users", 1, torch.tensor([[0, 0], [3, ITEMS]])))
    for side, old, new in zip(("users", "items"), before, (1, 2), strict=True):
        assert torch.equal(inductive.vectors(side)[: len(old)], old)
        assert inductive.size(side) == len(inductive.vectors(side)) == len(old) + new
    # What was there before answers as before, also after others came.
    again = inductive.fold("users", 1, torch.tensor([[0, 0], [3, ITEMS]]))
    assert torch.equal(again.vectors, inductive.vectors("users")[-1:])


@pytest.mark.parametrize("layers", [0, 2])
@torch.no_grad()
def test_exact_is_a_model_with_the_new_nodes_in_its_graph(layers):
    """The same parameters on the larger graph, in which new nodes are no templates."""
    edges = draw()
    apart = edges[:, edges[0] < USERS - 3]
    mine = edges[:, edges[0] >= USERS - 3]
    trained = make(apart, layers=layers, content=False)
    inductive = Inductive(trained)
    local = torch.stack([mine[0] - (USERS - 3), mine[1]])
    inductive.extend("users", inductive.fold("users", 3, local))
    users, items = inductive.exact()

    moved = torch.stack([torch.where(edges[0] >= USERS - 3, edges[0] + 3, edges[0]), edges[1]])
    larger = make(moved, layers=layers, content=False, n_users=USERS + 3)
    templates = larger.micrec.templates
    flags = torch.zeros(USERS + 3, dtype=torch.bool)
    flags[: USERS - 3] = trained.micrec.templates.user_templates[: USERS - 3]
    state = trained.micrec.state_dict()
    state["templates.user_templates"] = flags
    larger.micrec.load_state_dict(state)
    raw_users = torch.cat([trained.users, torch.randn(3, WIDTH)])
    expected = rule(layers)(templates.edges, *larger.micrec.tables(raw_users, trained.items))
    torch.testing.assert_close(users, expected[0])
    torch.testing.assert_close(items, expected[1])


@torch.no_grad()
def test_exact_without_anything_new_is_what_training_left():
    for trained in (make(draw()), make(draw(), layers=0), make(draw(), join="residual"), make(draw(), share=0.5)):
        users, items = Inductive(trained).exact()
        torch.testing.assert_close(users, trained.nodes[0])
        torch.testing.assert_close(items, trained.nodes[1])
    trained = make(draw(), sequential=True)
    assert Inductive(trained).exact()[0] is None
    torch.testing.assert_close(Inductive(trained).exact()[1], trained.nodes[1])


@torch.no_grad()
def test_both_modes_recommend_alike_to_one_user_taken_out_and_added_again():
    size = {"n_users": 300, "n_items": 150}
    edges, overlaps = draw(**size), []
    for user in range(5, 25):
        inductive = Inductive(make(edges[:, edges[0] != user], layers=2, **size))
        own = edges[1, edges[0] == user]
        inductive.extend("users", inductive.fold("users", 1, torch.stack([torch.zeros_like(own), own])))
        folded = inductive.vectors("users")[-1] @ inductive.vectors("items").T
        users, items = inductive.exact()
        exact = users[-1] @ items.T
        best = [set(scores[1:].topk(20).indices.tolist()) for scores in (folded, exact)]
        overlaps.append(len(best[0] & best[1]) / 20)
    assert sum(overlaps) / len(overlaps) >= 0.9, overlaps


@torch.no_grad()
def test_the_ladder_of_routes():
    trained = make(draw())
    inductive = Inductive(trained)
    given = contents(3, start=4)
    given = {name: Modality(name, each.values, torch.tensor([True, True, False])) for name, each in given.items()}
    content = new_content(trained.micrec.contents["items"], given, 3)
    inductive.extend("items", inductive.fold("items", 3, torch.tensor([[0], [4]]), content=content))
    inductive.extend("users", inductive.fold("users", 2, torch.tensor([[0, 0], [3, ITEMS + 1]])))
    routes = [inductive.explain("items", row).route for row in (3, COLD[0], ITEMS, ITEMS + 1, ITEMS + 2)]
    assert routes == ["warm", "content", "support", "content", "global"]
    assert [inductive.explain("users", row).route for row in (3, USERS, USERS + 1)] == ["warm", "support", "global"]
    told = inductive.explain("users", USERS)
    assert told.templates == 1  # of two items, one is new and no template
    assert all(1 <= row < USERS for row, _ in told.neighbours)
    told = inductive.explain("items", ITEMS + 1)
    assert (told.templates, len(told.neighbours)) == (0, 3)
    assert sorted((like for _, like in told.neighbours), reverse=True) == [like for _, like in told.neighbours]
    with pytest.raises(RecplugError, match="no row 99"):
        inductive.explain("items", 99)


@torch.no_grad()
def test_a_new_item_without_interactions_stands_among_its_neighbours():
    """Content that is nearly an item's leads to nearly the item's company, as long as the known ones."""
    trained = make(draw(), text_weight=1.0)
    inductive = Inductive(trained)
    twin = contents(ITEMS)
    twin = {name: Modality(name, each.values[9:10], each.present[9:10]) for name, each in twin.items()}
    nodes = inductive.fold(
        "items", 1, torch.empty(2, 0, dtype=torch.int64), content=new_content(trained.micrec.contents["items"], twin, 1)
    )
    assert int(nodes.near.index[0, 0]) == 9
    weights, rows = nodes.near.weight[0].clamp(min=0), trained.nodes[1][nodes.near.index[0]]
    torch.testing.assert_close(nodes.vectors[0], (weights[:, None] * rows).sum(0) / weights.sum())

    kept = make(draw(), text_weight=1.0, isolated="keep")
    nodes = Inductive(kept).fold(
        "items", 1, torch.empty(2, 0, dtype=torch.int64), content=new_content(kept.micrec.contents["items"], twin, 1)
    )
    torch.testing.assert_close(nodes.vectors[0], nodes.layers[0][0] / (LAYERS + 1))  # as an isolated known node


@torch.no_grad()
def test_a_sequential_host_gets_rows_for_new_items():
    """Residual: the mean of the neighbours' own rows, and the gated representation."""
    trained = make(draw(), sequential=True)
    trained.micrec.gate.fill_(0.5)
    inductive = Inductive(trained)
    content = new_content(trained.micrec.contents["items"], contents(1, start=4), 1)
    nodes = inductive.fold("items", 1, torch.tensor([[0, 0], [4, 5]]), content=content)
    micrec = trained.micrec
    power = 1 - micrec.templates.alpha / 2
    h = (micrec.templates.item_global + micrec.template_users[4] + micrec.template_users[5]) / 3**power
    share = nodes.near.weight[0].clamp(min=0)
    known = micrec.represented(None, trained.items)[1][nodes.near.index[0]]
    refined = (h + (share[:, None] * known).sum(0)) / (1 + share.sum())
    own = (share[:, None] * trained.items[nodes.near.index[0]]).sum(0) / share.sum()
    torch.testing.assert_close(nodes.vectors[0], own + 0.5 * refined)
    nothing = inductive.fold("items", 1, torch.empty(2, 0, dtype=torch.int64))
    everyone = trained.items[trained.micrec.degrees["items"] > 0].mean(dim=0)
    torch.testing.assert_close(nothing.vectors[0], everyone + 0.5 * micrec.templates.item_global)


class Elsewhere:
    """A second domain whose users' vectors are known."""

    name = "elsewhere"

    def __init__(self, vectors, links, held_out):
        self.model, self.vectors = torch.nn.Identity(), vectors
        self.links, self.held_out = links, held_out

    def encode_users(self, ids):
        return self.vectors[ids]


@torch.no_grad()
def test_someone_known_elsewhere_is_put_where_the_nearest_linked_users_are():
    links = torch.tensor([[at + 100, at] for at in range(1, 31)])
    vectors = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(2))
    source = Elsewhere(vectors, links[:25], links[25:])
    trained = make(draw(), source=source)
    micrec = trained.micrec
    asked = torch.tensor([150, 0, 160])
    found = across(micrec, trained.nodes[0], asked, 3)
    ours = normalize(micrec.transfer.source(vectors[asked]), dim=1)
    theirs = normalize(micrec.transfer.target(trained.nodes[0][links[:, 1]]), dim=1)
    best = (ours @ theirs.T).topk(3)
    assert torch.equal(found.index[[0, 2]], links[:, 1][best.indices[[0, 2]]])
    torch.testing.assert_close(found.weight[[0, 2]], best.values[[0, 2]])
    assert found.valid.any(dim=1).tolist() == [True, False, True]

    inductive = Inductive(trained)
    nodes = inductive.fold("users", 3, torch.tensor([[2], [5]]), across=found)
    inductive.extend("users", nodes)
    assert [inductive.explain("users", USERS + at).route for at in range(3)] == ["cross_domain", "global", "support"]
    torch.testing.assert_close(nodes.vectors[0], trained.nodes[0][found.index[0]].mean(dim=0))
    assert [row for row, _ in inductive.explain("users", USERS).neighbours] == found.index[0].tolist()
    users, _ = inductive.exact()
    torch.testing.assert_close(users[USERS], users[found.index[0]].mean(dim=0))
    assert across(make(draw()).micrec, trained.nodes[0], asked, 3) is None


@torch.no_grad()
def test_another_rule_than_lightgcns_is_for_exact_mode():
    given = make(draw(), layers=2)
    other = Trained(given.micrec, given.users, given.items, given.nodes, None, given.rule)
    inductive = Inductive(other)
    inductive.extend("users", inductive.fold("users", 1, torch.tensor([[0, 0], [3, 4]])))
    with pytest.raises(RecplugError, match="mode='exact'"):
        inductive.vectors("users")
    known = Inductive(given)
    known.extend("users", known.fold("users", 1, torch.tensor([[0, 0], [3, 4]])))
    for one, two in zip(inductive.exact(), known.exact(), strict=True):
        assert torch.equal(one, two)
    neither = Inductive(Trained(given.micrec, given.users, given.items, given.nodes, None, None))
    for ask in (neither.check_fold_in, neither.exact):
        with pytest.raises(RecplugError, match="cannot be followed"):
            ask()


def test_what_cannot_be_done_is_said():
    trained = make(draw())
    with pytest.raises(RecplugError, match=r"text of new items is \[2, 4\]"):
        new_content(
            trained.micrec.contents["items"], {"text": Modality("text", torch.ones(2, 4), torch.ones(2).bool())}, 2
        )
    without = SimpleNamespace(templates=None)
    with pytest.raises(RecplugError, match="templates is off"):
        Inductive(Trained(without, None, trained.items, (None, trained.items)))


def test_neighbours_by_hand():
    near = Neighbours(
        torch.tensor([[1, 2], [0, 0]]),
        torch.tensor([[3.0, -1.0], [0.0, 0.0]]),
        torch.tensor([[True, True], [False, False]]),
    )
    rows = torch.tensor([[1.0], [2.0], [4.0]])
    mean, found = mean_of(rows, near, weighted=True)
    assert (mean.tolist(), found.tolist()) == ([[2.0], [0.0]], [True, False])
    assert mean_of(rows, near, weighted=False)[0].tolist() == [[3.0], [0.0]]
    picked = chosen(torch.tensor([True, False]), near, nobody(2, rows.device))
    assert picked.index.tolist() == [[1, 2], [0, 0]]
    assert picked.valid.tolist() == [[True, True], [False, False]]


# -- content and the default join, from the definitions


WEIGHTS = {"text": 0.9, "image": 0.1}


def direction(vector):
    return vector / vector.norm()


def contents_by_definition(edges, new):
    """Each modality of known items, of ``new`` ones and of training users, by loops: centred on what training knew."""
    known, users, pairs = sorted(set(edges[1].tolist())), sorted(set(edges[0].tolist())), edges.T.tolist()
    found = {"items": {}, "new": {}, "users": {}, "of": {}}
    for name, each in contents(ITEMS).items():
        rows = {row: direction(each.values[row]) for row in range(1, ITEMS)}
        centre = torch.stack([rows[row] for row in known]).mean(dim=0)
        items = {row: direction(vector - centre) for row, vector in rows.items()}
        means = {u: torch.stack([items[i] for v, i in pairs if v == u]).mean(dim=0) for u in users}
        middle = torch.stack([means[user] for user in users]).mean(dim=0)
        found["items"][name] = {row: items[row] for row in known}
        found["users"][name] = {user: direction(mean - middle) for user, mean in means.items()}
        found["new"][name] = {at: direction(direction(v) - centre) for at, v in enumerate(new[name].values)}
        found["of"][name] = lambda had, items=items, middle=middle: direction(
            torch.stack([items[row] for row in had]).mean(dim=0) - middle
        )
    return found


@pytest.mark.parametrize("side", ["users", "items"])
@torch.no_grad()
def test_with_content_and_the_hosts_rows_a_new_node_is_what_the_definitions_say(side):
    """Centres are training's, neighbours have interactions, each side has its own gate, and in the place of a row that
    training did not make stands the neighbours' mean, or everyone's."""
    place, support = ("users", "items").index(side), [[3, 7, 8], [20], [], [5, 6, 7, 9, 11, 12]]
    trained = make(draw(), join="residual")
    trained.micrec.gate.copy_(torch.tensor([0.3, 0.8]))
    trained = Trained(trained.micrec, trained.users, trained.items, None, LAYERS, trained.rule)
    tables = trained.micrec.tables(trained.users, trained.items)
    nodes = trained.rule(trained.micrec.templates.edges, *tables)
    nodes = nodes[0], trained.micrec.lend(nodes[1])
    trained = Trained(trained.micrec, trained.users, trained.items, nodes, LAYERS, trained.rule)
    micrec, edges, new = trained.micrec, trained.micrec.templates.edges, contents(4, seed=5, start=6)
    for name, each in contents(ITEMS).items():  # two of them look as items without interactions do
        new[name].values[1:3] = each.values[list(COLD)]
    given = contents_by_definition(edges, new)
    own = new_content(micrec.contents["items"], new, 4) if side == "items" else None
    pairs = torch.tensor([(at, row) for at, rows in enumerate(support) for row in rows]).T
    found = Inductive(trained).fold(side, 4, pairs, content=own)

    raw, theirs = (trained.users, trained.items)[place], (trained.users, trained.items)[1 - place]
    known = sorted(set(edges[place].tolist()))
    row = (micrec.templates.user_global, micrec.templates.item_global)[place]
    made = micrec.represented(trained.users, trained.items)[place]
    degree = torch.bincount(edges[1 - place], minlength=len(theirs))
    z = [tables[1 - place]]
    graph = Adjacency.bipartite(edges, n_users=USERS, n_items=ITEMS)
    both = torch.cat(tables)
    for _ in range(LAYERS - 1):
        both = graph.matmul(both)
        z.append(both.split([USERS, ITEMS])[1 - place])
    for at, had in enumerate(support):
        near = []
        if side == "items" or had:
            mine = {n: given["new"][n][at] if side == "items" else given["of"][n](had) for n in WEIGHTS}
            like = {y: float(sum(w * (mine[n] @ given[side][n][y]) for n, w in WEIGHTS.items())) for y in known}
            near = [(y, max(like[y], 0.0)) for y in sorted(like, key=lambda y: -like[y])[:3]]
        total = sum(a for _, a in near)
        h = (row + sum((theirs[y] for y in had), torch.zeros(WIDTH))) / (len(had) + 1) ** micrec.templates.exponent()
        h = (h + sum((a * made[y] for y, a in near), torch.zeros(WIDTH))) / (1 + total)
        substitute = sum(a * raw[y] for y, a in near) / total if near else raw[known].mean(dim=0)
        layers = [substitute + (0.3, 0.8)[place] * h]
        for below in z:
            sums = [below[y] / (len(had) * degree[y].clamp(min=1)) ** 0.5 for y in had]
            layers.append(sum(sums, torch.zeros(WIDTH)))
        expected = torch.stack(layers).mean(dim=0)
        if side == "items" and not had:
            expected = sum(a * nodes[1][y] for y, a in near) / total
        torch.testing.assert_close(found.vectors[at], expected, rtol=1e-3, atol=1e-5)
    if side == "items":
        assert not set(COLD) & set(found.near.index.flatten().tolist())
