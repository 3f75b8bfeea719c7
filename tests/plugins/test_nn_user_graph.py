"""Like users against a loop over pairs."""

import math

import pytest
import torch

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.user_graph import histories, like_users, mean_content

USERS, ITEMS, K = 17, 13, 4


def edges():
    torch.manual_seed(0)
    found = torch.stack([torch.randint(2, USERS, (60,)), torch.randint(1, ITEMS, (60,))])  # users 0 and 1 have none
    return torch.cat([found, found[:, :5]], dim=1)  # some twice


def modalities():
    torch.manual_seed(1)
    found = []
    for name, width in (("image", 3), ("text", 5)):
        present = torch.rand(ITEMS) < 0.7
        present[0] = False
        found.append(Modality(name, torch.randn(ITEMS, width), present))  # garbage where absent
    return found


def likeness(content, image_weight):
    """The matrix that nobody builds, pair by pair."""
    items = [set(map(int, edges()[1][edges()[0] == u])) for u in range(USERS)]
    weights = {"image": image_weight, "text": 1 - image_weight}
    found = torch.zeros(USERS, USERS)
    for u in range(USERS):
        for v in range(USERS):
            if u == v or not items[u] or not items[v]:
                continue
            common = len(items[u] & items[v]) / math.sqrt(len(items[u]) * len(items[v]))
            alike = 0.0
            for modality in modalities():
                unit = torch.nn.functional.normalize(modality.values, dim=1) * modality.present.unsqueeze(1)
                means = [unit[sorted(items[w])].mean(0) for w in (u, v)]
                if min(float(m.norm()) for m in means) > 0:
                    alike += weights[modality.name] * float(torch.cosine_similarity(*means, dim=0))
            found[u, v] = content * alike + (1 - content) * common
    return found


@pytest.mark.parametrize("block", [1, 5, 1024])
@pytest.mark.parametrize(("content", "image"), [(0.6, 0.1), (1.0, 0.5), (0.0, 0.1)])
def test_it_finds_the_most_alike(content, image, block):
    found = like_users(
        edges(), modalities(), n_users=USERS, n_items=ITEMS, k=K, content=content, image_weight=image, block=block
    )
    matrix = likeness(content, image)
    expected = matrix.topk(K, dim=1).values.clamp(min=0)
    torch.testing.assert_close(found.weight, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.valid, expected > 0)
    torch.testing.assert_close(matrix.gather(1, found.index)[found.valid], expected[found.valid], atol=1e-5, rtol=1e-4)


def test_users_without_a_history_are_nobodys_and_have_nobody():
    found = like_users(edges(), modalities(), n_users=USERS, n_items=ITEMS, k=K, content=0.6, image_weight=0.1)
    assert not found.valid[:2].any()
    assert not (found.index[found.valid] < 2).any()


def test_without_content_users_are_alike_by_common_items():
    mine, theirs = (
        like_users(edges(), given, n_users=USERS, n_items=ITEMS, k=K, content=share, image_weight=0.1).weight
        for given, share in (([], 0.6), (modalities(), 0.0))
    )
    assert torch.equal(mine, theirs)


def test_more_neighbours_than_users():
    found = like_users(edges(), modalities(), n_users=USERS, n_items=ITEMS, k=40, content=0.6, image_weight=0.1)
    assert found.index.shape == (USERS, 40)
    assert found.valid.sum(dim=1).max() <= USERS - 3


def test_mean_content_is_of_unit_length_where_every_modality_is_known():
    known = [Modality(m.name, m.values, torch.arange(ITEMS) > 0) for m in modalities()]
    history = histories(edges(), n_users=USERS, n_items=ITEMS)
    length = mean_content(history, known, image_weight=0.1).norm(dim=1)
    torch.testing.assert_close(length[2:], torch.ones(USERS - 2))
    assert not length[:2].any()


def test_ids_out_of_range():
    with pytest.raises(RecplugError, match="beyond"):
        histories(edges(), n_users=USERS, n_items=5)
