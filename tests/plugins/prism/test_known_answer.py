"""On planted data every expert learns its part, measured with stand-ins that training never saw."""

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.prism.diagnostics import response_matrix
from recplug.plugins.settings import parse_settings
from recplug.plugins.testing import ToyHost, ToySequence, planted_modalities

WIDTH = 32


def responses(seed, epochs=10, **given):
    """The response matrix ``[4, 2]`` (expert, modality that is kept) after training ToySequence with PRISM."""
    data, plugin = planted_modalities(seed=seed), get("prism")
    settings = parse_settings("prism", plugin.settings, given)
    assert settings.mask == "matched"
    torch.manual_seed(seed)
    context = data.context(width=WIDTH, seed=seed)
    prism = plugin.build(settings, context)
    host = ToyHost(ToySequence(n_items=data.n_items, width=WIDTH), {"prism": prism}, context)
    optimiser = torch.optim.Adam(host.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in data.batches(256, generator=generator):
            optimiser.zero_grad()
            host.train().loss(batch).backward()
            optimiser.step()
    items = torch.arange(1, data.n_items)
    with torch.no_grad():
        return response_matrix(prism.eval(), prism.content(items), prism.content.complete(items), "shuffle")


def plays_its_part(matrix):
    """Which experts answer as their loss asks: by name, whether."""
    image, text, synergy, redundancy = matrix.tolist()
    return {
        "unique image": image[0] > 0.6 and image[0] - image[1] > 0.3,
        "unique text": text[1] > 0.6 and text[1] - text[0] > 0.3,
        "synergy": max(synergy) < 0.2 and max(synergy) < min(redundancy) - 0.5,
        "redundancy": min(redundancy) > 0.7,
    }


ALL = {"unique image", "unique text", "synergy", "redundancy"}


def test_experts_play_their_parts():
    assert {name for name, right in plays_its_part(responses(0)).items() if right} == ALL


def test_without_the_losses_they_do_not():
    """The control: what is asserted above is the losses' doing."""
    off = {"lambda_unique": 0.0, "lambda_synergy": 0.0, "lambda_redundancy": 0.0}
    playing = plays_its_part(responses(0, **off))
    assert not playing["unique image"]
    assert not playing["unique text"]
    assert not playing["synergy"]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["item", "prediction"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_experts_play_their_parts_whatever_the_seed(seed, level):
    matrix = responses(seed, loss_level=level)
    assert {name for name, right in plays_its_part(matrix).items() if right} == ALL, matrix
