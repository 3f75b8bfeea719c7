import copy
import pickle

import pytest
import torch

from recplug.plugins.nn import Noise

CPU = torch.device("cpu")


def test_the_stream_is_a_generators():
    noise, generator = Noise(7), torch.Generator().manual_seed(7)
    like = torch.empty(3, 4)
    assert torch.equal(noise.normal(like), torch.randn(3, 4, generator=generator))
    assert torch.equal(noise.permutation(9, CPU), torch.randperm(9, generator=generator))
    assert torch.equal(noise.uniform((2, 5), CPU), torch.rand(2, 5, generator=generator))
    assert noise.normal(like.double()).dtype is torch.float64


def test_the_global_state_is_not_used():
    before = torch.get_rng_state()
    noise = Noise(1)
    noise.normal(torch.empty(5)), noise.permutation(5, CPU), noise.dropout(torch.ones(5), 0.5)
    noise.uniform((5,), CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_scales_what_it_keeps():
    x = torch.ones(100_000)
    out = Noise(3).dropout(x, 0.3)
    kept = out != 0
    assert torch.allclose(out[kept], torch.tensor(1 / 0.7))
    # Four standard deviations of a binomial share.
    assert abs(kept.float().mean() - 0.7) < 4 * (0.3 * 0.7 / len(x)) ** 0.5


def test_dropout_is_off_in_evaluation_and_at_zero():
    noise, x = Noise(3), torch.randn(5)
    assert noise.dropout(x, 0.0) is x
    assert noise.eval().dropout(x, 0.5) is x
    assert noise._generator is None, "nothing was drawn"


@pytest.mark.parametrize("used", [0, 3])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_the_position_is_kept(used, how):
    noise, like = Noise(5), torch.empty(4)
    for _ in range(used):
        noise.normal(like)
    if how == "state_dict":
        other = Noise(5)
        other.normal(like)  # somewhere else, until the position is loaded
        other.load_state_dict(noise.state_dict())
    else:
        other = copy.deepcopy(noise) if how == "deepcopy" else pickle.loads(pickle.dumps(noise))
    expected = noise.normal(like)
    assert torch.equal(other.normal(like), expected)
    assert not torch.equal(other.normal(like), expected)


def test_a_position_of_another_device_begins_anew():
    if torch.cuda.is_available():
        pytest.skip("the position can be used here")
    noise = Noise(5)
    noise.normal(torch.empty(4))
    noise.set_extra_state({"device": "cuda", "state": torch.zeros(16, dtype=torch.uint8)})
    assert torch.equal(noise.normal(torch.empty(4)), Noise(5).normal(torch.empty(4)))
