import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec import neighbours as module
from recplug.plugins.micrec.content import content_vectors
from recplug.plugins.micrec.neighbours import borrowing, nearest, neighbourhood, refine, refining
from recplug.plugins.nn.knn import Neighbours


def unit(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def brute(queries, pool, k, exclude=None):
    """Scores and rows by sorting everything in double precision; equal ones by the lower row."""
    found = []
    for place, query in enumerate(queries):
        row = []
        for other in range(len(pool)):
            if pool[other].any() and query.any() and not (exclude is not None and exclude[place] == other):
                row.append((-float((query.double() @ pool[other].double()).float()), other))
        found.append([(other, -score) for score, other in sorted(row)[:k]])
    return found


def found_rows(found):
    return [
        [(int(i), float(w)) for i, w, v in zip(*row, strict=True) if v]
        for row in zip(found.index, found.weight, found.valid, strict=True)
    ]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans())
def test_nearest_is_brute_force(seed, k, itself):
    pool = unit(70, 4, seed)
    pool[::9] = 0  # nobody's
    pool[20:60] = pool[20]  # equal ones, more than a search can propose
    queries = pool if itself else unit(11, 4, seed + 1)
    exclude = torch.arange(70) if itself else None
    found = nearest(queries, pool, k, exclude=exclude)
    for mine, expected in zip(found_rows(found), brute(queries, pool, k, exclude), strict=True):
        assert [i for i, _ in mine] == [i for i, _ in expected]
        assert [w for _, w in mine] == pytest.approx([w for _, w in expected], abs=1e-6)


def test_blocks_change_nothing(monkeypatch):
    pool, queries = unit(300, 16, 0), unit(90, 16, 1)
    whole = nearest(queries, pool, 5)
    monkeypatch.setattr(module, "ROWS", 7)
    parts = nearest(queries, pool, 5)
    assert torch.equal(whole.index, parts.index)
    assert torch.equal(whole.weight, parts.weight)


def test_fewer_than_k_and_none():
    pool = unit(3, 4, 0)
    found = nearest(pool, pool, 5, exclude=torch.arange(3))
    assert found.valid.sum(dim=1).tolist() == [2, 2, 2]
    assert found.index[:, 2].tolist() == [0, 1, 2]  # itself where there is none
    nothing = nearest(pool, torch.zeros(4, 4), 2)
    assert not nothing.valid.any()
    assert not nothing.weight.any()
    with pytest.raises(RecplugError, match="widths differ"):
        nearest(pool, unit(3, 5, 0), 2)


def test_neighbours_are_known_nodes_and_never_oneself(modality):
    known = torch.tensor([False] + [i % 3 != 0 for i in range(1, 20)])
    content = content_vectors([modality("text", absent=(4,))], {"text": 1.0}, 20, known=known)
    found = neighbourhood(content, known, 3)
    rows = torch.arange(20).unsqueeze(1)
    assert known[found.index[found.valid]].all()
    assert (found.index != rows)[found.valid].all()
    assert (found.index == rows)[~found.valid].all()
    assert found.valid.all(dim=1).tolist() == [i not in (0, 4) for i in range(20)]


@pytest.mark.parametrize("m", [1500, 1536, 64, 7])
def test_the_largest_of_chunks_are_the_largest(m):
    score = torch.randn(5, m, generator=torch.Generator().manual_seed(m))
    score[0, 3:6] = -torch.inf
    score[1] = torch.arange(m).float()  # all in the last chunk, or after it
    found, column = module._largest(score, min(9, m))
    expected = score.topk(min(9, m), dim=1)
    assert torch.equal(found, expected.values)
    assert torch.equal(score.gather(1, column), expected.values)


# -- nodes with their neighbours


@pytest.fixture
def near():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 9, (9, 3), generator=generator)
    weight = torch.rand(9, 3, generator=generator) - 0.3
    valid = torch.rand(9, 3, generator=generator) < 0.7
    valid[4] = False
    return Neighbours(index, weight * valid, valid)


def test_refinement_is_the_loops(near):
    h = torch.randn(9, 4)
    expected = []
    for x in range(9):
        real = [(int(y), float(a)) for y, a, v in zip(near.index[x], near.weight[x], near.valid[x], strict=True) if v]
        weights = [max(a, 0.0) for _, a in real]
        others = sum((w * h[y] for (y, _), w in zip(real, weights, strict=True)), torch.zeros(4))
        expected.append((h[x] + others) / (1 + sum(weights)))
    expected = torch.stack(expected)
    assert torch.allclose(refine(h, h, near), expected, atol=1e-6)
    assert torch.allclose(refining(near).matmul(h), expected, atol=1e-6)
    assert torch.equal(expected[4], h[4])


def test_borrowing_is_the_mean_of_neighbours(near):
    isolated = torch.tensor([False, True, False, False, True, True, False, False, False])
    rows, lent = borrowing(near, isolated)
    h = torch.randn(9, 4)
    for place, x in enumerate(rows.tolist()):
        pairs = [(int(y), float(a)) for y, a in zip(near.index[x], near.weight[x], strict=True) if a > 0]
        expected = sum(a * h[y] for y, a in pairs) / sum(a for _, a in pairs)
        assert torch.allclose(lent.matmul(h)[place], expected, atol=1e-6)
    assert 4 not in rows.tolist()  # nobody is like it
    assert set(rows.tolist()) <= {1, 5}
