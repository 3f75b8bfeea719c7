import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.adapters.factors import ColumnSpec
from recplug.adapters.factors.columns import from_columns, read_item_file
from recplug.plugins.errors import RecplugError


def told(action, *words):
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def read(cells, **options):
    """One factor of one column: its spec and what each item has."""
    rows = {f"i{n}": {"c": cell} for n, cell in enumerate(cells)}
    table = from_columns(rows, {"f": ColumnSpec("c", **options)})
    return table.schema.factors[0], list(table.values["f"])


def test_a_token_column_gives_one_value_an_item_the_most_frequent_first():
    spec, values = read(["b", "a", "", "b", " Unknown ", "c  d"])
    assert values == [("b",), ("a",), (), ("b",), (), ("c d",)]
    assert spec.names == ("b", "a", "c d")
    assert (spec.source, spec.multi, spec.other) == ("catalogue", False, None)


def test_spellings_that_differ_in_case_or_width_are_one_value():
    spec, values = read(["esun", "eSUN", "eSUN", "ｅＳＵＮ", "x"])
    assert spec.names == ("eSUN", "x")
    assert values[:4] == [("eSUN",)] * 4


def test_the_rest_beyond_the_top_becomes_other_or_unknown():
    cells = ["a"] * 3 + ["b"] * 2 + ["c", "d", ""]
    spec, values = read(cells, top=2)
    assert spec.names == ("a", "b", "other")
    assert spec.other == "other"
    assert values[5:] == [("other",), ("other",), ()]
    spec, values = read(cells, top=2, other=None)
    assert (spec.names, spec.other, values[5:]) == (("a", "b"), None, [(), (), ()])
    spec, _ = read(cells, top=4)
    assert (spec.names, spec.other) == (("a", "b", "c", "d"), None)


def test_a_catalogue_that_says_other_itself_keeps_one_other():
    for cells in (["Other"] * 3 + ["a"] * 2 + ["b"], ["a"] * 3 + ["b"] * 2 + ["Other"]):
        spec, values = read(cells, top=2)
        assert spec.other == "Other"
        assert sorted(spec.names) == sorted({"Other", "a", *(["b"] if "Other" not in cells[:1] else [])})
        assert values[-1] == ("Other",)


def test_a_sequence_gives_several_values_each_once():
    spec, values = read(["Comedy Drama", "Drama", "", "Drama Drama War"], kind="token_seq")
    assert spec.multi
    assert spec.names == ("Drama", "Comedy", "War")
    assert values == [("Drama", "Comedy"), ("Drama",), (), ("Drama", "War")]
    spec, values = read(["a; b ;c", "b"], kind="token_seq", separator=";")
    assert values[0] == ("b", "a", "c")


def test_a_path_gives_the_way_down_with_each_shorter_way_as_its_parent():
    cells = ["Home > Tools > Saws", "home>Tools", "Home > Tools > Files", "Toys", ""]
    spec, values = read(cells, kind="path")
    assert spec.names == ("Home", "Home > Tools", "Home > Tools > Files", "Home > Tools > Saws", "Toys")
    assert spec.parents["Home > Tools > Saws"] == "Home > Tools"
    assert spec.parents["Home > Tools"] == "Home"
    assert spec.parents["Toys"] is None
    assert values == [("Home > Tools > Saws",), ("Home > Tools",), ("Home > Tools > Files",), ("Toys",), ()]
    spec, values = read(cells, kind="path", level=1)
    assert spec.names == ("Home", "Toys")
    assert values == [("Home",), ("Home",), ("Home",), ("Toys",), ()]
    spec, values = read([*cells, "Home > Tools > Files"], kind="path", top=1)
    assert spec.names == ("Home", "Home > Tools", "Home > Tools > Files", "other")
    assert values[0] == ("other",)


def test_small_branches_of_a_path_roll_up_to_the_branch_they_hang_on():
    rows = {f"i{n}": {"c": f"a > b > {n % 4}"} for n in range(12)} | {"j": {"c": "a > z"}, "k": {"c": "a"}}
    table = from_columns(rows, {"f": ColumnSpec("c", kind="path")})
    profiles = table.align(["[PAD]", *table.tokens], min_group=4)
    assert profiles.factors[0].values == ("a > b",)
    profiles = table.align(["[PAD]", *table.tokens], min_group=2)
    assert profiles.factors[0].values == ("a", "a > b > 0", "a > b > 1", "a > b > 2", "a > b > 3")


