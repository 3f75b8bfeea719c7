"""Presets, and settings that nothing reads."""

import logging
from dataclasses import replace

import pytest

from recplug.plugins import NONZERO, Plugin, PluginSettings, Preset, Requirements, setting
from recplug.plugins.errors import RecplugError
from recplug.plugins.presets import expand, presets, settings_of
from recplug.plugins.registry import validate
from recplug.plugins.settings import conditions, idle


class Settings(PluginSettings):
    fusion: str = setting("sum", "How.", search=["sum", "cp"])
    rank: int = setting(4, "Of cp.", when={"fusion": ("cp", "tucker")}, search=[2, 4])
    weight: float = setting(0.0, "Of a loss.")
    temperature: float = setting(0.5, "Of that loss.", when={"weight": NONZERO})
    window: int = setting(3, "Of histories.", when={"family": "sequential"})


PLUGIN = Plugin(
    name="toy",
    summary="a toy",
    paper="none",
    settings=Settings,
    requirements=lambda settings: Requirements(seams=frozenset({"items"})),
    build=lambda settings, context: None,
    identity={"weight": 0.0},
    presets={"paper": Preset("As printed.", {"fusion": "cp", "rank": 8}, {"n_layers": 3}, was=("literal",))},
)


def test_a_preset_stands_for_its_values_and_what_is_given_wins():
    assert expand(PLUGIN, {"preset": "paper", "rank": 2}) == ({"fusion": "cp", "rank": 2}, {"n_layers": 3})
    assert settings_of(PLUGIN, {"preset": "recplug"}) == Settings()
    assert settings_of(PLUGIN, {"preset": "paper"}).rank == 8
    assert list(presets(PLUGIN)) == ["recplug", "paper"]


def test_an_earlier_name_works_with_a_note(caplog):
    caplog.set_level(logging.INFO)
    assert settings_of(PLUGIN, {"preset": "literal"}) == settings_of(PLUGIN, {"preset": "paper"})
    assert "'literal' is called 'paper' now" in caplog.text


def test_an_unknown_preset_is_one_line_with_the_nearest():
    with pytest.raises(RecplugError, match=r"no preset 'papr'.*paper"):
        settings_of(PLUGIN, {"preset": "papr"})


@pytest.mark.parametrize("part", ["presets", "ablations", "mechanisms"])
def test_what_a_plugin_declares_are_settings_that_it_has(part):
    wrong = {"x": Preset("?", {"rnk": 1}) if part == "presets" else {"rnk": 1}}
    with pytest.raises(RecplugError, match="rnk"):
        validate(replace(PLUGIN, **{part: wrong}))


def test_a_setting_that_nothing_reads_is_known_with_its_condition():
    assert idle(Settings()) == {"rank": "fusion is cp or tucker", "temperature": "weight is not 0"}
    assert idle(Settings(fusion="cp", weight=0.1)) == {}
    assert idle(Settings(fusion="cp", weight=0.1), family="graph") == {"window": "family is sequential"}
    assert idle(Settings(), free={"fusion"}) == {"temperature": "weight is not 0"}
    fields = Settings.model_fields
    assert conditions(fields["rank"]) == "fusion is cp or tucker"
    assert conditions(fields["fusion"]) == ""
