import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.plugins.magnet.trigger import ARMED_FROM, EPOCHS, Trigger

entropy = st.sampled_from([0.5, 0.88, 0.895, 0.9, 0.91, 0.97, 1.0])
HIGH, LOW = 0.95, 0.5


def slow(kind, values, *, patience, per_epoch):
    """The switch's step, or -1."""
    n = 0
    for step, marginal in enumerate(values, start=1):
        held = marginal >= 0.9 and (kind == "paper" or (step - 1) // per_epoch >= ARMED_FROM)
        n = n + 1 if held else 0
        if n >= patience:
            return step
    return -1


def run(trigger, values, per_epoch=1000):
    for step, marginal in enumerate(values):
        if step % per_epoch == 0:
            trigger.begin_epoch(step // per_epoch)
        seen = torch.tensor([marginal, 0.5], dtype=trigger.curve.dtype)  # as exact as the loop, in float64
        trigger.observe(seen[0])
        trigger.note(*seen, *torch.zeros(2))
    return trigger.state()


@pytest.mark.parametrize("kind", ["paper", "armed"])
@given(st.lists(entropy, max_size=14), st.sampled_from([1, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_every_rule_is_its_loop(kind, values, patience):
    trigger = Trigger(kind=kind, threshold=0.9, patience=patience).double()
    found = run(trigger, values, per_epoch=2)
    expected = slow(kind, values, patience=patience, per_epoch=2)
    assert (found["switch_step"], found["stage"]) == (expected, 1 if expected < 0 else 2)


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([HIGH] * 5, 3),  # at once
        ([LOW] * 9, -1),  # never
        ([HIGH, HIGH, LOW] * 4, -1),  # oscillating
        ([LOW, HIGH, HIGH, LOW, HIGH, HIGH, HIGH, LOW], 7),
        ([0.9] * 3, 3),  # equal counts
    ],
    ids=["at once", "never", "oscillating", "late", "equal"],
)
def test_scripted_entropies(values, step):
    trigger = Trigger(kind="paper", threshold=0.9, patience=3).double()
    assert run(trigger, values)["switch_step"] == step


def test_the_stage_never_goes_back():
    trigger = Trigger(kind="paper", threshold=0.9, patience=2)
    assert run(trigger, [HIGH] * 2 + [LOW] * 20)["stage"] == 2
    assert run(trigger, [HIGH] * 20)["switch_step"] == 2


def test_a_fixed_epoch():
    state = run(Trigger(kind="fixed@2", threshold=0.9, patience=3), [HIGH] * 9, per_epoch=3)
    assert (state["switch_epoch"], state["switch_step"]) == (2, 6)


@pytest.mark.parametrize("kind", ["paper", "armed", "fixed@4"])
@pytest.mark.parametrize("cut", range(1, 9))
def test_resumed_at_any_epoch_it_goes_on(kind, cut):
    """Epochs count on from the state, whatever the host calls them."""
    values = [LOW, HIGH, HIGH, LOW, HIGH, HIGH, HIGH, LOW, HIGH]
    whole, first, second = (Trigger(kind=kind, threshold=0.9, patience=2) for _ in range(3))
    run(whole, values, per_epoch=1)
    run(first, values[:cut], per_epoch=1)
    second.load_state_dict(first.state_dict())
    run(second, values[cut:], per_epoch=1)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_curve_holds_means_of_epochs():
    trigger = Trigger(kind="paper", threshold=0.9, patience=3)
    run(trigger, [0.2, 0.4, 0.9, 1.0, 1.0], per_epoch=2)
    means = trigger.means()
    assert means.shape == (3, 5)
    assert means[0, :2].tolist() == pytest.approx([0.3, 0.5])
    assert means[:, 4].tolist() == [0.0, 0.0, 1.0]
    trigger.begin_epoch(EPOCHS + 7)
    trigger.observe(torch.tensor(1.0))
    trigger.note(*torch.ones(4))
    assert len(trigger.means()) == EPOCHS
