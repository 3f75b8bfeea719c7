import json
import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.adapters.factors import FactorSchema, FactorSpec, FactorTable, Value
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import Factor
from recplug.plugins.mars import MarsSettings, MarsTable

TOKENS = ("b7", "a1", "ü9", "c3")


def told(action, *words):
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


def small_schema():
    material = FactorSpec(name="material", values=(Value(name="steel"), Value(name="木"), Value(name="glass")))
    use = FactorSpec(name="use", multi=True, source="image", values=(Value(name="cut"), Value(name="mend, sew|x")))
    return FactorSchema(factors=(material, use), provenance={"made_by": "a person"})


def small(**options):
    values = {
        "use": (("mend, sew|x", "cut"), (), ("cut",), ("mend, sew|x",)),
        "material": (("steel",), ("木",), (), ("glass",)),
    }
    return FactorTable(small_schema(), TOKENS, values, ("ok", "override", "failed", "ok"), {"model": "é"}, **options)


def same(first, second):
    return (
        first.schema == second.schema
        and first.tokens == second.tokens
        and first.values == second.values
        and first.status == second.status
        and first.metadata == second.metadata
        and first.content_sha256 == second.content_sha256
    )


def profile_of(profiles, row):
    """What a host row has, by factor: a loop over all pairs."""
    found = {factor.name: set() for factor in profiles.factors}
    for item, value in zip(profiles.items.tolist(), profiles.values.tolist(), strict=True):
        if item == row:
            k = max(k for k, start in enumerate(profiles.offsets[:-1]) if start <= value)
            found[profiles.factors[k].name].add(profiles.factors[k].values[value - profiles.offsets[k]])
    return found


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=6)


@st.composite
def tables(draw):
    factors, values = [], {}
    n = draw(st.integers(0, 8))
    for k in range(draw(st.integers(1, 3))):
        multi = draw(st.booleans())
        # A number in front keeps any two names apart.
        names = [f"{v}{draw(NAMES)}".strip() for v in range(draw(st.integers(1, 4)))]
        name = f"{k}{draw(NAMES)}".strip()
        factors.append(FactorSpec(name=name, multi=multi, values=tuple(Value(name=v) for v in names)))
        entry = st.lists(st.sampled_from(names), max_size=3 if multi else 1).map(tuple)
        values[name] = tuple(draw(st.lists(entry, min_size=n, max_size=n)))
    status = tuple(draw(st.lists(st.sampled_from(["ok", "failed", "refused", "override"]), min_size=n, max_size=n)))
    tokens = tuple(f"{i}{draw(NAMES)}" for i in range(n))
    content = tuple(str(i) for i in range(n)) if draw(st.booleans()) else ()
    return FactorTable(FactorSchema(factors=factors), tokens, values, status, {"k": "v"}, content)


