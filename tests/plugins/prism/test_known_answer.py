"""On planted data every expert learns its part, measured with stand-ins that training never saw."""

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.nn import Noise
from recplug.plugins.prism.diagnostics import response_matrix
from recplug.plugins.prism.losses import stand_ins
from recplug.plugins.settings import parse_settings
from recplug.plugins.testing import ToyHost, ToySequence, planted_modalities

WIDTH = 32


def trained(seed, epochs=10, **given):
    """PRISM after training ToySequence on the planted data."""
    data, plugin = planted_modalities(seed=seed), get("prism")
    settings = parse_settings("prism", plugin.settings, given)
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
    return prism.eval()


def plays_its_part(prism):
    """Which experts answer as their losses ask, by name; measured by shuffling, training used other stand-ins."""
    assert prism.settings.mask == "matched"
    items = torch.arange(1, len(prism.content.present))
    with torch.no_grad():
        p, valid = prism.content(items), prism.content.complete(items)
        matrix = response_matrix(prism.experts, p, stand_ins(p, "shuffle", Noise(0), valid), valid)
    image, text, synergy, redundancy = matrix.tolist()
    rank = prism.diagnostics()["spread"].values.tolist()
    answers = {
        "unique image": image[0] > 0.6 and image[0] - image[1] > 0.3,
        "unique text": text[1] > 0.6 and text[1] - text[0] > 0.3,
        "synergy": all(s < r - 0.1 for s, r in zip(synergy, redundancy, strict=True)),
        "redundancy": min(redundancy) > 0.55,
    }
    # A constant would satisfy the redundancy loss, and one vector with two signs the synergy loss.
    alive = dict(zip(answers, (r > 3 for r in rank), strict=True))
    return {name for name in answers if answers[name] and alive[name]}, matrix


ALL = {"unique image", "unique text", "synergy", "redundancy"}


def test_experts_play_their_parts():
    playing, matrix = plays_its_part(trained(0))
    assert playing == ALL
    assert (matrix[3] - matrix[2]).min() > 0.4, "synergy well below redundancy"
    assert matrix[3].min() > 0.8


def test_without_the_losses_they_do_not():
    """The control: what is asserted above is the losses' doing."""
    off = {"lambda_unique": 0.0, "lambda_synergy": 0.0, "lambda_redundancy": 0.0}
    playing, _ = plays_its_part(trained(0, **off))
    assert not playing & {"unique image", "unique text", "synergy"}


@pytest.mark.slow
@pytest.mark.parametrize("level", ["item", "prediction"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_experts_play_their_parts_whatever_the_seed(seed, level):
    playing, matrix = plays_its_part(trained(seed, epochs=20, loss_level=level))
    assert playing == ALL, matrix
