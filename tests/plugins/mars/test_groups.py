"""Group means against dense graphs made by loops; their identities; size, dtype and device of what they make."""

import copy
import ctypes
import itertools
import pickle
import platform
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.mars import groups as groups_module
from recplug.plugins.mars.groups import Groups

VARIANTS = [
    pytest.param({"other": other, "strength": strength}, id=f"{other}-{strength}")
    for other, strength in itertools.product(["isolate", "group"], ["mean", "root"])
]
SIZES = (4, 3, 6)


def profiles_of(pairs, *, n_items, sizes=SIZES, other=None):
    """Profiles of pairs (item, value numbered through all factors); ``other`` is a place in the first factor."""
    factors = tuple(
        Factor(f"factor {k}", tuple(f"value {v}" for v in range(size)), other=other if k == 0 else None)
        for k, size in enumerate(sizes)
    )
    table = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2)
    return FactorProfiles(factors, table[:, 0].contiguous(), table[:, 1].contiguous(), n_items)


def random_profiles(*, n_items=17, seed=0, most=3, sizes=SIZES, other=1):
    """0 to ``most`` values an item and factor; the last factor has an empty value and a singleton."""
    generator = torch.Generator().manual_seed(seed)
    pairs, start = set(), 0
    for k, size in enumerate(sizes):
        drawn = size - 2 if k == len(sizes) - 1 else size
        for item in range(1, n_items):
            count = int(torch.randint(0, most + 1, (), generator=generator))
            pairs |= {(item, start + int(v)) for v in torch.randperm(drawn, generator=generator)[:count]}
        start += size
    first = start - sizes[-1]
    pairs = {pair for pair in pairs if pair[0] != 3 or pair[1] < first} | {
        (3, start - 2)
    }  # its only value: a singleton
    return profiles_of(pairs, n_items=n_items, sizes=sizes, other=other)


def dense(profiles, k, n_rows, *, other, strength="mean"):
    """Factor k's matrix ``[n_rows, n_rows]`` in float64, entry by entry as its formula reads."""
    low, high = profiles.offsets[k], profiles.offsets[k + 1]
    outsider = low + profiles.factors[k].other if other == "isolate" and profiles.factors[k].other is not None else None
    held = {i: set() for i in range(n_rows)}
    for item, value in zip(profiles.items.tolist(), profiles.values.tolist(), strict=True):
        if low <= value < high and value != outsider:
            held[item].add(value)
    matrix = torch.zeros(n_rows, n_rows, dtype=torch.float64)
    for i in range(n_rows):
        for value in held[i]:
            group = [j for j in range(n_rows) if value in held[j]]
            loud = len(group) ** 0.5 if strength == "root" else 1.0
            for j in group:
                matrix[i, j] += loud / len(group) / len(held[i])
    return matrix


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def branches(groups, table):
    """``[n_rows, K, d]``: every factor's rows apart."""
    k = groups.available.shape[1]
    one = torch.eye(k, dtype=table.dtype)
    return torch.stack([groups.mix(table, one[j].expand(groups.n_rows, k)) for j in range(k)], 1)


def operators(groups):
    """``[K, n_rows, n_rows]``: what the groups do to the identity."""
    return branches(groups, groups.heard(torch.eye(groups.n_rows, dtype=torch.float64))).transpose(0, 1)


