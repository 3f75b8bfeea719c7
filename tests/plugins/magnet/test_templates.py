import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recplug.plugins.magnet.experts import KINDS, plain, templates

SOURCES = ("behaviour", "image", "text", "audio")
share = st.floats(0, 1)


def made(m, alpha=0.6, beta=0.2, delta=0.5, epsilon=0.1):
    return templates(SOURCES[:m], alpha=alpha, beta=beta, delta=delta, epsilon=epsilon)


def row(found, name):
    return found.weights[found.names.index(name)].tolist()


def test_table_3_of_the_paper():
    found = made(3)
    assert found.n_experts == 9
    expected = {
        "behaviour dominant": [0.8, 0.1, 0.1],
        "image dominant": [0.1, 0.8, 0.1],
        "text dominant": [0.1, 0.1, 0.8],
        "behaviour balanced": [0.3667, 0.3167, 0.3167],
        "image balanced": [0.3167, 0.3667, 0.3167],
        "text balanced": [0.3167, 0.3167, 0.3667],
        "behaviour complementary": [0.1, 0.45, 0.45],
        "image complementary": [0.45, 0.1, 0.45],
        "text complementary": [0.45, 0.45, 0.1],
    }
    assert set(found.names) == set(expected)
    for name, weights in expected.items():
        assert row(found, name) == pytest.approx(weights, abs=1e-4)
    assert [found.names[i].split()[0] for i in range(9)] == [SOURCES[a] for a in found.anchors.tolist()]


def test_delta_splits_auxiliaries_in_the_order_of_sources():
    found = made(3, delta=0.8)
    assert row(found, "behaviour complementary") == pytest.approx([0.1, 0.72, 0.18])
    assert row(found, "image complementary") == pytest.approx([0.72, 0.1, 0.18])  # behaviour comes first
    assert row(found, "text complementary") == pytest.approx([0.72, 0.18, 0.1])
    assert row(made(4, delta=0.5), "image complementary") == pytest.approx([0.45, 0.1, 0.225, 0.225])


@given(st.sampled_from([2, 3, 4]), share, share, share, share)
def test_every_mix_is_one(m, alpha, beta, delta, epsilon):
    weights = made(m, alpha, beta, delta, epsilon).weights
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(dim=1), torch.ones(len(weights)), atol=1e-5)


@pytest.mark.parametrize("m", [3, 4])
def test_balanced_at_one_is_dominant_at_zero(m):
    balanced, dominant = made(m, beta=1.0), made(m, alpha=0.0)
    for source in SOURCES[:m]:
        assert row(balanced, f"{source} balanced") == pytest.approx(row(dominant, f"{source} dominant"), abs=1e-6)


@pytest.mark.parametrize(("m", "experts"), [(2, 5), (3, 9), (4, 12)])
def test_numbers_of_experts(m, experts):
    found = made(m)
    assert found.n_experts == experts == len(found.weights) == len(found.anchors)
    if m == 2:
        assert row(found, KINDS[1]) == pytest.approx([0.5, 0.5])
        assert len({tuple(w) for w in found.weights.tolist()}) == 5


def test_twins_are_named(caplog):
    with caplog.at_level(logging.WARNING, "recplug"):
        made(3)
        assert not caplog.records
        made(3, delta=0.8)
    assert "behaviour dominant and image complementary" in caplog.text


def test_controls_are_uniform():
    assert plain(SOURCES[:3], 1).names == ("single",)
    assert torch.allclose(plain(SOURCES[:3], 9).weights, torch.full((9, 3), 1 / 3))
