"""Encoders of open_clip against the library called directly."""

import json
import pickle
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file

from recplug.adapters import optional_imports
from recplug.adapters.features.encoders import open_encoder
from recplug.adapters.features.encoders.hub import weights_hash
from recplug.plugins.errors import RecplugError

open_clip = optional_imports.library("open_clip")


@pytest.fixture(scope="module")
def direct(tiny_clip):
    """The library's model, its transform and its tokenizer."""
    name, file, _ = tiny_clip
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=str(file))
    return model.eval(), transform, open_clip.get_tokenizer(name)


@pytest.fixture(scope="module")
def folder(tiny_clip, tmp_path_factory):
    """As open_clip pushes models to the hub."""
    _, file, config = tiny_clip
    place = tmp_path_factory.mktemp("hub") / "my-clip"
    place.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file(torch.load(file), place / "open_clip_model.safetensors")
    return place


def images_of(encoder, images):
    prepare = pickle.loads(pickle.dumps(encoder.prepare))
    return encoder.encode(torch.stack([prepare(image) for image in images]))


def spec(tiny_clip):
    return f"open_clip:{tiny_clip[0]}/{tiny_clip[1]}"


def test_images(tiny_clip, direct, images):
    model, transform, _ = direct
    encoder = open_encoder(spec(tiny_clip), "image", device="cpu")
    fitting = [image for image in images if min(image.size) > 3]
    with torch.inference_mode():
        wanted = model.encode_image(torch.stack([transform(image) for image in fitting]))
    assert torch.equal(images_of(encoder, fitting), wanted)
    assert torch.pdist(wanted).min() > 1e-3
    assert (encoder.width, encoder.pooling, encoder.modality) == (12, "projection", "image")


def test_texts(tiny_clip, direct, texts):
    model, _, tokenizer = direct
    encoder = open_encoder(spec(tiny_clip), "text", device="cpu", normalise=True)
    with torch.inference_mode():
        wanted = model.encode_text(tokenizer(texts), normalize=True)
    assert torch.equal(encoder.encode(pickle.loads(pickle.dumps(encoder.prepare))(texts)), wanted)
    assert torch.pdist(wanted).min() > 1e-3


def test_the_longest_text_that_is_not_cut_is_read_and_one_token_more_is_cut(tiny_clip):
    encoder = open_encoder(spec(tiny_clip), "text", device="cpu")
    full, over = (" ".join(["bed"] * n) for n in (14, 15))
    assert encoder.lengths([full, over, "bed"]) == [16, 17, 3]
    prepared = encoder.prepare([full, over, "bed"])
    assert prepared.truncated == [False, True, False]
    ids = prepared.inputs["input_ids"]
    assert torch.equal(ids[0], ids[1])
    # No padding in a full text; 0 would be it.
    assert ids[0].gt(0).all()


def test_a_text_s_vector_does_not_depend_on_its_batch(tiny_clip, texts):
    encoder = open_encoder(spec(tiny_clip), "text", device="cpu")
    alone = torch.cat([encoder.encode(encoder.prepare([text])) for text in texts])
    torch.testing.assert_close(encoder.encode(encoder.prepare(texts)), alone, rtol=1e-5, atol=1e-5)


def test_a_prefix(tiny_clip, direct):
    model, _, tokenizer = direct
    encoder = open_encoder(spec(tiny_clip), "text", device="cpu", prefix="a photo of ")
    with torch.inference_mode():
        assert torch.equal(
            encoder.encode(encoder.prepare(["a bed"])), model.encode_text(tokenizer(["a photo of a bed"]))
        )


def test_a_folder_brings_its_own_preprocessing(folder, images, texts):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    encoder = open_encoder(f"open_clip:{folder}", "image", device="cpu")
    with torch.inference_mode():
        wanted = model.eval().encode_image(torch.stack([transform(image) for image in images]))
    found = images_of(encoder, images)
    whole = [n for n, image in enumerate(images) if min(image.size) > 3]
    assert torch.equal(found[whole], wanted[whole])
    read = open_encoder(f"open_clip:{folder}", "text", device="cpu")
    assert read.encode(read.prepare(texts)).shape == (4, 12)