def place_of(label):
    """The range that a label tells."""
    if label.startswith("below "):
        return -np.inf, float(label[6:])
    if label.endswith(" and above"):
        return float(label[:-10]), np.inf
    low, _, high = label.partition(" to ")
    return (float(low), float(high)) if high else (float(low), np.nextafter(float(low), np.inf))


NUMBERS = st.one_of(
    st.floats(-1e9, 1e9, allow_subnormal=False), st.integers(-50, 50).map(float), st.floats(0, 1).map(lambda x: 10 * x)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=60), st.integers(2, 8))
def test_every_number_lies_in_the_bin_that_its_label_tells(numbers, bins):
    spec, values = read([repr(number) for number in numbers], kind="float", bins=bins)
    assert 1 <= len(spec.names) <= bins
    for number, (label,) in zip(numbers, values, strict=True):
        low, high = place_of(label)
        assert low <= number < high
    assert list(spec.names) == sorted(spec.names, key=lambda label: place_of(label)[0])
    assert {label for (label,) in values} == set(spec.names)


def test_bins_hold_about_as_many_items_each_and_read_well():
    prices = np.random.default_rng(0).lognormal(2, 1, 1000)
    spec, values = read([f"{price}" for price in prices], kind="float", bins=4)
    sizes = [values.count((name,)) for name in spec.names]
    assert max(sizes) - min(sizes) <= 20
    assert all(len(name.replace("below ", "").replace(" and above", "")) <= 12 for name in spec.names)
    spec, values = read(["1", "2", "3", "4", "unknown", "", "nan"], kind="float", bins=2)
    assert spec.names == ("below 3", "3 and above")
    assert values[4:] == [()] * 3
    assert read(["12.50", "12.5"], kind="float")[0].names == ("12.5",)


def test_a_width_makes_decades():
    spec, values = read(["1999", "2000", "1955", "", "2009.5"], kind="float", width=10)
    assert spec.names == ("1950 to 1960", "1990 to 2000", "2000 to 2010")
    assert values == [("1990 to 2000",), ("2000 to 2010",), ("1950 to 1960",), (), ("2000 to 2010",)]
    assert read(["0.25", "-0.05"], kind="float", width=0.1)[0].names == ("-0.1 to 0", "0.2 to 0.3")


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: read(["1", "cheap"], kind="float"), ["'i1'", "'cheap'", "no number"]),
        (lambda: read(["inf"], kind="float"), ["no number"]),
        (lambda: read(["", "unknown"]), ["'f'", "not one item"]),
        (lambda: read(["", ""], kind="float"), ["not one item"]),
        (lambda: from_columns({"i": {"brand": "x"}}, {"f": ColumnSpec("brnad")}), ["'brnad'", "did you mean 'brand'"]),
        (lambda: ColumnSpec("c", kind="tokens"), ["'tokens'", "did you mean 'token'"]),
        (lambda: ColumnSpec("c", top=0), ["top=0"]),
        (lambda: ColumnSpec("c", bins=1), ["bins=1"]),
        (lambda: ColumnSpec("c", level=0), ["level=0"]),
        (lambda: ColumnSpec("c", width=0.0), ["width=0.0"]),
        (lambda: ColumnSpec("c", separator=""), ["separator"]),
    ],
)
def test_columns_that_make_no_sense_are_refused_in_one_line(action, words):
    told(action, *words)


def test_an_item_file_is_read_by_token_with_its_types(tmp_path):
    path = tmp_path / "d.item"
    path.write_text('item_id:token\tname:token_seq\tprice:float\nü1\tsay "hi\t3.5\n\ni2\t\t\n', "utf-8")
    rows, types = read_item_file(path)
    assert rows == {
        "ü1": {"item_id": "ü1", "name": 'say "hi', "price": "3.5"},
        "i2": {"item_id": "i2", "name": "", "price": ""},
    }
    assert types == {"item_id": "token", "name": "token_seq", "price": "float"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item_id\tname\ni\tx\n", ["name:type"]),
        ("item_id:token\titem_id:token\ni\tx\n", ["name:type"]),
        ("item_id:token\tname:token\ni\tx\ty\n", ["line 2 has 3 cells"]),
        ("item_id:token\ni\ni\n", ["'i' occurs more than once"]),
        ("", ["empty"]),
    ],
)
def test_a_malformed_item_file_is_refused_in_one_line(tmp_path, text, words):
    (tmp_path / "d.item").write_text(text)
    told(lambda: read_item_file(tmp_path / "d.item"), "d.item", *words)
    told(lambda: read_item_file(tmp_path / "none.item"), "cannot read")
