"""The score seam of the chain: order, blocks, one memory for what a host asks and what is made of it."""

import pytest
import torch
from torch import nn

from recplug.plugins import Augmentation, Batch, Context, RecplugError
from recplug.plugins.chain import Chain
from recplug.plugins.table import ItemTable, UserTable

USERS, ITEMS, D = 6, 9, 4
BATCH = Batch(users=torch.tensor([1, 5, 1]), positives=torch.tensor([2, 8, 3]), negatives=torch.tensor([4, 4, 7]))
SOME_USERS = torch.tensor([5, 2, 3, 1, 4])


class Dot(Augmentation):
    """Adds the dot product of the nodes, twice over, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def score(self, base, users, items, step):
        assert self.step is step
        self.asked.append((base, users, items, step))
        user_nodes, item_nodes = step.nodes()
        left, right = user_nodes[users], item_nodes[items]
        return base + 2 * (left @ right.T if base.dim() == 2 else (left * right).sum(dim=-1))


class Negate(Augmentation):
    def score(self, base, users, items, step):
        return -base


class Twice(Augmentation):
    def items(self, rows, ids, *, role, sequence):
        return 2 * rows

    def users(self, rows, ids):
        return 3 * rows


class Moved(Augmentation):
    def propagated(self, users, items):
        return users + 1.0, items


def host_of(width=None, **augmentations):
    """Two tables and their chain."""
    torch.manual_seed(0)
    host = nn.Module()
    host.items, host.users = nn.Embedding(ITEMS, D, padding_idx=0), nn.Embedding(USERS, D)
    nn.init.normal_(host.items.weight)
    rows, widths = {"items": ITEMS, "users": USERS}, {"items": D, "users": D, **(width or {})}
    host.chain = Chain(augmentations, Context("Toy", "graph", USERS, ITEMS, rows, widths, torch.empty(2, 0)))
    ItemTable.graft(host.items, host.chain, role="candidate")
    UserTable.graft(host.users, host.chain)
    return host


def test_scores_pass_through_in_order():
    base, users, items = torch.randn(3), BATCH.users, BATCH.positives
    for names in (("dot", "negate"), ("negate", "dot")):
        host = host_of(**{name: {"dot": Dot, "negate": Negate}[name]() for name in names})
        with host.chain.step(BATCH) as step:
            found = host.chain.score(step, base, users, items)
        extra = 2 * (host.users.raw[users] * host.items.raw[items]).sum(dim=-1)
        assert torch.allclose(found, -(base + extra) if names[0] == "dot" else -base + extra)


def test_without_such_a_plugin_scores_are_the_same_tensors():
    host, base = host_of(twice=Twice()), torch.randn(5, ITEMS)
    with host.chain.asking() as step:
        assert host.chain.score(step, base, SOME_USERS, step.all_ids()) is base
        assert host.chain.score_ranking(step, base, SOME_USERS, block=2) is base
    with host.chain.step(BATCH):
        scores = torch.randn(7), torch.randn(7)  # of any shape: nothing looks at them
        assert all(a is b for a, b in zip(host.chain.score_training(*scores), scores, strict=True))


@pytest.mark.parametrize(("block", "sizes"), [(None, [5]), (1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_a_ranking_is_made_in_blocks_of_users(block, sizes):
    host, base = host_of(dot=Dot()), torch.randn(5, ITEMS)
    with torch.no_grad(), host.eval().chain.asking() as step:
        found = host.chain.score_ranking(step, base, SOME_USERS, block)
    torch.testing.assert_close(found, base + 2 * host.users.raw[SOME_USERS] @ host.items.raw.T)
    asked = host.chain.plugins["dot"].asked
    assert [len(users) for _, users, _, _ in asked] == sizes
    assert torch.equal(torch.cat([users for _, users, _, _ in asked]), SOME_USERS)
    assert all(items is step.all_ids() for _, _, items, _ in asked)


def test_a_training_step_asks_for_positives_and_then_for_negatives():
    host, (positive, negative) = host_of(dot=Dot()), torch.randn(2, 3)
    with host.chain.step(BATCH) as step:
        found = host.chain.score_training(positive, negative)
    asked = host.chain.plugins["dot"].asked
    assert [(base is positive, base is negative) for base, *_ in asked] == [(True, False), (False, True)]
    for (_, users, items, during), own in zip(asked, (BATCH.positives, BATCH.negatives), strict=True):
        assert users is BATCH.users
        assert items is own
        assert during is step
    for scores, base, items in zip(found, (positive, negative), (BATCH.positives, BATCH.negatives), strict=True):
        extra = 2 * (host.users.raw[BATCH.users] * host.items.raw[items]).sum(dim=-1)
        torch.testing.assert_close(scores, base + extra)


def test_a_loss_that_is_called_outside_of_a_step_is_the_hosts():
    host, scores = host_of(negate=Negate()), torch.randn(2, 3)
    assert torch.equal(torch.stack(host.chain.score_training(*scores)), scores)
    with torch.no_grad(), host.eval().chain.asking():
        assert torch.equal(torch.stack(host.chain.score_training(*scores)), scores)


@pytest.mark.parametrize(
    ("batch", "shape", "line"),
    [
        (BATCH, (3, 1), r"Toy compares scores of the shapes \(3, 1\) and \(3, 1\) for 3 pairs; they cannot be changed"),
        (BATCH, (6,), r"Toy compares scores of the shapes \(6,\) and \(6,\) for 3 pairs; they cannot be changed"),
        (
            Batch(users=BATCH.users, positives=BATCH.positives),
            (3,),
            "Toy calls its pairwise loss without users, positives and negatives in the batch; its scores cannot",
        ),
    ],
)
def test_what_are_no_scores_of_the_batchs_pairs_is_one_line(batch, shape, line):
    host = host_of(dot=Dot())
    with host.chain.step(batch), pytest.raises(RecplugError, match=f"^{line}"):
        host.chain.score_training(torch.randn(shape), torch.randn(shape))


def test_a_loss_is_called_once_a_step():
    host, scores = host_of(negate=Negate()), torch.randn(2, 3)
    for _ in range(2):
        with host.chain.step(BATCH):
            host.chain.score_training(*scores)
            with pytest.raises(RecplugError, match="Toy calls its pairwise loss twice in a step"):
                host.chain.score_training(*scores)


# -- the nodes that are scored


def test_nodes_are_the_augmented_tables_where_nothing_is_propagated():
    host = host_of(twice=Twice())
    with host.chain.step(BATCH) as step:
        users, items = step.nodes()
        assert step.nodes()[0] is users
    assert torch.equal(users[1:], 3 * host.users.raw[1:])
    assert torch.equal(items[1:], 2 * host.items.raw[1:])
    assert torch.equal(users[0], host.users.raw[0])


def test_nodes_are_what_was_propagated_where_something_is():
    host = host_of({"propagated": D}, moved=Moved())
    users, items = torch.randn(USERS, D), torch.randn(ITEMS, D)
    with host.chain.step(BATCH) as step:
        with pytest.raises(RecplugError, match="Toy has not propagated yet in this step"):
            step.nodes()
        host.chain.propagated(step, users, items)
        found = step.nodes()
    assert torch.equal(found[0], users + 1)
    assert found[1] is items


def test_nodes_need_a_table_of_users():
    table = nn.Embedding(ITEMS, D, padding_idx=0)
    chain = Chain({}, Context("Toy", "sequential", USERS, ITEMS, {"items": ITEMS}, {"items": D}, torch.empty(2, 0)))
    ItemTable.graft(table, chain)
    with chain.step(BATCH) as step, pytest.raises(RecplugError, match="Toy has no user table"):
        step.nodes()


# -- one step for what is asked together


def test_what_is_asked_together_has_one_memory():
    host = host_of(dot=Dot())
    for training, grad, kind in [(False, False, "evaluation"), (True, True, "call"), (False, True, "call")]:
        host.train(training)
        with torch.set_grad_enabled(grad):
            with host.chain.asking() as step:
                assert host.chain.current() is step
                with host.chain.asking() as inner:
                    assert inner is step
                assert host.chain.current() is step
            assert step.kind == kind
            assert (host.chain.current() is step) == (kind == "evaluation")


def test_it_ends_with_an_error():
    host = host_of(dot=Dot())
    with pytest.raises(KeyError), host.chain.asking() as step:
        raise KeyError
    assert host.chain.current() is not step


def test_within_a_training_step_it_is_that_step():
    host = host_of(dot=Dot())
    with host.chain.step(BATCH) as step:
        with host.chain.asking() as inner:
            assert inner is step
        assert host.chain.current() is step
