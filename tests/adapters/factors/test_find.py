import pytest

from recplug.adapters.factors import FactorSchema, FactorSpec, FactorTable, Value, find_factors, load_factors
from recplug.plugins.errors import RecplugError


def table(*column, **metadata):
    spec = FactorSpec(name="f", values=(Value(name="a"), Value(name="b")))
    tokens = tuple(f"i{n}" for n in range(len(column)))
    return FactorTable(FactorSchema(factors=(spec,)), tokens, {"f": column}, ("ok",) * len(column), metadata)


def told(action, *words):
    with pytest.raises(RecplugError) as caught:
        action()
    for word in words:
        assert word in str(caught.value)


def test_profiles_are_found_beside_the_dataset(tmp_path):
    assert find_factors(tmp_path, "shop") is None
    assert load_factors(tmp_path, "shop", None, ["[PAD]", "i0"]) == (None, [])
    table(("a",), ("b",), made_by="hand").save(tmp_path / "shop.factors.json")
    table(("b",)).save(tmp_path / "shop.uk.factors.json")
    assert find_factors(tmp_path, "shop") == tmp_path / "shop.factors.json"
    profiles, lines = load_factors(tmp_path, "shop", None, ["[PAD]", "i1", "x"], min_group=0)
    assert profiles.items.tolist() == [1]
    assert profiles.factors[0].values == ("b",)
    (line,) = lines
    assert line == ("1 factors: 1 of 2 items have a profile (50.0 %), 1 table rows unused; by hand, shop.factors.json")


def test_a_path_comes_before_the_usual_place_and_counts_from_the_folder(tmp_path):
    data = tmp_path / "shop"
    table(("a",)).save(data / "shop.factors.json")
    table(("b",), model="m").save(tmp_path / "other" / "x.json")
    for path in ("../other/x.json", tmp_path / "other" / "x.json"):
        profiles, lines = load_factors(data, "shop", path, ["[PAD]", "i0"], min_group=0)
        assert profiles.factors[0].values == ("b",)
        assert lines[0].endswith("by m, x.json")


def test_a_schema_without_labels_stops_no_run(tmp_path):
    table(("a",)).save(tmp_path / "shop.factors.json")
    (tmp_path / "shop.factors.parquet").unlink()
    assert find_factors(tmp_path, "shop") is None
    profiles, (line,) = load_factors(tmp_path, "shop", None, ["[PAD]", "i0"])
    assert profiles is None
    assert line == "shop.factors.json has no labels yet; see: recplug factors assign"
    told(lambda: load_factors(tmp_path, "shop", "shop.factors.json", ["[PAD]", "i0"]), "no labels")


def test_the_smallest_group_is_handed_on(tmp_path):
    table(("a",), ("a",), ("b",)).save(tmp_path / "shop.factors.json")
    known = [
        load_factors(tmp_path, "shop", None, ["[PAD]", "i0", "i1", "i2"], min_group=least)[0].known[1:, 0].tolist()
        for least in (None, 0, 2)
    ]
    assert known == [[False] * 3, [True] * 3, [True, True, False]]


def test_a_named_file_that_is_missing_names_the_commands_that_make_one(tmp_path):
    told(
        lambda: load_factors(tmp_path, "shop", "gone.json", ["[PAD]", "i0"]),
        "gone.json",
        "recplug factors import",
        "recplug factors assign",
    )
