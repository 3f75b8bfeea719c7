import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from recplug.plugins import Augmentation, Batch, Context, RecplugError
from recplug.plugins.chain import Chain
from recplug.plugins.table import ItemTable, UserTable, find_table

N, D = 12, 4
BATCH = Batch(positives=torch.tensor([7, 2]), sequence=torch.tensor([[3, 2], [2, 0]]), lengths=torch.tensor([2, 1]))


class Times(Augmentation):
    """Multiplies rows by a parameter, and counts the rows that it is asked for."""

    def __init__(self, factor=2.0, roles=("input", "candidate")):
        super().__init__()
        self.roles = frozenset(roles)
        self.factor = nn.Parameter(torch.tensor(factor))
        self.asked = []

    def items(self, rows, ids, *, role, sequence):
        self.asked.append((role, tuple(ids.shape)))
        return rows * self.factor


class Plus(Augmentation):
    def items(self, rows, ids, *, role, sequence):
        return rows + 3.0


class Penalty(Augmentation):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def losses(self, step):
        return {"size": torch.tensor(self.value), "other": torch.tensor(1.0)}


class Shifted(Augmentation):
    """Acts on the whole raw table."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def tables(self, users, items):
        self.calls += 1
        assert users is None
        return users, items + torch.arange(len(items)).unsqueeze(1)


class Listening(Augmentation):
    def __init__(self):
        super().__init__()
        self.heard = []

    def on_epoch_start(self, epoch):
        self.heard.append(epoch)

    def on_evaluation_end(self, epoch, score):
        self.heard.append((epoch, score))


def grafted(steps_per_epoch=0, mask_id=None, **augmentations):
    """A host: the table and its chain in one module."""
    torch.manual_seed(0)
    host = nn.Module()
    host.table = nn.Embedding(N, D, padding_idx=0)
    nn.init.normal_(host.table.weight)
    more = {"steps_per_epoch": steps_per_epoch, "mask_id": mask_id}
    context = Context("Toy", "sequential", 5, N, {"items": N}, {"items": D}, torch.empty(2, 0), **more)
    host.chain = Chain(augmentations, context)
    ItemTable.graft(host.table, host.chain)
    return host


# -- composition


def test_each_sees_the_previous_ones_output():
    for names in (("times", "plus"), ("plus", "times")):
        host = grafted(**{name: {"times": Times, "plus": Plus}[name]() for name in names})
        raw, real = host.table.raw, (BATCH.sequence > 0).unsqueeze(-1)
        rows = raw[BATCH.sequence]
        expected = 2 * rows + 3 if names[0] == "times" else 2 * (rows + 3)
        assert torch.allclose(host.table(BATCH.sequence), torch.where(real, expected, rows))
        everything = 2 * raw + 3 if names[0] == "times" else 2 * (raw + 3)
        assert torch.allclose(host.table.weight[1:], everything[1:])
        assert torch.equal(host.table.weight[0], raw[0])


def test_padding_and_mask_rows_stay():
    host = grafted(mask_id=N - 1, plus=Plus())
    ids = torch.tensor([[1, 0, N - 1]])
    assert torch.equal(host.table(ids)[0, 1:], host.table.raw[[0, N - 1]])
    assert torch.equal(host.table.weight[[0, N - 1]], host.table.raw[[0, N - 1]])
    assert torch.allclose(host.table(ids)[0, 0], host.table.raw[1] + 3)


def test_an_augmentation_acts_in_its_roles_only():
    host = grafted(times=Times(roles=("input",)))
    assert host.table.weight is host.table.raw
    assert torch.equal(host.table(BATCH.positives), host.table.raw[BATCH.positives])
    assert torch.allclose(host.table(BATCH.sequence)[0], 2 * host.table.raw[[3, 2]])
    host = grafted(times=Times(roles=("candidate",)))
    assert torch.equal(host.table(BATCH.sequence), host.table.raw[BATCH.sequence])
    assert torch.allclose(host.table(BATCH.positives), 2 * host.table.raw[BATCH.positives])


def test_the_tables_seam_comes_first():
    shifted = Shifted()
    host = grafted(times=Times(), shifted=shifted)
    expected = host.table.raw + torch.arange(N).unsqueeze(1)  # row 0 moves by 0
    with host.chain.step(BATCH, whole_table=True) as step:
        assert torch.equal(step.table("items"), expected)
        assert torch.allclose(host.table(BATCH.sequence)[0], 2 * expected[[3, 2]])
        assert torch.allclose(host.table.weight[1:], 2 * expected[1:])
    assert shifted.calls == 1, "once a step"


def test_an_empty_chain_is_the_bare_embedding():
    host, bare = grafted(), nn.Embedding(N, D, padding_idx=0)
    bare.load_state_dict(host.table.state_dict())
    assert host.table.weight is host.table.raw
    upstream = torch.randn(2, 2, D)
    for table in (host.table, bare):
        (table(BATCH.sequence) * upstream).sum().backward()
    assert torch.equal(host.table.raw.grad, bare.weight.grad)


def test_what_is_independent_of_the_history_is_computed_once_and_the_same():
    class ByItem(Times):
        by_item = frozenset({"input", "candidate"})

    both = ByItem()
    host = grafted(times=both)
    with host.chain.step(BATCH):
        rows = host.table(BATCH.sequence)
        assert torch.allclose(rows[0], 2 * host.table.raw[[3, 2]])
        assert torch.equal(rows[1, 1], host.table.raw[0]), "padding"
        host.table(BATCH.sequence)
    assert both.asked == [("input", (4,))], "items 2, 3, 7 and padding, once"
    both.asked.clear()
    with host.chain.step(BATCH, whole_table=True):
        weight = host.table.weight
        assert torch.equal(host.table(BATCH.sequence), weight[BATCH.sequence])
    assert both.asked == [("candidate", (N,))], "one table for both sides"


# -- losses


def test_losses_are_named_by_plugin_and_read_as_means():
    host = grafted(one=Penalty(2.0), two=Penalty(5.0))
    for extra in (0.0, 3.0):
        with host.chain.step(BATCH) as step:
            assert host.chain.total_loss(step) == 2.0 + 1.0 + 5.0 + 1.0
            host.chain.log_part("backbone", torch.tensor(extra))
    assert host.chain.read_parts() == {
        "one.size": 2.0,
        "one.other": 1.0,
        "two.size": 5.0,
        "two.other": 1.0,
        "backbone": 1.5,
    }
    assert host.chain.read_parts() == {}


def test_no_loss_is_none():
    host = grafted(plus=Plus())
    with host.chain.step(BATCH) as step:
        assert host.chain.total_loss(step) is None


# -- clock


def steps(host, n):
    for _ in range(n):
        with host.chain.step(BATCH):
            pass


def test_an_epoch_begins_with_its_first_step():
    listening, heard = Listening(), []
    host = grafted(listening=listening)
    host.chain.on_epoch = heard.append
    host.train()
    host.train()  # RecBole's trainer may call it twice
    assert listening.heard == []
    steps(host, 3)
    host.eval()
    host.chain.on_evaluation_end(0, 0.5)
    host.train()
    steps(host, 2)
    assert listening.heard == [0, (0, 0.5), 1]
    assert heard == [0, 1]


def test_flipping_modes_within_an_epoch_is_no_new_epoch():
    """RecBole's dynamic negative sampling evaluates between the steps of one epoch."""
    listening = Listening()
    host = grafted(steps_per_epoch=4, listening=listening)
    host.chain.flips_mode = True
    for _ in range(2):
        host.train()
        for _ in range(4):
            steps(host, 1)
            host.eval()
            host.train()
    assert listening.heard == [0, 1]
    assert host.chain.epoch == 1