# -- against the dense definition


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_are_their_dense_definition(variant, most):
    profiles, n_rows = random_profiles(most=most, seed=most), 19  # two rows past the items
    groups = Groups(profiles, n_rows=n_rows, **variant)
    matrices = torch.stack([dense(profiles, k, n_rows, **variant) for k in range(3)])  # [K, n_rows, n_rows]
    torch.testing.assert_close(operators(groups), matrices, rtol=0, atol=1e-12)
    assert torch.equal(groups.available, (matrices > 0).any(2).T)

    x, weights = draw(n_rows, 5).requires_grad_(), draw(n_rows, 3, seed=1).requires_grad_()
    rows = torch.tensor([4, 0, 4, 16, 18, 2, 9])
    for chosen in (None, rows):
        at = slice(None) if chosen is None else chosen
        found = groups.mix(groups.heard(x), weights[at], chosen)
        truth = torch.einsum("ik,kij,jd->id", weights[at], matrices[:, at], x)
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)
        upstream = draw(*found.shape, seed=2)
        gradients = [torch.autograd.grad(y, (x, weights), upstream, retain_graph=True) for y in (found, truth)]
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_items", [12, 60])
def test_a_single_valued_factor_is_one_symmetrically_normalised_propagation(n_items):
    profiles = random_profiles(most=1, n_items=n_items, other=None)
    labels = profiles.labels()
    groups = Groups(profiles, n_rows=n_items)
    for k, operator in enumerate(operators(groups)):
        edges = (labels[:, k, None] == labels[None, :, k]) & (labels[:, k, None] >= 0)  # eq. 3
        scale = edges.double().sum(1).clamp(min=1).rsqrt()
        torch.testing.assert_close(operator, scale[:, None] * edges.double() * scale, rtol=0, atol=1e-14)  # eq. 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_differences(variant):
    groups = Groups(random_profiles(n_items=9, sizes=(3, 4)), n_rows=9, **variant)
    rows = torch.tensor([1, 5, 5, 0, 8, 3])

    def fused(x, table, weights, whole):
        return groups.mix(groups.heard(x), weights, rows), groups.mix(groups.heard(x), whole), groups.mix(table, whole)

    inputs = [draw(*shape, seed=s).requires_grad_() for s, shape in enumerate([(9, 2), (7, 2), (6, 2), (9, 2)])]
    assert torch.autograd.gradcheck(fused, inputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_the_dense_one_to_a_millionth(variant):
    profiles = random_profiles(n_items=160, seed=5, sizes=(5, 9, 12))
    x, weights = draw(160, 16), draw(160, 3, seed=1).softmax(1)
    matrices = torch.stack([dense(profiles, k, 160, **variant) for k in range(3)])
    truth = torch.einsum("ik,kij,jd->id", weights, matrices, x)
    groups = Groups(profiles, n_rows=160, **variant)
    found = groups.mix(groups.heard(x.float()), weights.float())
    assert found.dtype == torch.float32
    assert (found.double() - truth).norm() < 1e-6 * truth.norm()


def test_a_sum_over_a_large_group_keeps_its_digits():
    n = 300_000
    profiles = profiles_of([], n_items=n, sizes=(2,))
    items = torch.arange(1, n)
    profiles = FactorProfiles(profiles.factors, items, torch.zeros_like(items), n)
    x = torch.rand(n, 1, generator=torch.Generator().manual_seed(0))
    truth = x[1:].double().mean()
    assert abs(Groups(profiles, n_rows=n).means(x)[0].double() - truth) < 1e-6 * truth


# -- identities


@pytest.mark.parametrize("seed", range(3))
def test_single_valued_propagation_is_an_idempotent_projection(seed):
    profiles = random_profiles(most=1, seed=seed)
    groups = Groups(profiles, n_rows=17, other="group")
    for k, operator in enumerate(operators(groups)):
        held = profiles.values[profiles.factor_of[profiles.values] == k].unique()
        torch.testing.assert_close(operator @ operator, operator)
        torch.testing.assert_close(operator.T, operator)
        assert torch.linalg.matrix_rank(operator) == len(held) == round(float(operator.trace()))


def test_rows_of_means_add_up_to_one():
    groups = Groups(random_profiles(), n_rows=19)
    sums = operators(groups).sum(2).T  # [n_rows, K]
    torch.testing.assert_close(sums, groups.available.double())


def test_depth_changes_nothing():
    groups = Groups(random_profiles(most=1, n_items=60), n_rows=60)
    one_factor = torch.tensor([1.0, 0, 0], dtype=torch.float64).expand(60, 3)
    one = groups.mix(groups.means(draw(60, 4)), one_factor)
    torch.testing.assert_close(groups.mix(groups.means(one), one_factor), one, rtol=0, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_renumbering_the_items_renumbers_the_result(variant):
    profiles = random_profiles()
    new = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(16)])  # row 0 stays
    pairs = zip(new[profiles.items].tolist(), profiles.values.tolist(), strict=True)
    renumbered = profiles_of(pairs, n_items=17, other=1)
    x, weights = draw(17, 4), draw(17, 3, seed=1)
    moved_x, moved_weights = torch.empty_like(x), torch.empty_like(weights)
    moved_x[new], moved_weights[new] = x, weights
    before, after = Groups(profiles, n_rows=17, **variant), Groups(renumbered, n_rows=17, **variant)
    found = after.mix(after.heard(moved_x), moved_weights)[new]
    torch.testing.assert_close(found, before.mix(before.heard(x), weights))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunks_change_nothing(monkeypatch, chunk):
    groups = Groups(random_profiles(n_items=60), n_rows=60)
    rows = torch.randint(60, (40,), generator=torch.Generator().manual_seed(0))
    found = []
    for size in (chunk, 10**6):
        monkeypatch.setattr(groups_module, "CHUNK", size)
        x, weights = draw(60, 4).requires_grad_(), draw(60, 3, seed=1).requires_grad_()
        means = groups.means(x)
        (groups.mix(means, weights).square().sum() + groups.mix(means, weights[rows], rows).square().sum()).backward()
        found.append((means.detach(), x.grad, weights.grad))
    torch.testing.assert_close(*found)


