"""``Step.vectors_of``: a host's vectors of any users, in any step."""

import copy
import pickle

import pytest
import torch

from recplug.plugins import Augmentation, Batch, RecplugError
from recplug.plugins.contract import Context
from recplug.plugins.testing import HOSTS, ToyHost
from recplug.plugins.testing.host import histories_of

N_USERS, N_ITEMS, D = 9, 12, 16
USERS = torch.tensor([5, 2, 5, 8])
EDGES = torch.tensor([[1, 2, 2, 5, 2, 5, 7, 1], [3, 4, 9, 1, 3, 2, 10, 3]])
BATCH = Batch(
    users=torch.tensor([1, 7]),
    positives=torch.tensor([3, 10]),
    negatives=torch.tensor([6, 6]),
    sequence=torch.tensor([[3, 3], [10, 0]]),
    lengths=torch.tensor([2, 1]),
)


class Doubled(Augmentation):
    """Both whole tables times a learned number; counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.asked = 0

    def tables(self, users, items):
        self.asked += 1
        return None if users is None else self.scale * users, self.scale * items


class Told(Doubled):
    """Remembers, while it makes the tables, what rows are asked for, as some methods do; then shifts them."""

    def tables(self, users, items):
        users, items = super().tables(users, items)
        self.step.memory["told.rows"] = self.step.asked()
        return users, items

    def items(self, rows, ids, *, role, sequence):
        assert "told.rows" in self.step.memory
        assert torch.isin(ids, torch.cat([self.step.memory["told.rows"], torch.tensor([0])])).all()
        return rows + 1


def toy(name, *augmentations):
    torch.manual_seed(0)
    backbone = HOSTS[name](N_USERS, N_ITEMS, EDGES)
    rows = {"items": backbone.items.num_embeddings}
    width = {"items": D}
    if backbone.family == "graph":
        rows["users"] = width["users"] = 0
        rows["users"], width["users"] = N_USERS, D
    if "propagated" in backbone.seams:
        width["propagated"] = D
    context = Context(name, backbone.family, N_USERS, N_ITEMS, rows, width, EDGES, mask_id=backbone.mask_id)
    return ToyHost(backbone, {type(a).__name__.lower(): a for a in augmentations}, context)


def expected(host, users):
    """The same vectors by the backbone's own means, in evaluation."""
    backbone = host.backbone
    if backbone.family == "sequential":
        rows = [EDGES[1][EDGES[0] == user].tolist() for user in users.tolist()]
        return torch.cat(
            [
                backbone.encode(Batch(sequence=torch.tensor([row or [0]]), lengths=torch.tensor([max(len(row), 1)])))
                for row in rows
            ]
        )
    if "propagated" in backbone.seams:
        return backbone()[0][users]
    return backbone.users(users)


@pytest.mark.parametrize("plugins", [(), (Doubled,), (Told,)], ids=["bare", "tables", "rows"])
@pytest.mark.parametrize("name", HOSTS)
def test_they_are_the_hosts_own(name, plugins):
    host = toy(name, *(plugin() for plugin in plugins)).eval()
    known = USERS if host.backbone.family == "graph" else torch.tensor([5, 2, 5, 7])
    with torch.no_grad():
        step = host.chain.current()
        found = step.vectors_of(known)
        assert found.shape == (4, D)
        assert torch.allclose(found, expected(host, known), atol=1e-6)
        assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", HOSTS)
def test_users_outside_of_the_batch_have_a_gradient_in_training(name):
    host = toy(name, Doubled()).train()
    with host.chain.step(BATCH, beyond_batch="propagated" in host.backbone.seams) as step:
        host.backbone.loss(BATCH)
        step.vectors_of(USERS).sum().backward()
    table = host.chain.table("items" if host.backbone.family == "sequential" else "users").raw
    rows = table.grad.abs().sum(dim=1).nonzero().reshape(-1).tolist()
    if host.backbone.family == "sequential":  # the items of users 5 and 2, which the batch lacks, the mask's row too
        assert set(rows) - {host.backbone.mask_id} == {1, 2, 4, 9, 3}
    else:
        assert {2, 5, 8} <= set(rows)
    assert host.chain.augmentations()["doubled"].scale.grad != 0


@pytest.mark.parametrize("name", HOSTS)
def test_the_hosts_own_draws_are_not_shifted(name):
    losses = []
    for asks in (False, True):
        host = toy(name).train()
        torch.manual_seed(3)
        for _ in range(2):
            with host.chain.step(BATCH) as step:
                losses.append(host.backbone.loss(BATCH).detach())
                if asks:
                    step.vectors_of(USERS)
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(losses[1], losses[3])


@pytest.mark.parametrize(("name", "times"), [("mean-ce", 1), ("graph-bpr", 1), ("nodes-bpr", 1)])
def test_whole_tables_are_made_once_a_step(name, times):
    plugin = Doubled()
    host = toy(name, plugin).train()
    for _ in range(2):
        plugin.asked = 0
        with host.chain.step(BATCH, whole_table=True) as step:
            host.backbone.loss(BATCH)
            step.vectors_of(USERS)
            step.vectors_of(USERS.flip(0))
        assert plugin.asked == times


def test_a_step_of_a_sequential_host_goes_on_after_it():
    host = toy("gru-bpr", Told()).train()
    torch.manual_seed(1)
    with host.chain.step(BATCH) as step:
        before = host.backbone.items(BATCH.sequence)
        step.vectors_of(USERS)
        assert torch.equal(host.backbone.items(BATCH.sequence), before)
        assert step.encoded is None


def test_a_copy_asks_its_own_host():
    for name in HOSTS:
        host = toy(name, Doubled()).eval()
        for other in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
            with torch.no_grad():
                other.backbone.items.raw.zero_()
                if other.backbone.family == "graph":
                    other.backbone.users.raw.zero_()
                found = other.chain.current().vectors_of(USERS)
                assert not torch.equal(found, host.chain.current().vectors_of(USERS))


def test_a_host_without_users_says_so():
    host = toy("mean-ce")
    host.chain.vectors = None
    with pytest.raises(RecplugError, match="mean-ce has no vectors of users to ask for; choose a loss that needs none"):
        host.chain.current().vectors_of(USERS)


def test_toy_histories_keep_their_order():
    found = histories_of(torch.tensor([[2, 1, 2, 2], [7, 5, 3, 9]]), 4)
    assert found.tolist() == [[0, 0, 0], [5, 0, 0], [7, 3, 9], [0, 0, 0]]
    assert histories_of(torch.empty(2, 0, dtype=torch.long), 3).tolist() == [[0], [0], [0]]
