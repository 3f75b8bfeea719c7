"""Constants that move with their module and are nothing else of it."""

import copy
import pickle

import pytest
import torch

from recplug.plugins.nn.frozen import Frozen


class Lookup(Frozen):
    def __init__(self):
        super().__init__()
        self.freeze("table", torch.arange(6.0).reshape(3, 2))
        self.freeze("place", torch.tensor([2, 0]))
        self.project = torch.nn.Linear(2, 2, bias=False)

    def forward(self):
        return self.project(self.table[self.place])


class Outer(torch.nn.Module):
    """Modules of modules move what they hold, too."""

    def __init__(self):
        super().__init__()
        self.inner = Lookup()


def test_they_are_neither_saved_nor_broadcast_nor_trained():
    module = Outer()
    assert list(module.state_dict()) == ["inner.project.weight"]
    assert not list(module.buffers())
    assert len(list(module.parameters())) == 1
    module.load_state_dict(Outer().state_dict())


def test_no_gradient_reaches_what_they_were_made_from():
    module, source = Frozen(), torch.ones(3, requires_grad=True)
    module.freeze("table", 2 * source)
    assert not module.table.requires_grad


@pytest.mark.parametrize(
    ("move", "table", "place"),
    [
        (lambda m: m.double(), torch.float64, torch.int64),
        (lambda m: m.to(torch.bfloat16), torch.bfloat16, torch.int64),
        (lambda m: m.half().float(), torch.float32, torch.int64),
    ],
    ids=["double", "bfloat16", "half-float"],
)
def test_a_precision_is_taken_by_what_has_one(move, table, place):
    module = Outer()
    truth = module.inner.table
    assert move(module) is module
    assert (module.inner.table.dtype, module.inner.place.dtype) == (table, place)
    assert torch.equal(module.inner.table.float(), truth)
    assert module.inner().dtype == table


def test_they_follow_to_a_device():
    module = Outer().to("meta")
    assert module.inner.table.device.type == module.inner.place.device.type == "meta"
    assert module.inner().device.type == "meta"


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_has_its_own_and_moves_them(twin):
    module = Lookup()
    other = twin(module)
    assert torch.equal(other(), module())
    other.double()
    other.table.zero_()
    assert other.table.dtype == torch.float64
    assert torch.equal(module.table, torch.arange(6.0).reshape(3, 2))


def test_autocast_leaves_them_as_they_are():
    module = Lookup()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module().dtype == torch.bfloat16
        assert module.table.dtype == torch.float32
