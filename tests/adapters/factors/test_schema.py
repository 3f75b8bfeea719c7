import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.adapters.factors.schema import FactorSchema, FactorSpec, Value
from recplug.plugins.errors import RecplugError


def told(action, *words):
    """The one line of the error that ``action`` raises."""
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


def spec(*values, name="material", **options):
    return FactorSpec(name=name, values=[Value(name=v) if isinstance(v, str) else v for v in values], **options)


def schema(*factors, **options):
    return FactorSchema(factors=factors or (spec("steel", "wood"),), **options)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4), TEXT, st.dictionaries(TEXT, TEXT, max_size=3))
def test_the_file_is_json_that_reads_back_equal(tmp_path_factory, texts, description, provenance):
    values = tuple(
        Value(name=f"v{n}", definition=text, aliases=(f"a{n}",), parent="v0" if n else None)
        for n, text in enumerate(texts)
    )
    factors = (FactorSpec(name="f", description=description, values=values), spec("x", name="g", source="image"))
    first = FactorSchema(factors=factors, dropped={"g": ("y", "z")}, provenance=provenance)
    path = tmp_path_factory.mktemp("s") / "d.factors.json"
    first.save(path)
    assert FactorSchema.load(path) == first
    assert json.loads(path.read_text("utf-8")) == first.model_dump(mode="json")
    assert os.listdir(path.parent) == ["d.factors.json"]


def test_a_person_finds_each_value_on_a_line_of_its_own():
    lines = schema(spec("Größe", Value(name="木", definition="wood", aliases=("holz",)))).text().splitlines()
    assert '        {"name": "木", "definition": "wood", "aliases": ["holz"], "parent": null}' in lines
    assert any('"Größe"' in line for line in lines)


def test_resolving_goes_by_name_and_alias_whatever_case_width_and_blanks():
    factor = spec(Value(name="Ｓｔｅｅｌ", aliases=("Iron", "straße")), "wood")
    for raw in ("Ｓｔｅｅｌ", "steel", " STEEL\n", "iron", "STRASSE", "ｉｒｏｎ"):
        assert factor.resolve(raw) == "Ｓｔｅｅｌ"
    assert factor.resolve("stee") is None
    assert factor.resolve("") is None
    assert factor.resolve("unknown") is None


def test_the_digest_is_of_the_factors_alone():
    first = schema()
    assert first.sha256 == schema(provenance={"a": "b"}, dropped={"material": ("glass",)}).sha256
    assert first.sha256 != schema(spec("steel", "wood", "glass")).sha256
    assert first.sha256 != schema(spec("wood", "steel")).sha256


def test_a_changed_copy_is_checked_and_forgets_what_the_old_one_looked_up():
    factor = spec("steel", "wood")
    assert factor.resolve("steel") == "steel"
    renamed = factor.model_copy(update={"values": (Value(name="metal", aliases=("steel",)),)})
    assert renamed.resolve("steel") == "metal"
    told(lambda: factor.model_copy(update={"values": ()}), "no values")


def test_parents_are_found_by_alias_and_a_parent_merged_into_its_child_is_none():
    factor = spec(
        Value(name="metals", aliases=("metal",)), Value(name="steel", parent="metal"), Value(name="a", parent="steel")
    )
    assert factor.parents == {"metals": None, "steel": "metals", "a": "steel"}
    assert factor.depths == {"metals": 0, "steel": 1, "a": 2}
    assert spec(Value(name="steel", aliases=("metal",), parent="metal")).parents == {"steel": None}


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: spec(), ["no values"]),
        (lambda: spec("steel", "steel"), ["'steel' and 'steel'"]),
        (lambda: spec("steel", "STEEL"), ["'steel' and 'STEEL'", "merge"]),
        (lambda: spec("steel", Value(name="wood", aliases=("Steel",))), ["'steel' and 'wood'"]),
        (lambda: spec(" steel"), ["' steel'", "blanks"]),
        (lambda: spec("st\teel"), ["control"]),
        (lambda: spec("\u3000"), ["empty"]),
        (lambda: spec("Unknown"), ["means no value"]),
        (lambda: spec("steel", other="stel"), ["'stel'", "did you mean 'steel'"]),
        (lambda: spec(Value(name="a", parent="b")), ["'a' has the parent 'b'"]),
        (lambda: spec(Value(name="a", parent="b"), Value(name="b", parent="a")), ["own ancestors"]),
        (lambda: spec("b", Value(name="a", parent="b"), other="a"), ["cannot have a parent"]),
        (lambda: FactorSchema(factors=()), ["one or more"]),
        (lambda: schema(spec("a"), spec("b")), ["both spelled 'material'"]),
        (lambda: schema(spec("a", name="Item_ID")), ["'item_id'"]),
        (lambda: schema(dropped={"material": ("STEEL",)}), ["both a value and dropped"]),
        (lambda: schema(dropped={"Material": ()}), ["both there and dropped"]),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused_in_one_line(action, words):
    told(action, *words)


def with_factor(**factor):
    return {"format": "recplug.factors/1", "factors": [{"name": "m", "values": [{"name": "a"}], **factor}]}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ("", ["not readable as JSON"]),
        ('{"format": "recplug.factors/1"', ["not readable as JSON"]),
        ('{"format": "recplug.factors/1", "format": "recplug.factors/1"}', ["'format' stands twice"]),
        (b"\xff\xfe{}", ["not readable"]),
        ("[" * 100_000, ["not readable"]),
        ("[]", ["not a factor schema"]),
        ({"format": "recplug.factors/2"}, ["not a factor schema", "recplug.factors/2"]),
        ({"format": "recplug.factors/1"}, ["factors: field required"]),
        (with_factor() | {"factor": 1}, ["no key 'factor'", "did you mean 'factors'"]),
        (with_factor(description=3), ["'m'.description"]),
        (with_factor(source="txt"), ["'m'.source"]),
        (with_factor(valus=[]), ["'m' has no key 'valus'", "did you mean 'values'"]),
        (with_factor(values=[{"name": "a", "alias": []}]), ["'m'.values.'a' has no key 'alias'", "aliases"]),
        (with_factor(values=[{"name": "a", "aliases": "b"}]), ["'m'.values.'a'.aliases", "list"]),
        (with_factor(values=[{"name": "a"}, {"name": "A"}]), ["'a' and 'A'"]),
        (with_factor(values=[{"name": "a", "definition": "x\ud800"}]), ["half a character"]),
    ],
)
def test_a_file_that_a_person_broke_is_refused_in_one_line(tmp_path, contents, words):
    path = tmp_path / "d.factors.json"
    if isinstance(contents, dict):
        contents = json.dumps(contents)
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    told(lambda: FactorSchema.load(path), str(path), *words)


def test_a_missing_file_names_the_commands_that_make_one(tmp_path):
    told(lambda: FactorSchema.load(tmp_path / "none.json"), "recplug factors import", "recplug factors induce")
    (tmp_path / "file").write_text("")
    told(lambda: schema().save(tmp_path / "file" / "x.json"), "cannot write")
