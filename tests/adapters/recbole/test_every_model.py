"""What works on one model works on all: MAGNET and MICRec, as they come, on every model with an item table."""

import pytest
import torch

from recplug.adapters.recbole.graft.hosts import HOSTS
from recplug.plugins import get

MODELS = [name for name, host in HOSTS.items() if host.table and host.status != "refused"]
LEARNS = {"magnet": "gamma", "micrec": "gate"}  # what scales the plugin's part: with a gradient, the host reads it


def losses(model, batch):
    torch.manual_seed(1)
    found = model.train().calculate_loss(batch)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("plugin", LEARNS)
@pytest.mark.parametrize("name", MODELS)
def test_it_trains_and_is_off_at_its_identity(name, plugin, build, batch_of):
    _, model, train, *_ = build(name, plugin, {})
    sum(part.sum() for part in losses(model, batch_of(train))).backward()
    scale = model.recplug.augmentations()[plugin].get_parameter(LEARNS[plugin])
    assert scale.grad.abs().sum() > 0
    found = []
    for plugins, settings in ((plugin, {plugin: dict(get(plugin).identity)}), ("", None)):
        # Some hosts draw from NumPy in a step, which building seeds.
        _, other, train, *_ = build(name, plugins, settings, trim_padding=False, fast_propagation=False)
        found.append(losses(other, batch_of(train)))
    for mine, bare in zip(*found, strict=True):
        assert torch.equal(mine, bare)
