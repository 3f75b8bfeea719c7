"""Bands of frozen content."""

import pytest
import torch

from recplug.plugins.contract import Modality
from recplug.plugins.ssr.content import ContentBands
from recplug.plugins.ssr.decomposition import Decomposition

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


# -- bands


def bands_of(graphs, bands=3, engine="spectral"):
    graph = graphs.single(graphs.bipartite(18, 12, 0.3))
    decomposition = Decomposition(graph=graph, split=18, bands=bands, engine=engine, order=6)
    signals = {"image": torch.randn(30, 3), "text": torch.randn(30, 5)}
    module = ContentBands(signals=signals, present=torch.ones(30, 2) > 0, width=4, scale=0.5)
    module.refresh(decomposition)
    return decomposition, module


@pytest.mark.parametrize("engine", ["spectral", "polynomial"])
@pytest.mark.parametrize("bands", [1, 3])
def test_bands_of_a_projection_are_the_projection_of_the_bands(graphs, engine, bands):
    decomposition, module = bands_of(graphs, bands, engine)
    found = module(None)
    assert found.shape == (bands, 2, 30, 4)
    for index, (signal, linear) in enumerate(zip(module.signals(), module.project, strict=True)):
        torch.testing.assert_close(found[:, index], decomposition(linear(signal)).transpose(0, 1), rtol=1e-4, atol=1e-5)
    rows = torch.tensor([5, 29, 5, 0])
    torch.testing.assert_close(module(rows), found[:, :, rows])
    for asked in (None, rows):
        plain = module.plain(asked)  # [r, P-1, d]
        torch.testing.assert_close(plain, module(asked).sum(dim=0).transpose(0, 1), rtol=1e-4, atol=1e-5)


def test_bands_follow_the_edges_when_they_are_refreshed(graphs):
    decomposition, module = bands_of(graphs)
    before = module(None)
    decomposition.edges.copy_(torch.tensor([0.2, 0.5]))
    assert torch.equal(module(None), before)
    module.refresh(decomposition)
    assert not torch.allclose(module(None), before)
    torch.testing.assert_close(module(None).sum(dim=0), before.sum(dim=0), rtol=1e-4, atol=1e-5)


def test_a_projected_unit_vector_has_the_length_that_was_asked_for():
    signals = {"text": torch.eye(200)}
    module = ContentBands(signals=signals, present=torch.ones(200, 1) > 0, width=64, scale=0.3)
    lengths = module(None)[0, 0].detach().norm(dim=1)
    assert float(lengths.mean()) == pytest.approx(0.3, rel=0.05)
    first = module.project[0].weight.clone()
    module.reset_parameters()
    assert not torch.equal(first, module.project[0].weight)


def test_only_projections_are_trained_and_saved(graphs):
    _, module = bands_of(graphs)
    names = {"project.0.weight", "project.1.weight"}
    assert {name for name, _ in module.named_parameters()} == set(module.state_dict()) == names
    assert "modalities=['image', 'text']" in repr(module)
