"""Vectors of items that training never saw: against loops, and on data whose users choose by factors."""

import pytest
import torch
import torch.nn.functional as F

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.mars.module import MarsTable
from recplug.plugins.testing import toys
from recplug.plugins.testing.case import N_ITEMS

UNSEEN = 5  # rows 1 to 4: two with profiles, one with content alone, one of which nothing is known


def unseen_profiles(toy):
    """Item 1 has a value of every factor and two of the second; item 2 the 'other' of the first and one value."""
    factors = toy.mars.profiles.factors
    pairs = torch.tensor([[1, 0], [1, 4], [1, 6], [1, 7], [2, 3], [2, 8]])
    return FactorProfiles(factors, pairs[:, 0].contiguous(), pairs[:, 1].contiguous(), UNSEEN)


def unseen_content(toy):
    generator = torch.Generator().manual_seed(4)
    found = {}
    for name, modality in toy.case.modalities().items():
        present = torch.tensor([False, True, name == "text", True, False])
        values = torch.randn(UNSEEN, modality.width, generator=generator) * present.unsqueeze(1)
        found[name] = Modality(name, values, present)
    return found


def table_of(toy):
    rows = len(toy.mars.fusion.available)
    return torch.randn(rows, toy.mars.width, generator=torch.Generator().manual_seed(3))


def nearest(toy, vectors, warm, itself=None):
    """The neighbours' shares of one item, by name of content: ``{item: weight}``; loops."""
    found, total = {}, 0.0
    share = {"image": toy.mars.settings.image_weight, "text": 1 - toy.mars.settings.image_weight}
    for name, vector in vectors.items():
        known = toy.case.modalities()[name]
        near = [i for i in warm if known.present[i] and i != itself]
        near.sort(key=lambda i: -float(F.cosine_similarity(known.values[i].float(), vector.float(), dim=0)))
        for i in near[: toy.mars.settings.neighbours]:
            found[i] = found.get(i, 0.0) + share[name] / len(near[: toy.mars.settings.neighbours])
        total += share[name]
    return {i: weight / total for i, weight in found.items()}