def test_what_it_is_called_does_not_depend_on_where_it_lies(tiny_clip, folder, tmp_path):
    moved = tmp_path / "my-clip"
    shutil.copytree(folder, moved)
    there, here = (open_encoder(f"open_clip:{place}", "image", device="cpu") for place in (folder, moved))
    assert (there.name, there.revision) == (here.name, here.revision)
    assert there.name == "open_clip:my-clip"
    assert there.revision == weights_hash(folder / "open_clip_model.safetensors")
    by_file = open_encoder(spec(tiny_clip), "image", device="cpu")
    assert (by_file.name, by_file.revision) == (f"open_clip:{tiny_clip[0]}/weights.pt", weights_hash(tiny_clip[1]))
    assert by_file.revision != there.revision


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("ViT-B-33/openai", "no model 'ViT-B-33'; did you mean 'ViT-B-32'"),
        ("ViT-B/32/openai", "no model 'ViT-B'"),
        ("ViT-B-32", "'' names no weights of ViT-B-32; give a file, or one of: openai, "),
        ("ViT-B-32/laion2b_s34b_b79", "did you mean 'laion2b_s34b_b79k'"),
        ("nowhere/at/all", "no model 'nowhere'"),
    ],
    ids=["model", "slash", "no weights", "tag", "folder"],
)
def test_what_is_wrong_with_a_name_is_said(rest, said):
    with pytest.raises(RecplugError) as caught:
        open_encoder(f"open_clip:{rest}", "image", device="cpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_are_used_with_the_activation_they_were_trained_with(tiny_clip, images, monkeypatch):
    """As with ViT-B-32/openai: the tag knows better than the model's configuration, and open_clip only warns."""
    name, file, _ = tiny_clip
    tag = {"file": str(file), "quick_gelu": True, "mean": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(sys.modules["open_clip.pretrained"]._PRETRAINED, name, {"quick": tag})
    encoder = open_encoder(f"open_clip:{name}/quick", "image", device="cpu")
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained="quick", force_quick_gelu=True)
    wrong, _, _ = open_clip.create_model_and_transforms(name, pretrained=str(file))
    pixels = torch.stack([transform(image) for image in images[:3]])
    with torch.inference_mode():
        assert torch.equal(images_of(encoder, images[:3]), model.eval().encode_image(pixels))
        assert not torch.allclose(model.encode_image(pixels), wrong.eval().encode_image(pixels), atol=1e-3)
    assert (encoder.name, encoder.revision) == (f"open_clip:{name}/quick", weights_hash(file))


def test_options_that_the_model_has_no_use_for(tiny_clip):
    for options in ({"pooling": "mean"}, {"max_length": 8}, {"revision": "main"}):
        with pytest.raises(RecplugError, match="leave"):
            open_encoder(spec(tiny_clip), "text", device="cpu", **options)


class Evil:
    """Does something when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return open, (str(self.place), "w")


@pytest.mark.parametrize("kind", ["other model", "cut off", "evil"])
def test_weights_that_are_no_weights_are_refused(tiny_clip, tmp_path, kind):
    name, file, _ = tiny_clip
    bad, trace = tmp_path / "bad.pt", tmp_path / "trace"
    if kind == "other model":
        torch.save({"weight": torch.zeros(3)}, bad)
    elif kind == "cut off":
        bad.write_bytes(file.read_bytes()[:50_000])
    else:
        torch.save({**torch.load(file), "x": Evil(trace)}, bad)
    with pytest.raises(RecplugError, match="open_clip cannot read"):
        open_encoder(f"open_clip:{name}/{bad}", "image", device="cpu")
    assert not trace.exists()


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    with pytest.raises(RecplugError, match="open_clip cannot read"):
        open_encoder(f"open_clip:{tmp_path}", "image", device="cpu")
