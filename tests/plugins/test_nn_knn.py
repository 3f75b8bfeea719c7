"""Neighbours against a float64 sort of the whole matrix; graphs against dense matrix algebra."""

import math
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.plugins.errors import RecplugError
from recplug.plugins.nn import knn, knn_search
from recplug.plugins.nn.knn import Neighbours, cooccurrence, item_graph, kneighbours


@pytest.fixture
def without_faiss(monkeypatch):
    monkeypatch.setattr(knn_search, "_has_faiss", lambda: False)


def draw(n, d, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def everyone(n):
    return torch.ones(n, dtype=torch.bool)


def sorted_whole(values, present, k, include_self):
    """The answer by sorting whole rows, one item after the other."""
    values = values.double()
    content = [i for i in range(len(values)) if present[i] and values[i].norm() > 0]
    answer = []
    for i in range(len(values)):
        ranked = []
        if i in content:
            for j in content:
                cosine = torch.nn.functional.cosine_similarity(values[i], values[j], dim=0).float().item()
                ranked.append((-cosine, j))
            ranked = [(c, j) for c, j in sorted(ranked) if j != i]
            if include_self:
                ranked = [(-1.0, i), *ranked]
        answer.append([(j, -c) for c, j in ranked[:k]])
    return answer


def same(found, answer, k):
    assert found.index.shape == found.weight.shape == found.valid.shape == (len(answer), k)
    assert (found.index.dtype, found.weight.dtype, found.valid.dtype) == (torch.int64, torch.float32, torch.bool)
    for i, expected in enumerate(answer):
        many = len(expected)
        assert found.valid[i].tolist() == [True] * many + [False] * (k - many)
        assert found.index[i].tolist() == [j for j, _ in expected] + [i] * (k - many)
        expected_weights = torch.tensor([c for _, c in expected] + [0.0] * (k - many))
        torch.testing.assert_close(found.weight[i], expected_weights, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(
            st.lists(st.lists(st.sampled_from([0, 1, 2]), min_size=2, max_size=2), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n),
        )
    ),
    st.integers(1, 12),
    st.booleans(),
    st.integers(1, 4),
)  # few small integers: ties, duplicates and zero vectors abound, and k passes n
def test_neighbours_are_those_of_a_whole_sort(given_rows, k, include_self, block):
    rows, present = given_rows
    # The scales make equal directions of unequal length, which tie as well.
    values = (
        torch.tensor(rows, dtype=torch.float64)
        * torch.tensor([[1.0, 3.0, 0.1][i % 3] for i in range(len(rows))])[:, None]
    )
    mask = torch.tensor(present)
    columns, knn_search.COLUMNS = knn_search.COLUMNS, 3
    try:
        found = kneighbours(values, mask, k, block=block, include_self=include_self)
    finally:
        knn_search.COLUMNS = columns
    same(found, sorted_whole(values, mask, k, include_self), k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_blocks_and_precisions_agree(dtype, monkeypatch):
    values, present = draw(150, 20, dtype=dtype), everyone(150)
    present[[0, 7]] = False
    values[7] = math.nan  # an absent item's row is never looked at
    values[20:40] = values[90]
    whole = kneighbours(values, present, 11)
    monkeypatch.setattr(knn_search, "COLUMNS", 13)
    cut = kneighbours(values, present, 11, block=17)
    for a, b in zip(vars(whole).values(), vars(cut).values(), strict=True):
        assert torch.equal(a, b)
    same(whole, sorted_whole(values, present, 11, False), 11)


def test_nobody_is_a_neighbour_without_content():
    values, present = draw(40, 8), everyone(40)
    present[:5] = False
    values[5:9] = 0.0
    found = kneighbours(values, present, 50)
    assert not found.valid[:9].any()
    assert (found.weight[:9] == 0).all()
    assert found.index[:9].tolist() == [[i] * 50 for i in range(9)]
    assert int(found.index[found.valid].min()) == 9
    assert found.valid[9:].sum(dim=1).tolist() == [30] * 31  # every other item with content


@pytest.mark.parametrize("include_self", [False, True])
def test_one_item_none_and_nothing(include_self):
    one = kneighbours(draw(1, 3), everyone(1), 4, include_self=include_self)
    assert one.valid.tolist() == [[include_self, False, False, False]]
    assert one.weight.tolist() == [[float(include_self), 0.0, 0.0, 0.0]]
    for values in (draw(0, 3), draw(5, 0), torch.zeros(5, 3)):
        found = kneighbours(values, everyone(len(values)), 2, include_self=include_self)
        assert found.index.shape == (len(values), 2)
        assert not found.valid.any()


def test_own_row_comes_first_also_among_duplicates():
    found = kneighbours(draw(1, 4).repeat(30, 1), everyone(30), 3, include_self=True)
    assert found.index[17].tolist() == [17, 0, 1]
    assert (found.weight == 1).all()
    assert kneighbours(draw(1, 4).repeat(30, 1), everyone(30), 3).index[1].tolist() == [0, 2, 3]


def test_opposite_vectors_have_cosine_minus_one():
    values = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 5.0]])
    found = kneighbours(values, everyone(3), 2)
    assert found.index.tolist() == [[2, 1], [2, 0], [0, 1]]
    assert found.weight.tolist() == [[0.0, -1.0], [0.0, -1.0], [0.0, 0.0]]