def by_hand(toy, base, ids, values, near):
    """The uncalibrated vector of one item, and what it could read."""
    mars = toy.mars
    profiles, settings = mars.profiles, mars.settings
    x, _ = toy.slow_x(toy, ids)
    means, plain, have = [], [], []
    if near:
        means.append(sum(weight * base[i].double() for i, weight in near.items()))
        plain.append(sum(weight * x[i] for i, weight in near.items()))
    else:
        means.append(torch.zeros(mars.width).double())
        plain.append(means[0])
    have.append(bool(near))
    for k, factor in enumerate(profiles.factors):
        mine, mine_x = [], []
        for value in values:
            place = value - profiles.offsets[k]
            if not 0 <= place < len(factor.values) or (settings.other == "isolate" and place == factor.other):
                continue
            group = [i for i in range(N_ITEMS) if value in toy.held(profiles, k, i)]
            mine.append(base[group].double().mean(dim=0))
            free, loud = mars.fusion.free, len(group) ** 0.5 if settings.strength == "root" else 1.0
            mine_x.append(loud * x[group].mean(dim=0) if free is None else free[value].double())
        have.append(bool(mine))
        means.append(sum(mine) / len(mine) if mine else torch.zeros(mars.width).double())
        plain.append(sum(mine_x) / len(mine) if mine else torch.zeros(mars.width).double())
    weights = torch.tensor(have).double()
    if settings.factor_weight is not None:
        weights[1:] *= settings.factor_weight / max(sum(have[1:]), 1)
    else:
        weights /= max(sum(have), 1)
    h = sum(weights[k] * plain[k] for k in range(len(have)))
    mean = sum(weights[k] * means[k] for k in range(len(have))) / max(float(weights.sum()), 1e-9)
    return (h if settings.join == "replace" else mean + h), have


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"factor_weight": None},
        {"join": "replace"},
        {"x": "ids_content"},
        {"pool": "free"},
        {"other": "group"},
    ],
    ids=str,
)
@pytest.mark.parametrize("host", ["graph-bpr", "mask-ce", "nodes-bpr"])
@torch.no_grad()
def test_a_vector_is_the_means_of_its_groups_and_neighbours(mars, host, values):
    """The gate that read X is uniform; a length that is the known items', by loops."""
    toy = mars.make(host, neighbours=3, **values)
    toy.slow_x, toy.held = mars.slow_x, mars.held
    ids = table_of(toy)
    base = ids if host != "nodes-bpr" else ids.flip(0)
    profiles, content = unseen_profiles(toy), unseen_content(toy)
    found, routes = toy.mars.unseen(base, profiles, content, known=toy.case.modalities(), ids=ids)
    assert routes == ["factors and neighbours", "factors and neighbours", "neighbours", "global mean"]

    warm = sorted(set(toy.edges[1].tolist()))
    added, _ = toy.mars.fusion(toy.mars.fusion.pool(ids), torch.tensor(warm))
    scored = toy.mars.fusion.join(base[warm], added).double()
    again = []
    for item in warm:
        near = {n: m.values[item] for n, m in toy.case.modalities().items() if m.present[item]}
        own = [v for k in range(3) for v in mars.held(toy.mars.profiles, k, item)]
        again.append(by_hand(toy, base, ids, own, nearest(toy, near, warm, item))[0])
    lengths = torch.stack(again).norm(dim=1)
    some = lengths > 0
    s = scored[some].norm(dim=1).median() / lengths[some].median()
    for row, own in ((1, [0, 4, 6, 7]), (2, [3, 8]), (3, [])):
        near = {n: m.values[row] for n, m in content.items() if m.present[row]}
        expected, _ = by_hand(toy, base, ids, own, nearest(toy, near, warm))
        torch.testing.assert_close(found[row - 1].double(), s * expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[3].double(), scored.mean(dim=0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("structure", ["cooccurrence", "none"])
def test_neighbours_need_a_graph_of_content(mars, structure):
    toy = mars.make(structure=structure)
    args = table_of(toy), unseen_profiles(toy), unseen_content(toy)
    assert "neighbours" not in " ".join(toy.mars.unseen(*args, known=toy.case.modalities())[1])


def test_without_known_content_there_are_no_neighbours(mars):
    toy = mars.make()
    _, routes = toy.mars.unseen(table_of(toy), unseen_profiles(toy), unseen_content(toy))
    assert routes == ["factors", "factors", "global mean", "global mean"]


@pytest.mark.parametrize("wrong", ["factors", "values", "base", "content", "known"])
def test_what_does_not_match_is_refused(mars, wrong):
    toy = mars.make()
    base, profiles, content, known = table_of(toy), unseen_profiles(toy), unseen_content(toy), toy.case.modalities()
    first, *others = profiles.factors
    if wrong == "factors":
        renamed = (Factor("colour", first.values, other=3), *others)
        profiles = FactorProfiles(renamed, profiles.items, profiles.values, UNSEEN)
    elif wrong == "values":
        reordered = (Factor("material", first.values[::-1]), *others)
        profiles = FactorProfiles(reordered, profiles.items, profiles.values, UNSEEN)
    elif wrong == "base":
        base = base[:-1]
    else:
        other = {"text": Modality("text", torch.zeros(3, 8), torch.zeros(3).bool())}
        content, known = (other, known) if wrong == "content" else (content, other)
    with pytest.raises(RecplugError):
        toy.mars.unseen(base, profiles, content, known=known)


def test_without_interactions_every_item_is_known(mars):
    toy = mars.make(structure="none")
    base, profiles = table_of(toy), unseen_profiles(toy)
    toy.mars.popularity = None
    found, routes = toy.mars.unseen(base, profiles)
    added, _ = toy.mars.fusion(toy.mars.fusion.pool(base), torch.arange(1, N_ITEMS))
    assert routes[3] == "global mean"
    torch.testing.assert_close(found[3], (base[1:] + added).mean(dim=0).detach(), rtol=1e-4, atol=1e-5)


# -- planted


def test_unseen_items_find_their_users(mars):
    """Users choose by factors. A fifth of the items has no training interaction and no row; their vectors, from their
    profiles alone, rank the users who will have them far above chance, and above the most active users."""
    n_users, n_items, d, sizes, seed = 300, 250, 16, (6, 5, 4), 0
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    offsets = [0, 6, 11]
    values = torch.stack(
        [
            low + torch.randint(0, size, (n_items,), generator=generator)
            for low, size in zip(offsets, sizes, strict=True)
        ],
        dim=1,
    )
    by_value = normal(sum(sizes), d) / len(sizes) ** 0.5
    items = by_value[values].sum(dim=1) + 0.3 * normal(n_items, d)
    likes = normal(n_users, d) @ items.T
    known = int(0.8 * n_items)
    activity = torch.randint(6, 18, (n_users,), generator=generator)  # interactions of a user
    order = likes.argsort(dim=1, descending=True)
    had = torch.zeros(n_users, n_items, dtype=torch.bool)
    for user in range(n_users):
        had[user, order[user, : 2 * int(activity[user])]] = True
    users, bought = had[:, :known].nonzero(as_tuple=True)
    edges = torch.stack([users, bought + 1])
    factors = tuple(Factor(f"f{k}", tuple(map(str, range(size)))) for k, size in enumerate(sizes))

    def profiles(rows):
        ids = torch.arange(1, len(rows) + 1).repeat_interleave(len(sizes))
        return FactorProfiles(factors, ids, rows.reshape(-1), len(rows) + 1)

    torch.manual_seed(seed)
    backbone = toys.ToyGraph(n_users=n_users, n_items=known + 1, width=d, dropout=0.0)
    module = MarsTable(
        settings=mars.settings(structure="none", lambda_semantic=0.0),
        profiles=profiles(values[:known]),
        n_rows=known + 1,
        width=d,
        edges=edges,
    )
    every = torch.arange(known + 1)
    optimiser = torch.optim.Adam([*backbone.parameters(), *module.parameters()], lr=0.02)
    for _ in range(60):
        table = backbone.items.weight
        table = module.fusion.join(table, module.fusion(module.fusion.pool(table), every)[0])
        negatives = torch.randint(1, known + 1, (edges.shape[1],), generator=generator)
        optimiser.zero_grad()
        toys.bpr(backbone.users.weight[edges[0]], table[edges[1]], table[negatives]).backward()
        optimiser.step()

    vectors, routes = module.unseen(backbone.items.weight.detach(), profiles(values[known:]))
    assert set(routes) == {"factors"}
    truth = had[:, known:]
    assert auc(backbone.users.weight.detach() @ vectors.T, truth) > 0.8
    popularity = had[:, :known].sum(dim=1, keepdim=True).float().expand(-1, n_items - known)
    assert auc(popularity, truth) < 0.7
    order = torch.randperm(n_items - known, generator=generator)
    wrong, _ = module.unseen(backbone.items.weight.detach(), profiles(values[known:][order]))
    assert auc(backbone.users.weight.detach() @ wrong.T, truth) < 0.7
    with torch.no_grad():
        own = module.fusion.join(table, module.fusion(module.fusion.pool(backbone.items.weight), every)[0])[1:]
    assert 0.5 < float(vectors.norm(dim=1).median() / own.norm(dim=1).median()) < 2.0


def auc(scores, truth):
    """The mean over items of how often a true user is ranked above another."""
    found = []
    for item in range(scores.shape[1]):
        mine, others = scores[truth[:, item], item], scores[~truth[:, item], item]
        if len(mine) and len(others):
            above = (mine.unsqueeze(1) > others).float() + 0.5 * (mine.unsqueeze(1) == others).float()
            found.append(float(above.mean()))
    return sum(found) / len(found)
