"""``recplug features export`` and ``inspect``, and what comes back in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recplug.adapters.features import FeatureTable

TINY = ["--dataset", "tiny", "--data_path", "data"]
OUTPUTS = {
    "npy": ("out/v.npy", ["--tokens", "out/v.tokens.txt"]),
    "npz": ("out/v.npz", []),
    "parquet": ("out/v.parquet", []),
    "mmrec": ("out", []),
    "ducho": ("out/torch/net/pool", []),
    "cornac": ("out/v.npy", []),
    "recbole": ("out/tiny.image", []),
}


@pytest.fixture
def table(data):
    """24 of tiny's 30 items, and two that it does not have."""
    tokens = (*(f"i{i}" for i in range(23, -1, -1)), "x", "y")
    made = FeatureTable(torch.randn(26, 4, generator=torch.Generator().manual_seed(0)), tokens, "image")
    made.save("t.safetensors")
    return made


@pytest.mark.parametrize("kind", list(OUTPUTS))
@pytest.mark.parametrize("which", ["all", "dataset", "items"])
def test_export_and_import_give_the_same_table(kind, which, table, recplug_cli):
    output, more = OUTPUTS[kind]
    Path("items.tsv").write_text("item\tname\ni3\tA\nnone\tB\ni1\tC\n")
    words = {"all": [], "dataset": TINY, "items": ["--items", "items.tsv"]}[which]
    ended = recplug_cli("features", "export", "t.safetensors", "--to", kind, "--output", output, *words)
    assert (ended.code, ended.err) == (0, "")
    counts = {"all": "26 items, 26 with a vector", "dataset": "30 items, 24 with a vector; 2 vectors of other items",
              "items": "3 items, 2 with a vector; 24 vectors of other items"}[which]  # fmt: skip
    assert counts in ended.out
    assert ("preload_weight: {iid: image}" in ended.out) == (kind == "recbole")
    back = ["features", "import", "--from", kind, output, "--modality", "image", "--output", "back.safetensors", *more]
    assert recplug_cli(*back).code == 0
    found = FeatureTable.load("back.safetensors")
    kept = {"all": table.tokens, "dataset": table.tokens[:24], "items": ("i3", "i1")}[which]
    assert set(found.tokens) == set(kept)
    for token in kept:
        wanted = table.features[table.tokens.index(token)]
        assert torch.equal(found.features[found.tokens.index(token)], wanted)


def test_export_follows_a_mapping_of_mmrecs(table, recplug_cli):
    Path("map.csv").write_text("asin\titemID\ni5\t1\nnone\t2\ni9\t0\n")
    ended = recplug_cli("features", "export", "t.safetensors", "--to", "mmrec", "--output", "mm", "--items", "map.csv")
    assert ended.code == 0
    rows = np.load("mm/image_feat.npy")
    wanted = [table.features[table.tokens.index(token)].tolist() for token in ("i9", "i5")]
    assert rows.tolist() == [*wanted, [0.0] * 4]


