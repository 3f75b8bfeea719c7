import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.adapters.factors import FactorSchema, FactorSpec, FactorTable, Value
from recplug.adapters.factors.tsv import from_tsv, to_tsv
from recplug.plugins.errors import RecplugError


def told(action, *words):
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


AWKWARD = st.text(st.sampled_from(list("ab\"'|\\=+-@ ,;é木\u2028")), max_size=6)


@st.composite
def tables(draw):
    multi = draw(st.booleans())
    # A dot at the end and a number in front or behind keep names apart and their blanks inside.
    names = [f"{text}{n}." for n, text in enumerate(draw(st.lists(AWKWARD, min_size=1, max_size=4)))]
    names = [name.strip() for name in names]
    n = draw(st.integers(1, 6))
    tokens = tuple(f"{draw(AWKWARD)}{i}" for i in range(n))
    entry = st.lists(st.sampled_from(names), max_size=3 if multi else 1, unique=True).map(tuple)
    factor = f"{draw(AWKWARD)}f".strip()
    spec = FactorSpec(name=factor, multi=multi, source="joint", values=tuple(Value(name=name) for name in names))
    status = tuple(draw(st.lists(st.sampled_from(["ok", "failed", "override"]), min_size=n, max_size=n)))
    column = tuple(draw(st.lists(entry, min_size=n, max_size=n)))
    return FactorTable(FactorSchema(factors=(spec,)), tokens, {factor: column}, status)


@settings(max_examples=200, deadline=None)
@given(tables())
def test_round_trip_is_exact(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    to_tsv(table, path)
    again = from_tsv(path, table.schema)
    assert (again.schema, again.tokens, again.values, again.status) == (
        table.schema,
        table.tokens,
        table.values,
        table.status,
    )
    assert again.sha256 == table.sha256


@settings(max_examples=100, deadline=None)
@given(tables())
def test_without_the_schema_the_items_still_have_what_they_had(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    to_tsv(table, path)
    ((factor, column),) = table.values.items()
    if not any(column):
        told(lambda: from_tsv(path), "no values")
        return
    again = from_tsv(path)
    assert again.tokens == table.tokens
    assert [set(values) for values in again.values[factor]] == [set(values) for values in column]


def test_no_cell_is_a_formula_to_a_spreadsheet(tmp_path):
    names = ["=1+1", "+a", "-b", "@c"]
    spec = FactorSpec(name="=f", values=tuple(Value(name=name) for name in names))
    table = FactorTable(
        FactorSchema(factors=(spec,)), ("=i", "-1", "+j", "@k"), {"=f": tuple((name,) for name in names)}, ("ok",) * 4
    )
    to_tsv(table, tmp_path / "t.tsv")
    cells = [cell for line in (tmp_path / "t.tsv").read_text().splitlines() for cell in line.split("\t")]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert from_tsv(tmp_path / "t.tsv", table.schema).values == table.values


def test_a_table_as_a_spreadsheet_saves_it(tmp_path):
    path = tmp_path / "t.tsv"
    lines = [
        "item_id\tcolour\tuse",
        '001\tRed\t"say ""go"""|walk',
        "002\tunknown\t walk | ",
        "003\tred\tOther",
        "004\tRed\t",
        "\t\t",
    ]
    path.write_text("\ufeff" + "\r\n".join(lines), "utf-8")
    table = from_tsv(path, metadata={"licence": "CC0"})
    assert table.tokens == ("001", "002", "003", "004")
    assert table.values["colour"] == (("Red",), (), ("Red",), ("Red",))
    assert table.values["use"] == (('say "go"', "walk"), ("walk",), ("Other",), ())
    colour, use = table.schema.factors
    assert (colour.multi, use.multi, use.other) == (False, True, "Other")
    assert table.status == ("ok",) * 4
    assert table.metadata["licence"] == table.schema.provenance["licence"] == "CC0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("token\tf\na\tx\n", ["needs item_id first"]),
        ("item_id\tf\tf\na\tx\ty\n", ["different names"]),
        ("item_id\tf\na\tx\ty\n", ["line 2 has 3 cells"]),
        ("item_id\tf\na\tx\na\ty\n", ["more than once"]),
        ("item_id\tf\tstatus\na\tx\tgood\n", ["'good'"]),
        ("item_id\tf\na\tsteell\n", ["'steell'", "did you mean 'steel'"]),
        ("item_id\tg\na\tsteel\n", ["'g'"]),
        ("item_id\tf\na\tsteel|wood\n", ["2 values of f"]),
        ("item_id\tf\na\t\x00\n", ["t.tsv"]),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path, text, words):
    schema = FactorSchema(factors=(FactorSpec(name="f", values=(Value(name="steel"), Value(name="wood"))),))
    (tmp_path / "t.tsv").write_text(text)
    told(lambda: from_tsv(tmp_path / "t.tsv", schema), "t.tsv", *words)


def test_files_that_cannot_be_read_or_written_are_told(tmp_path):
    told(lambda: from_tsv(tmp_path / "none.tsv"), "cannot read")
    (tmp_path / "t.tsv").write_bytes("item_id\tf\n".encode("utf-16"))
    told(lambda: from_tsv(tmp_path / "t.tsv"), "cannot read", "UTF-8")