def test_faiss_gives_the_same_answer(monkeypatch):
    pytest.importorskip("faiss")
    values, present = draw(400, 16), everyone(400)
    present[3] = False
    values[100:160] = values[5]  # more duplicates than candidates
    values[200:300] = values[5] + 1e-5 * draw(100, 16, seed=2)  # nearer to each other than single precision tells
    asked = []
    original = knn_search._candidates
    monkeypatch.setattr(knn_search, "_candidates", lambda *a: asked.append(1) or original(*a))
    for k, include_self in ((1, False), (10, True), (500, False)):
        fast = kneighbours(values, present, k, include_self=include_self)
        with monkeypatch.context() as context:
            context.setattr(knn_search, "_has_faiss", lambda: False)
            exact = kneighbours(values, present, k, include_self=include_self)
        for a, b in zip(vars(fast).values(), vars(exact).values(), strict=True):
            assert torch.equal(a, b)
    assert len(asked) == 3


class Index:
    """The part of faiss that is used: a single-precision product and its best columns."""

    def __init__(self, d):
        self.rows = torch.empty(0, d)

    def add(self, rows):
        assert rows.dtype == "float32"
        self.rows = torch.cat([self.rows, torch.from_numpy(rows)])

    def search(self, queries, k):
        best = (torch.from_numpy(queries) @ self.rows.T).topk(k, dim=1)
        return best.values.numpy(), best.indices.numpy()


def test_rough_candidates_are_completed_exactly(monkeypatch, without_faiss):
    """What a single-precision search misses among near-equals comes back."""
    values = draw(400, 16)
    values[100:160] = values[5]
    values[200:300] = values[5] + 1e-5 * draw(100, 16, seed=2)
    exact = kneighbours(values, everyone(400), 10)
    module = type("faiss", (), {"IndexFlatIP": Index})
    monkeypatch.setitem(sys.modules, "faiss", module)
    monkeypatch.setattr(knn_search, "_has_faiss", lambda: True)
    rough = kneighbours(values, everyone(400), 10)
    for a, b in zip(vars(rough).values(), vars(exact).values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("values", "present", "k", "word"),
    [
        (torch.ones(3), everyone(3), 1, r"\[n, d\]"),
        (torch.ones(3, 2), everyone(4), 1, r"\[4\]"),
        (torch.ones(3, 2, dtype=torch.int64), everyone(3), 1, "float"),
        (torch.ones(3, 2), everyone(3), 0, "at least 1"),
        (torch.tensor([[1.0], [math.nan], [math.inf]]), everyone(3), 1, "2 items have content that is not finite"),
    ],
)
def test_wrong_input_is_refused(values, present, k, word):
    with pytest.raises(RecplugError, match=word):
        kneighbours(values, present, k)


