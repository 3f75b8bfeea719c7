import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.plugins.contract import Modality
from recplug.plugins.magnet import induced_edges as module
from recplug.plugins.magnet.induced_edges import induced_edges
from recplug.plugins.nn.knn import Neighbours, kneighbours
from recplug.plugins.nn.propagation import Adjacency

N_USERS, N_ITEMS = 8, 17


def train_edges(seed=0, n=25):
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(1, N_USERS - 1, (n,), generator=generator)  # the last user has nothing
    items = torch.randint(1, N_ITEMS, (n,), generator=generator)
    return torch.stack([users, items])


def cosines(modality):
    rows = torch.nn.functional.normalize(modality.values.double(), dim=1) * modality.present.unsqueeze(1)
    return rows @ rows.T


def slow(content, edges, k, r, given):
    """Every definition as it stands, by loops."""
    found = set()
    near = []
    for modality in content:
        s = cosines(modality)
        sets = {}
        for i in range(N_ITEMS):
            others = [j for j in range(N_ITEMS) if j != i and modality.present[i] and modality.present[j]]
            sets[i] = set(sorted(others, key=lambda j: (-float(s[i, j].float()), j))[:k])
        near.append((s, sets))
    for user in range(N_USERS):
        history = {i for u, i in edges.T.tolist() if u == user}
        scores = {}
        for j in range(N_ITEMS):
            if j in history or not any(j in sets[i] for i in history for _, sets in near):
                continue
            scores[j] = sum(float(s[i, j]) for i in history for s, sets in near if not given or j in sets[i]) / len(
                content
            )
        best = sorted(scores, key=lambda j: (-scores[j], j))[:r]
        found |= {(user, j) for j in best}
    return found


def pairs(edges):
    return set(map(tuple, edges.T.tolist()))


@given(st.integers(0, 1000), st.sampled_from([1, 3, 6]), st.sampled_from([1, 4, 50]), st.sampled_from([1, 3, 99]))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("given", [False, True])
def test_is_the_double_loop(modalities, given, seed, k, r, block):
    content, edges = modalities(N_ITEMS, seed=seed), train_edges(seed)
    mine = {m.name: kneighbours(m.values, m.present, k) for m in content} if given else None
    found = induced_edges(content, edges, n_users=N_USERS, n_items=N_ITEMS, k=k, r=r, given=mine, block=block)
    assert pairs(found) == slow(content, edges, k, r, given)
    assert len(pairs(found)) == found.shape[1]
    assert not pairs(found) & pairs(edges)
    assert torch.bincount(found[0], minlength=N_USERS).max() <= r
    assert not (found == 0).any()  # no padding


def test_equal_scores_are_taken_by_the_lower_item():
    present = torch.ones(6, dtype=torch.bool)
    present[0] = False
    values = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    content = [Modality("image", values, present)]
    edges = torch.tensor([[1], [3]])
    found = induced_edges(content, edges, n_users=2, n_items=6, k=5, r=2)
    assert found.tolist() == [[1, 1], [1, 2]]


def test_none_asked_for_or_no_interactions(modalities):
    content = modalities(N_ITEMS)
    size = {"n_users": N_USERS, "n_items": N_ITEMS, "k": 3}
    assert induced_edges(content, train_edges(), r=0, **size).shape == (2, 0)
    assert induced_edges(content, torch.empty(2, 0, dtype=torch.long), r=3, **size).shape == (2, 0)


def test_given_neighbours_are_taken_without_the_item_itself(modalities):
    content, edges = modalities(N_ITEMS), train_edges()
    mine = {m.name: kneighbours(m.values, m.present, 4, include_self=True) for m in content}
    bare = {m.name: kneighbours(m.values, m.present, 3) for m in content}
    size = {"n_users": N_USERS, "n_items": N_ITEMS, "r": 5}
    found = induced_edges(content, edges, k=9, given=mine, **size)
    assert pairs(found) == pairs(induced_edges(content, edges, k=3, given=bare, **size))  # 4 with itself are 3 others
    far = {
        name: Neighbours(each.index[:, [0, 3]], each.weight[:, [0, 3]], each.valid[:, [0, 3]])
        for name, each in mine.items()
    }
    assert pairs(induced_edges(content, edges, k=9, given=far, **size)) != pairs(found)


def test_cache_is_read_and_depends_on_everything(modalities, tmp_path, monkeypatch):
    content, edges = modalities(N_ITEMS), train_edges()
    size = {"n_users": N_USERS, "n_items": N_ITEMS, "cache": tmp_path}

    def kept():
        return {path.name for path in tmp_path.glob("induced-*")}

    first = induced_edges(content, edges, k=3, r=4, **size)
    assert len(kept()) == 1
    induced_edges(content, edges, k=4, r=4, **size)
    induced_edges(content, edges, k=3, r=5, **size)
    induced_edges(content, edges[:, :-1], k=3, r=4, **size)  # another split
    induced_edges(modalities(N_ITEMS, seed=9), edges, k=3, r=4, **size)
    mine = {m.name: kneighbours(m.values, m.present, 3) for m in content}
    induced_edges(content, edges, k=3, r=4, given=mine, **size)
    assert len(kept()) == 6
    monkeypatch.setattr(module, "_best", None)  # nothing is computed again
    assert torch.equal(induced_edges(content, edges, k=3, r=4, **size), first)


def test_a_damaged_cache_is_replaced(modalities, tmp_path):
    content, edges = modalities(N_ITEMS), train_edges()
    size = {"n_users": N_USERS, "n_items": N_ITEMS, "k": 3, "r": 4, "cache": tmp_path}
    first = induced_edges(content, edges, **size)
    (file,) = tmp_path.glob("induced-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-8] + b"\1" * 8)
    assert torch.equal(induced_edges(content, edges, **size), first)
    assert torch.equal(module._load(file), first)
    file.write_bytes(b"")
    assert torch.equal(induced_edges(content, edges, **size), first)


def test_the_second_graph_knows_the_pattern_alone(modalities):
    content, edges = modalities(N_ITEMS), train_edges()
    found = induced_edges(content, edges, n_users=N_USERS, n_items=N_ITEMS, k=3, r=4)
    graph = Adjacency.bipartite(torch.cat([edges, found], dim=1), n_users=N_USERS, n_items=N_ITEMS)
    weight = torch.zeros(N_USERS + N_ITEMS, N_USERS + N_ITEMS, dtype=torch.float64)
    for u, i in pairs(edges) | pairs(found):
        weight[u, N_USERS + i] = weight[N_USERS + i, u] = 1.0
    degree = weight.sum(dim=1)
    scale = torch.where(degree > 0, degree.clamp(min=1).rsqrt(), 0.0)
    assert torch.allclose(graph.dense().double(), scale[:, None] * weight * scale, atol=1e-6)