def test_an_epoch_may_be_shorter_than_planned():
    """A distributed rank has its share of the steps; every train() after a step begins an epoch all the same."""
    listening = Listening()
    host = grafted(steps_per_epoch=4, listening=listening)
    for _ in range(3):
        host.train()
        steps(host, 2)
        host.eval()
    assert listening.heard == [0, 1, 2]


def test_a_resumed_run_counts_on():
    listening = Listening()
    host = grafted(listening=listening)
    host.chain.start_epoch = 7
    for _ in range(2):
        host.train()
        steps(host, 2)
    assert listening.heard == [7, 8]


def test_means_are_of_the_epochs_own_steps():
    host = grafted(one=Penalty(2.0))
    for n in (3, 2):
        host.train()
        for _ in range(n):
            with host.chain.step(BATCH) as step:
                host.chain.total_loss(step)
        assert host.chain.read_parts()["one.size"] == 2.0


# -- memory


def test_the_table_is_fused_once_a_step():
    times = Times()
    host = grafted(times=times)
    with host.chain.step(BATCH, whole_table=True) as step:
        first = host.table.weight
        assert host.table.weight is first
        assert step.candidates() is first
    assert times.asked == [("candidate", (N,))]
    with host.chain.step(BATCH, whole_table=True):
        assert host.table.weight is not first


