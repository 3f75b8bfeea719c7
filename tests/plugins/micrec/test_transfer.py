import copy
import io
import itertools
import math

import pytest
import torch

from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec.transfer import Transfer, agreement, kept, linear_cka

D = 6


def made(n=10, **changes):
    torch.manual_seed(0)
    links = torch.stack([torch.arange(1, n + 1), torch.arange(101, 101 + n)], dim=1)
    choices = {"temperature": 0.2, "anchors": 4, "seed": 0}
    return Transfer(links=links, width=D, **{**choices, **changes})


def test_infonce_by_hand():
    transfer = made(temperature=0.5)
    angles_a, angles_b = [0.0, 0.9, 3.0], [0.6, 1.5, -0.9]
    a = torch.tensor([[math.cos(x), math.sin(x)] for x in angles_a])
    b = 3 * torch.tensor([[math.cos(x), math.sin(x)] for x in angles_b])
    cosines = [[math.cos(x - y) for y in angles_b] for x in angles_a]
    e = [[math.exp(c / 0.5) for c in row] for row in cosines]
    forth = [-math.log(e[i][i] / (e[i][0] + e[i][1] + e[i][2])) for i in range(3)]
    back = [-math.log(e[i][i] / (e[0][i] + e[1][i] + e[2][i])) for i in range(3)]
    transfer.project = lambda source, target: (source, target)
    assert transfer(a, b).item() == pytest.approx((sum(forth) + sum(back)) / 6, abs=1e-5)


def test_projections_are_two_layers_each():
    transfer = made()
    x, y = torch.randn(5, D), torch.randn(5, D)
    z, w = transfer.project(x, y)
    first, _, second = transfer.source
    expected = (x @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    assert torch.allclose(z, expected, atol=1e-6)
    assert z.shape == w.shape == (5, D)
    assert not torch.allclose(z, transfer.target(x))


def test_both_domains_move():
    transfer = made()
    x, y = torch.randn(5, D, requires_grad=True), torch.randn(5, D, requires_grad=True)
    transfer(x, y).backward()
    assert x.grad.any()
    assert y.grad.any()
    assert all(p.grad is not None for p in transfer.parameters())


def test_a_smaller_overlap_is_part_of_a_larger_one():
    links = torch.stack([torch.arange(40), torch.arange(100, 140)], dim=1)
    shares = {ratio: kept(links, ratio) for ratio in (0.0, 0.1, 0.5, 1.0)}
    assert [len(each) for each in shares.values()] == [0, 4, 20, 40]
    assert shares[1.0] is links
    found = [set(map(tuple, each.tolist())) for each in shares.values()]
    assert all(one <= other for one, other in itertools.pairwise(found))
    assert not torch.equal(kept(links, 0.5), links[:20])  # not those that come first in the file


@pytest.mark.parametrize(("n", "anchors"), [(10, 4), (3, 2), (9, 9), (2, 1024), (1500, 1024)])
def test_batches_go_through_all_links(n, anchors):
    transfer = made(n, anchors=anchors)
    for _ in range(3):
        seen = [transfer.next_links() for _ in range(transfer.batches)]
        assert sorted(torch.cat(seen)[:, 0].tolist()) == list(range(1, n + 1))
        assert all(len(batch) >= 2 for batch in seen)
        assert max(map(len, seen)) - min(map(len, seen)) <= 1
        assert all((batch[:, 1] - batch[:, 0] == 100).all() for batch in seen)
    assert transfer.position == 0


def test_a_new_pass_has_another_order():
    transfer = made(50, anchors=50)
    assert not torch.equal(transfer.next_links(), transfer.next_links())


def test_the_state_dict_and_a_copy_go_on_where_it_was():
    transfer = made()
    transfer.next_links()
    file = io.BytesIO()
    torch.save(transfer.state_dict(), file)
    file.seek(0)
    other, twin = made(seed=5), copy.deepcopy(transfer)
    other.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(5):
        expected = transfer.next_links()
        assert torch.equal(expected, twin.next_links())
        assert torch.equal(expected, other.next_links())


def test_its_draws_are_its_own():
    transfer = made()
    before = torch.get_rng_state()
    transfer(torch.randn(4, D, generator=torch.Generator().manual_seed(0)), torch.ones(4, D))
    transfer.next_links()
    assert torch.equal(before, torch.get_rng_state())


def test_one_person_gives_no_loss():
    assert made()(torch.randn(1, D), torch.randn(1, D)) == 0


def test_another_width_is_refused_in_one_line():
    with pytest.raises(RecplugError, match="the target has 7") as error:
        made()(torch.randn(3, D), torch.randn(3, 7))
    assert "\n" not in str(error.value)


def test_in_half_precision_it_is_computed_in_full():
    transfer, x, y = made(), torch.randn(5, D), torch.randn(5, D)
    with torch.autocast("cpu", torch.bfloat16):
        low = transfer(x, y)
    assert torch.equal(low, transfer(x, y))


# -- diagnostics


def test_agreement_of_the_same_and_of_strangers():
    x = torch.randn(60, D)
    same = agreement(x, 2 * x)
    assert same["alignment"] == pytest.approx(0, abs=1e-9)
    assert same["match"] == 1
    assert same["rank"] == 1
    assert same["uniformity_source"] == pytest.approx(same["uniformity_target"])
    torch.manual_seed(0)
    other = agreement(torch.randn(60, D), torch.randn(60, D))
    assert other["alignment"] == pytest.approx(2, abs=0.4)
    assert other["match"] < 0.1
    assert 20 < other["rank"] < 40


def test_agreement_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    found = agreement(a, b)
    assert found["match"] == pytest.approx(2 / 3)  # the second finds the third
    assert found["rank"] == 1
    expected = (0 + (2 - 2 * 0.1 / 1.01**0.5) + 2) / 3
    assert found["alignment"] == pytest.approx(expected)
    distances = [2.0, 4.0, 2.0]
    mean = sum(math.exp(-2 * d) for d in distances) / 3
    assert found["uniformity_source"] == pytest.approx(math.log(mean))


def test_collapsed_vectors_do_not_find_themselves():
    found = agreement(torch.ones(9, D), torch.ones(9, D))
    assert found["match"] == 0
    assert found["rank"] == 5
    assert found["uniformity_source"] == pytest.approx(0)


def test_cka_sees_through_rotation():
    x = torch.randn(40, D)
    rotation = torch.linalg.qr(torch.randn(D, D)).Q
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, torch.randn(40, 3)) < 0.5
