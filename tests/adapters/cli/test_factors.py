"""``recplug factors import`` and ``inspect``, on files."""

import csv
import random

import pytest

from recplug.adapters.factors import FactorTable
from recplug.adapters.item_files import training

TINY = ["--dataset", "tiny", "--data_path", "data"]
IMPORT = ["factors", "import", "--from"]
INSPECT = ["factors", "inspect"]


@pytest.fixture
def shop(data):
    """The tiny data set with a catalogue: i0 to i29, of three shelves, some tags, a year and a way down a tree."""
    rows = ["item_id:token\ttitle:token_seq\tshelf:token\ttags:token_seq\tyear:float\tway:token"]
    for number in range(30):
        tags = "red blue" if number % 2 else "red"
        way = f"Home>Room {number % 3}>Corner {number % 6}"
        rows.append(f"i{number}\tThing number {number}\tshelf {number // 10}\t{tags}\t{1990 + number}\t{way}")
    (data / "tiny.item").write_text("\n".join(rows) + "\n")
    return data


def lines(ended):
    assert (ended.code, ended.err) == (0, "")
    return ended.out.splitlines()


def test_columns_become_factors_beside_the_data_set(shop, recplug_cli):
    columns = "shelf,tags,year:float,way:path"
    out = lines(recplug_cli(*IMPORT, "columns", *TINY, "--columns", columns, "--width", "10", "--level", "2",
                            "--licence", "mine"))  # fmt: skip
    assert out[0] == "data/tiny/tiny.factors.json: 30 items, 4 factors, 12 values"
    assert out[1] == "4 factors: 30 of 30 items have a profile (100.0 %)"
    table = FactorTable.load(shop / "tiny.factors.json")
    profile = {name: column[13] for name, column in table.values.items()}
    assert profile["shelf"] == ("shelf 1",)
    assert set(profile["tags"]) == {"red", "blue"}
    assert profile["way"] == ("Home > Room 1",)
    assert len({table.values["year"][number] for number in range(10, 20)}) == 1
    assert table.schema.provenance["licence"] == "mine"
    assert {spec.name: spec.multi for spec in table.schema.factors}["tags"]


def test_top_and_separator_apply_to_the_kinds_that_have_them(shop, recplug_cli):
    lines(recplug_cli(*IMPORT, "columns", *TINY, "--columns", "shelf,way:token_seq", "--top", "2",
                      "--separator", ">", "--output", "o.factors.json"))  # fmt: skip
    table = FactorTable.load("o.factors.json")
    assert table.schema.factor("shelf").names == ("shelf 0", "shelf 1", "other")
    assert table.schema.factor("way").names == ("Home", "Room 0", "other")


def test_clusters_of_the_feature_tables(shop, recplug_cli):
    out = lines(recplug_cli(*IMPORT, "clusters", *TINY, "--factors", "3", "--values", "4", "--seed", "5"))
    assert out[0] == "data/tiny/tiny.factors.json: 30 items, 3 factors, 12 values"
    table = FactorTable.load(shop / "tiny.factors.json")
    assert [(spec.name, spec.source) for spec in table.schema.factors] == [
        ("image_1", "image"), ("image_2", "image"), ("text_1", "text"),
    ]  # fmt: skip
    lines(recplug_cli(*IMPORT, "clusters", *TINY, "--factors", "2", "--values", "4", "--modalities", "text",
                      "--output", "o.factors.json"))  # fmt: skip
    assert [spec.name for spec in FactorTable.load("o.factors.json").schema.factors] == ["text_1", "text_2"]


