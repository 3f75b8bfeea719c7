"""Encoders of transformers against the library called directly."""

import pickle

import pytest
import torch

from recplug.adapters import optional_imports
from recplug.adapters.features.encoders import open_encoder
from recplug.adapters.features.encoders.pooling import pool
from recplug.plugins.errors import RecplugError

transformers = optional_imports.library("transformers")


def opened(folder, modality, **options):
    return open_encoder(f"transformers:{folder}", modality, device="cpu", **options)


def sent(encoder):
    """What prepares inputs, as a worker process would have it."""
    return pickle.loads(pickle.dumps(encoder.prepare))


def vectors(encoder, inputs):
    prepare = sent(encoder)
    if encoder.modality == "text":
        return encoder.encode(prepare(inputs))
    return encoder.encode(torch.stack([prepare(image) for image in inputs]))


def states(folder, texts, kind="AutoModel", **options):
    """Last states ``[b, t, d]`` and mask ``[b, t]`` of a language model, by the library alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt", **options)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        return getattr(transformers, kind).from_pretrained(folder).eval()(**inputs), inputs["attention_mask"]


def by_hand(rows, mask, pooling):
    """One text after the other, without padding."""
    found = []
    for row, there in zip(rows, mask.bool(), strict=True):
        tokens = row[there]
        found.append(
            {"cls": tokens[0], "last": tokens[-1], "mean": tokens.sum(0) / len(tokens), "max": tokens.amax(0)}[pooling]
        )
    return torch.stack(found)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_a_language_model_is_pooled_as_asked(model_folders, texts, pooling):
    folder = model_folders("bert")
    out, mask = states(folder, texts)
    encoder = opened(folder, "text", pooling=pooling)
    torch.testing.assert_close(
        vectors(encoder, texts), by_hand(out.last_hidden_state, mask, pooling), rtol=1e-6, atol=1e-6
    )
    assert (encoder.pooling, encoder.width, encoder.normalised) == (pooling, 16, False)


def test_the_pooler_is_the_library_s(model_folders, texts):
    folder = model_folders("bert")
    out, _ = states(folder, texts)
    assert torch.equal(vectors(opened(folder, "text", pooling="pooler"), texts), out.pooler_output)


@pytest.mark.parametrize(
    ("kind", "pooling", "reads"), [("bert", "mean", 12), ("roberta", "mean", 15), ("gpt", "last", 14)]
)
def test_defaults_come_from_the_model(model_folders, texts, kind, pooling, reads):
    folder = model_folders(kind)
    encoder = opened(folder, "text")
    out, mask = states(folder, texts, max_length=encoder.prepare.max_length)
    # BERT: of the tokenizer's 12 and 16 places the fewer. RoBERTa: 16 places without the padding token's, the first.
    assert (encoder.pooling, encoder.prepare.max_length) == (pooling, reads)
    torch.testing.assert_close(
        vectors(encoder, texts), by_hand(out.last_hidden_state, mask, pooling), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt", "clip", "siglip"])
def test_the_longest_text_that_is_not_cut_is_read_and_one_token_more_is_cut(model_folders, kind):
    encoder = opened(model_folders(kind), "text")
    room = encoder.prepare.max_length
    special = encoder.lengths(["bed"])[0] - 1
    full, over = (" ".join(["bed"] * n) for n in (room - special, room - special + 1))
    assert encoder.lengths([full, over]) == [room, room + 1]
    prepared = encoder.prepare([full, over])
    assert prepared.truncated == [False, True]
    assert prepared.inputs["input_ids"].shape == (2, room)
    assert encoder.encode(prepared).isfinite().all()


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt", "clip", "siglip"])
def test_padding_does_not_change_a_vector(model_folders, texts, kind):
    encoder = opened(model_folders(kind), "text")
    together = vectors(encoder, texts)
    alone = torch.cat([vectors(encoder, [text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    # Otherwise the above would show nothing.
    assert torch.pdist(together).min() > 1e-2


def test_fewer_tokens_on_request(model_folders, texts):
    folder = model_folders("bert")
    encoder = opened(folder, "text", max_length=4)
    out, mask = states(folder, texts, max_length=4)
    assert encoder.prepare(texts).truncated == [True, True, True, False]
    torch.testing.assert_close(vectors(encoder, texts), by_hand(out.last_hidden_state, mask, "mean"))
    with pytest.raises(RecplugError, match="reads 16 tokens, not 17"):
        opened(folder, "text", max_length=17)


def test_a_prefix_is_read_and_counted(model_folders, texts):
    folder = model_folders("bert")
    with_prefix = opened(folder, "text", prefix="the red ")
    plain = opened(folder, "text")
    assert with_prefix.lengths(texts) == [n + 2 for n in plain.lengths(texts)]
    assert torch.equal(vectors(with_prefix, texts), vectors(plain, [f"the red {text}" for text in texts]))


def test_a_text_without_tokens_is_refused(model_folders):
    encoder = opened(model_folders("gpt"), "text")
    assert encoder.lengths(["", "bed"]) == [0, 1]
    with pytest.raises(RecplugError, match="no token"):
        encoder.prepare(["bed", ""])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_text_tower_gives_what_the_whole_model_gives(model_folders, texts, kind):
    folder = model_folders(kind)
    whole = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if kind == "siglip" else True
    inputs = tokenizer(texts, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    wanted = {"input_ids": inputs["input_ids"]}
    if kind == "clip":
        wanted["attention_mask"] = inputs["attention_mask"]
    encoder = opened(folder, "text")
    if "attention_mask" in encoder.prepare(texts).inputs:
        wanted["attention_mask"] = inputs["attention_mask"]
    with torch.inference_mode():
        found = whole.get_text_features(**wanted)
    assert torch.equal(vectors(encoder, texts), getattr(found, "pooler_output", found))
    assert (encoder.width, encoder.pooling) == ((12, "projection") if kind == "clip" else (16, "pooler"))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_image_tower_gives_what_the_whole_model_gives(model_folders, images, kind):
    folder = model_folders(kind)
    whole = transformers.AutoModel.from_pretrained(folder).eval()
    fitting = [image for image in images if min(image.size) > 3]
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=fitting, return_tensors="pt")
    encoder = opened(folder, "image")
    with torch.inference_mode():
        found = whole.get_image_features(**pixels)
    assert torch.equal(vectors(encoder, fitting), getattr(found, "pooler_output", found))
    assert torch.pdist(vectors(encoder, images)).min() > 1e-3


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "pooler", None])
def test_a_vision_transformer_is_pooled_as_asked(model_folders, images, pooling):
    folder = model_folders("vit")
    fitting = [image for image in images if min(image.size) > 3]
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=fitting, return_tensors="pt")
    with torch.inference_mode():
        out = transformers.AutoModel.from_pretrained(folder).eval()(**pixels)
    wanted = {
        "cls": out.last_hidden_state[:, 0],
        "mean": out.last_hidden_state.mean(1),
        "max": out.last_hidden_state.amax(1),
        "pooler": out.pooler_output,
    }[pooling or "cls"]
    encoder = opened(folder, "image", pooling=pooling)
    torch.testing.assert_close(vectors(encoder, fitting), wanted, rtol=1e-6, atol=1e-6)
    assert encoder.pooling == (pooling or "cls")


def test_lengths_on_request_are_one(model_folders, texts):
    folder = model_folders("bert")
    scaled = opened(folder, "text", normalise=True)
    plain = vectors(opened(folder, "text"), texts)
    assert scaled.normalised
    torch.testing.assert_close(vectors(scaled, texts), plain / plain.norm(dim=1, keepdim=True))


def test_half_precision_is_near_and_comes_out_as_float32(model_folders, texts):
    folder = model_folders("bert")
    near = vectors(opened(folder, "text", precision="bf16"), texts)
    exact = vectors(opened(folder, "text"), texts)
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0.1, atol=0.1)


def test_weights_saved_in_half_precision_compute_in_float32(model_folders, texts, tmp_path):
    folder = model_folders("bert")
    model = transformers.AutoModel.from_pretrained(folder).half()
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    out, mask = states(tmp_path, texts)
    assert out.last_hidden_state.dtype in (torch.float16, torch.float32)
    model = model.float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        wanted = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    torch.testing.assert_close(vectors(opened(tmp_path, "text"), texts), by_hand(wanted, mask, "mean"))


def test_what_comes_out_may_be_written_to(model_folders, texts):
    found = vectors(opened(model_folders("bert"), "text"), texts)
    found[0] = 0.0
    assert not found.requires_grad
    assert found[0].eq(0).all()


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_against_a_loop(pooling, side):
    rows = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7], [1], [3], [6], [2]])
    mask = mask.flip(1) if side == "left" else mask
    torch.testing.assert_close(pool(rows, mask.long(), pooling), by_hand(rows, mask, pooling))
