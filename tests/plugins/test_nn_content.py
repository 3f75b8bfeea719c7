"""Frozen content: its item graph, its principal components."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recplug.plugins.contract import Modality
from recplug.plugins.nn.content import content_graph, modality_weights, principal
from recplug.plugins.nn.knn import Neighbours, kneighbours

N, K = 30, 4


def modality(name="text", width=5, rank=None, seed=0, n=N):
    """Some have no vector; what stands in their rows is not to be read."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(n, generator=generator) < 0.8
    present[0] = False
    values = torch.randn(n, rank or width, generator=generator)
    if rank:
        values = values @ torch.randn(rank, width, generator=generator)
    return Modality(name, values, present)


# -- weights


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text"], {"text": 1.0}),
        (["image"], {"image": 1.0}),
        (["image", "text"], {"image": 0.3, "text": 0.7}),
        (["text", "image", "audio"], {"image": 0.3, "text": 0.35, "audio": 0.35}),
        (["text", "audio"], {"text": 1.0, "audio": 1.0}),
    ],
)
def test_the_image_has_its_share_and_the_others_the_rest(names, expected):
    assert modality_weights(names, 0.3) == pytest.approx(expected)


# -- the graph


def graph_of(modalities, given=None, **changes):
    return content_graph(modalities, given or {}, **({"n_rows": N, "k": K, "image_weight": 0.3} | changes))


def test_the_graph_is_the_weighted_mean_of_each_modality_s_nearest():
    image, text = modality("image", 3, seed=1), modality("text", 5, seed=2)
    expected = torch.zeros(N + 1, N + 1, dtype=torch.float64)
    for row in range(N):
        have = [(m, w) for m, w in ((image, 0.3), (text, 0.7)) if m.present[row]]
        for each, weight in have:
            unit = torch.nn.functional.normalize(each.values.double(), dim=1)
            cosine = (unit @ unit[row]).masked_fill(~each.present, -9.0)
            for near in cosine.topk(K).indices:
                expected[row, near] += weight / sum(w for _, w in have) / K
    found = graph_of([image, text], n_rows=N + 1)
    torch.testing.assert_close(found.dense().double(), expected, rtol=1e-5, atol=1e-6)
    assert found.nnz < expected.numel() / 2


def neighbours_with(text, include_self):
    return kneighbours(text.values, text.present, K if include_self else K + 1, include_self=include_self)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_neighbours_that_came_with_the_data_give_the_same_graph(include_self, symmetric):
    text, image = modality(seed=2), modality("image", 3, seed=1)
    given = {"text": neighbours_with(text, include_self)}
    found = graph_of([image, text], given, symmetric=symmetric)
    torch.testing.assert_close(found.dense(), graph_of([image, text], symmetric=symmetric).dense())


def test_neighbours_that_came_with_the_data_are_not_computed_again(monkeypatch):
    text = modality()
    given = {"text": neighbours_with(text, True)}
    expected = graph_of([text])
    monkeypatch.setattr("recplug.plugins.nn.content.kneighbours", None)
    assert torch.equal(graph_of([text], given).dense(), expected.dense())
    others = Neighbours(given["text"].index.roll(1, 0), given["text"].weight, given["text"].valid)
    assert not torch.equal(graph_of([text], {"text": others}).dense(), expected.dense())


def test_fewer_neighbours_than_asked_for_are_taken_as_they_are():
    text = modality()
    two = kneighbours(text.values, text.present, 2, include_self=False)
    found = graph_of([text], {"text": two})
    assert torch.equal(found.dense(), graph_of([text], k=3).dense())


def test_a_symmetric_graph_has_a_spectrum():
    graph = graph_of([modality(), modality("image", 3, seed=1)], symmetric=True)
    dense = graph.dense()
    assert graph.symmetric
    assert torch.equal(dense, dense.T)
    assert torch.linalg.eigvalsh(dense.double()).abs().max() == pytest.approx(1.0, abs=1e-6)


# -- principal components


@given(width=st.integers(1, 12), rank=st.integers(1, 6), keep=st.integers(1, 12), seed=st.integers(0, 99))
def test_inner_products_are_kept_where_there_is_room_for_them(width, rank, keep, seed):
    each = modality(width=width, rank=min(rank, width), seed=seed)
    found = principal(each, N + 2, keep)
    assert found.shape == (N + 2, min(width, keep))
    assert not found[N:].any()
    assert not found[:N][~each.present].any()
    unit = torch.nn.functional.normalize(each.values.double(), dim=1) * each.present.unsqueeze(1)
    error = (found[:N] @ found[:N].T - unit @ unit.T).norm()
    if keep >= min(rank, width):
        assert error < 1e-4
    else:  # the best there is, by Eckart and Young
        left = torch.linalg.eigvalsh(unit.T @ unit)[:-keep]
        assert error == pytest.approx(float(left.norm()), rel=1e-3, abs=1e-4)


def test_half_precision_and_broken_absent_rows_are_read_rightly():
    each = modality(width=4)
    broken = each.values.half().masked_fill(~each.present.unsqueeze(1), torch.nan)
    found = principal(Modality("text", broken, each.present), N, 8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, principal(each, N, 8), rtol=1e-3, atol=1e-3)
