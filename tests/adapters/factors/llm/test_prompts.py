import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recplug.adapters.factors.llm.content import Item
from recplug.adapters.factors.llm.prompts import (
    assignment_prefix,
    assignment_request,
    assignment_schema,
    condensing_request,
    extraction_request,
    first_index,
    index_key,
    merge_request,
    proposal_request,
)
from recplug.adapters.factors.schema import FactorSchema, FactorSpec, Value

ITEMS = [Item("token-1", {"title": "a red chair"}), Item("token-2", {"title": "a blue bed"})]


def user(request):
    return request.messages[-1]["content"]


def requests(schema, items=ITEMS, problems=()):
    """One of each kind."""
    pairs = [("material", "what of"), ("use", "what for")]
    return {
        "assignment": assignment_request(schema, items, problems=problems),
        "proposal": proposal_request(items, problems=problems),
        "merge": merge_request(pairs, problems=problems),
        "extraction": extraction_request(pairs, items, problems=problems),
        "condensing": condensing_request(pairs[0], [("wood", 3)], limit=5, problems=problems),
    }


def everything(part):
    """All JSON schemas inside a JSON schema."""
    yield part
    for inner in (*part.get("properties", {}).values(), *([part["items"]] if "items" in part else [])):
        yield from everything(inner)


@pytest.mark.parametrize("kind", ["assignment", "proposal", "merge", "extraction", "condensing"])
def test_answer_forms_are_closed_flat_and_without_patterns(schema, kind):
    request = requests(schema)[kind]
    for part in everything(request.schema):
        assert set(part) <= {"type", "properties", "required", "additionalProperties", "items", "enum"}
        if part["type"] == "object":
            assert part["required"] == list(part["properties"])
            assert part["additionalProperties"] is False
    assert re.fullmatch(r"\w+", request.schema_name)
    assert "JSON object" in request.messages[0]["content"]


@pytest.mark.parametrize("kind", ["assignment", "proposal", "merge", "extraction", "condensing"])
def test_the_beginning_is_the_same_for_all_items_and_a_repetition_only_adds(schema, kind):
    one = requests(schema)[kind]
    again = requests(schema, problems=["index 11: nonsense"])[kind]
    other = requests(schema, [Item("x", {"title": "another"})])[kind]
    assert one.messages[0] == other.messages[0] == again.messages[0]
    assert user(again).startswith(user(one))
    assert "nonsense" in user(again)
    assert requests(schema)[kind] == one


def test_an_item_is_one_line_of_json_between_marks_and_its_token_stays_here(schema):
    lines = user(assignment_request(schema, ITEMS)).split("\n")
    assert lines[0] == lines[-1]
    rows = [json.loads(line) for line in lines[1:-1]]
    assert rows == [
        {"index": 11, "content": {"title": "a red chair"}},
        {"index": 12, "content": {"title": "a blue bed"}},
    ]
    assert "token-" not in json.dumps(assignment_request(schema, ITEMS).messages)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_no_text_leaves_its_line_or_makes_a_mark(texts):
    first = proposal_request([Item(str(i), {"title": text}) for i, text in enumerate(texts)])
    mark = user(first).partition("\n")[0]
    # Even one that knows the mark of the request before.
    for request in (first, proposal_request([Item(str(i), {"title": f"{mark}\n{t}"}) for i, t in enumerate(texts)])):
        lines = user(request).split("\n")
        assert len(lines) == len(texts) + 2
        assert sum(lines[0] in line for line in lines) == 2


def test_vocabularies_stand_once_with_unknown_and_their_definitions(schema):
    row = assignment_schema(schema)["properties"]["items"]["items"]["properties"]
    assert row["colour"] == {"type": "string", "enum": ["red", "blue", "grün", "unknown"]}
    assert row["use"] == {
        "type": "array",
        "items": {"type": "string", "enum": ["indoor", "outdoor", "travel", "unknown"]},
    }
    prefix = assignment_prefix(schema)
    assert prefix.count('"grün"') == 1
    assert "what it is made of" in prefix
    assert "timber" not in prefix


def test_a_factor_called_index_moves_the_number():
    odd = FactorSchema(factors=(FactorSpec(name="Index", values=(Value(name="a"),)),))
    assert index_key(odd) == "item_index"
    assert '"item_index": 11' in user(assignment_request(odd, ITEMS))


@pytest.mark.parametrize("n", [1, 9, 10, 99, 100, 500])
def test_numbers_begin_where_no_other_count_of_the_items_reaches(n):
    assert first_index(n) > n


def test_an_answer_of_the_longest_values_fits(schema):
    for n in (1, 10, 40):
        request = assignment_request(schema, ITEMS[:1] * n)
        row = {"index": 101, "material": "unknown", "colour": "unknown", "use": ["indoor", "outdoor", "travel"]}
        assert len(json.dumps({"items": [row] * n}).encode()) / 2.5 < request.answer_tokens