def test_others_stand_alone_unless_grouped():
    pairs = [(1, 1), (2, 1), (3, 0), (4, 0), (5, 0), (5, 1)]
    profiles = profiles_of(pairs, n_items=6, sizes=(2,), other=1)
    assert Groups(profiles, n_rows=6).available.squeeze(1).tolist() == [False, False, False, True, True, True]
    grouped = Groups(profiles, n_rows=6, other="group")
    assert grouped.available.squeeze(1).tolist() == [False, True, True, True, True, True]
    assert operators(grouped)[0, 1, 2] == pytest.approx(1 / 3)
    assert operators(Groups(profiles, n_rows=6))[0, 5, 3] == pytest.approx(1 / 3)  # its `other` is not counted


def test_padding_and_rows_past_the_items_neither_give_nor_take():
    groups = Groups(random_profiles(), n_rows=20)
    x = draw(20, 4)
    x[[0, 17, 18, 19]] = float("nan")
    x.requires_grad_()
    found = groups.mix(groups.means(x), torch.ones(20, 3, dtype=torch.float64))
    found.square().sum().backward()
    for result in (found, x.grad):
        assert not result[[0, 17, 18, 19]].any()
        assert result.isfinite().all()
        assert result[1:17].any(1).sum() >= 14


def test_a_factor_without_any_value_and_profiles_without_any():
    empty = Groups(profiles_of([], n_items=4), n_rows=5)
    x = draw(5, 3).requires_grad_()
    weights = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    found = empty.mix(empty.means(x), weights) + empty.mix(empty.means(x), weights, torch.arange(5))
    found.sum().backward()
    for result in (empty.available, empty.means(x), found, x.grad, weights.grad):
        assert not result.any()
    half = Groups(profiles_of([(1, 0), (2, 0)], n_items=4), n_rows=4)
    assert half.available.tolist() == [[False] * 3, [True, False, False], [True, False, False], [False] * 3]


# -- dtypes, devices, sizes


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[-1]])
def test_autocast_computes_in_float32(variant):
    groups = Groups(random_profiles(), n_rows=17, **variant)
    x = draw(17, 8).bfloat16().requires_grad_()
    weights = draw(17, 3, seed=1).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        means = groups.means(x)
        found = groups.mix(means, weights)
    assert means.dtype == found.dtype == torch.float32
    assert torch.equal(means, groups.means(x.float()))
    assert torch.equal(found, groups.mix(means, weights.float()))
    found.sum().backward()
    assert x.grad.dtype == weights.grad.dtype == torch.bfloat16