@settings(max_examples=40, deadline=None)
@given(tables())
def test_round_trip_is_equal_to_the_byte(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("t")
    table.save(folder / "a.factors.json")
    again = FactorTable.load(folder / "a.factors.json")
    again.save(folder / "b.factors.json")
    assert same(table, again)
    assert table.sha256 == again.sha256
    for suffix in ("json", "parquet"):
        assert (folder / f"a.factors.{suffix}").read_bytes() == (folder / f"b.factors.{suffix}").read_bytes()
    assert len(os.listdir(folder)) == 4


def test_the_labels_are_plain_parquet_with_the_documented_columns(tmp_path):
    small(content_sha256=("1", "2", "3", "4")).save(tmp_path / "d.factors.json")
    table = pq.read_table(tmp_path / "d.factors.parquet")
    assert table.column_names == ["item_id", "material", "use", "status", "content_sha256"]
    assert pa.types.is_dictionary(table.schema.field("material").type)
    assert table["material"].to_pylist() == ["steel", "木", None, "glass"]
    assert table["use"].to_pylist() == [["cut", "mend, sew|x"], [], ["cut"], ["mend, sew|x"]]
    assert table.schema.metadata[b"recplug.format"] == b"recplug.factors/1"
    assert table.schema.metadata[b"recplug.schema_sha256"].decode() == small_schema().sha256
    assert table.schema.metadata[b"recplug.model"].decode() == "é"


def test_the_order_in_which_factors_are_given_does_not_matter():
    given = small()
    turned = FactorTable(given.schema, TOKENS, dict(reversed(given.values.items())), given.status, given.metadata)
    assert same(given, turned)


def test_labels_in_several_row_groups_are_read_whole(tmp_path):
    small().save(tmp_path / "d.factors.json")
    labels = tmp_path / "d.factors.parquet"
    pq.write_table(pq.read_table(labels), labels, row_group_size=1)
    assert same(FactorTable.load(tmp_path / "d.factors.json"), small())


@pytest.mark.parametrize("fails", ["json", "parquet"])
def test_a_failed_save_keeps_both_old_files_and_leaves_nothing_else(tmp_path, monkeypatch, fails):
    small().save(tmp_path / "d.factors.json")
    changed = FactorTable(small_schema(), ("x",), {"use": ((),), "material": ((),)}, ("ok",))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if fails == "json":
        monkeypatch.setattr(FactorSchema, "text", full)
    else:
        monkeypatch.setattr(pq, "write_table", full)
    told(lambda: changed.save(tmp_path / "d.factors.json"), "No space left")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_profiles_follow_tokens_whatever_their_order():
    hosts = ["[PAD]", "a1", "missing", "c3", "b7"]
    table = small()
    truth = {
        token: {name: set(column[row]) for name, column in table.values.items()} for row, token in enumerate(TOKENS)
    }
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]):
        permuted = FactorTable(
            table.schema,
            tuple(TOKENS[i] for i in order),
            {name: tuple(column[i] for i in order) for name, column in table.values.items()},
            ("ok",) * 4,
        )
        profiles = permuted.align(np.array(hosts), min_group=0)
        assert profiles.n_items == 5
        assert profiles.items.device.type == "cpu"
        for row, token in enumerate(hosts):
            assert profile_of(profiles, row) == truth.get(token, {"material": set(), "use": set()})


def test_the_padding_row_never_has_a_value():
    table = FactorTable(
        small_schema(), ("[PAD]", "a"), {"material": (("steel",), ("木",)), "use": ((), ())}, ("ok",) * 2
    )
    profiles = table.align(["[PAD]", "a"], min_group=0)
    assert profiles.items.tolist() == [1]
    assert profiles.counts[0].tolist() == [0, 0]


def test_values_that_no_item_of_the_dataset_has_are_left_out():
    profiles = small().align(["[PAD]", "a1", "c3"], min_group=0)
    assert [factor.values for factor in profiles.factors] == [("木", "glass"), ("mend, sew|x",)]
    assert [factor.source for factor in profiles.factors] == ["text", "image"]
    nothing = small().align(["[PAD]", "a1"], min_group=0)
    assert nothing.factors[1].values == ("cut", "mend, sew|x")
    assert nothing.known[1].tolist() == [True, False]


def test_other_stays_where_it_means_other_though_nobody_has_it():
    spec = FactorSpec(name="f", other="REST", values=(Value(name="a"), Value(name="b"), Value(name="Rest")))
    table = FactorTable(FactorSchema(factors=(spec,)), ("i", "j"), {"f": (("b",), ("a",))}, ("ok",) * 2)
    (factor,) = table.align(["[PAD]", "i"], min_group=0).factors
    assert factor.values == ("b", "Rest")
    assert factor.values[factor.other] == "Rest"


def slow_roll_up(spec, sets, least):
    """The rule read aloud: again and again, the narrowest value that is too small goes up."""
    parents = {value.name: value.parent for value in spec.values}

    def depth(name):
        return 0 if parents[name] is None else 1 + depth(parents[name])

    sets = [set(values) for values in sets]
    for name in sorted(parents, key=depth, reverse=True):
        if name != spec.other and sum(name in values for values in sets) < least:
            target = parents[name] or spec.other
            for values in sets:
                if name in values:
                    values.remove(name)
                    if target is not None:
                        values.add(target)
    return sets


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_rolling_up_equals_the_rule_read_aloud(data):
    count = data.draw(st.integers(1, 7))
    names = [f"v{i}" for i in range(count)]
    other = data.draw(st.sampled_from([None, "v0"]))
    values = []
    for i, name in enumerate(names):
        parent = data.draw(st.sampled_from([None, *names[:i]])) if i else None
        values.append(Value(name=name, parent=parent))
    values = data.draw(st.permutations(values))
    spec = FactorSpec(name="f", multi=True, other=other, values=values)
    sets = data.draw(st.lists(st.sets(st.sampled_from(names), max_size=3), min_size=1, max_size=25))
    least = data.draw(st.integers(0, 8))
    tokens = tuple(f"i{n}" for n in range(len(sets)))
    table = FactorTable(FactorSchema(factors=(spec,)), tokens, {"f": tuple(map(tuple, sets))}, ("ok",) * len(sets))
    hosts = ["[PAD]", *data.draw(st.lists(st.sampled_from(tokens), min_size=1, unique=True)), "nobody"]
    profiles = table.align(hosts, min_group=least)
    truth = dict(zip(tokens, slow_roll_up(spec, sets, least), strict=True))
    for row, token in enumerate(hosts):
        assert profile_of(profiles, row)["f"] == truth.get(token, set())