def test_the_table_is_fused_once_an_evaluation():
    times = Times()
    host = grafted(times=times).eval()
    with torch.no_grad():
        first = host.table.weight
        assert host.table.weight is first
    assert times.asked == [("candidate", (N,))]
    host.table.weight.sum().backward()  # with gradients nothing is remembered
    assert times.factor.grad is not None


def test_an_evaluations_memory_ends_with_the_parameters():
    times = Times()
    host = grafted(times=times).eval()
    optimiser = torch.optim.SGD(host.parameters(), lr=0.1)

    def fused():
        with torch.no_grad():
            return host.table.weight[1:].clone()

    def is_current():
        return torch.allclose(fused(), (host.table.raw * times.factor).detach()[1:])

    before = fused()
    saved = copy.deepcopy(host.state_dict())
    host.table.weight.sum().backward()
    optimiser.step()
    assert is_current()
    assert not torch.equal(fused(), before)
    host.load_state_dict(saved)
    assert is_current()
    assert torch.equal(fused(), before)
    asked = len(times.asked)
    host.train()
    host.eval()
    fused()
    assert len(times.asked) == asked + 1, "train() forgets"
    host.double()
    assert fused().dtype is torch.float64


def test_memory_is_not_copied():
    times = Times()
    host = grafted(times=times).eval()
    with torch.no_grad():
        host.table.weight.sum()
    twin = copy.deepcopy(host)
    assert twin.table.chain is twin.chain
    assert twin.chain.item_table is twin.table
    assert twin.table.raw is not host.table.raw
    with torch.no_grad():
        twin.table.raw.add_(1.0)
        assert torch.allclose(twin.table.weight[1:], 2 * (host.table.raw[1:] + 1.0))


# -- steps


def test_there_is_a_step_only_while_something_is_asked():
    seen = []

    class Looking(Augmentation):
        def items(self, rows, ids, *, role, sequence):
            seen.append(self.step.kind)
            return rows

        def losses(self, step):
            assert self.step is step
            return {}

    looking = Looking()
    host = grafted(looking=looking)
    assert looking.step is None
    host.table(BATCH.sequence)
    assert looking.step is None
    with host.chain.step(BATCH) as step:
        assert looking.step is step
        host.table(BATCH.sequence)
        assert looking.step is step
        host.chain.total_loss(step)
    assert looking.step is None
    host.eval()
    with torch.no_grad():
        host.table(BATCH.sequence)
    assert looking.step is None
    assert seen == ["call", "training", "evaluation"]


def test_a_step_ends_when_its_loss_fails():
    plus = Plus()
    host = grafted(plus=plus)
    with pytest.raises(ValueError, match="host"), host.chain.step(BATCH):
        raise ValueError("the host's loss failed")
    assert plus.step is None
    assert host.chain.current().kind == "call"


@pytest.mark.parametrize("inside", [True, False])
def test_an_attribute_error_inside_an_augmentation_surfaces(inside):
    class Broken(Augmentation):
        def items(self, rows, ids, *, role, sequence):
            return rows * self.no_such_thing

    host = grafted(broken=Broken())
    with pytest.raises((RuntimeError, AttributeError), match="no_such_thing"):
        host.table(BATCH.sequence)
    step = host.chain.step(BATCH, whole_table=True) if inside else nullcontext()
    with step, pytest.raises(RuntimeError, match="no_such_thing"):
        host.table.weight  # noqa: B018


# -- table


def test_grafting_keeps_object_parameter_and_checkpoint():
    table = nn.Embedding(N, D, padding_idx=0)
    parameter, keys = table.weight, list(table.state_dict())
    context = Context("Toy", "sequential", 5, N, {"items": N}, {"items": D}, torch.empty(2, 0))
    chain = Chain({"plus": Plus()}, context)
    assert ItemTable.graft(table, chain) is table
    assert isinstance(table, nn.Embedding)
    assert table.raw is parameter
    assert list(table.state_dict()) == keys
    assert list(table.parameters()) == [parameter]
    assert "plus" in repr(table)
    table.load_state_dict({"weight": torch.ones(N, D)})
    assert torch.equal(table.raw, torch.ones(N, D))


def test_one_dimensional_input():
    """TransRec reads the last item alone."""
    times = Times(roles=("input",))
    host = grafted(times=times)
    host.table.role = "input"
    assert torch.allclose(host.table(BATCH.positives), 2 * host.table.raw[BATCH.positives])


def test_finding_a_table():
    model = nn.Module()
    model.inner = nn.Module()
    model.inner.table = nn.Embedding(3, 2)
    model.linear = nn.Linear(2, 2)
    assert find_table(model, "inner.table") is model.inner.table
    assert find_table(model, "linear") is find_table(model, "inner.none") is None


