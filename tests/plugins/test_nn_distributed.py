"""Numbers on which processes agree."""

import pytest
import torch
import torch.multiprocessing as mp

from recplug.plugins.nn import Adjacency, Noise
from recplug.plugins.nn.distributed import mean_over_ranks, ranks
from recplug.plugins.ssr.decomposition import Decomposition


def test_alone_a_mean_is_the_value_without_its_gradient():
    assert ranks() == 1
    value = torch.randn(3, requires_grad=True)
    found = mean_over_ranks(value)
    assert torch.equal(found, value)
    assert not found.requires_grad


def ring(n):
    places = torch.tensor([[i, (i + step) % n] for i in range(n) for step in (1, -1)]).T
    return Adjacency.of(places, torch.full((2 * n,), 0.5), (n, n), symmetric=True)


def _rank(rank, file, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    value = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64) * (rank + 1)
    mean = mean_over_ranks(value)
    # Each sees other vectors, as the backbone's dropout makes them, and its own edges would be others.
    bands = Decomposition(graph=ring(24), split=None, bands=3, engine="spectral")
    signal = torch.randn(24, 5, generator=torch.Generator().manual_seed(rank))
    signal = signal if rank else signal.cumsum(dim=0)
    own = bands.engine.estimate([signal / signal.abs().max()], 3)
    bands.observe([signal])
    results[rank] = value, mean, own, bands._estimated, bands.edges
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_same_mean_and_the_same_bands(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (str(tmp_path / "rendezvous"), results), nprocs=2)
        first, second = results[0], results[1]
    assert torch.equal(first[0], torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))  # what was given stays
    assert torch.equal(first[1], torch.tensor([1.5, 3.0, 6.0], dtype=torch.float64))
    assert torch.equal(first[1], second[1])
    assert not torch.allclose(first[2], second[2])
    torch.testing.assert_close(first[3].double(), (first[2] + second[2]).double() / 2)
    assert torch.equal(first[3], second[3])
    assert torch.equal(first[4], second[4])


def test_noise_begins_anew_at_another_seed():
    noise, other = Noise(1), Noise(2)
    noise.normal(torch.empty(3))
    noise.restart(2)
    assert torch.equal(noise.normal(torch.empty(5)), other.normal(torch.empty(5)))