def one_factor(column, **options):
    names = sorted({name for values in column for name in values})
    spec = FactorSpec(name="f", values=tuple(Value(name=name) for name in names), **options)
    tokens = tuple(f"i{n}" for n in range(len(column)))
    return FactorTable(FactorSchema(factors=(spec,)), tokens, {"f": tuple(column)}, ("ok",) * len(column))


def test_by_default_a_group_has_five_items_or_a_thousandth_of_the_table():
    few = one_factor([("a",)] * 5 + [("b",)] * 4)
    assert few.align(["[PAD]", *few.tokens]).factors[0].values == ("a",)
    many = one_factor([("a",)] * 5990 + [("b",)] * 5 + [("c",)] * 6 + [()] * 4)  # a thousandth: 6.005
    assert many.align(["[PAD]", *many.tokens]).factors[0].values == ("a",)
    assert many.align(["[PAD]", *many.tokens], min_group=6).factors[0].values == ("a", "c")
    assert many.align(["[PAD]", *many.tokens], min_group=0).factors[0].values == ("a", "b", "c")
    told(lambda: many.align(["[PAD]", "i0"], min_group=-1), "min_group=-1")


def test_an_item_has_the_same_profile_in_every_dataset():
    table = one_factor([("a",)] * 6 + [("b",)] * 3 + [("c",)] * 6)
    assert profile_of(table.align(["[PAD]", "i0", "i8"]), 1)["f"] == {"a"}
    assert profile_of(table.align(["[PAD]", "i8"]), 1)["f"] == set()


def tree(column, *, names=("tool", "saw", "hacksaw", "toy", "rest"), other="rest"):
    """Items of one factor, in which a hacksaw is a saw and a saw is a tool."""
    parents = {"saw": "tool", "hacksaw": "saw"}
    spec = FactorSpec(
        name="kind", multi=True, other=other, values=tuple(Value(name=n, parent=parents.get(n)) for n in names)
    )
    tokens = tuple(f"i{n}" for n in range(len(column)))
    return FactorTable(FactorSchema(factors=(spec,)), tokens, {"kind": tuple(column)}, ("ok",) * len(column))


@pytest.mark.parametrize("other", ["rest", None])
def test_given_factors_stay_and_what_they_lack_goes_up(other):
    given = (Factor("kind", ("rest", "saw"), source="catalogue", other=0 if other else None),)
    column = [("saw",), ("hacksaw",), ("tool",), ("toy",), (), ("hacksaw", "saw"), ("rest",)]
    table = tree(column, other=other)
    profiles = table.align(["[PAD]", "missing", *table.tokens], factors=given)
    assert profiles.factors == given
    lost = {"rest"} if other else set()
    truth = [set(), {"saw"}, {"saw"}, lost, lost, set(), {"saw"}, {"rest"}]
    assert [profile_of(profiles, row)["kind"] for row in range(1, 9)] == truth


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 4), st.data())
def test_under_its_own_factors_a_table_is_what_it_was(table, least, data):
    if not table.tokens:
        return
    hosts = ["[PAD]", *data.draw(st.permutations(table.tokens))]
    own = table.align(hosts, min_group=least)
    known = [k for k, some in enumerate(own.known.any(dim=0).tolist()) if some]
    chosen = [own.factors[k] for k in data.draw(st.permutations(known))]
    if not chosen:
        return
    again = table.align(hosts, factors=chosen)
    assert again.factors == tuple(chosen)
    for row in range(1, len(hosts)):
        mine = profile_of(own, row)
        assert profile_of(again, row) == {factor.name: mine[factor.name] for factor in chosen}


