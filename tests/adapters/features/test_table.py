import json
import os
import resource
import stat

import numpy as np
import pytest
import torch
from safetensors import safe_open

from recplug.adapters.features import FeatureTable, find_tables, load_modalities, shuffled
from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError

TOKENS = ("b7", "a1", "ü9", "c3")


def table(tokens=TOKENS, width=3, dtype=torch.float16, modality="image", **metadata):
    values = torch.arange(1, len(tokens) * width + 1, dtype=dtype).reshape(len(tokens), width)
    return FeatureTable(values, tuple(tokens), modality, metadata)


def told(action, *words):
    """The one line of the error that ``action`` raises."""
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_round_trip_is_equal_to_the_byte(tmp_path, dtype):
    first = table(dtype=dtype, encoder="CLIP", zeta="z", alpha="a")
    first.save(tmp_path / "one.safetensors")
    second = FeatureTable.load(tmp_path / "one.safetensors")
    second.save(tmp_path / "two.safetensors")
    assert torch.equal(second.features, first.features)
    assert second.features.dtype == dtype
    assert second.tokens == TOKENS
    assert second.metadata["encoder"] == "CLIP"
    assert second.metadata["licence"] == "unknown"
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["one.safetensors", "two.safetensors"]


def test_the_file_is_plain_safetensors_with_the_documented_names(tmp_path):
    path = tmp_path / "t.safetensors"
    umask = os.umask(0o022)
    try:
        table().save(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"features", "item_tokens", "item_token_offsets"}
        assert file.metadata()["format"] == "recplug.features/1"
        assert file.metadata()["sha256"] == table().sha256
        assert file.get_tensor("item_token_offsets").tolist() == [0, 2, 4, 7, 9]
        assert bytes(file.get_tensor("item_tokens").tolist()).decode() == "".join(TOKENS)


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "t.safetensors"
    table().save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # no file may grow beyond 200 bytes
    try:
        told(lambda: table(width=5).save(path), "cannot write", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.safetensors"]


def test_rows_follow_tokens_whatever_their_order():
    hosts = ["[PAD]", "a1", "missing", "c3", "b7"]
    truth = dict(zip(TOKENS, table().features, strict=True))
    permuted = FeatureTable(table().features[[2, 0, 3, 1]], tuple(TOKENS[i] for i in (2, 0, 3, 1)), "image")
    wider = FeatureTable(torch.cat([torch.full((1, 3), 9.0).half(), table().features]), ("extra", *TOKENS), "image")
    narrower = FeatureTable(table().features[:2], TOKENS[:2], "image")
    for source, have in ((table(), TOKENS), (permuted, TOKENS), (wider, TOKENS), (narrower, TOKENS[:2])):
        modality = source.align(hosts)
        assert modality.values.dtype == torch.float16
        assert modality.present.tolist() == [token in have for token in hosts]
        for token, row, present in zip(hosts, modality.values, modality.present, strict=True):
            assert torch.equal(row, truth[token] if present else torch.zeros(3).half())


def test_the_padding_row_is_never_present():
    modality = FeatureTable(torch.ones(2, 3), ("[PAD]", "a"), "text").align(["[PAD]", "a"])
    assert modality.present.tolist() == [False, True]
    assert not modality.values[0].any()


def test_a_host_may_give_its_tokens_as_an_array():
    modality = table().align(np.array(["[PAD]", "a1", "x"]))
    assert modality.present.tolist() == [False, True, False]


def test_aligning_makes_cpu_tensors_under_any_default_device(tmp_path):
    table().save(tmp_path / "t.safetensors")
    with torch.device("meta"):
        modality = FeatureTable.load(tmp_path / "t.safetensors").align(["[PAD]", "a1"])
        control = shuffled(modality, 0)
    assert modality.values.device.type == control.values.device.type == "cpu"


def test_coverage_counts_both_sides():
    coverage = table().coverage(["[PAD]", "a1", "x", "c3", "y"])
    assert (coverage.items, coverage.covered, coverage.unused) == (4, 2, 2)
    assert str(coverage) == "image: 2 of 4 items have a vector (50.0 %), 2 table rows unused"


def test_no_overlap_is_refused():
    told(lambda: table().align(["[PAD]", "0", "1"]), "none of the dataset's 2 items", "'b7'", "'0'")
    told(lambda: table().align(["[PAD]"]), "none")
    told(lambda: table().align(["a1", "b7"]), "[PAD]")
    told(lambda: table().align([]), "[PAD]")


def broken(values, tokens=TOKENS, modality="image", metadata=None):
    return lambda: FeatureTable(values, tokens, modality, metadata or {})


def with_value(value):
    values = table().features.clone()
    values[2:, 1] = value
    return values


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (broken(torch.ones(4, 3), ("a", "b", "a", "c")), ["more than once", "'a'"]),
        (broken(torch.ones(4, 3), ("a", "b", "", "c")), ["row 2 is empty"]),
        (broken(torch.ones(4, 3), ("a", "b")), ["4 rows but 2 item tokens"]),
        (broken(with_value(float("nan"))), ["2 of 4 rows", "NaN", "'ü9'"]),
        (broken(with_value(float("inf"))), ["2 of 4 rows", "'ü9'"]),
        (broken(torch.ones(0, 3), ()), ["0 x 3"]),
        (broken(torch.ones(4, 0)), ["4 x 0"]),
        (broken(torch.ones(4)), ["1 dimensions"]),
        (broken(torch.ones(4, 1, 3)), ["3 dimensions"]),
        (broken(torch.ones(4, 3, dtype=torch.float64)), ["float64"]),
        (broken(torch.ones(4, 3, dtype=torch.int64)), ["int64"]),
        (broken(torch.ones(4, 3, device="meta")), ["CPU"]),
        (broken(torch.ones(4, 3), modality="im.age"), ["'im.age'", "letters"]),
        (broken(torch.ones(4, 3), modality=""), ["letters"]),
        (broken(torch.ones(4, 3), metadata={"sha256": "x"}), ["'sha256'"]),
        (broken(torch.ones(4, 3), metadata={"encoder": 3}), ["'encoder'"]),
    ],
)
def test_a_malformed_table_is_refused_in_one_line(action, words):
    told(action, *words)


