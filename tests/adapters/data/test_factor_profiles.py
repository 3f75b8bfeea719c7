"""The rules behind the bundled factor profiles, and that the bundled files are what the rules give."""

import runpy
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recplug.adapters.data import bundled, vocabularies
from recplug.adapters.data.factor_profiles import own_words, pack, parts, reader, scientific, under, units
from recplug.adapters.factors import FactorTable

SETS = ("amazon-scientific", "amazon-scientific-full")
BUILDER = Path(__file__).parents[3] / "benchmarks" / "build_bundled_data.py"


def texts(name):
    lines = (bundled()[name].directory / f"{name}.item").read_text(encoding="utf-8").splitlines()[1:]
    return dict(line.split("\t", 1) for line in lines)


def profiles(name):
    return bundled()[name].directory / f"{name}.factors.json"


def test_a_text_falls_into_title_path_and_brand():
    text = "A Tape, 2 in. x 60yd. Industrial & Scientific Tapes, Adhesives & Sealants Caulk. Duck &amp; Co., Inc."
    assert parts(text) == ("A Tape, 2 in. x 60yd", "Tapes, Adhesives & Sealants Caulk", "Duck & Co., Inc")
    assert parts("A thing. . Makers.") == ("A thing", "", "Makers")
    assert parts("A thing. . .") == ("A thing", "", "")
    assert parts("A thing") == ("A thing", "", "")


def test_a_path_begins_with_department_and_shelf():
    assert under("Additive Manufacturing Products 3D Printers") == ("Additive Manufacturing Products", "3D Printers")
    department = "Additive Manufacturing Products"
    assert under(f"{department} 3D Printer Parts & Accessories 3D Printers") == (
        department, "3D Printer Parts & Accessories",
    )  # fmt: skip
    assert under("Fasteners") == ("Fasteners", "")
    assert under("Fasteners Zippers") == ("Fasteners", "")
    assert under("Fastenersx") == ("", "")
    assert under("") == ("", "")


@pytest.mark.parametrize("name", SETS)
def test_the_shelves_are_those_of_the_texts(name):
    paths = [parts(text)[1] for text in texts(name).values()]
    found = [under(path) for path in paths if path]
    assert all(department for department, _ in found)
    assert sum(bool(shelf) for _, shelf in found) > 0.94 * len(found)


def test_every_shelf_is_bought_from():
    found = {under(parts(text)[1]) for text in texts(SETS[1]).values()}
    listed = {(department, shelf) for department, own in vocabularies.DEPARTMENTS.items() for shelf in own}
    assert listed <= found


def test_words_match_whole_and_in_the_plural():
    read = reader({"cup": "cup, glass", "two words": "heat shrink"})
    assert read("Two CUPS") == ("cup",)
    assert read("glasses, Heat Shrink") == ("cup", "two words")
    assert read("cupboard, heat-shrink, teacup, cup2") == ()


@pytest.mark.parametrize("name", ["MATERIALS", "FORMS", "USES", "COLOURS", "TRAITS", "THEMES", "ORIGINS"])
def test_vocabularies_are_lower_case_and_say_nothing_twice(name):
    for own in getattr(vocabularies, name).values():
        listed = own.split(", ")
        assert listed == [word.strip().lower() for word in listed]
        assert len(set(listed)) == len(listed)


PACKED = {
    "Screws (Pack of 1,000)": "100 or more",
    "Uxcell 5 pcs blue": "2 to 5",
    "Labels, 250-Count, 2 rolls": "100 or more",
    "Gloves 1 Pair": "1",
    "Slide 20-pack": "6 to 20",
    "Set of 6 x 1.75mm": "6 to 20",
    "A 5/32 Pack": "",
    "3.5 pcs": "",
    "a screw": "",
}


@pytest.mark.parametrize("title", PACKED)
def test_packs_are_counted(title):
    assert pack(title) == PACKED[title]


MEASURED = {
    "1.75mm PLA 1 kg": "metric",
    "2 in. x 60 yd": "imperial",
    '5" blade': "imperial",
    "1.75mm, 2.2 lbs": "both",
    "4.7M Ohm": "",
    "5 megapixels": "",
    "type K": "",
}


@pytest.mark.parametrize("title", MEASURED)
def test_units_are_told_apart(title):
    assert units(title) == MEASURED[title]


def test_what_a_thing_is_for_does_not_say_what_it_is():
    assert own_words("Nozzle for 3D printer").strip() == "Nozzle"
    made = scientific({"a": "Nozzle for 3D Printer with Filament. . X.", "b": "Fort Metals brass tube. . Fort Metals."})
    assert made.values["form"] == (("hot end or nozzle",), ("tube, hose or sleeve",))
    assert made.values["use"][0] == ("3D printing",)
    assert made.values["material"] == ((), ("brass or bronze",))  # and not the metal of the brand's name


def test_brands_are_one_whatever_their_case():
    many = {f"m{number}": f"thing. . Maker {number}." for number in range(40)}
    made = scientific({"a": "x. . uxcell.", "b": "y. . Uxcell.", "c": "z. . uxcell.", "d": "w. . .", **many})
    brands = made.schema.factor("brand")
    assert brands.names[0] == "uxcell"
    assert (len(brands.names), brands.names[-1], brands.other) == (31, "other", "other")
    assert made.values["brand"][:4] == (("uxcell",), ("uxcell",), ("uxcell",), ())
    assert made.values["brand"].count(("other",)) == 40 - 29


@pytest.mark.parametrize("name", SETS)
def test_the_bundled_profiles_know_the_set(name):
    table = FactorTable.load(profiles(name))
    assert table.tokens == tuple(texts(name))
    sources = {spec.name: spec.source for spec in table.schema.factors}
    assert [sources[factor] for factor in ("department", "shelf", "brand")] == ["catalogue"] * 3
    assert {sources[factor] for factor in ("material", "form", "use", "colour", "trait", "pack", "units")} == {"text"}
    assert "no language model" in table.schema.provenance["made_by"]
    known = {factor: sum(map(bool, column)) / len(column) for factor, column in table.values.items()}
    assert min(known[factor] for factor in ("department", "shelf", "brand", "form")) > 0.88
    assert min(known.values()) > 0.25


@pytest.mark.parametrize("name", SETS)
def test_the_bundled_profiles_are_what_the_rules_give(name, tmp_path):
    """Anyone can build them again: ``python benchmarks/build_bundled_data.py --factors``."""
    for each in SETS:
        (tmp_path / each).mkdir()
        (tmp_path / each / f"{each}.item").write_bytes(profiles(each).with_name(f"{each}.item").read_bytes())
    runpy.run_path(str(BUILDER))["factors"](tmp_path)
    built, stored = tmp_path / name / f"{name}.factors.json", profiles(name)
    assert built.read_bytes() == stored.read_bytes()
    assert FactorTable.load(built).sha256 == FactorTable.load(stored).sha256
    labels = [path.with_suffix(".parquet") for path in (built, stored)]
    # Another release of pyarrow signs the file with its own name, and may pack it otherwise.
    if len({pq.ParquetFile(path).metadata.created_by for path in labels}) == 1:
        assert labels[0].read_bytes() == labels[1].read_bytes()
