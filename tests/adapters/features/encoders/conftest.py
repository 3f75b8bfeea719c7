"""Small models of random weights, made on the spot and saved as their libraries save them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from recplug.adapters import optional_imports

WORDS = ["a", "red", "wooden", "chair", "blue", "bed", "shoe", "espresso", "machine", "with", "milk", "foam", "and"]
WORDS += ["the", "of", "for", "unknown"]


@pytest.fixture(scope="session")
def texts():
    """Of 1 to 15 words, out of order."""
    return [
        "a red wooden chair",
        "the blue bed",
        "espresso machine with milk foam and a red shoe for the bed of the unknown",
        "shoe",
    ]


@pytest.fixture(scope="session")
def images():
    """Pictures of noise in many shapes."""
    draw = np.random.default_rng(0)
    sizes = [(40, 30), (30, 64), (32, 32), (1, 1), (200, 7)]
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def tokenizer_of_words(folder, length, special, **options):
    """A tokenizer with one token a word, saved to ``folder``; ``special`` by role."""
    transformers = optional_imports.library("transformers")
    vocabulary = {word: number for number, word in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = special.get("cls_token"), special.get("sep_token") or special.get("eos_token")
    if "pad_token" in special:  # a decoder's tokenizer adds nothing and does not pad
        shape = " ".join(part for part in (start, "$A", end) if part)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=shape, special_tokens=[(token, vocabulary[token]) for token in (start, end) if token]
        )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length, **special, **options
    )
    made.save_pretrained(folder)
    return made


BERT_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
END_TOKENS = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<end>"}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LIVELY = {"initializer_range": 0.5}  # so that different inputs give clearly different vectors


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    """Folders by kind of model, each made when first asked for."""
    made = {}

    def folder(kind):
        if kind not in made:
            place = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            MAKERS[kind](place, optional_imports.library("transformers"))
            made[kind] = place
        return made[kind]

    return folder


def bert(place, transformers):
    tokenizer = tokenizer_of_words(place, 12, BERT_TOKENS, model_input_names=["input_ids", "attention_mask"])
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **SMALL, **LIVELY)
    transformers.BertModel(config).save_pretrained(place)


def roberta(place, transformers):
    tokenizer = tokenizer_of_words(place, 10**30, BERT_TOKENS)
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=16, pad_token_id=tokenizer.pad_token_id, **SMALL, **LIVELY
    )
    transformers.RobertaModel(config).save_pretrained(place)


def gpt(place, transformers):
    tokenizer = tokenizer_of_words(place, 10**30, {"unk_token": "<unk>", "eos_token": "<end>"})
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=14, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(place)


def clip(place, transformers):
    tokenizer = tokenizer_of_words(place, 16, END_TOKENS)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        text_config={**SMALL, **text}, vision_config={**SMALL, "image_size": 32, "patch_size": 8}, projection_dim=12
    )
    model = transformers.CLIPModel(config)
    lively(model)
    model.save_pretrained(place)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**size).save_pretrained(place)


def siglip(place, transformers):
    tokenizer = tokenizer_of_words(place, 16, END_TOKENS)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = transformers.SiglipConfig(
        text_config={**SMALL, **text}, vision_config={**SMALL, "image_size": 32, "patch_size": 8}
    )
    model = transformers.SiglipModel(config)
    lively(model)
    model.save_pretrained(place)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place)


def vit(place, transformers):
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SMALL, **LIVELY)
    transformers.ViTModel(config).save_pretrained(place)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place)


def lively(model):
    """Weights large enough that different inputs give clearly different vectors."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)


MAKERS = {"bert": bert, "roberta": roberta, "gpt": gpt, "clip": clip, "siglip": siglip, "vit": vit}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """A small configuration that open_clip knows by name, and a file with weights for it: its name, the file."""
    library = optional_imports.library("open_clip")
    place = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    (place / "recplug-tiny.json").write_text(json.dumps(config))
    library.add_model_config(place / "recplug-tiny.json")
    torch.manual_seed(0)
    model = library.create_model("recplug-tiny")
    lively(model)
    torch.save(model.state_dict(), place / "weights.pt")
    return "recplug-tiny", place / "weights.pt", config
