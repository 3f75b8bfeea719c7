import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.plugins.magnet.trigger import EPOCHS, Trigger

entropy = st.sampled_from([0.5, 0.88, 0.895, 0.9, 0.91, 0.97, 1.0])


def slow(kind, values, *, threshold=0.9, patience=3, t_min=1, epoch_of=lambda step: 0, ema=0.0):
    """The switch's step, or -1; values are (marginal, conditional) by step."""
    n, smooth, signals, conditionals = 0, 0.0, [], []
    for step, (marginal, conditional) in enumerate(values, start=1):
        smooth = ema * smooth + (1 - ema) * marginal
        signals.append(smooth)
        conditionals.append(conditional)

        def rest(series):
            last = series[-patience:]
            return len(last) == patience and max(last) - min(last) <= 0.01

        held = smooth >= threshold
        if kind == "joint":
            held = held and (conditional <= 0.9 or (conditional <= 0.98 and rest(conditionals)))
        elif kind == "below":
            held = smooth <= threshold
        elif kind == "armed":
            held = held and epoch_of(step) >= t_min
        n = n + 1 if held else 0
        if (kind == "plateau" and rest(signals)) or (kind != "plateau" and n >= patience):
            return step
    return -1


def run(trigger, values, per_epoch=1000):
    for step, (marginal, conditional) in enumerate(values):
        if step % per_epoch == 0:
            trigger.begin_epoch(step // per_epoch)
        seen = torch.tensor([marginal, conditional], dtype=trigger.smooth.dtype)  # as exact as the loop, in float64
        trigger.observe(*seen)
        trigger.note(*seen, *torch.zeros(2))
    return trigger.state()


@pytest.mark.parametrize("kind", ["paper", "armed", "joint", "below", "plateau"])
@given(st.lists(st.tuples(entropy, entropy), max_size=12), st.sampled_from([1, 2, 3]), st.sampled_from([0.0, 0.5]))
@settings(max_examples=60, deadline=None)
def test_every_rule_is_its_loop(kind, values, patience, ema):
    trigger = Trigger(kind=kind, threshold=0.9, patience=patience, t_min=1, ema=ema).double()
    found = run(trigger, [(float(a), float(b)) for a, b in values], per_epoch=4)
    expected = slow(kind, values, patience=patience, epoch_of=lambda step: (step - 1) // 4, ema=ema)
    assert (found["switch_step"], found["stage"]) == (expected, 1 if expected < 0 else 2)
    assert not found["forced"]


HIGH, LOW = (0.95, 0.95), (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([HIGH] * 5, 3),  # at once
        ([LOW] * 9, -1),  # never
        ([HIGH, HIGH, LOW] * 4, -1),  # oscillating
        ([LOW, HIGH, HIGH, LOW, HIGH, HIGH, HIGH, LOW], 7),
        ([(0.9, 0.5)] * 3, 3),  # equal counts
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


def test_fixed_and_forced():
    fixed = Trigger(kind="fixed@2", threshold=0.9, patience=3)
    state = run(fixed, [HIGH] * 9, per_epoch=3)
    assert (state["switch_epoch"], state["switch_step"], state["forced"]) == (2, 6, 0)
    forced = Trigger(kind="paper", threshold=0.9, patience=3, t_max=2)
    state = run(forced, [LOW] * 9, per_epoch=3)
    assert (state["switch_epoch"], state["switch_step"], state["forced"]) == (2, 6, 1)
    early = Trigger(kind="paper", threshold=0.9, patience=3, t_max=2)
    state = run(early, [HIGH] * 9, per_epoch=3)
    assert (state["switch_step"], state["forced"]) == (3, 0)


def test_epoch_clock_checks_means():
    trigger = Trigger(kind="paper", threshold=0.9, patience=2, clock="epoch")
    values = [(0.8, 0.5), (1.0, 0.5)] * 3 + [LOW] * 2  # means 0.9, rounded
    trigger.threshold = 0.89
    state = run(trigger, values, per_epoch=2)
    assert (state["switch_epoch"], state["switch_step"]) == (2, 4)


@pytest.mark.parametrize("kind", ["paper", "armed", "plateau"])
@pytest.mark.parametrize("clock", ["step", "epoch"])
@pytest.mark.parametrize("cut", range(1, 9))
def test_resumed_at_any_epoch_it_goes_on(kind, clock, cut):
    """Epochs count on from the state, whatever the host calls them."""
    values = [LOW, HIGH, HIGH, LOW, HIGH, HIGH, HIGH, LOW, HIGH]
    whole, first, second = (
        Trigger(kind=kind, threshold=0.9, patience=2, t_min=3, t_max=8, clock=clock, ema=0.1) for _ in range(3)
    )
    run(whole, values, per_epoch=1)
    run(first, values[:cut], per_epoch=1)
    second.load_state_dict(first.state_dict())
    run(second, values[cut:], per_epoch=1)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_curve_holds_means_of_epochs():
    trigger = Trigger(kind="paper", threshold=0.9, patience=3)
    run(trigger, [(0.2, 0.1), (0.4, 0.3), (0.9, 0.9), (1.0, 0.9), (1.0, 0.9)], per_epoch=2)
    means = trigger.means()
    assert means.shape == (3, 5)
    assert means[0, :2].tolist() == pytest.approx([0.3, 0.2])
    assert means[:, 4].tolist() == [0.0, 0.0, 1.0]
    trigger.begin_epoch(EPOCHS + 7)
    trigger.observe(torch.tensor(1.0), torch.tensor(1.0))
    trigger.note(*torch.ones(4))
    assert len(trigger.means()) == EPOCHS
