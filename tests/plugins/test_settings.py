from typing import Literal, get_args, get_origin

import pytest

from recplug.plugins import PluginSettings, Range, RecplugError, available, setting
from recplug.plugins.settings import parse_settings


class Inner(PluginSettings):
    depth: int = setting(1, "How deep.", ge=1)


class Mine(PluginSettings):
    lambda_synergy: float = setting(0.1, "A weight.", paper="λ, eq. (9)", search=Range(0.01, 1.0, log=True), ge=0, le=2)
    weights: float | dict[str, float] = setting(1.0, "One weight, or one for each.")
    inner: Inner = setting(Inner(), "Nested settings.")


def refused(**values):
    with pytest.raises(RecplugError) as caught:
        parse_settings("mine", Mine, values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_and_given_values():
    assert parse_settings("mine", Mine, {}).lambda_synergy == 0.1
    parsed = parse_settings("mine", Mine, {"lambda_synergy": "0.5", "weights": {"image": 2}, "inner": {"depth": 3}})
    assert parsed.lambda_synergy == 0.5
    assert parsed.weights == {"image": 2.0}
    assert parsed.inner.depth == 3


def test_an_unknown_key_names_the_nearest():
    assert refused(lamda_synergy=1) == "mine has no setting 'lamda_synergy'; did you mean 'lambda_synergy'?"


def test_a_key_unlike_any_lists_all():
    assert refused(zzz=1) == "mine has no setting 'zzz'; it has: lambda_synergy, weights, inner"


@pytest.mark.parametrize("value", [-0.1, 2.1, float("inf"), float("nan"), "much"])
def test_a_value_out_of_range_is_quoted(value):
    message = refused(lambda_synergy=value)
    assert message.startswith("mine.lambda_synergy=")
    assert repr(value) in message


def test_nested_keys_are_named_in_full():
    assert "inner.depth" in refused(inner={"depth": 0})
    assert "inner.dept" in refused(inner={"dept": 2})
    assert "weights" in refused(weights={"image": "heavy"})


def test_a_key_that_is_no_word_is_refused():
    with pytest.raises(RecplugError, match="1"):
        parse_settings("mine", Mine, {1: 2})


class Choice(PluginSettings):
    kind: Literal["some", "none"] = setting("some", "A choice.")
    limit: int | None = setting(3, "A number, or none.")


def test_the_word_none_is_a_choice_where_it_is_one_although_configurations_read_it_as_nothing():
    for given in (None, "none"):
        assert parse_settings("mine", Choice, {"kind": given}).kind == "none"
    assert parse_settings("mine", Choice, {"limit": None}).limit is None


@pytest.mark.parametrize("plugin", [*available().values()], ids=lambda plugin: plugin.name)
def test_no_choice_called_none_is_lost(plugin):
    names = [
        name
        for name, field in plugin.settings.model_fields.items()
        if get_origin(field.annotation) is Literal and "none" in get_args(field.annotation)
    ]
    parsed = parse_settings(plugin.name, plugin.settings, dict.fromkeys(names))
    assert [getattr(parsed, name) for name in names] == ["none"] * len(names)


class Several(PluginSettings):
    names: tuple[str, ...] | None = setting(None, "Which.")
    edges: Literal["rule"] | tuple[float, ...] = setting("rule", "Where.")


@pytest.mark.parametrize("typed", ["image,text", "[image, text]", "('image','text')", ["image", "text"]])
def test_several_values_may_be_typed_plainly(typed):
    assert parse_settings("mine", Several, {"names": typed}).names == ("image", "text")


def test_one_value_stands_for_itself():
    assert parse_settings("mine", Several, {"names": "image"}).names == ("image",)
    assert parse_settings("mine", Several, {"edges": 0.7}).edges == (0.7,)
    assert parse_settings("mine", Several, {"edges": "0.7,1"}).edges == (0.7, 1.0)
    assert parse_settings("mine", Several, {"edges": "rule"}).edges == "rule"
    assert parse_settings("mine", Several, {"names": None}).names is None


@pytest.mark.parametrize("wrong", ["ruel", True, "0.3,nan"])
def test_an_error_names_the_setting_and_not_pydantics_branch(wrong):
    with pytest.raises(RecplugError, match=r"^mine\.edges(\.\d)?=.*: Input should be"):
        parse_settings("mine", Several, {"edges": wrong})


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse_settings("mine", Mine, {}).lambda_synergy = 1.0


def test_paper_and_search_reach_the_schema():
    found = Mine.model_json_schema()["properties"]["lambda_synergy"]
    assert found["paper"] == "λ, eq. (9)"
    assert found["search"] == {"low": 0.01, "high": 1.0, "log": True}


@pytest.mark.parametrize("name", available())
def test_every_setting_of_every_plugin_is_documented(name):
    model = available()[name].settings
    for key, described in model.model_json_schema()["properties"].items():
        assert described["description"].endswith("."), key
        assert described["paper"], key
