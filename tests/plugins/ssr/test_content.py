"""Bands of frozen content."""

import pytest
import torch

from recplug.plugins.ssr.content import LENGTH, FrozenContent
from recplug.plugins.ssr.decomposition import Decomposition


def bands_of(graphs, bands=3, engine="spectral"):
    graph = graphs.single(graphs.bipartite(18, 12, 0.3))
    decomposition = Decomposition(graph=graph, split=18, bands=bands, engine=engine, order=6)
    signals = {"image": torch.randn(30, 3), "text": torch.randn(30, 5)}
    module = FrozenContent(signals=signals, present=torch.ones(30, 2) > 0, width=4)
    module.refresh(decomposition)
    return decomposition, module


@pytest.mark.parametrize("engine", ["spectral", "polynomial"])
@pytest.mark.parametrize("bands", [1, 3])
def test_bands_of_a_projection_are_the_projection_of_the_bands(graphs, engine, bands):
    decomposition, module = bands_of(graphs, bands, engine)
    found = module.bands(None)
    assert found.shape == (30, bands, 2, 4)
    for index, (signal, linear) in enumerate(zip(module.signals(), module.project, strict=True)):
        torch.testing.assert_close(found[:, :, index], decomposition(linear(signal)), rtol=1e-4, atol=1e-5)
    rows = torch.tensor([5, 29, 5, 0])
    torch.testing.assert_close(module.bands(rows), found[rows])
    for asked in (None, rows):
        torch.testing.assert_close(module(asked), module.bands(asked).sum(dim=1), rtol=1e-4, atol=1e-5)


def test_bands_follow_the_edges_when_they_are_refreshed(graphs):
    decomposition, module = bands_of(graphs)
    before = module.bands(None)
    decomposition.edges.copy_(torch.tensor([0.2, 0.5]))
    assert torch.equal(module.bands(None), before)
    module.refresh(decomposition)
    assert not torch.allclose(module.bands(None), before)
    torch.testing.assert_close(module.bands(None).sum(dim=1), before.sum(dim=1), rtol=1e-4, atol=1e-5)


def test_a_projected_unit_vector_has_the_documented_length():
    signals = {"text": torch.eye(200)}
    module = FrozenContent(signals=signals, present=torch.ones(200, 1) > 0, width=64)
    lengths = module(None)[:, 0].detach().norm(dim=1)
    assert float(lengths.mean()) == pytest.approx(LENGTH, rel=0.05)
    first = module.project[0].weight.clone()
    module.reset_parameters()
    assert not torch.equal(first, module.project[0].weight)


def test_only_projections_are_trained_and_saved(graphs):
    _, module = bands_of(graphs)
    names = {"project.0.weight", "project.1.weight"}
    assert {name for name, _ in module.named_parameters()} == set(module.state_dict()) == names
    assert "modalities=['image', 'text']" in repr(module)
