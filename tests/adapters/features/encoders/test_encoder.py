"""What all encoders share: names, options, and models that do not fit."""

import json
import multiprocessing
import shutil

import pytest
import torch

from recplug.adapters import optional_imports
from recplug.adapters.features.encoders import open_encoder
from recplug.plugins.errors import RecplugError

transformers = optional_imports.library("transformers")


def refusal(spec, modality, **options):
    with pytest.raises(RecplugError) as caught:
        open_encoder(spec, modality, **{"device": "cpu", **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "modality", "options", "said"),
    [
        ("openclip:ViT-B-32/openai", "image", {}, "did you mean 'open_clip'"),
        ("all-MiniLM-L6-v2", "text", {}, "say open_clip, transformers, sentence-transformers"),
        ("transformers:", "text", {}, "names no model"),
        ("open_clip:hf-hub:", "text", {}, "names no model"),
        ("open_clip:/nowhere", "text", {}, "no folder /nowhere"),
        ("transformers:x", "images", {}, "did you mean 'image'"),
        ("transformers:x", "text", {"precision": "bf61"}, "did you mean 'bf16'"),
        ("transformers:x", "text", {"pooling": "maen"}, "did you mean 'mean'"),
        ("transformers:x", "text", {"max_length": 0}, "at least 1"),
        ("transformers:x", "image", {"max_length": 5}, "for texts"),
        ("transformers:x", "image", {"prefix": "query: "}, "for texts"),
        ("transformers:x", "text", {"device": "abacus"}, "device 'abacus' cannot be used"),
        ("transformers:x", "text", {"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ],
    ids=["library", "no library", "no model", "no hub id", "no folder", "modality", "precision", "pooling", "length",
         "image length", "image prefix", "device", "no such device"],
)  # fmt: skip
def test_what_is_wrong_with_an_option_is_said(spec, modality, options, said):
    assert said in refusal(spec, modality, **options)


@pytest.mark.parametrize(
    ("kind", "modality", "said"),
    [("bert", "image", "reads texts"), ("vit", "text", "reads images"), ("gpt", "image", "reads texts")],
)
def test_a_model_of_the_other_modality_is_refused(model_folders, kind, modality, said):
    assert said in refusal(f"transformers:{model_folders(kind)}", modality)


@pytest.mark.parametrize(("kind", "modality"), [("clip", "text"), ("siglip", "image")])
def test_a_tower_s_own_pooling_cannot_be_replaced(model_folders, kind, modality):
    assert "leave --pooling out" in refusal(f"transformers:{model_folders(kind)}", modality, pooling="mean")


@pytest.mark.parametrize(
    ("kind", "modality", "gone"),
    [
        ("bert", "text", "config.json"),
        ("bert", "text", "model.safetensors"),
        ("bert", "text", "tokenizer.json"),
        ("vit", "image", "preprocessor_config.json"),
    ],
    ids=["config", "weights", "tokenizer", "processor"],
)
def test_an_incomplete_folder_is_refused(model_folders, tmp_path, kind, modality, gone):
    folder = shutil.copytree(model_folders(kind), tmp_path / "model")
    (folder / gone).unlink()
    assert "incomplete" in refusal(f"transformers:{folder}", modality)


def test_damaged_weights_are_refused(model_folders, tmp_path):
    folder = shutil.copytree(model_folders("bert"), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2_000])
    assert "cannot read" in refusal(f"transformers:{folder}", "text")


def test_weights_that_the_file_does_not_have_are_not_made_up(model_folders, tmp_path):
    folder = shutil.copytree(model_folders("bert"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "no weights for encoder.layer.2." in refusal(f"transformers:{folder}", "text")


def test_a_missing_pooler_matters_only_where_it_is_used(model_folders, tmp_path):
    """As in checkpoints of masked language models."""
    source = model_folders("bert")
    folder = shutil.copytree(source, tmp_path / "model")
    model = transformers.AutoModel.from_pretrained(source, add_pooling_layer=False)
    model.save_pretrained(folder)
    assert "no weights for pooler" in refusal(f"transformers:{folder}", "text", pooling="pooler")
    with_it, without = (open_encoder(f"transformers:{place}", "text", device="cpu") for place in (source, folder))
    texts = ["a red chair", "shoe"]
    assert torch.equal(with_it.encode(with_it.prepare(texts)), without.encode(without.prepare(texts)))


class Evil:
    """Does something when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return open, (str(self.place), "w")


def test_a_pickle_is_read_as_weights_only(model_folders, tmp_path):
    folder = shutil.copytree(model_folders("bert"), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    weights = transformers.AutoModel.from_pretrained(model_folders("bert")).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    encoder = open_encoder(f"transformers:{folder}", "text", device="cpu")
    whole = open_encoder(f"transformers:{model_folders('bert')}", "text", device="cpu")
    prepared = encoder.prepare(["a red chair"])
    assert torch.equal(encoder.encode(prepared), whole.encode(prepared))
    trace = tmp_path / "trace"
    torch.save({**weights, "x": Evil(trace)}, folder / "pytorch_model.bin")
    assert "cannot read" in refusal(f"transformers:{folder}", "text")
    assert not trace.exists()


def test_code_that_comes_with_a_model_is_never_run(model_folders, tmp_path):
    folder = shutil.copytree(model_folders("bert"), tmp_path / "model")
    trace = tmp_path / "trace"
    (folder / "mine.py").write_text(f"open({str(trace)!r}, 'w')\nclass Mine: pass\nclass MineConfig: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModel": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "never run" in refusal(f"transformers:{folder}", "text")
    assert not trace.exists()


def test_a_model_of_both_that_is_not_known_is_refused(tmp_path):
    transformers.CLIPSegConfig().save_pretrained(tmp_path)
    assert "of those, clip and siglip can be used" in refusal(f"transformers:{tmp_path}", "image")


def test_a_model_that_writes_is_refused(tmp_path):
    transformers.T5Config().save_pretrained(tmp_path)
    assert "writes texts" in refusal(f"transformers:{tmp_path}", "text")


def test_lengths_are_of_texts(model_folders):
    encoder = open_encoder(f"transformers:{model_folders('vit')}", "image", device="cpu")
    with pytest.raises(RecplugError, match="lengths are of texts"):
        encoder.lengths(["a"])


def prepared(prepares, inputs, answers):
    image, texts = (prepare(given) for prepare, given in zip(prepares, inputs, strict=True))
    # Arrays: a tensor in a queue is a file descriptor, which is gone when the process that put it ends first.
    answers.put((image.numpy(), {name: each.numpy() for name, each in texts.inputs.items()}, texts.truncated))


def test_preparing_in_a_new_process(model_folders, images, texts):
    """A spawned process has imported nothing yet; a forked one has."""
    kinds = (("clip", "image"), ("bert", "text"))
    prepares = [open_encoder(f"transformers:{model_folders(k)}", m, device="cpu").prepare for k, m in kinds]
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    worker = spawn.Process(target=prepared, args=(prepares, (images[0], texts), answers))
    worker.start()
    image, inputs, truncated = answers.get(timeout=300)
    assert torch.equal(torch.from_numpy(image), prepares[0](images[0]))
    here = prepares[1](texts)
    assert inputs.keys() == here.inputs.keys()
    assert all(torch.equal(torch.from_numpy(inputs[name]), here.inputs[name]) for name in inputs)
    assert truncated == here.truncated == [False, False, True, False]
    worker.join(300)
    assert worker.exitcode == 0
