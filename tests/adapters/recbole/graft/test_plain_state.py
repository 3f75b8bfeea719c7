"""What objects carry besides their ``state_dict``, packed so that reading it back runs nothing."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recplug.adapters.recbole.compat.plain_values import NotPlain, packed, unpacked
from recplug.adapters.recbole.graft.plain_state import Carried

SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
PLAIN = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@given(PLAIN)
def test_plain_values_come_back(value):
    assert unpacked(through_a_file(packed(value))) == value


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "uint32", "bool"])
def test_arrays_come_back(dtype):
    array = (np.arange(12).reshape(3, 4) % 2).astype(dtype)[:, ::2]
    found = unpacked(through_a_file(packed({"a": [array]})))["a"][0]
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_numbers_of_numpy_become_pythons():
    assert through_a_file(packed((np.float64(0.1), np.int32(3), np.True_))) == (0.1, 3, True)


def test_a_generator_goes_on_where_it_was():
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    stored = through_a_file(packed(generator))
    assert torch.equal(torch.rand(4, generator=unpacked(stored)), torch.rand(4, generator=generator))


@pytest.mark.parametrize(
    "value",
    [
        object(),
        print,
        b"bytes",
        [object()],
        np.array([object()]),
        {("a", 1): 2},
        torch.eye(2).to_sparse(),
        torch.Size([1]),
    ],
    ids=["object", "function", "bytes", "within a list", "array of objects", "other keys", "sparse", "subclass"],
)
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(NotPlain):
        packed(value)


class Counting(nn.Module):
    """Everything that an augmentation may keep between two epochs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("unkept", torch.zeros(2), persistent=False)
        self.count, self.told, self.constant, self.missing = 0, {"epochs": [1]}, [64, 32], None
        self.table, self.same = torch.zeros(3), torch.ones(3)
        self.array = np.zeros(3)
        self.draws = torch.Generator().manual_seed(1)
        self.function, self.restore_users = print, None

    def work(self):
        with torch.no_grad():
            self.weight += 1
        self.kept += 1
        self.unkept += 2
        self.count += 3
        self.told["epochs"].append(2)
        self.table[1] = 5
        self.missing = torch.full((2,), 7.0)
        self.array[2] = 4
        self.new = True
        self.restore_users = torch.ones(9)
        torch.rand(3, generator=self.draws)


class Owner:
    def __init__(self):
        self.steps, self.other = 0, nn.Sequential(Counting(), nn.Linear(1, 1))


def test_what_has_changed_is_carried_over_and_nothing_else():
    one, two = Owner(), Owner()
    before, after = Carried(one.other, owner=one), Carried(two.other, owner=two)
    assert before.read() == {}
    one.other[0].work()
    one.steps = 4
    stored = through_a_file(before.read())
    changed = {"unkept", "count", "told", "table", "missing", "array", "new", "draws"}
    assert set(stored) == {"owner:steps", *(f"model.0:{name}" for name in changed)}
    after.write(stored)
    module, wanted = two.other[0], one.other[0]
    assert two.steps == 4
    assert (module.count, module.told, module.new) == (3, {"epochs": [1, 2]}, True)
    assert module.unkept.tolist() == [2, 2]
    assert "unkept" in dict(module.named_buffers()), "still a buffer"
    assert module.table.tolist() == [0, 5, 0]
    assert module.missing.tolist() == [7, 7]
    assert module.array.tolist() == [0, 0, 4]
    assert torch.equal(torch.rand(3, generator=module.draws), torch.rand(3, generator=wanted.draws))
    assert module.restore_users is None, "an evaluation's own"
    assert module.weight.tolist() == module.kept.tolist() == [0, 0], "that is the state_dict's"


def test_another_tensor_in_the_place_of_one_counts_as_changed():
    module = Counting()
    carried = Carried(module)
    for _ in range(3):  # a new tensor may get the old one's memory
        module.table = torch.zeros(3)
    assert set(carried.read()) == {"model:table"}
