import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from recplug.adapters.factors import FactorSchema, FactorSpec, Value, from_clusters
from recplug.adapters.features import FeatureTable
from recplug.plugins.errors import RecplugError


def blobs(modality, tokens, seed, groups=4, width=6, dtype=torch.float32):
    """Well separated groups of unequal size, and which group each token is in."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(groups, len(tokens), p=np.arange(1, groups + 1) / sum(range(1, groups + 1)))
    values = 20 * np.eye(groups, width)[labels] + generator.normal(size=(len(tokens), width))
    table = FeatureTable(torch.tensor(values, dtype=dtype), tuple(tokens), modality, {"licence": modality})
    return table, dict(zip(tokens, labels.tolist(), strict=True))


TOKENS = [f"i{n}" for n in range(120)]


def labels_of(table, factor):
    return {token: values[0] for token, values in zip(table.tokens, table.values[factor], strict=True) if values}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_planted_groups_are_found(dtype):
    image, truth = blobs("image", TOKENS, 0, dtype=dtype)
    text, other_truth = blobs("text", TOKENS, 1)
    table = from_clusters({"image": image, "text": text}, factors=2, values=4)
    for name, planted in (("image_1", truth), ("text_1", other_truth)):
        found = labels_of(table, name)
        assert adjusted_rand_score([planted[t] for t in TOKENS], [found[t] for t in TOKENS]) == 1.0
        sizes = [list(found.values()).count(value) for value in ("c00", "c01", "c02", "c03")]
        assert sizes == sorted(sizes, reverse=True)
    assert [spec.source for spec in table.schema.factors] == ["image", "text"]


def test_items_without_a_vector_are_unknown_in_that_modality_alone():
    image, _ = blobs("image", TOKENS[:80], 0)
    text, _ = blobs("text", TOKENS[40:], 1)
    table = from_clusters({"image": image, "text": text}, factors=2, values=4)
    assert set(table.tokens) == set(TOKENS)
    assert set(labels_of(table, "image_1")) == set(TOKENS[:80])
    assert set(labels_of(table, "text_1")) == set(TOKENS[40:])


def test_one_modality_does_not_touch_the_groups_of_another():
    image, _ = blobs("image", TOKENS, 0)
    text, _ = blobs("text", TOKENS, 1)
    alone = from_clusters({"image": image}, factors=2, values=5)
    both = from_clusters({"image": image, "text": text}, factors=4, values=5)
    for name in ("image_1", "image_2"):
        assert alone.values[name] == both.values[name]


def test_equal_seeds_give_equal_tables_and_blocks_differ():
    noise = FeatureTable(
        torch.randn(200, 12, generator=torch.Generator().manual_seed(0)), tuple(map(str, range(200))), "image"
    )
    first, again, other = (from_clusters({"image": noise}, factors=3, values=6, seed=seed) for seed in (1, 1, 2))
    assert first.sha256 == again.sha256
    assert first.values != other.values
    names = list(first.values)
    assert names == ["image_1", "image_2", "image_3"]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        one, two = labels_of(first, names[a]), labels_of(first, names[b])
        assert adjusted_rand_score(list(one.values()), list(two.values())) < 0.3


def test_factors_are_shared_out_and_named_by_modality():
    tables = {name: blobs(name, TOKENS, seed)[0] for seed, name in enumerate(("image", "text", "audio"))}
    table = from_clusters(tables, factors=5, values=3)
    assert list(table.values) == ["image_1", "image_2", "text_1", "text_2", "audio_1"]
    assert table.metadata["licence"] == "image; text; audio"
    assert all(tables[name].sha256 in table.metadata["features"] for name in tables)
    assert from_clusters(tables, factors=3, values=101).schema.factors[0].names[0] == "c000"


def test_a_schema_gives_the_sizes_and_the_sources():
    tables = {name: blobs(name, TOKENS, seed)[0] for seed, name in enumerate(("image", "text", "audio"))}
    sized = {"a": ("text", 3, False), "b": ("image", 5, True), "c": ("catalogue", 2, False), "d": ("text", 4, False)}
    like = FactorSchema(
        factors=tuple(
            FactorSpec(
                name=name, source=source, other="v0" if other else None,
                values=tuple(Value(name=f"v{i}") for i in range(size + other)),
            )
            for name, (source, size, other) in sized.items()
        )
    )  # fmt: skip
    found = from_clusters(tables, like=like).schema.factors
    assert {spec.name: (spec.source, len(spec.names)) for spec in found} == {
        "image_1": ("image", 5), "text_1": ("text", 3), "text_2": ("text", 4), "audio_1": ("cluster", 2)
    }  # fmt: skip
    with pytest.raises(RecplugError, match="no factor for the audio"):
        from_clusters(tables, like=like.model_copy(update={"factors": (*like.factors[:2], like.factors[3])}))


def test_the_global_random_state_is_left_alone():
    image, _ = blobs("image", TOKENS, 0)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    from_clusters({"image": image}, factors=2, values=3)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.filterwarnings("error")
def test_values_that_no_item_got_are_left_out():
    twins = FeatureTable(torch.tensor([[0.0, 1], [0, 1], [5, 1], [5, 1], [5, 1]]), tuple("abcde"), "image")
    table = from_clusters({"image": twins}, factors=1, values=4)
    assert table.schema.factors[0].names == ("c00", "c01")
    assert table.values["image_1"] == (("c01",), ("c01",), ("c00",), ("c00",), ("c00",))


@pytest.mark.parametrize(
    ("tables", "options", "word"),
    [
        ([], {}, "0 feature tables"),
        (["image", "text"], {"factors": 1}, "1 factors of 2 feature tables"),
        (["image"], {"values": 1}, "1 values"),
        (["image"], {"values": 121}, "too few"),
        (["image"], {"factors": 7}, "too few"),
    ],
)
def test_what_cannot_be_split_is_refused_in_one_line(tables, options, word):
    with pytest.raises(RecplugError, match=word):
        from_clusters({name: blobs(name, TOKENS, 0)[0] for name in tables}, **options)
