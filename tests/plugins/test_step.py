import pytest
import torch
from torch import nn

from recplug.plugins import Augmentation, Batch, Context, RecplugError
from recplug.plugins.chain import Chain
from recplug.plugins.table import ItemTable

N, D = 20, 4
BATCH = Batch(positives=torch.tensor([7, 2]), negatives=torch.tensor([9, 9]), sequence=torch.tensor([[3, 2], [2, 0]]))


def chain_of(mask_id=None, **augmentations):
    torch.manual_seed(0)
    table = nn.Embedding(N + (mask_id is not None), D, padding_idx=0)
    context = Context("Toy", "sequential", 5, N, {"items": N}, {"items": D}, torch.empty(2, 0), mask_id=mask_id)
    chain = Chain(augmentations, context)
    return chain, ItemTable.graft(table, chain)


def square(weights):
    """A per-item function with a parameter, which counts its calls."""
    calls = []

    def compute(ids):
        calls.append(ids)
        return weights[ids].square(), weights[ids].sum(dim=-1)

    return compute, calls


def test_a_lookup_is_computed_once_an_item_and_step():
    chain, _ = chain_of()
    weights = torch.randn(N, D)
    compute, calls = square(weights)
    with chain.step(BATCH) as step:
        for ids in (BATCH.sequence, BATCH.positives, BATCH.sequence):
            squares, sums = step.lookup("square", ids, compute)
            assert torch.equal(squares, weights[ids].square())
            assert torch.equal(sums, weights[ids].sum(dim=-1))
    (asked,) = calls
    assert asked.tolist() == [0, 2, 3, 7, 9], "the batch's distinct items, and padding"


def test_lookups_are_told_apart_by_key_and_by_step():
    chain, _ = chain_of()
    with chain.step(BATCH) as step:
        (one,) = step.lookup("one", BATCH.positives, lambda ids: ids + 1)
        (two,) = step.lookup("two", BATCH.positives, lambda ids: ids + 2)
        assert torch.equal(one + 1, two)
    with chain.step(BATCH) as step:
        (one,) = step.lookup("one", BATCH.positives, lambda ids: ids + 5)
    assert torch.equal(one, BATCH.positives + 5)


def test_a_lookup_may_look_up():
    chain, _ = chain_of()
    with chain.step(BATCH) as step:

        def outer(ids):
            return 2 * step.lookup("inner", ids, lambda r: r.float())[0]

        (found,) = step.lookup("outer", BATCH.sequence, outer)
        assert torch.equal(found, 2.0 * BATCH.sequence)
        (everything,) = step.lookup("outer", step.all_ids(), outer)
        assert torch.equal(everything, 2.0 * torch.arange(N))


def test_the_whole_table_serves_what_follows():
    chain, _ = chain_of()
    weights = torch.randn(N, D)
    compute, calls = square(weights)
    with chain.step(BATCH) as step:
        assert torch.equal(step.lookup("square", step.all_ids(), compute)[0], weights.square())
        # Ids that no field of the batch announced are known now too.
        assert torch.equal(step.lookup("square", torch.tensor([19, 4]), compute)[0], weights[[19, 4]].square())
    assert len(calls) == 1


def test_a_full_softmax_computes_the_whole_table_at_once():
    class Candidates(Augmentation):
        def items(self, rows, ids, *, role, sequence):
            return rows + 1

    chain, _ = chain_of(mine=Candidates())
    compute, calls = square(torch.randn(N, D))
    with chain.step(BATCH, whole_table=True) as step:
        step.lookup("square", BATCH.sequence, compute)
        step.lookup("square", step.all_ids(), compute)
    assert [len(ids) for ids in calls] == [N]


def test_gradients_are_those_of_an_index():
    chain, _ = chain_of()
    weights = torch.randn(N, D, requires_grad=True)
    ids = torch.tensor([[2, 2, 9], [7, 2, 3]])
    upstream = torch.randn(2, 3, D)
    with chain.step(BATCH) as step:
        (squares, _) = step.lookup("square", ids, square(weights)[0])
        (squares * upstream).sum().backward()
    expected = torch.zeros(N, D)
    for row in range(2):
        for column in range(3):
            expected[ids[row, column]] += 2 * weights.detach()[ids[row, column]] * upstream[row, column]
    assert torch.allclose(weights.grad, expected, atol=1e-6)


