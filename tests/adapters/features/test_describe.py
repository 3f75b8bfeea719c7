import numpy as np
import pytest
import torch

from recplug.adapters.features import describe
from recplug.adapters.features.describe import lengths, near_constant, nearest, shared_vectors, spread


def vectors(n=50, d=6, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=[3, 65_536], ids=["small blocks", "one block"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(describe, "_BLOCK", request.param)


def test_shared_vectors_are_the_rows_that_are_exactly_equal():
    features = vectors(12)
    features[[2, 5, 9]] = features[7].clone()
    features[3] = features[1].clone()
    features[4] = features[1] * (1 + 1e-6)
    assert shared_vectors(features) == [[2, 5, 7, 9], [1, 3]]
    assert shared_vectors(vectors(5)) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_near_constant_dimensions(dtype, blocks):
    features = vectors(40, 8, dtype=torch.float64) + 30
    features[:, 2] = 7
    features[:, 5] = 100 + 0.002 * features[:, 5]
    features[:, 6] = features[:, 6] * 0.05
    spread = features.to(dtype).double().numpy().std(axis=0)
    wanted = [place for place in range(8) if spread[place] <= 0.01 * np.median(np.sort(spread[spread > 0]))]
    assert near_constant(features.to(dtype)) == wanted
    assert {2, 5} <= set(wanted)
    assert 6 not in wanted
    assert near_constant(torch.ones(4, 3)) == [0, 1, 2]
    assert near_constant(torch.ones(1, 3)) == []


def test_lengths(blocks):
    features = vectors(20)
    assert np.allclose(lengths(features).numpy(), np.linalg.norm(features.numpy(), axis=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nearest_is_the_sorted_matrix_of_cosines(dtype, blocks):
    features = vectors(30, dtype=dtype)
    features[4] = features[11].clone()  # equal ones: the lower row first
    features[20] = 0
    unit = features.double().numpy()
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    queries = [0, 4, 20, 29]
    rows, cosines = nearest(features, queries, 5)
    for line, query in enumerate(queries):
        all_cosines = (unit @ unit[query]).astype(np.float32)
        others = sorted((row for row in range(30) if row != query), key=lambda row: (-all_cosines[row], row))[:5]
        assert rows[line].tolist() == others
        assert np.allclose(cosines[line].numpy(), all_cosines[others])


def test_nearest_of_few_items():
    assert nearest(vectors(3), [1], 5)[0].shape == (1, 2)
    assert nearest(vectors(1), [0], 5)[0].shape == (1, 0)


def test_spread():
    assert spread(10, 3) == [0, 4, 9]
    assert spread(2, 6) == [0, 1]
    assert spread(7, 1) == [0]
    assert spread(0, 3) == []
