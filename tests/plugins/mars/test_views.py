"""Which views there are, and what they are, against loops."""

import itertools
import logging

import pytest
import torch

from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.mars.views import branches_by_source, view_distance, views
from recplug.plugins.testing.case import N_ITEMS


def profiles(*sources):
    factors = tuple(Factor(f"f{k}", ("x", "y"), source=source) for k, source in enumerate(sources))
    items = torch.arange(1, N_ITEMS).repeat_interleave(len(factors))
    values = items % 2 + 2 * torch.arange(len(factors)).repeat(N_ITEMS - 1)
    return FactorProfiles(factors, items, values, N_ITEMS)


def seen(toy, ids):
    """The views of all items, their masks, H and the gate's weights."""
    fusion, rows = toy.mars.fusion, torch.arange(len(ids))
    pooled = fusion.pool(ids)
    added, weights = fusion(pooled, rows)
    found, valid = views(toy.mars.views, fusion, toy.mars.sources, pooled, rows, weights)
    return found, valid, added


def ids_of(toy):
    rows = len(toy.mars.fusion.available)
    return torch.randn(rows, toy.mars.width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("sources", "values", "expected"),
    [
        (("text", "image"), {}, "by_source"),
        (("catalogue", "image", "joint"), {"x": "ids_content"}, "by_source"),
        (("text", "catalogue"), {"x": "ids_content"}, "additive"),
        (("joint", "cluster"), {}, "off"),
        (("text", "text"), {}, "off"),
        (("image",), {"x": "ids_content", "structure": "none"}, "additive"),
        (("image",), {"x": "ids_content", "pool": "none"}, "additive"),
        (("image",), {"x": "ids_content", "pool": "free", "structure": "none"}, "off"),
        (("text", "image"), {"pool": "none"}, "off"),
        (("text", "image"), {"views": "off"}, "off"),
        (("text", "image"), {"lambda_view": 0.0}, "off"),
        (("text",), {"x": "ids_content", "h": "x"}, "additive"),
    ],
    ids=str,
)
def test_the_views_are_what_the_data_allow(mars, sources, values, expected):
    assert mars.make(factors=profiles(*sources), **{"views": "auto", **values}).mars.views == expected


def test_a_view_loss_that_cannot_be_is_said_plainly(mars, caplog):
    with caplog.at_level(logging.INFO, "recplug"):
        mars.make(factors=profiles("text"))
    assert not caplog.records  # nobody asked for it
    with caplog.at_level(logging.INFO, "recplug"):
        mars.make(factors=profiles("text"), views="auto")
    assert "no view loss (eq. 12), lambda_view is idle" in caplog.text


@pytest.mark.parametrize(
    ("sources", "values", "said"),
    [
        (("text",), {"views": "by_source"}, "images"),
        (("text", "image"), {"views": "by_source", "pool": "none"}, "by_source"),
        (("text", "image"), {"views": "additive"}, "content"),
        (("text",), {"views": "additive", "x": "ids_content", "pool": "free", "structure": "none"}, "additive"),
    ],
    ids=str,
)
def test_views_that_are_impossible_are_refused(mars, sources, values, said):
    with pytest.raises(RecplugError, match=said):
        mars.make(factors=profiles(*sources), **values)


@pytest.mark.parametrize("values", [{}, {"h": "x"}], ids=str)
@torch.no_grad()
def test_additive_views_add_up_to_h(mars, values):
    """In double precision: the parts are exact, not nearly so."""
    toy = mars.make(views="additive", x="ids_content", **values)
    toy.mars.double()
    ids = ids_of(toy).double()
    found, valid, _ = seen(toy, ids)
    truth = mars.slow(toy, ids)
    assert len(found) == 3
    total = torch.stack(list(found)).sum(dim=0)
    torch.testing.assert_close(total, truth.h, rtol=0, atol=1e-5)  # against the loop, whose content is in float64
    rows = torch.arange(len(ids))
    plain = toy.mars.fusion
    pooled = plain.pool(ids)
    blocks = plain.blocks(pooled, rows)
    for part, block in zip(found, blocks, strict=True):
        weights = plain(pooled, rows)[1]
        torch.testing.assert_close(part, plain.mean(block, weights, rows), rtol=0, atol=1e-13)
    for index, modality in enumerate(toy.case.modalities().values()):
        assert torch.equal(valid[index + 1], modality.present)
    assert valid[0].all()


@pytest.mark.parametrize("pool", ["group", "free"])
@pytest.mark.parametrize("host", ["graph-bpr", "mask-ce"])
@torch.no_grad()
def test_views_by_source_are_loops_over_their_factors(mars, host, pool):
    toy = mars.make(host, views="by_source", pool=pool)
    ids = ids_of(toy)
    found, valid, _ = seen(toy, ids)
    truth = mars.slow(toy, ids)
    chosen = [[0], [1, 3], [2]]  # structure; material from text and style from the catalogue; use from images
    for view, branches in enumerate(chosen):
        for item in range(len(ids)):
            _, have = mars.slow_branches(toy, truth.x, item)
            there = [k for k in branches if have[k]]
            assert bool(valid[view, item]) == bool(there)
            total = sum(float(truth.weights[item, k]) for k in there)
            expected = torch.zeros(toy.mars.width, dtype=torch.float64)
            for k in there:
                expected += truth.weights[item, k] / total * truth.branches[item, k]
            torch.testing.assert_close(found[view, item].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_distance_of_views_is_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(3, 7, 5, generator=generator)
    valid = torch.rand(3, 7, generator=generator) < 0.7
    once = torch.tensor([True, True, False, True, False, True, True])
    total = 0.0
    for item in range(7):
        for one, other in itertools.combinations(range(3), 2):
            if once[item] and valid[one, item] and valid[other, item]:
                total += float((given[one, item] - given[other, item]).square().sum())
    assert float(view_distance(given, valid, once)) == pytest.approx(total / int(once.sum()), rel=1e-5)


def test_sources_are_sorted_into_structure_text_and_images():
    found = branches_by_source(profiles("joint", "image", "catalogue", "text", "cluster"))
    assert found.int().tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]]