def rewritten(path, **changes):
    """Change header metadata (text) or tensor bytes (bytes of the same length) of a stored table."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    for key, value in changes.items():
        if isinstance(value, bytes):
            start, end = header[key]["data_offsets"]
            assert len(value) == end - start
            body[start:end] = value
        else:
            header["__metadata__"][key] = value
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)


def offsets(*values):
    return torch.tensor(values).numpy().tobytes()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": "recplug.features/9"}, "not a feature table"),
        ({"sha256": "0" * 64}, "does not match its sha256"),
        ({"features": table().features.flip(0).numpy().tobytes()}, "does not match its sha256"),
        ({"features": torch.full((4, 3), float("nan")).half().numpy().tobytes()}, "NaN"),
        ({"modality": "a b"}, "letters"),
        ({"item_token_offsets": offsets(0, 2, 4, 7, 8)}, "offsets"),
        ({"item_token_offsets": offsets(1, 2, 4, 7, 9)}, "offsets"),
        ({"item_token_offsets": offsets(0, 4, 2, 7, 9)}, "offsets"),
        ({"item_token_offsets": offsets(0, 2, 2, 7, 9)}, "empty"),
        ({"item_token_offsets": offsets(0, 2, 5, 7, 9)}, "UTF-8"),
        ({"item_tokens": "b7b7ü9c3".encode()}, "more than once"),
    ],
)
def test_an_altered_file_is_refused_in_one_line(tmp_path, changes, word):
    path = tmp_path / "t.safetensors"
    table().save(path)
    rewritten(path, **changes)
    assert str(path) in told(lambda: FeatureTable.load(path), word)


def test_truncated_empty_foreign_and_missing_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "t.safetensors"
    table().save(path)
    whole = path.read_bytes()
    for length in (0, 5, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        told(lambda: FeatureTable.load(path), "truncated or corrupt")
    path.write_text("user_id:token\n" * 30)
    told(lambda: FeatureTable.load(path), "truncated or corrupt")
    told(lambda: FeatureTable.load(tmp_path), "no feature table", "recplug features import")
    told(lambda: FeatureTable.load(tmp_path / "none"), "no feature table", "recplug features import")


def test_tables_are_found_beside_the_dataset_image_first(tmp_path):
    for modality in ("audio", "text", "image"):
        table(modality=modality, encoder="E").save(tmp_path / f"shop.{modality}.safetensors")
    table().save(tmp_path / "shop.uk.image.safetensors")
    table().save(tmp_path / "shopping.video.safetensors")
    modalities, lines = load_modalities(tmp_path, "shop", None, {}, ["[PAD]", "a1", "x"])
    assert list(modalities) == ["image", "text", "audio"]
    assert lines[0].startswith("image: 1 of 2 items have a vector (50.0 %), 3 table rows unused; 3-d E")
    assert list(load_modalities(tmp_path, "shop", ["text", "image"], {}, ["[PAD]", "a1"])[0]) == ["text", "image"]
    assert load_modalities(tmp_path, "other", None, {}, ["[PAD]", "a1"]) == ({}, [])
    assert load_modalities(tmp_path, "shop", [], {}, ["[PAD]", "a1"]) == ({}, [])


def test_explicit_paths_come_before_the_usual_place(tmp_path):
    data = tmp_path / "shop"
    table(width=3).save(data / "shop.image.safetensors")
    table(width=5).save(tmp_path / "other" / "x.safetensors")
    paths = {"image": "../other/x.safetensors", "second": tmp_path / "other" / "x.safetensors"}
    modalities, lines = load_modalities(data, "shop", None, paths, ["[PAD]", "a1"])
    assert {name: (m.name, m.width) for name, m in modalities.items()} == {
        "image": ("image", 5),
        "second": ("second", 5),
    }
    assert "(as second)" in lines[1]
    assert find_tables(data, "shop", {}) == {"image": data / "shop.image.safetensors"}


def test_a_missing_table_names_the_command_that_makes_it(tmp_path):
    table().save(tmp_path / "shop.image.safetensors")
    load = lambda names, paths: lambda: load_modalities(tmp_path, "shop", names, paths, ["[PAD]", "a1"])  # noqa: E731
    told(load(["text"], {}), "recplug features import --from npy", "shop.text.safetensors")
    told(load(["imgae"], {}), "did you mean 'image'")
    told(load(None, {"text": "gone.safetensors"}), "gone.safetensors")
    told(load(["image", "image"], {}), "twice")


def test_shuffling_permutes_the_present_rows_only():
    present = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.7
    values = torch.arange(200.0)[:, None].expand(200, 4) * present[:, None]
    modality = Modality("image", values, present)
    control = shuffled(modality, 5)
    assert torch.equal(control.present, present)
    assert not control.values[~present].any()
    assert torch.equal(control.values[present].sort(dim=0).values, values[present])
    assert (control.values[present] != values[present]).any(dim=1).float().mean() > 0.9
    assert torch.equal(control.values, shuffled(modality, 5).values)
    assert not torch.equal(control.values, shuffled(modality, 6).values)


def test_shuffling_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    shuffled(table().align(["[PAD]", *TOKENS]), 1)
    assert torch.equal(torch.get_rng_state(), state)