def test_another_default_device_changes_nothing(tmp_path):
    values, present = draw(20, 4), everyone(20)
    edges = torch.tensor([[0, 0, 1], [1, 2, 2]])
    expected = kneighbours(values, present, 3)
    try:
        torch.set_default_device("meta")
        found = kneighbours(values, present, 3, cache=tmp_path)
        again = kneighbours(values, present, 3, cache=tmp_path)
        graphs = [
            item_graph({"image": found}, {"image": 1.0}, n_rows=20, normalise=normalise)
            for normalise in ("row", "symmetric")
        ]
        graphs.append(cooccurrence(edges, 4, 2))
    finally:
        torch.set_default_device(None)
    assert [graph.device.type for graph in graphs] == ["cpu"] * 3
    for a, b, c in zip(*(vars(each).values() for each in (expected, found, again)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


# -- cache


def test_cache_is_read_and_tells_contents_and_settings_apart(tmp_path, monkeypatch):
    values, present = draw(30, 4), everyone(30)
    first = kneighbours(values, present, 3, cache=tmp_path / "new")
    monkeypatch.setattr(knn, "search", None)  # nothing is computed again
    again = kneighbours(values.clone(), present, 3, block=7, cache=tmp_path / "new")
    for a, b in zip(vars(first).values(), vars(again).values(), strict=True):
        assert torch.equal(a, b)
    fewer = present.clone()
    fewer[4] = False
    other = values.clone()
    other[0, 0] += 1
    for args, more in (
        ((other, present, 3), {}),
        ((values, fewer, 3), {}),
        ((values, present, 4), {}),
        ((values, present, 3), {"include_self": True}),
        ((values.double(), present, 3), {}),
        ((values.view(15, 8), present[:15], 3), {}),
    ):
        with pytest.raises(TypeError):
            kneighbours(*args, cache=tmp_path / "new", **more)
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_cache_is_computed_again(tmp_path, damage):
    values = draw(30, 4)
    first = kneighbours(values, everyone(30), 3, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    sound = file.read_bytes()
    changed = {
        "cut": sound[:-5],
        "flipped": sound[:-1] + bytes([sound[-1] ^ 1]),
        "empty": b"",
        "other": b"not safetensors at all",
    }[damage]
    file.write_bytes(changed)
    again = kneighbours(values, everyone(30), 3, cache=tmp_path)
    for a, b in zip(vars(first).values(), vars(again).values(), strict=True):
        assert torch.equal(a, b)
    assert len(file.read_bytes()) == len(sound)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    stored = knn._load(file, (30, 3))
    assert stored is not None
    assert torch.equal(stored.index, first.index)


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecplugError, match="choose another folder"):
        kneighbours(draw(3, 2), everyone(3), 1, cache=tmp_path / "file")


# -- item graphs


def dense_of(found, n, weighting):
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i in range(len(found.index)):
        for j, c, good in zip(found.index[i], found.weight[i], found.valid[i], strict=True):
            if good:
                matrix[i, j] = 1.0 if weighting == "binary" else max(float(c), 0.0)
    return matrix


def normalised(matrix):
    """D^-1/2 M D^-1/2, empty rows left alone."""
    degree = matrix.sum(dim=1)
    scale = torch.where(degree > 0, degree.clamp(min=1e-300).rsqrt(), 0.0)
    return scale[:, None] * matrix * scale[None, :]


@pytest.fixture
def two():
    """Image of items 0 to 17, text of items 10 to 29; 30 and 31 have neither."""
    image, text = everyone(18), everyone(30)
    text[:10] = False
    return {
        "image": kneighbours(draw(18, 6, seed=1), image, 4, include_self=True),
        "text": kneighbours(draw(30, 5, seed=2), text, 3),
    }


@pytest.mark.parametrize("weighting", ["binary", "cosine"])
@pytest.mark.parametrize("normalise", ["row", "symmetric"])
def test_item_graph_is_the_mixture(two, weighting, normalise):
    n, weights = 32, {"image": 0.1, "text": 0.9}
    parts = {name: dense_of(found, n, weighting) for name, found in two.items()}
    mixed, share = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for name, part in parts.items():
        degree = part.sum(dim=1)
        mixed += weights[name] * part / degree.clamp(min=1e-300)[:, None]
        share += weights[name] * (degree > 0)
    mixed /= share.clamp(min=1e-300)[:, None]
    expected = mixed if normalise == "row" else normalised((mixed + mixed.T) / 2)
    graph = item_graph(two, weights, n_rows=n, normalise=normalise, weighting=weighting)
    torch.testing.assert_close(graph.dense().double(), expected, rtol=1e-5, atol=1e-7)
    assert graph.shape == (n, n)
    assert graph.dtype == torch.float32


def test_rows_are_means_and_a_lone_modality_takes_all(two):
    alone = item_graph({"text": two["text"]}, {"text": 7.0}, n_rows=32).dense()
    both = item_graph(two, {"image": 0.1, "text": 0.9}, n_rows=32).dense()
    torch.testing.assert_close(both.sum(dim=1), torch.tensor([1.0] * 30 + [0.0] * 2))
    torch.testing.assert_close(both[18:], alone[18:])  # no image there
    assert alone[12][alone[12] > 0].tolist() == [pytest.approx(1 / 3)] * 3


def test_symmetric_graph_is_symmetric_to_the_bit_with_spectrum_in_bounds(two):
    graph = item_graph(two, {"image": 0.3, "text": 0.7}, n_rows=32, normalise="symmetric")
    dense = graph.dense()
    assert graph.symmetric
    assert torch.equal(dense, dense.T)
    eigenvalues = torch.linalg.eigvalsh(dense.double())
    assert eigenvalues.max().item() == pytest.approx(1.0, abs=1e-6)
    assert eigenvalues.min() >= -1 - 1e-6


def test_graph_without_edges(two):
    nothing = kneighbours(torch.zeros(4, 2), everyone(4), 3)
    for normalise in ("row", "symmetric"):
        graph = item_graph({"text": nothing}, {"text": 1.0}, n_rows=6, normalise=normalise)
        assert (graph.nnz, graph.shape) == (0, (6, 6))
        assert (graph @ draw(6, 2) == 0).all()
    off = item_graph(two, {"image": 0.0, "text": 1.0}, n_rows=32)
    assert off.dense()[:10].abs().sum() == 0


@pytest.mark.parametrize(
    ("weights", "n_rows", "word"),
    [
        ({"image": 1.0}, 32, "one for each modality"),
        ({"image": 1.0, "texte": 1.0}, 32, "one for each modality"),
        ({"image": -0.1, "text": 1.0}, 32, "none below 0"),
        ({"image": 0.0, "text": 0.0}, 32, "one above"),
        ({"image": math.nan, "text": 1.0}, 32, "none below 0"),
        ({"image": 1.0, "text": 1.0}, 29, "text has neighbours of 30 rows"),
    ],
)
def test_wrong_weights_are_refused(two, weights, n_rows, word):
    with pytest.raises(RecplugError, match=word):
        item_graph(two, weights, n_rows=n_rows)
    with pytest.raises(RecplugError, match="nothing"):
        item_graph({}, {}, n_rows=3)


def test_neighbours_move(two):
    moved = two["image"].to("cpu")
    assert isinstance(moved, Neighbours)
    assert torch.equal(moved.index, two["image"].index)


# -- co-occurrence


def dense_cooccurrence(edges, n_rows, k):
    users = int(edges[0].max()) + 1 if edges.shape[1] else 1
    r = torch.zeros(users, n_rows, dtype=torch.float64)
    r[edges[0], edges[1]] = 1.0
    counts = r.T @ r
    degree = counts.diagonal().clone()
    counts.fill_diagonal_(0)
    kept = torch.zeros_like(counts, dtype=torch.bool)
    for i in range(n_rows):
        near = [(-Fraction(int(counts[i, j]) ** 2, int(degree[j])), j) for j in range(n_rows) if counts[i, j] > 0]
        for _, j in sorted(near)[:k]:
            kept[i, j] = True
    return normalised(counts * (kept | kept.T))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=40),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_cooccurrence_is_the_dense_one(pairs, k, block):
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    graph = cooccurrence(edges, 9, k, block=block)
    dense = graph.dense()
    torch.testing.assert_close(dense.double(), dense_cooccurrence(edges, 9, k), rtol=1e-5, atol=1e-7)
    assert torch.equal(dense, dense.T)
    assert graph.symmetric
    assert not dense.diagonal().any()


def test_cooccurrence_by_hand():
    # Items 0 and 1 share two users, 1 and 2 one; item 3 is bought alone, 4 never.
    edges = torch.tensor([[0, 1, 0, 1, 2, 2, 3, 0], [0, 0, 1, 1, 1, 2, 3, 0]])  # (0, 0) comes twice
    dense = cooccurrence(edges, 5, 5).dense()
    expected = torch.zeros(5, 5)
    expected[0, 1] = expected[1, 0] = 2 / math.sqrt(2 * 3)
    expected[1, 2] = expected[2, 1] = 1 / math.sqrt(3 * 1)
    torch.testing.assert_close(dense, expected)


def test_cooccurrence_refuses_what_it_cannot_number():
    edges = torch.tensor([[0], [5]])
    with pytest.raises(RecplugError, match="padding row"):
        cooccurrence(edges, 5, 2)
    with pytest.raises(RecplugError, match="at least 1"):
        cooccurrence(edges, 6, 0)