def test_an_id_that_was_not_announced_fails_loudly():
    chain, _ = chain_of()
    with chain.step(BATCH) as step:
        step.lookup("one", BATCH.sequence, lambda ids: ids)
        with pytest.raises(IndexError):
            step.lookup("one", torch.tensor([11]), lambda ids: ids)


def test_mask_and_padding_need_no_announcement():
    """BERT4Rec masks its histories inside its loss."""
    chain, _ = chain_of(mask_id=N)
    weights = torch.randn(N + 1, D)
    batch = Batch(sequence=torch.tensor([[3, 2]]), positives=torch.tensor([4]))
    with chain.step(batch) as step:
        ids = torch.tensor([[N, 2, 0]])
        assert torch.equal(step.lookup("square", ids, square(weights)[0])[0], weights[ids].square())


def test_a_loss_can_count_each_item_once():
    chain, _ = chain_of()
    with chain.step(BATCH) as step:
        assert sorted(step.asked()[step.first_asked()].tolist()) == [0, 2, 3, 7, 9]
    repeated = torch.tensor([0, 2, 3, 2, 2, 9, 0])  # as ids stand where counting them would stop the host
    with chain.step(BATCH) as step:
        slot = torch.full((N,), -1)
        slot[repeated] = torch.arange(len(repeated))
        step._asked = repeated, slot
        assert sorted(repeated[step.first_asked()].tolist()) == [0, 2, 3, 9]


def test_an_evaluation_computes_in_blocks(monkeypatch):
    monkeypatch.setattr("recplug.plugins.step.BLOCK", 8)
    chain, _ = chain_of()
    weights = torch.randn(N, D)
    compute, calls = square(weights)
    chain.eval()
    with torch.no_grad():
        ids = torch.tensor([[5, 5], [19, 0]])
        assert torch.equal(chain.current().lookup("square", ids, compute)[0], weights[ids].square())
        assert torch.equal(chain.current().lookup("square", ids, compute)[1], weights[ids].sum(dim=-1))
    assert [len(ids) for ids in calls] == [8, 8, 4]


def test_outside_a_step_nothing_is_kept():
    chain, _ = chain_of()
    weights = torch.randn(N, D)
    compute, calls = square(weights)
    for ids in (torch.tensor([5, 1]), torch.tensor([[6]])):
        assert torch.equal(chain.current().lookup("square", ids, compute)[0], weights[ids].square())
    assert len(calls) == 2


def test_tables():
    chain, table = chain_of()
    with chain.step(BATCH) as step:
        assert step.table("items") is table.raw
        with pytest.raises(RecplugError, match="no user table"):
            step.table("users")


def test_encoding_again_replaces_the_rows_and_only_there():
    chain, table = chain_of()

    def encode():
        return table(BATCH.sequence).sum(dim=1)

    with chain.step(BATCH) as step:
        with pytest.raises(RecplugError, match="does not expose its user encoder"):
            step.reencode(lambda rows, ids, sequence: rows)
        with pytest.raises(RecplugError, match="does not expose its user encoder"):
            step.encode_users()
        step.encoder, step.encoded = encode, encode()
        before = torch.get_rng_state()
        again = step.reencode(lambda rows, ids, sequence: rows + 1.0 + torch.rand(()))
        assert torch.equal(before, torch.get_rng_state()), "the host's random sequence goes on as if nothing had been"
        assert again.shape == (2, D)
        plain = step.reencode(lambda rows, ids, sequence: 2 * rows)
    raw = table.raw
    # The padding row keeps the host's vector here too.
    assert torch.allclose(plain, torch.stack([2 * raw[3] + 2 * raw[2], 2 * raw[2] + raw[0]]))
    assert torch.equal(encode(), raw[BATCH.sequence].sum(dim=1))