def test_given_factors_know_their_values_after_a_rename_and_a_merge():
    given = (Factor("f", ("a", "b", "c")),)
    values = (Value(name="B!", aliases=("b",)), Value(name="c", aliases=("a",)), Value(name="d"))
    spec = FactorSpec(name="g", aliases=("f",), values=values)
    table = FactorTable(FactorSchema(factors=(spec,)), ("i", "j", "k"), {"g": (("B!",), ("c",), ("d",))}, ("ok",) * 3)
    profiles = table.align(["[PAD]", "i", "j", "k"], factors=given)
    assert profiles.factors == given
    assert profiles.labels()[:, 0].tolist() == [-1, 1, 0, -1]


def test_given_factors_that_the_table_lacks_are_refused():
    told(lambda: small().align(["[PAD]", "a1"], factors=[Factor("materiel", ("x",))]), "materiel", "material")
    told(lambda: small().align(["[PAD]", "a1"], factors=[Factor("use", ("cut",))], min_group=3), "min_group=3")


def test_a_saved_table_takes_new_items_to_a_trained_module(tmp_path):
    """New items have fewer values, in another table, and one that training did not know."""
    tree([("toy",)] * 3 + [("tool",)] * 2 + [("saw", "toy")]).save(tmp_path / "old.factors.json")
    tree([("hacksaw",), (), ("toy",)], names=("toy", "tool", "saw", "hacksaw", "rest")).save(
        tmp_path / "new.factors.json"
    )
    old, new = (FactorTable.load(tmp_path / f"{name}.factors.json") for name in ("old", "new"))
    trained = old.align(["[PAD]", *old.tokens], min_group=0)
    mars = MarsTable(settings=MarsSettings(structure="none"), profiles=trained, n_rows=7, width=4)
    rows = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    profiles = new.align(["[PAD]", *new.tokens], factors=mars.profiles.factors)
    vectors, routes = mars.unseen(rows, profiles)
    assert routes == ["factors", "global mean", "factors"]
    toys, saws = rows[[1, 2, 3, 6]].mean(dim=0), rows[6]
    for vector, group in ((vectors[0], saws), (vectors[2], toys)):
        assert float(torch.cosine_similarity(vector, group, dim=0)) == pytest.approx(1.0, abs=1e-6)
    own = new.align(["[PAD]", *new.tokens], min_group=0)
    told(lambda: mars.unseen(rows, own), "factors=mars.profiles.factors")


def test_a_value_that_nearly_all_items_share_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "recplug"):
        one_factor([("a",)] * 8 + [("b",)] * 2 + [()] * 90).align(
            ["[PAD]", *(f"i{n}" for n in range(100))], min_group=0
        )
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "recplug"):
        one_factor([("a",)] * 9 + [("b",)] * 2 + [()] * 89).align(
            ["[PAD]", *(f"i{n}" for n in range(100))], min_group=0
        )
    assert "82 %" in caplog.text
    assert "'a'" in caplog.text


def test_aligning_makes_cpu_tensors_under_any_default_device():
    with torch.device("meta"):
        assert small().align(["[PAD]", "a1"], min_group=0).values.device.type == "cpu"


def test_coverage_counts_both_sides():
    coverage = small().coverage(["[PAD]", "a1", "x", "c3", "y"])
    assert (coverage.factors, coverage.items, coverage.covered, coverage.unused) == (2, 4, 2, 2)
    assert str(coverage) == "2 factors: 2 of 4 items have a profile (50.0 %), 2 table rows unused"
    bare = FactorTable(small_schema(), ("a", "b"), {"use": ((), ()), "material": ((), ("steel",))}, ("ok",) * 2)
    assert bare.coverage(["[PAD]", "a", "b"]).covered == 1


def test_no_overlap_is_refused():
    for ask in (small().align, small().coverage):
        told(lambda ask=ask: ask(["[PAD]", "0", "1"]), "none of the dataset's 2 items", "'b7'", "'0'")
        told(lambda ask=ask: ask(["[PAD]"]), "none")
        told(lambda ask=ask: ask(["a1", "b7"]), "[PAD]")
        told(lambda ask=ask: ask([]), "[PAD]")


def edited(path, change):
    """What a person does to the JSON."""
    raw = json.loads(path.read_text("utf-8"))
    change(raw)
    path.write_text(json.dumps(raw, ensure_ascii=False), "utf-8")
    return FactorTable.load(path)