# -- users, both tables, nodes

USERS = 5


class Greet(Augmentation):
    """Acts on users; counts the rows that it is asked for."""

    def __init__(self, factor=3.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.asked = []

    def users(self, rows, ids):
        self.asked.append(tuple(ids.shape))
        return rows * self.factor + ids.unsqueeze(-1)


class Exchange(Augmentation):
    """Each side of the tables gets the other's mean."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def tables(self, users, items):
        self.calls += 1
        return users + items.mean(dim=0), items + users.mean(dim=0)


class Widen(Augmentation):
    def propagated(self, users, items):
        return torch.cat([users, users], dim=1), torch.cat([items, -items], dim=1)


class Scale(Augmentation):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def propagated(self, users, items):
        assert self.step is not None
        return users * self.factor, items + 1.0


def paired(loss_reduction="mean", **augmentations):
    """A host with a table of users and one of items."""
    torch.manual_seed(0)
    host = nn.Module()
    host.table, host.people = nn.Embedding(N, D, padding_idx=0), nn.Embedding(USERS, D)
    nn.init.normal_(host.table.weight)
    rows, width = {"items": N, "users": USERS}, {"items": D, "users": D}
    context = Context("Toy", "graph", USERS, N, rows, width, torch.empty(2, 0), loss_reduction=loss_reduction)
    host.chain = Chain(augmentations, context)
    assert ItemTable.graft(host.table, host.chain, role="candidate") is host.table
    assert UserTable.graft(host.people, host.chain) is host.people
    return host


def test_users_pass_through_their_seam_and_padding_stays():
    host, ids = paired(one=Greet(), two=Greet(0.5)), torch.tensor([[4, 0], [2, 2]])
    expected = 0.5 * (3 * host.people.raw[ids] + ids.unsqueeze(-1)) + ids.unsqueeze(-1)
    expected[0, 1] = host.people.raw[0]
    assert torch.equal(host.people(ids), expected)
    everyone = torch.arange(USERS).unsqueeze(1)
    whole = 0.5 * (3 * host.people.raw + everyone) + everyone
    assert torch.equal(host.people.weight[1:], whole[1:])
    assert torch.equal(host.people.weight[0], host.people.raw[0])
    assert host.table.weight is host.table.raw, "items are left alone"


def test_without_a_plugin_the_user_table_is_the_bare_embedding():
    host, bare = paired(), nn.Embedding(USERS, D)
    bare.load_state_dict(host.people.state_dict())
    assert host.people.weight is host.people.raw
    upstream, ids = torch.randn(3, D), torch.tensor([4, 1, 4])
    for table in (host.people, bare):
        (table(ids) * upstream).sum().backward()
    assert torch.equal(host.people.raw.grad, bare.weight.grad)


def test_the_whole_user_table_is_made_once_a_step_and_once_an_evaluation():
    greet = Greet()
    host = paired(greet=greet)
    with host.chain.step(BATCH):
        first = host.people.weight
        assert host.people.weight is first
    with host.chain.step(BATCH):
        assert host.people.weight is not first
    assert greet.asked == [(USERS,), (USERS,)]
    host.eval()
    with torch.no_grad():
        before = host.people.weight
        assert host.people.weight is before
        host.people.raw.add_(1.0)
        assert torch.allclose(host.people.weight[1:], before[1:] + 3.0)
        greet.factor.zero_()
        assert torch.equal(host.people.weight[1:], torch.arange(1.0, USERS).unsqueeze(1).expand(-1, D))


def test_both_tables_are_made_together_and_come_before_the_rows():
    exchange, greet, times = Exchange(), Greet(), Times()
    host = paired(times=times, greet=greet, exchange=exchange)
    users, items = host.people.raw, host.table.raw
    with host.chain.step(BATCH) as step:
        moved = users + items.mean(dim=0), items + users.mean(dim=0)
        for side, raw, new in zip(("users", "items"), (users, items), moved, strict=True):
            assert torch.equal(step.table(side)[1:], new[1:])
            assert torch.equal(step.table(side)[0], raw[0])
        ids = torch.tensor([3, 0])
        assert torch.equal(host.people(ids)[0], 3 * moved[0][3] + 3)
        assert torch.equal(host.people(ids)[1], users[0])
        assert torch.allclose(host.table(BATCH.positives), 2 * moved[1][BATCH.positives])
        assert torch.equal(host.table.weight[0], items[0])
        assert torch.equal(host.people.weight[1:], (3 * moved[0] + torch.arange(USERS).unsqueeze(1))[1:])
    assert exchange.calls == 1, "once a step, for both sides"


def test_an_evaluations_tables_end_with_either_sides_parameters():
    exchange = Exchange()
    host = paired(exchange=exchange).eval()
    with torch.no_grad():
        before = host.table.weight.clone()
        host.people.weight.sum()
        assert exchange.calls == 1
        host.people.raw[1:].add_(1.0)  # the users' parameter alone: it stands in the items' rows too
        assert torch.allclose(host.table.weight[1:], before[1:] + (USERS - 1) / USERS)


def test_gradients_reach_both_tables():
    host = paired(exchange=Exchange())
    host.people(torch.tensor([2])).sum().backward()
    assert torch.allclose(host.table.raw.grad, torch.full((N, D), 1 / N))
    expected = torch.zeros(USERS, D)
    expected[2] = 1.0
    assert torch.equal(host.people.raw.grad, expected)


def test_nodes_pass_through_plugins_in_order():
    users, items = torch.randn(USERS, D), torch.randn(N, D)
    for names in (("scale", "widen"), ("widen", "scale")):
        host = paired(**{name: {"scale": Scale, "widen": Widen}[name]() for name in names})
        with host.chain.step(BATCH) as step:
            found = host.chain.propagated(step, users, items)
        assert torch.equal(found[0], 2 * torch.cat([users, users], dim=1))
        wide = [items + 1, -(items + 1)] if names[0] == "scale" else [items + 1, -items + 1]
        assert torch.equal(found[1], torch.cat(wide, dim=1))
        found[0].sum().backward()
        assert torch.allclose(host.chain.plugins["scale"].factor.grad, 2 * users.sum())


def test_nodes_without_a_plugin_are_the_same_tensors():
    users, items, host = torch.randn(USERS, D), torch.randn(N, D), paired(greet=Greet())
    with host.chain.step(BATCH) as step:
        found = host.chain.propagated(step, users, items)
    assert found[0] is users
    assert found[1] is items


@pytest.mark.parametrize(("reduction", "times"), [("mean", 1), ("sum", 3)])
def test_losses_follow_the_hosts_reduction(reduction, times):
    host = paired(loss_reduction=reduction, one=Penalty(2.0), two=Penalty(5.0))
    with host.chain.step(Batch(users=torch.tensor([1, 2, 1]))) as step:
        assert host.chain.total_loss(step) == times * (2.0 + 1.0 + 5.0 + 1.0)
    assert host.chain.read_parts()["two.size"] == 5.0, "the log has the plugin's own numbers"


def test_a_copy_has_tables_of_its_own_on_both_sides():
    host = paired(exchange=Exchange(), greet=Greet()).eval()
    with torch.no_grad():
        before = host.people.weight.clone(), host.table.weight.clone()
        twin = copy.deepcopy(host)
        assert twin.chain.user_table is twin.people
        assert twin.chain.item_table is twin.table
        assert twin.people.chain is twin.table.chain is twin.chain
        assert torch.equal(twin.people.weight, before[0])
        twin.table.raw.zero_()
        assert not torch.equal(twin.people.weight, before[0])
        assert torch.equal(host.people.weight, before[0])
        assert torch.equal(host.table.weight, before[1])


@pytest.mark.parametrize(("role", "seen"), [(None, "input"), ("candidate", "candidate")])
def test_a_host_may_have_one_role_for_all(role, seen):
    """SimpleX scores matrices of negatives."""
    times = Times()
    table = nn.Embedding(N, D, padding_idx=0)
    context = Context("Toy", "graph", USERS, N, {"items": N}, {"items": D}, torch.empty(2, 0))
    ItemTable.graft(table, Chain({"times": times}, context), role=role)
    table(torch.tensor([[1, 2], [3, 4]]))
    assert times.asked == [(seen, (2, 2))]


def test_a_host_without_an_item_table_says_so():
    context = Context("Toy", "graph", USERS, N, {}, {}, torch.empty(2, 0))
    chain = Chain({"scale": Scale()}, context)
    with chain.step(BATCH) as step:
        chain.propagated(step, torch.ones(USERS, D), torch.ones(N, D))
        with pytest.raises(RecplugError, match="Toy has no item table; use a plugin that acts on propagated nodes"):
            step.table("items")


def test_a_host_without_a_user_table_says_so():
    host = grafted()
    with host.chain.step(BATCH) as step, pytest.raises(RecplugError, match="Toy has no user table"):
        step.table("users")