class Made(TorchDispatchMode):
    """Every tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.largest, self.devices = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                self.devices.add(tensor.device.type)
        return result


def train(groups, x, weights, rows):
    """Everything forward and backward, all rows and some."""
    table = groups.heard(x)
    whole, some = groups.mix(table, weights), groups.mix(table, weights[rows], rows)
    free = groups.mix(table.detach().requires_grad_(), weights[rows], rows)
    (whole.sum() + some.sum() + free.sum()).backward()


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_tensor_of_items_by_factors_by_width_is_made(variant):
    n, k, d = 500, 8, 32
    profiles = random_profiles(n_items=n, sizes=(5,) * k, most=2)
    groups = Groups(profiles, n_rows=n, **variant)
    x, weights = draw(n, d).requires_grad_(), draw(n, k, seed=1).requires_grad_()
    with Made() as made:
        train(groups, x, weights, torch.arange(n))
    assert n * d <= made.largest <= n * max(d, 2 * k)
    with Made() as made:
        x[profiles.items].sum().backward()  # what it must not do is seen
    assert made.largest > n * k * d / 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_made_elsewhere_nor_read_by_the_host(variant):
    """Meta tensors have no data: whoever reads a value or mixes in a CPU tensor fails."""
    groups = Groups(random_profiles(), n_rows=17, **variant)
    away = copy.deepcopy(groups).to("meta")
    x, weights = (torch.empty(17, w, device="meta", requires_grad=True) for w in (4, 3))
    with Made() as made:
        train(away, x, weights, torch.empty(6, dtype=torch.int64, device="meta"))
    assert made.devices == {"meta"}
    assert (x.grad.shape, weights.grad.shape) == (x.shape, weights.shape)
    x, weights, rows = draw(17, 4).requires_grad_(), draw(17, 3).requires_grad_(), torch.tensor([1, 4, 4])
    with torch.device("meta"), Made() as made:  # the default device is not asked either
        train(groups, x, weights, rows)
    assert made.devices == {"cpu"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="peak memory is read as Linux tells it")
def test_memory_stays_near_that_of_the_rows():
    n, k, d = 200_000, 10, 32  # [n, k, d] would be 256 MB; one factor's graph 40 GB of edges, or 160 GB dense
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(20, (n - 1, k), generator=generator) + 20 * torch.arange(k)
    items = torch.arange(1, n).repeat_interleave(k)
    groups = Groups(
        FactorProfiles(profiles_of([], n_items=n, sizes=(20,) * k).factors, items, values.view(-1), n), n_rows=n
    )
    x, weights = draw(n, d, dtype=torch.float32), draw(n, k, dtype=torch.float32)
    for leaf in (x, weights):
        leaf.requires_grad_()

    def status(key):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return 1024 * int(line.split()[1])

    ctypes.CDLL(None).malloc_trim(0)  # else what is made fits into what was freed
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    groups.mix(groups.means(x), weights).sum().backward()
    rows = 4 * n * d  # 26 MB: the result, its gradient and x's are three
    assert 2 * rows < status("VmHWM") - before < 6 * rows


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[-1]])
def test_training_after_inference_mode(variant):
    groups = Groups(random_profiles(), n_rows=17, **variant)
    x, weights = draw(17, 4).requires_grad_(), draw(17, 3).requires_grad_()
    with torch.inference_mode():
        before = groups.mix(groups.heard(x), weights)
    train(groups, x, weights, torch.tensor([1, 2]))
    assert torch.equal(before, groups.mix(groups.heard(x), weights))


# -- the object


def test_copies_and_pickles_equal_it_and_nothing_is_saved():
    groups = Groups(random_profiles(), n_rows=17)
    x, weights = draw(17, 4), draw(17, 3)
    truth = groups.mix(groups.means(x), weights)
    for again in (copy.deepcopy(groups), pickle.loads(pickle.dumps(groups))):
        assert torch.equal(again.mix(again.means(x), weights), truth)
    assert not groups.state_dict()
    assert not list(groups.buffers())


def test_a_second_derivative_is_refused():
    groups = Groups(random_profiles(), n_rows=17)
    x, weights = draw(17, 4).requires_grad_(), draw(17, 3).requires_grad_()
    found = groups.mix(groups.means(x), weights).square().sum()
    (gradient,) = torch.autograd.grad(found, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_wrong_shapes_are_refused():
    groups = Groups(random_profiles(), n_rows=17)
    means, weights, rows = groups.means(draw(17, 4)), draw(17, 3), torch.tensor([1, 2])
    with pytest.raises(RecplugError, match="16 rows are fewer than the profiles' 17 items"):
        Groups(random_profiles(), n_rows=16)
    with pytest.raises(RecplugError, match=r"\[17, d\] rows, not \[16, 4\]"):
        groups.means(draw(16, 4))
    with pytest.raises(RecplugError, match=r"table \[13, d\] and weights \[2, 3\]"):
        groups.mix(means, weights, rows)
    with pytest.raises(RecplugError, match=r"not \[12, 4\]"):
        groups.mix(means[1:], weights[rows], rows)