def rename(old, new):
    def change(raw):
        for factor in raw["factors"]:
            for value in factor["values"]:
                if value["name"] == old:
                    value["name"] = new
                    value["aliases"].append(old)

    return change


def merge(gone, into):
    def change(raw):
        for factor in raw["factors"]:
            named = {value["name"]: value for value in factor["values"]}
            if gone in named and into in named:
                named[into]["aliases"] += [gone, *named[gone]["aliases"]]
                factor["values"].remove(named[gone])

    return change


def drop(gone):
    def change(raw):
        for factor in raw["factors"]:
            for value in list(factor["values"]):
                if value["name"] == gone:
                    factor["values"].remove(value)
                    raw["dropped"].setdefault(factor["name"], []).extend([gone, *value["aliases"]])

    return change


def after(*changes):
    def change(raw):
        for one in changes:
            one(raw)

    return change


@pytest.mark.parametrize(
    ("change", "material"),
    [
        (rename("steel", "metal"), [("metal",), ("木",), (), ("glass",)]),
        (merge("glass", "steel"), [("steel",), ("木",), (), ("steel",)]),
        (drop("steel"), [(), ("木",), (), ("glass",)]),
        (after(merge("glass", "steel"), rename("steel", "hard")), [("hard",), ("木",), (), ("hard",)]),
        (after(rename("glass", "g"), merge("g", "steel"), drop("木")), [("steel",), (), (), ("steel",)]),
        (after(rename("steel", "x"), rename("glass", "steel2"), drop("x")), [(), ("木",), (), ("steel2",)]),
    ],
)
def test_edits_by_hand_give_the_right_profiles_without_a_call(tmp_path, change, material):
    path = tmp_path / "d.factors.json"
    small().save(path)
    table = edited(path, change)
    assert list(table.values["material"]) == material
    assert table.values["use"] == small().values["use"]
    # Written again, the labels use today's words, and nothing changes any more.
    table.save(path)
    assert same(FactorTable.load(path), table)


@given(st.permutations(["steel", "木", "glass"]), st.sampled_from(["hard", "STEEL-木", "ß"]))
def test_merge_then_rename_is_rename_then_merge(tmp_path_factory, names, new):
    gone, into, _ = names
    found = []
    for change in (after(merge(gone, into), rename(into, new)), after(rename(into, new), merge(gone, new))):
        path = tmp_path_factory.mktemp("e") / "d.factors.json"
        small().save(path)
        table = edited(path, change)
        found.append((table.values, table.schema.factors[0].names))
    assert found[0] == found[1]


def test_values_merged_in_a_single_valued_factor_stay_single():
    spec = FactorSpec(name="f", values=(Value(name="a", aliases=("b",)),))
    table = FactorTable(FactorSchema(factors=(spec,)), ("i",), {"f": (("a", "B"),)}, ("ok",))
    assert table.values["f"] == (("a",),)


def test_a_factor_is_renamed_and_dropped_by_hand(tmp_path):
    path = tmp_path / "d.factors.json"
    small().save(path)

    def change(raw):
        raw["factors"][0] |= {"name": "stuff", "aliases": ["material"]}
        del raw["factors"][1]
        raw["dropped"]["use"] = []

    assert edited(path, change).values == {"stuff": small().values["material"]}


def unlisted(raw):
    del raw["factors"][0]["values"][0]


def renamed_factor(raw):
    raw["factors"][0]["name"] = "materials"


def forgotten_factor(raw):
    del raw["factors"][1]


def new_factor(raw):
    raw["factors"].append({"name": "colour", "values": [{"name": "red"}]})


def made_single(raw):
    raw["factors"][1]["multi"] = False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unlisted, ["'b7'", "material 'steel'", "dropped"]),
        (rename("glass", "glas"), []),
        (renamed_factor, ["'material'", "did you mean 'materials'"]),
        (forgotten_factor, ["'use'", "dropped"]),
        (new_factor, ["no column of factor 'colour'"]),
        (made_single, ["'b7' has 2 values of use", "multi"]),
    ],
)
def test_an_edit_that_leaves_labels_without_meaning_is_refused(tmp_path, change, words):
    path = tmp_path / "d.factors.json"
    small().save(path)
    if words:
        told(lambda: edited(path, change), str(tmp_path / "d.factors.parquet"), *words)
    else:
        edited(path, change)