def test_a_table_is_written_edited_and_read_back(shop, recplug_cli):
    lines(recplug_cli(*IMPORT, "columns", *TINY, "--columns", "shelf,tags"))
    out = lines(recplug_cli(*INSPECT, *TINY, "--tsv", "edit.tsv"))
    schema = "data/tiny/tiny.factors.json"
    (told,) = [line for line in out if line.startswith("edit.tsv: edit it, then: ")]
    lines(recplug_cli(*told.partition("recplug ")[2].split()))  # the command as it is printed
    with open("edit.tsv", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["item_id", "shelf", "tags", "status"]
    rows[1][1:] = ["shelf 2", "", "override"]
    with open("edit.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    back = [*IMPORT, "tsv", "edit.tsv", "--schema", schema, *TINY, "--output", "o.factors.json"]
    lines(recplug_cli(*back))
    table = FactorTable.load("o.factors.json")
    assert (table.values["shelf"][0], table.values["tags"][0]) == (("shelf 2",), ())
    assert table.status[:2] == ("override", "ok")
    assert table.schema.sha256 == FactorTable.load(schema).schema.sha256


def test_inspect_reports_and_shows_items(shop, recplug_cli):
    lines(recplug_cli(*IMPORT, "columns", *TINY, "--columns", "shelf,tags", "--source", "a shop"))
    out = lines(recplug_cli(*INSPECT, "data/tiny/tiny.factors.json", *TINY, "--items", "2", "--pictures", "pictures"))
    assert "source: a shop" in out
    assert "coverage of tiny: 2 factors: 30 of 30 items have a profile (100.0 %)" in out
    assert any(line.startswith("lift from 140 interactions (all but the last 2") for line in out)
    shelf = next(line for line in out if line.startswith("shelf: "))
    assert "3 values (as 3.0 equal ones)" in shelf
    # tiny's users go on to items near in number, so they stay on a shelf
    assert float(shelf.partition("lift ")[2].split()[0]) > 1.5
    start = out.index("i0  Thing number 0")
    assert out[start + 1 : start + 3] == ["    shelf: shelf 0", "    tags: red"]
    assert out[start + 3] == "i29  Thing number 29"
    for name in ("coverage", "groups", "overlap", "lift"):
        assert (shop.parents[1] / "pictures" / f"{name}.png").stat().st_size > 5000


def test_inspect_without_a_data_set_knows_no_lift(shop, recplug_cli):
    lines(recplug_cli(*IMPORT, "columns", *TINY, "--columns", "shelf"))
    out = lines(recplug_cli(*INSPECT, "data/tiny/tiny.factors.json", "--items", "0"))
    assert any(line.startswith("shelf: 100.0% of items") for line in out)
    assert not any("lift" in line for line in out)


def test_inspect_compares_two_labellings(shop, recplug_cli):
    for name in "ab":
        lines(recplug_cli(*IMPORT, "columns", *TINY, "--columns", "shelf", "--output", f"{name}.factors.json"))
    out = lines(recplug_cli(*INSPECT, "a.factors.json", "--second", "b.factors.json"))
    assert any("asked twice: 100.0% equal, kappa 1.00" in line for line in out)


def test_wrong_words_are_told_in_one_line(shop, recplug_cli, refused):
    columns = [*IMPORT, "columns", *TINY, "--columns"]
    clusters = [*IMPORT, "clusters", *TINY]
    for words, told in (
        ([*columns, "shelv"], "no column 'shelv'; did you mean 'shelf'?"),
        ([*columns[:-1]], "choose --columns A,B,... from: title, shelf, tags, year, way"),
        ([*columns, "shelf:tokens"], "no kind is called 'tokens'"),
        ([*columns, "shelf:float"], "'shelf 0'"),
        ([*columns, "shelf", "--values", "3"], "--values belongs to --from clusters, not to --from columns"),
        ([*columns, "shelf", "--width", "10"], "--width applies to columns of the kind float, and none is named"),
        ([*clusters, "--licence", "mine"], "--licence belongs to --from columns or tsv"),
        ([*clusters, "--modalities", "imag"], "no imag features; did you mean 'image'?"),
        ([*clusters, "--factors", "1"], "1 factors of 2 feature tables"),
        ([*IMPORT, "clusters", "--output", "o.factors.json"], "give --dataset NAME"),
        ([*IMPORT, "tsv", *TINY], "recplug factors inspect --tsv"),
        ([*IMPORT, "columns", "data/tiny/tiny.item", "--columns", "shelf"], "no place for the factors"),
        ([*IMPORT, "colums", *TINY], "colums"),
        ([*INSPECT], "give a .factors.json, or --dataset NAME"),
        ([*INSPECT, *TINY], "no factor schema at data/tiny/tiny.factors.json"),
    ):
        assert told in refused(recplug_cli(*words))
    assert not list(shop.glob("*.factors.*"))


def test_files_that_exist_stay(shop, recplug_cli, refused):
    words = [*IMPORT, "columns", *TINY, "--columns", "shelf"]
    lines(recplug_cli(*words))
    before = (shop / "tiny.factors.json").read_bytes()
    other = [*words[:-1], "tags"]
    assert "exists; add --overwrite" in refused(recplug_cli(*other))
    (shop / "tiny.factors.json").unlink()
    assert "tiny.factors.parquet exists" in refused(recplug_cli(*other))
    lines(recplug_cli(*other, "--overwrite"))
    assert (shop / "tiny.factors.json").read_bytes() != before
    (shop / "edit.tsv").write_text("mine")
    assert "edit.tsv exists" in refused(recplug_cli(*INSPECT, *TINY, "--tsv", shop / "edit.tsv"))


def test_training_interactions_are_those_of_the_split(shop):
    header, *own = (shop / "tiny.inter").read_text().splitlines()
    history = [line.split("\t")[1] for line in own if line.startswith("u3\t")]
    random.Random(0).shuffle(own)  # the order is that of time, not of the file
    (shop / "tiny.inter").write_text("\n".join([header, *own]) + "\n")
    rows, which = training("tiny", shop.parent)
    assert (len(rows), which) == (140, "all but the last 2 of each user")
    assert [item for user, item in rows if user == "u3"] == history[:-2]
    settings = (shop / "tiny.yaml").read_text()
    (shop / "tiny.yaml").write_text(settings + "eval_args:\n  split: {LS: test_only}\n")
    rows, which = training("tiny", shop.parent)
    assert (len(rows), which) == (180, "all but the last 1 of each user")
    (shop / "tiny.yaml").write_text(settings + "eval_args:\n  split: {RS: [0.8, 0.1, 0.1]}\n")
    rows, which = training("tiny", shop.parent)
    assert (len(rows), which) == (220, "all, since each run draws its own split")
    (shop / "tiny.train.inter").write_text("user_id:token\titem_id:token\nu0\ti1\nu0\ti2\n")
    (shop / "tiny.yaml").write_text(settings + "benchmark_filename: [train, valid, test]\n")
    assert training("tiny", shop.parent) == ([("u0", "i1"), ("u0", "i2")], "part train")


def test_inspect_names_who_labelled(shop, recplug_cli):
    lines(recplug_cli(*IMPORT, "columns", *TINY, "--columns", "shelf"))
    made = FactorTable.load(shop / "tiny.factors.json")
    FactorTable(made.schema, made.tokens, made.values, made.status, {"model": "m-1"}).save(shop / "tiny.factors.json")
    assert "labels, model: m-1" in lines(recplug_cli(*INSPECT, *TINY))


def test_what_import_prints_can_be_run(shop, recplug_cli):
    out = lines(recplug_cli(*IMPORT, "columns", *TINY, "--columns", "shelf"))
    lines(recplug_cli(*out[-1].partition("recplug ")[2].split()))


def test_clusters_without_feature_tables_say_so(shop, recplug_cli):
    for file in shop.glob("*.safetensors"):
        file.unlink()
    ended = recplug_cli(*IMPORT, "clusters", *TINY)
    assert ended.code == 2
    assert "tiny has no feature tables to cluster; make one, see: recplug features import --help" in ended.err
