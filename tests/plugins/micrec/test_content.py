import pytest
import torch
import torch.nn.functional as F

from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec.content import content_vectors, text_first, user_content


def test_products_are_weighed_cosines(modality):
    text, image = modality("text", seed=1), modality("image", width=9, seed=2)
    content = content_vectors([text, image], {"text": 0.9, "image": 0.1}, 20)
    expected = 0
    for m, w in ((text, 0.9), (image, 0.1)):
        rows = F.normalize(m.values, dim=1)
        rows = F.normalize(rows - rows[m.present].mean(dim=0), dim=1)[1:]
        expected = expected + w * rows @ rows.T
    assert torch.allclose(content.values[1:] @ content.values[1:].T, expected, atol=1e-5)
    assert torch.allclose(content.values[1:].norm(dim=1), torch.ones(19), atol=1e-5)
    assert not content.values[0].any()
    assert not content.present[0]


def test_an_item_that_lacks_a_modality_is_told_by_the_others(modality):
    text, image = modality("text", seed=1, absent=(3, 7)), modality("image", seed=2, absent=(5, 7))
    content = content_vectors([text, image], {"text": 0.9, "image": 0.1}, 21)
    alone = content_vectors([text], {"text": 1.0}, 21)
    assert content.values[5] @ content.values[5] == pytest.approx(1.0, abs=1e-5)
    both = content_vectors([modality("text", seed=1, absent=(3, 5, 7)), image], {"text": 0.9, "image": 0.1}, 21)
    assert not both.present[5]
    # two items that lack the same: their likeness is that of what they have
    lacking = content_vectors([text, modality("image", absent=(5, 6, 7))], {"text": 0.9, "image": 0.1}, 21)
    assert lacking.values[5] @ lacking.values[6] == pytest.approx(float(alone.values[5] @ alone.values[6]), abs=1e-5)
    assert content.present.tolist() == [i not in (0, 7, 20) for i in range(21)]
    assert content.values[3, :6].abs().max() == 0


def test_the_mean_is_that_of_known_items_and_can_be_given(modality):
    text = modality("text", n=30)
    known = torch.arange(30) < 20
    some = content_vectors([text], {"text": 1.0}, 30, known=known)
    rows = F.normalize(text.values, dim=1)
    assert torch.allclose(some.centres[0], rows[1:20].mean(dim=0), atol=1e-6)
    again = content_vectors([text], {"text": 1.0}, 30, centres={"text": some.centres[0]})
    assert torch.equal(again.values, some.values)


def test_a_weight_of_nought_leaves_a_modality_out(modality):
    both = [modality("text", seed=1), modality("image", seed=2)]
    assert content_vectors(both, {"text": 1.0, "image": 0.0}, 20).names == ("text",)
    with pytest.raises(RecplugError, match="no modality has a weight"):
        content_vectors(both[1:], {"image": 0.0}, 20)


def test_a_single_item_has_no_direction(modality):
    lonely = modality("text", n=3, absent=(2,))
    content = content_vectors([lonely], {"text": 1.0}, 3)
    assert not content.present.any()
    assert not content.values.any()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text"], {"text": 1.0}),
        (["image", "audio"], {"image": 0.5, "audio": 0.5}),
        (["image", "text"], {"image": 0.1, "text": 0.9}),
        (["image", "text", "audio"], {"image": 0.05, "text": 0.9, "audio": 0.05}),
    ],
    ids=["text", "no text", "two", "three"],
)
def test_weights_of_modalities(names, expected):
    assert text_first(names, 0.9) == pytest.approx(expected)


def test_a_users_content_is_that_of_their_items(modality):
    text, image = modality("text", seed=1, absent=(4,)), modality("image", seed=2)
    content = content_vectors([text, image], {"text": 0.9, "image": 0.1}, 20)
    edges = torch.tensor([[1, 1, 1, 2, 2, 4, 5], [3, 4, 9, 9, 12, 4, 7]])
    users = user_content(content, edges, 7)
    blocks = [[], []]
    for user in range(7):
        items = edges[1][edges[0] == user].tolist()
        for place, (block, m) in enumerate(zip(content.blocks(), (text, image), strict=True)):
            rows = [block[i] for i in items if m.present[i]]
            blocks[place].append(torch.stack(rows).mean(dim=0) if rows else None)
    expected = torch.zeros(7, content.values.shape[1])
    for user in range(7):
        parts, share = [], []
        for block, w in zip(blocks, (0.9, 0.1), strict=True):
            middle = torch.stack([row for row in block if row is not None]).mean(dim=0)
            parts.append(None if block[user] is None else F.normalize(block[user] - middle, dim=0))
            share.append(0.0 if block[user] is None else w)
        if sum(share):
            rows = [torch.zeros(6) if part is None else part for part in parts]
            expected[user] = torch.cat([(w / sum(share)) ** 0.5 * row for w, row in zip(share, rows, strict=True)])
    assert torch.allclose(users.values, expected, atol=1e-5)
    assert users.present.tolist() == [False, True, True, False, True, True, False]
