import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec import neighbours as module
from recplug.plugins.micrec.neighbours import (
    content_vectors,
    nearest,
    neighbourhood,
    text_first,
    user_content,
)

KINDS = ["similarity", "mean", "residual"]


def unit(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def brute(queries, pool, k, exclude=None):
    """Scores and rows by sorting everything in double precision; equal ones by the lower row."""
    found = []
    for place, query in enumerate(queries):
        row = []
        for other in range(len(pool)):
            if pool[other].any() and query.any() and not (exclude is not None and exclude[place] == other):
                row.append((-float((query.double() @ pool[other].double()).float()), other))
        found.append([(other, -score) for score, other in sorted(row)[:k]])
    return found


def found_rows(found):
    return [
        [(int(i), float(w)) for i, w, v in zip(*row, strict=True) if v]
        for row in zip(found.index, found.weight, found.valid, strict=True)
    ]


# -- content


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


# -- search


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans())
def test_nearest_is_brute_force(seed, k, itself):
    pool = unit(70, 4, seed)
    pool[::9] = 0  # nobody's
    pool[20:60] = pool[20]  # equal ones, more than a search can propose
    queries = pool if itself else unit(11, 4, seed + 1)
    exclude = torch.arange(70) if itself else None
    found = nearest(queries, pool, k, exclude=exclude)
    for mine, expected in zip(found_rows(found), brute(queries, pool, k, exclude), strict=True):
        assert [i for i, _ in mine] == [i for i, _ in expected]
        assert [w for _, w in mine] == pytest.approx([w for _, w in expected], abs=1e-6)


def test_blocks_change_nothing(monkeypatch):
    pool, queries = unit(300, 16, 0), unit(90, 16, 1)
    whole = nearest(queries, pool, 5)
    monkeypatch.setattr(module, "ROWS", 7)
    parts = nearest(queries, pool, 5)
    assert torch.equal(whole.index, parts.index)
    assert torch.equal(whole.weight, parts.weight)


def test_fewer_than_k_and_none():
    pool = unit(3, 4, 0)
    found = nearest(pool, pool, 5, exclude=torch.arange(3))
    assert found.valid.sum(dim=1).tolist() == [2, 2, 2]
    assert found.index[:, 2].tolist() == [0, 1, 2]  # itself where there is none
    nothing = nearest(pool, torch.zeros(4, 4), 2)
    assert not nothing.valid.any()
    assert not nothing.weight.any()
    with pytest.raises(RecplugError, match="widths differ"):
        nearest(pool, unit(3, 5, 0), 2)


def test_neighbours_are_known_nodes_and_never_oneself(modality):
    known = torch.tensor([False] + [i % 3 != 0 for i in range(1, 20)])
    content = content_vectors([modality("text", absent=(4,))], {"text": 1.0}, 20, known=known)
    found = neighbourhood(content, known, 3)
    rows = torch.arange(20).unsqueeze(1)
    assert known[found.index[found.valid]].all()
    assert (found.index != rows)[found.valid].all()
    assert (found.index == rows)[~found.valid].all()
    assert found.valid.all(dim=1).tolist() == [i not in (0, 4) for i in range(20)]


@pytest.mark.parametrize("m", [1500, 1536, 64, 7])
def test_the_largest_of_chunks_are_the_largest(m):
    score = torch.randn(5, m, generator=torch.Generator().manual_seed(m))
    score[0, 3:6] = -torch.inf
    score[1] = torch.arange(m).float()  # all in the last chunk, or after it
    found, column = module._largest(score, min(9, m))
    expected = score.topk(min(9, m), dim=1)
    assert torch.equal(found, expected.values)
    assert torch.equal(score.gather(1, column), expected.values)
