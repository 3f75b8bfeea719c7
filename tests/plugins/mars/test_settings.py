"""Presets and the checks between settings."""

import pytest

from recplug.plugins.errors import RecplugError
from recplug.plugins.mars.settings import PRESETS, MarsSettings
from recplug.plugins.settings import parse_settings


def test_no_preset_is_the_preset_plugin():
    assert MarsSettings().model_dump() == MarsSettings(preset="plugin").model_dump()


@pytest.mark.parametrize(("preset", "join"), [("plugin", "add"), ("paper_literal", "replace"), ("paper_mmrec", "add")])
def test_a_preset_says_what_the_user_does_not(preset, join):
    settings = MarsSettings(preset=preset)
    said = (settings.x, settings.gate_over, settings.strength, settings.semantic_on, settings.content_scale)
    paper = ("ids_content", "all", "mean", "fused", 1.0)
    assert said == (("ids", "factors", "auto", "base", 0.1) if preset == "plugin" else paper)
    assert settings.join == join
    said = {"preset", *PRESETS[preset]}
    assert settings.model_dump(exclude=said) == MarsSettings().model_dump(exclude=said)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_explicit_values_win_over_a_preset(preset):
    given = {"join": "residual", "semantic_on": "output", "content_scale": 0.25, "gate_over": "factors", "x": "ids"}
    settings = MarsSettings(preset=preset, **given)
    assert {name: getattr(settings, name) for name in given} == given


def test_every_preset_names_settings():
    for values in PRESETS.values():
        assert values.keys() <= MarsSettings.model_fields.keys()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lamda_view": 0.1}, "lambda_view"),
        ({"presets": "plugin"}, "preset"),
        ({"preset": "paper"}, "paper_literal"),
        ({"preset": ["paper_literal"]}, "preset"),
        ({"pool": "groups"}, "group"),
        ({"lambda_semantic": -1.0}, "lambda_semantic"),
        ({"neighbours": 1}, "neighbours"),
        ({"length": "l2", "join": "residual"}, "join"),
        ({"length": "layernorm", "join": "residual", "preset": "paper_mmrec"}, "join"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_in_one_line(values, said):
    with pytest.raises(RecplugError, match=said) as caught:
        parse_settings("mars", MarsSettings, values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("join", ["add", "replace"])
@pytest.mark.parametrize("length", ["none", "l2", "layernorm"])
def test_a_length_goes_with_what_is_added_as_it_is(join, length):
    assert MarsSettings(join=join, length=length).length == length


def test_content_sources_are_typed_as_people_do():
    assert MarsSettings(modalities="image,text").modalities == ("image", "text")
    assert MarsSettings(modalities="").modalities == ()
    assert MarsSettings().modalities is None
