import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.adapters.features import dropped, shuffled
from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import Neighbours, kneighbours

N = 60
TOKENS = ["[PAD]", *(f"i{i}" for i in range(1, N))]


def content(tokens=TOKENS, absent=("i7", "i8", "i9")):
    """Two modalities whose values tell the item; text lacks a few."""
    numbers = torch.tensor([0 if token == "[PAD]" else int(token[1:]) for token in tokens], dtype=torch.float32)
    values = torch.stack([numbers, numbers + 0.5], dim=1)
    everywhere = torch.tensor([token != "[PAD]" for token in tokens])
    some = everywhere & ~torch.tensor([token in absent for token in tokens])
    return {
        "image": Modality("image", values * everywhere[:, None], everywhere),
        "text": Modality("text", values * some[:, None], some),
    }


def left(modalities, tokens=TOKENS):
    return {name: {tokens[i] for i in m.present.nonzero().squeeze(1).tolist()} for name, m in modalities.items()}


@given(st.floats(0, 0.95), st.floats(0, 0.95), st.integers(0, 5), st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_larger_share_takes_from_the_same_items_and_more(one, two, seed, together):
    small, large = sorted((one, two))
    before = content()
    few, _ = dropped(before, {}, TOKENS, small, seed=seed, together=together)
    many, _ = dropped(before, {}, TOKENS, large, seed=seed, together=together)
    for name, modality in before.items():
        assert left(many)[name] <= left(few)[name] <= left(before)[name]
        kept = few[name].present
        assert torch.equal(few[name].values[kept], modality.values[kept]), "who keeps a vector keeps his own"
        assert not few[name].values[~kept].any()
        if not together:
            count = len(left(before)[name])
            assert len(left(few)[name]) == count - round(small * count)
    if together:  # everybody has a picture
        lost = left(before)["image"] - left(few)["image"]
        assert left(few)["text"] == left(before)["text"] - lost
        assert len(lost) == round(small * (N - 1))


def test_items_are_drawn_by_token_not_by_place():
    order = torch.randperm(N - 1, generator=torch.Generator().manual_seed(4)) + 1
    other = ["[PAD]", *(TOKENS[i] for i in order.tolist())]
    for together in (False, True):
        one, _ = dropped(content(), {}, TOKENS, 0.5, together=together)
        two, _ = dropped(content(other), {}, other, 0.5, together=together)
        assert left(one) == left(two, other)


def test_modalities_lose_on_their_own_or_together():
    alone, _ = dropped(content(absent=()), {}, TOKENS, 0.5)
    assert left(alone)["image"] != left(alone)["text"]
    together, _ = dropped(content(absent=()), {}, TOKENS, 0.5, together=True)
    assert left(together)["image"] == left(together)["text"]
    assert left(dropped(content(), {}, TOKENS, 0.5, seed=1)[0]) != left(dropped(content(), {}, TOKENS, 0.5, seed=2)[0])


def test_no_share_changes_nothing():
    before = content()
    after, _ = dropped(before, {}, TOKENS, 0.0)
    assert all(torch.equal(after[name].values, m.values) and torch.equal(after[name].present, m.present)
               for name, m in before.items())  # fmt: skip


def test_edges_go_with_the_vector_of_either_end():
    values = torch.randn(N, 4, generator=torch.Generator().manual_seed(2))
    modality = Modality("image", values, content()["image"].present)
    graph = kneighbours(values, modality.present, 5)
    after, graphs = dropped({"image": modality}, {"image": graph, "sound": graph}, TOKENS, 0.4)
    for name, have in (("image", after["image"].present), ("sound", None)):
        found = graphs[name]
        if have is None:
            have = found.valid.any(dim=1)
        else:
            wanted = {
                (i, j, w)
                for i in range(N)
                for j, w, v in zip(
                    *(part[i].tolist() for part in (graph.index, graph.weight, graph.valid)), strict=True
                )
                if v and have[i] and have[j]
            }
            edges = {
                (i, j, w)
                for i in range(N)
                for j, w, v in zip(
                    *(part[i].tolist() for part in (found.index, found.weight, found.valid)), strict=True
                )
                if v
            }
            assert edges == wanted
        assert (found.index[~found.valid] == torch.arange(N)[:, None].expand(N, 5)[~found.valid]).all()
        assert not found.weight[~found.valid].any()
        assert (found.valid.int().diff(dim=1) <= 0).all(), "gaps stand last"
        assert (found.weight.diff(dim=1)[found.valid[:, 1:]] <= 0).all(), "nearest first"
        assert int(have.sum()) < N - 1
    assert isinstance(graphs["image"], Neighbours)


@pytest.mark.parametrize("share", [1, 1.0, -0.1, 2, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(RecplugError, match="at least 0 and below 1"):
        dropped(content(), {}, TOKENS, share)


def test_one_vector_is_left_at_least():
    one = {"image": Modality("image", torch.ones(3, 2), torch.tensor([False, True, False]))}
    with pytest.raises(RecplugError, match="leaves no item its image vector"):
        dropped(one, {}, ["[PAD]", "a", "b"], 0.9)


def test_shuffled_deals_the_same_vectors_out():
    before = content()["text"]
    after = shuffled(before, 3)
    assert torch.equal(after.present, before.present)
    assert sorted(after.values.tolist()) == sorted(before.values.tolist())
    assert not torch.equal(after.values, before.values)
