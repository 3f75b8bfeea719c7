import pytest
import torch

from recplug.plugins.micrec.refinement import borrowing, refine, refining
from recplug.plugins.nn.knn import Neighbours

KINDS = ["similarity", "mean", "residual"]


@pytest.fixture
def near():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 9, (9, 3), generator=generator)
    weight = torch.rand(9, 3, generator=generator) - 0.3
    valid = torch.rand(9, 3, generator=generator) < 0.7
    valid[4] = False
    return Neighbours(index, weight * valid, valid)


@pytest.mark.parametrize("kind", KINDS)
def test_refinement_is_the_loops(near, kind):
    h = torch.randn(9, 4)
    expected = []
    for x in range(9):
        real = [(int(y), float(a)) for y, a, v in zip(near.index[x], near.weight[x], near.valid[x], strict=True) if v]
        if kind == "similarity":
            weights = [max(a, 0.0) for _, a in real]
        elif kind == "mean":
            weights = [1.0] * len(real)
        else:
            weights = torch.tensor([a for _, a in real]).softmax(dim=0).tolist()
        others = sum((w * h[y] for (y, _), w in zip(real, weights, strict=True)), torch.zeros(4))
        expected.append(h[x] + others if kind == "residual" else (h[x] + others) / (1 + sum(weights)))
    expected = torch.stack(expected)
    assert torch.allclose(refine(h, h, near, kind), expected, atol=1e-6)
    assert torch.allclose(refining(near, kind).matmul(h), expected, atol=1e-6)
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