WRONG = {
    "both": (["--to", "npy", "--output", "o.npy", "--items", "t.txt", *TINY], "leave one out"),
    "format": (["--to", "csv", "--output", "o.csv"], "'csv'"),
    "no output": (["--to", "npy"], "Missing option '--output'"),
    "no items": (["--to", "npy", "--output", "o.npy", "--items", "none.txt"], "cannot read none.txt"),
    "none of them": (["--to", "npy", "--output", "o.npy", "--items", "t.txt"], "holds none of the dataset's 1 items"),
    "exists": (["--to", "npy", "--output", "t.txt"], "add --overwrite"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_export_refuses_in_one_line(case, table, recplug_cli, refused):
    Path("t.txt").write_text("nobody\n")
    words, told = WRONG[case]
    assert told in refused(recplug_cli("features", "export", "t.safetensors", *words))
    assert Path("t.txt").read_text() == "nobody\n"
    assert not Path("o.npy").exists()


def test_export_wants_a_feature_table(data, recplug_cli, refused):
    words = ["features", "export", "data/tiny/tiny.inter", "--to", "npy", "--output", "o.npy"]
    assert "truncated or corrupt" in refused(recplug_cli(*words))


def test_import_refuses_options_of_other_formats(data, recplug_cli, refused):
    words = ["features", "import", "x", "--modality", "image", "--output", "o.safetensors", "--from"]
    assert "--positional belongs to" in refused(recplug_cli(*words, "ducho", "--positional"))
    assert "--tokens belongs to --from npy or knn or cornac" in refused(recplug_cli(*words, "ducho", "--tokens", "t"))
    assert "--token_column belongs to --from parquet or recbole" in refused(
        recplug_cli(*words, "npy", "--token_column", "t")
    )


def test_inspect_names_placeholders_and_dimensions_that_say_nothing(data, recplug_cli):
    (data / "tiny.item").write_text("item_id:token\ttitle:token_seq\ni0\tA mug\ni1\tA cup\n")
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    features[:12] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    features[12:16] = features[20]
    features[:, 3] = 4.0
    features[29] = 0.0
    FeatureTable(features, tuple(f"i{i}" for i in range(30)), "image").save("t.safetensors")
    lines = recplug_cli("features", "inspect", "t.safetensors", *TINY).out.splitlines()
    assert "zeros: 1 items have a vector of zeros" in lines
    assert "duplicates: 17 items share their vector with another" in lines
    place = lines.index("placeholder? 12 items share one vector, such as")
    assert lines[place + 1 : place + 4] == ["    i0  A mug", "    i1  A cup", "    i2"]
    assert sum(line.startswith("placeholder?") for line in lines) == 1
    more = recplug_cli("features", "inspect", "t.safetensors", "--placeholder", "5").out
    assert more.count("placeholder?") == 2
    features[29, 3] = 4.0
    FeatureTable(features, tuple(f"i{i}" for i in range(30)), "image").save("t.safetensors")
    assert "near-constant dimensions: 1 of 5 (3)" in recplug_cli("features", "inspect", "t.safetensors").out


def test_inspect_draws_a_contact_sheet(table, data, recplug_cli, refused):
    Path("pictures").mkdir()
    for place in range(20):
        Image.new("RGB", (50, 40), (place * 12, 80, 80)).save(f"pictures/i{place}.png")
    words = ["features", "inspect", "t.safetensors", *TINY]
    ended = recplug_cli(*words, "--images", "pictures", "--sheet", "s.png", "--queries", "3")
    assert (ended.code, ended.err) == (0, "")
    assert "s.png: 3 items and their nearest" in ended.out
    assert Image.open("s.png").format == "PNG"
    header = "item_id:token\ttitle:token_seq\tfile:token\n"
    (data / "tiny.item").write_text(header + "".join(f"i{i}\tThing\tp/{i}.png\n" for i in range(20)))
    Path("pictures").rename(data / "p")
    for place in range(20):
        (data / "p" / f"i{place}.png").rename(data / "p" / f"{place}.png")
    assert recplug_cli(*words, "--images", "file", "--sheet", "column.png").code == 0
    assert "needs both --images" in refused(recplug_cli(*words, "--sheet", "s.png"))
    assert "needs both --images" in refused(recplug_cli(*words, "--images", "pictures"))
    assert "needs --dataset" in refused(recplug_cli(*words[:3], "--images", "file", "--sheet", "s.png"))
    assert "is no .png" in refused(recplug_cli(*words, "--images", "file", "--sheet", "s.jpg"))
    assert "--images nowhere is not a folder" in refused(
        recplug_cli(*words, "--images", "nowhere", "--sheet", "other.png")
    )
    assert not Path("other.png").exists()


def test_inspect_prints_the_origin_in_one_order(table, recplug_cli):
    lines = recplug_cli("features", "inspect", "t.safetensors").out.splitlines()
    keys = [line.partition(":")[0] for line in lines[1:7]]
    assert keys == ["created", "encoder", "licence", "normalised", "pooling", "revision"]


def test_a_full_disk_is_told_by_its_name(table, tmp_path):
    """NumPy's own error for it has no strerror."""
    import resource

    from recplug.adapters.features import to_npy
    from recplug.plugins.errors import RecplugError

    big = FeatureTable(torch.ones(2_000, 8), tuple(map(str, range(2_000))), "image")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RecplugError, match=r"cannot write .*v\.npy: \d+ requested and \d+ written"):
            to_npy(big, tmp_path / "v.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*v.*"))