def test_a_word_that_the_schema_lacks_names_the_nearest():
    told(
        lambda: FactorTable(small_schema(), ("i",), {"material": (("steell",),), "use": ((),)}, ("ok",)),
        "'i'",
        "'steell'",
        "did you mean 'steel'",
    )


def broken(tokens=("a", "b"), material=((), ()), use=((), ()), status=("ok", "ok"), metadata=None, content=()):
    values = {"material": material, "use": use}
    return lambda: FactorTable(small_schema(), tokens, values, status, metadata or {}, content)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (broken(tokens=("a", "a")), ["more than once", "'a'"]),
        (broken(tokens=("a", "")), ["row 1 is empty"]),
        (broken(tokens=("a", "b\n")), ["control"]),
        (broken(material=((),)), ["2 items but 1 entries of factor 'material'"]),
        (broken(material=(("steel", "glass"), ())), ["'a' has 2 values of material"]),
        (broken(status=("ok",)), ["2 items but 1 statuses"]),
        (broken(status=("ok", "good")), ["'good'"]),
        (broken(content=("1",)), ["1 content digests"]),
        (broken(metadata={"sha256": "x"}), ["'sha256'"]),
        (broken(metadata={"model": 3}), ["'model'"]),
    ],
)
def test_a_malformed_table_is_refused_in_one_line(action, words):
    told(action, "factor table" if "values of" not in words[0] else "item", *words)


def rewritten(path, change=None, **metadata):
    table = pq.read_table(path)
    table = change(table) if change else table
    kept = {**(pq.read_table(path).schema.metadata or {}), **{f"recplug.{k}".encode(): v for k, v in metadata.items()}}
    pq.write_table(table.replace_schema_metadata(kept), path)


def with_column(name, values, kind=None):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values, kind))


@pytest.mark.parametrize(
    ("change", "metadata", "word"),
    [
        (None, {"format": b"recplug.factors/9"}, "does not hold factor labels"),
        (None, {"sha256": b"0"}, "does not match"),
        (with_column("material", ["木", "steel", None, "glass"]), {}, "do not match"),
        (with_column("material", [1, 2, 3, 4]), {}, "'material' is not all text"),
        (with_column("item_id", ["a", "b", "c", "d"]), {}, "do not match"),
        (with_column("item_id", ["a", "b", "c", None]), {}, "'item_id'"),
        (with_column("item_id", [1, 2, 3, 4]), {}, "'item_id'"),
        (with_column("status", ["ok"] * 4), {}, "do not match"),
        (with_column("use", [["cut"], [], [None], []], pa.list_(pa.string())), {}, "do not match"),
        (lambda table: table.drop_columns(["status"]), {}, "status"),
        (lambda table: table.drop_columns(["use"]), {}, "do not match"),
        (lambda table: table.slice(0, 3), {}, "do not match"),
    ],
)
def test_altered_labels_are_refused_in_one_line(tmp_path, change, metadata, word):
    small().save(tmp_path / "d.factors.json")
    labels = tmp_path / "d.factors.parquet"
    rewritten(labels, change, **metadata)
    line = told(lambda: FactorTable.load(tmp_path / "d.factors.json"), str(labels))
    assert word.replace("does not match", "do not match") in line


def test_truncated_empty_foreign_and_missing_labels_are_refused_in_one_line(tmp_path):
    path, labels = tmp_path / "d.factors.json", tmp_path / "d.factors.parquet"
    small().save(path)
    whole = labels.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        labels.write_bytes(whole[:length])
        told(lambda: FactorTable.load(path), str(labels), "truncated or corrupt")
    pq.write_table(pa.table({"item_id": ["a"], "status": ["ok"]}), labels)
    told(lambda: FactorTable.load(path), "does not hold factor labels", "recplug factors import")
    labels.unlink()
    told(lambda: FactorTable.load(path), "no labels", "recplug factors import")
    told(lambda: FactorTable.load(labels), ".json")
    told(lambda: small().save(tmp_path / "x.txt"), ".json")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_noticed_or_changes_nothing(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("f") / "d.factors.json"
    small().save(path)
    labels = path.with_suffix(".parquet")
    raw = bytearray(labels.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    labels.write_bytes(raw)
    try:
        table = FactorTable.load(path)
    except RecplugError:
        return
    assert (table.tokens, table.values, table.status) == (small().tokens, small().values, small().status)
